"""What tests share: tiny random checkpoints on disk, sound files, and the command line called in this process."""

from __future__ import annotations

import ctypes.util
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.audio import write_tone
from helpers.run import Result
from helpers.tiny import Shape, random_csm, save_checkpoint

from csm_cli.cli import main
from csm_cli.engine.scheduler import ContentionMonitor
from csm_cli.models.csm.kernels import has_triton
from csm_cli.recipe.parametric_teacher import HTS_VOICE
from csm_cli.recipe.sentences import WORD_LIST

pytest_plugins = ["helpers.fakehub"]


def missing_tools() -> dict[str, str]:
    """Markers whose tests cannot run here, and why."""
    needs = {
        "chromium": (bool(shutil.which("chromium")), "chromium is not installed"),
        "espeak": (
            bool(ctypes.util.find_library("espeak-ng")) and WORD_LIST.exists(),
            "espeak-ng or wamerican is not installed",
        ),
        "festival": (
            bool(shutil.which("festival")) and bool(shutil.which("hts_engine")) and HTS_VOICE.exists(),
            "festival, festvox-us-slt-hts or htsengine is not installed",
        ),
        "gpu": (torch.cuda.is_available(), "there is no CUDA device"),
        "triton": (
            has_triton() and (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"),
            "triton is not installed, or there is neither a CUDA device nor TRITON_INTERPRET=1",
        ),
    }
    return {marker: reason for marker, (there, reason) in needs.items() if not there}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests that need espeak-ng, a browser or a GPU where these are missing."""
    for marker, reason in missing_tools().items():
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CSM of 8 codebooks; greedy, it ends no turn by itself."""
    return save_checkpoint(random_csm(Shape()), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def silent_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSM that generates only code 0, so that each turn ends before its first frame."""
    model = random_csm(Shape())
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.depth_decoder.codebooks_head.weight.zero_()
    return save_checkpoint(model, tmp_path_factory.mktemp("silent"))


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for saved voices and configuration."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("CSM_HOME", str(folder))
    return folder


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
def played_audio(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
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


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    return write_tone(tmp_path / "tone.wav")
