"""What tests share: tiny random checkpoints on disk, sound files, and the command line called in this process."""

from __future__ import annotations

import ctypes.util
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tiny import AUDIO, AUDIO_EOS, BOS, EOS, Shape, random_csm
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CsmForConditionalGeneration

from csm_cli.cli import main
from csm_cli.engine.contention import ContentionMonitor
from csm_cli.models.csm.kernels import has_triton
from csm_cli.recipe.sentences import WORD_LIST

pytest_plugins = ["fakehub"]

TOKENS = {"<|begin_of_text|>": BOS, "<|end_of_text|>": EOS, "<|AUDIO|>": AUDIO, "<|audio_eos|>": AUDIO_EOS}


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and the special tokens after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(TOKENS))
    assert {token: tokenizer.token_to_id(token) for token in TOKENS} == TOKENS
    return tokenizer


def save_checkpoint(model: CsmForConditionalGeneration, folder: Path) -> Path:
    """A whole checkpoint in transformers format: greedy by default, so that tests repeat."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.codec_model.named_buffers():
        if name.endswith("embed_sum"):  # zero as transformers makes them: every code would sound the same
            buffer.normal_(generator=generator)
    model.save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    generation = {"do_sample": False, "depth_decoder_do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def lacking() -> dict[str, str]:
    """Markers whose tests need what is not here, and what that is."""
    needs = {
        "chromium": (bool(shutil.which("chromium")), "chromium is not installed"),
        "espeak": (
            bool(ctypes.util.find_library("espeak-ng")) and WORD_LIST.exists(),
            "espeak-ng or wamerican is not installed",
        ),
        "gpu": (torch.cuda.is_available(), "there is no CUDA device"),
        "triton": (
            has_triton() and (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"),
            "triton is not installed, or there is neither a CUDA device nor TRITON_INTERPRET=1",
        ),
    }
    return {marker: reason for marker, (there, reason) in needs.items() if not there}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Some tests need what using csm does not: espeak-ng for the voice's training, a browser for reports, a GPU."""
    for marker, reason in lacking().items():
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CSM of 8 codebooks; greedy, it ends no turn by itself."""
    return save_checkpoint(random_csm(Shape()), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def mute_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSM whose every code is 0, which ends each turn before its first frame."""
    model = random_csm(Shape())
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.depth_decoder.codebooks_head.weight.zero_()
    return save_checkpoint(model, tmp_path_factory.mktemp("mute"))


@dataclass(frozen=True)
class Result:
    """What one call of the command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for saved voices and configuration."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("CSM_HOME", str(folder))
    return folder


def allow_sigint() -> None:
    """`preexec_fn` of children that get SIGINT: those of a suite started in the background would ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def csm(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Calls `csm` with these arguments, without the caller's CSM_ variables; the log is as before afterwards.

    Voices and configuration are those of `home`.
    """
    monkeypatch.setattr(ContentionMonitor, "detected", False)  # whatever else runs on this machine
    log = logging.getLogger("csm_cli")
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(log, name, getattr(log, name))
    for name in [name for name in os.environ if name.startswith("CSM_") and name != "CSM_HOME"]:
        monkeypatch.delenv(name)

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A sounddevice whose only device keeps what is played: `chunks` at `rate`.

    missing: there is none; gate: sound waits for it, once it has `begun`; missing_on_write: it goes away.
    """
    played = SimpleNamespace(chunks=[], rate=None, missing=False, missing_on_write=False, begun=Event(), gate=None)

    class PortAudioError(Exception):
        pass

    def check() -> None:
        if played.missing:
            raise PortAudioError("Error querying device -1")

    class OutputStream:
        def __init__(self, samplerate: int, channels: int, dtype: str) -> None:
            check()
            assert (channels, dtype) == (1, "float32")
            played.rate = samplerate

        def write(self, samples: np.ndarray[Any, Any]) -> None:
            played.begun.set()
            if played.missing_on_write:
                raise PortAudioError("unplugged")
            if played.gate:
                played.gate.wait()
            assert samples.shape[1:] == (1,) and samples.dtype == np.float32
            played.chunks.append(samples[:, 0])

        def __enter__(self) -> OutputStream:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def query_devices(kind: str) -> dict[str, str]:
        check()
        return {"name": f"a fake {kind}"}

    module = SimpleNamespace(OutputStream=OutputStream, PortAudioError=PortAudioError, query_devices=query_devices)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return played


def write_tone(path: Path, seconds: float = 0.5, rate: int = 24000) -> Path:
    """A second voice for context: a soft sine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.sin(np.arange(round(seconds * rate)) * 0.1)
    soundfile.write(path, samples.astype(np.float32), rate)
    return path


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    return write_tone(tmp_path / "tone.wav")
