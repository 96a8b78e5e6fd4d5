"""csm train: output lines, paths, exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from helpers.run import Result
from helpers.training import examples, store
from safetensors.torch import load_file

from csm_cli.cli.train import TrainingReporter
from csm_cli.train.run import StepDone

Run = Callable[..., Result]


@pytest.fixture
def config(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    data = store(tmp_path / "my data", tiny_checkpoint, *examples())
    settings = {"data": str(data), "output": str(tmp_path / "my run"), "model": str(tiny_checkpoint)}
    settings |= {"steps": 4, "batch_tokens": 100, "evaluate_every": 2, "lora": {"rank": 2}}
    path = tmp_path / "my config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_run_reports_progress_and_prints_its_folder(csm: Run, config: Path, tmp_path: Path) -> None:
    result = csm("train", config, "--device", "cpu")
    assert (result.code, result.out) == (0, f"{tmp_path / 'my run' / 'best'}\n")
    assert "12 examples; 2 held out" in result.err
    assert "step 1 of 4: backbone" in result.err and "tokens/s" in result.err
    assert "step 2: held-out loss" in result.err and "by codebook" in result.err
    again = csm("train", config, "--device", "cpu", "-q")
    assert (again.code, again.out) == (0, result.out)
    assert "4 steps" in csm("train", config, "--device", "cpu").err
    spoken = csm("say", "Hi.", "--model", yaml.safe_load(config.read_text())["model"], "--adapter", result.out.strip())
    assert spoken.code == 2 and "output" in spoken.err  # the adapter was accepted


def test_interrupted_run_is_saved(csm: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = TrainingReporter.report

    def interrupting(self: TrainingReporter, event: object) -> None:
        report(self, event)  # type: ignore[arg-type]
        if isinstance(event, StepDone) and event.step == 1:
            for _ in range(2):  # the terminal's, and the same again from a launcher
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingReporter, "report", interrupting)
    result = csm("train", config, "--device", "cpu")
    assert result.code == 130 and "step 2" in result.err
    assert result.err.count("again to stop at once") == 1
    assert (tmp_path / "my run" / "last" / "adapter_config.json").exists()
    monkeypatch.undo()
    assert "resuming after step 2" in csm("train", config, "--device", "cpu").err


def test_failures_are_one_line(csm: Run, config: Path, tmp_path: Path) -> None:
    assert csm("train", tmp_path / "no.yaml").code == 3
    text = config.read_text()
    config.write_text(text.replace("my data", "no data"))
    result = csm("train", config)
    assert result.code == 3 and "csm data prepare" in result.err and "loading" not in result.err
    config.write_text(text + "model_: x\n")
    assert "did you mean" in csm("train", config).err


@pytest.mark.parametrize("missing", ["accelerate", "peft"])
def test_missing_library_is_reported_before_loading(
    csm: Run, config: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    result = csm("train", config)
    assert result.code == 2 and f"needs {missing}" in result.err and "csm-cli[train]" in result.err
    assert "loading" not in result.err


def test_config_toml_and_flags_fill_in_the_model(
    csm: Run, config: Path, tmp_path: Path, home: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("".join(line for line in config.open() if not line.startswith("model")))
    assert csm("train", config, "--device", "cpu", "-q").code == 3  # the bundled voice's codec is another
    monkeypatch.chdir(tmp_path)
    (home / "config.toml").write_text(f'model = "{tiny_checkpoint}"\n')
    (tmp_path / "csm.toml").write_text('dtype = "bfloat16"\n')
    trained = csm("train", config, "--device", "cpu", "-q")
    assert trained.code == 0
    assert csm("export", "--adapter", trained.out.strip(), "-o", "merged", "-q").code == 0
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert weights["lm_head.weight"].dtype == torch.float32
    assert weights["lm_head.weight"].shape == load_file(tiny_checkpoint / "model.safetensors")["lm_head.weight"].shape


@pytest.mark.parametrize("command", ["train", "data", "export"])
def test_offline_makes_no_requests(csm: Run, config: Path, tmp_path: Path, tone: Path, command: str) -> None:
    settings = yaml.safe_load(config.read_text()) | {"model": "nobody/nothing"}
    config.write_text(yaml.safe_dump(settings))
    (tmp_path / "rows.jsonl").write_text('{"audio_filepath": "tone.wav", "text": "Hi."}\n')
    result = {
        "train": lambda: csm("train", config, "--device", "cpu", "--offline"),
        "data": lambda: csm(
            "data", "prepare", tmp_path / "rows.jsonl", "-o", tmp_path / "d", "--model", "nobody/nothing", "--offline"
        ),
        "export": lambda: csm("export", "nobody/nothing", "-o", tmp_path / "e", "--offline"),
    }[command]()
    assert result.code == 4 and "nobody/nothing" in result.err.splitlines()[-1]


def test_device_names_and_sources(csm: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = csm("train", config, "--device", "cuda:99")
    assert absent.code == 6 and 'no device "cuda:99"' in absent.err
    monkeypatch.chdir(tmp_path)
    (tmp_path / "csm.toml").write_text('device = "cuda:98"\n')
    assert csm("train", config).code == 6
    monkeypatch.setenv("CSM_DEVICE", "gpu")
    unknown = csm("train", config)
    assert unknown.code == 2 and "not 'gpu'" in unknown.err
    assert csm("train", config, "--device", "cpu", "-q").code == 0


def test_explicit_model_wins_over_the_config(csm: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSM_MODEL", "nobody/from-environment")
    named = csm("train", config, "--device", "cpu", "--offline", "--model", "nobody/from-flag")
    assert named.code == 4 and "nobody/from-flag" in named.err
    config.write_text("".join(line for line in config.open() if not line.startswith("model")))
    unnamed = csm("train", config, "--device", "cpu", "--offline")
    assert unnamed.code == 4 and "nobody/from-environment" in unnamed.err
