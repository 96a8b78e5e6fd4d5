"""What is told while a run goes on."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result

from csm_cli.audio.io import Audio
from csm_cli.cli.console import emit_path
from csm_cli.cli.progress import ProgressMeter, show_progress
from csm_cli.generation.events import FrameProgress, Utterance
from csm_cli.types import Conversation, Recording, Turn

Csm = Callable[..., Result]
SPOKEN, OTHER = Turn(0, "x" * 28, name="[b]ana"), Turn(1, "x" * 14)
RECORDED = Turn(1, "x" * 999, recording=Recording(Path("a.wav")))
TALK = Conversation((SPOKEN, RECORDED, OTHER))


def uttered(turn: Turn, frames: int, stop: str) -> Utterance:
    return Utterance(TALK, turn, torch.zeros(frames, 8), Audio(np.zeros(frames * 1920, np.float32), 24000), stop)


def test_counts_frames_and_guesses_the_rest_from_the_texts() -> None:
    meter = ProgressMeter([TALK], 12.5)
    assert (meter.frames, meter.expected) == (0, 37.5)
    for count in (1, 2, 3):
        meter.see(FrameProgress(TALK, SPOKEN, count, 99))
    assert (meter.frames, meter.audio_seconds) == (3, 0.24)
    meter.see(uttered(SPOKEN, 4, "eos"))
    meter.see(uttered(RECORDED, 50, "recorded"))
    assert (meter.frames, meter.expected) == (4, 16.5)
    meter.see(uttered(OTHER, 20, "cap"))
    assert (meter.frames, meter.expected) == (24, 24)
    assert meter.stops == {"eos": 1, "recorded": 1, "cap": 1}


def test_knows_how_fast_it_goes() -> None:
    meter = ProgressMeter([TALK], 12.5)
    assert meter.rtf == 0
    meter.see(FrameProgress(TALK, SPOKEN, 25, 99))
    assert meter.rtf == pytest.approx(meter.seconds / 2, rel=0.5)
    assert str(meter).startswith("25 frames  2.0 s  RTF 0.0") and str(meter).endswith("0:00 left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> Terminal:
    """Standard error and standard output, on one screen."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    return screen


def test_a_path_stays_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch, 40)
    path = Path("a folder/" + "with a long name/" * 6 + "a.wav")
    with show_progress(ProgressMeter([TALK], 12.5), quiet=False):
        emit_path(path)
    assert str(path) in terminal.getvalue()


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_the_bar_is_one_line(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    terminal = on_a_terminal(monkeypatch, columns)
    meter = ProgressMeter([TALK], 12.5)
    with show_progress(meter, quiet=False):
        meter.see(FrameProgress(TALK, replace(SPOKEN, name="Scheherazade"), 12345, 99))
    uncoloured = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    lines = re.split(r"\x1b\[\??[0-9]*[A-Za-z]|[\r\n]", uncoloured)
    shown = next(line for line in reversed(lines) if "12345 frames" in line)
    assert len(shown) <= columns and terminal.getvalue().count("\x1b[1A") <= 1


@pytest.mark.parametrize("quiet", [True, False])
def test_a_terminal_gets_a_bar(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    flags = ["-o", tmp_path / "a.wav", "--max-duration", "1", *(["-q"] if quiet else [])]
    result = csm("say", "[b]Hello[/b]", "--model", tiny_checkpoint, *flags)
    assert result.code == 0 and result.out == f"{tmp_path / 'a.wav'}\n"
    shown = terminal.getvalue()
    assert (" frames  " in shown and " left" in shown) is not quiet
    assert ("0: [b]Hello[/b]" in shown) is not quiet
    assert "\x1b[3" not in shown, "colours in spite of NO_COLOR"
