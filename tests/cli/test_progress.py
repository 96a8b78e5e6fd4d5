"""Progress of a run: counts, time left, and the bar."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.run import Result

from csm_cli.audio.io import Audio
from csm_cli.cli.console import emit_path
from csm_cli.cli.progress import ProgressMeter, show_progress
from csm_cli.errors import GenerationFailed
from csm_cli.generation.events import ConversationFailed, Event, FrameProgress, Utterance
from csm_cli.types import Conversation, Recording, Turn

Csm = Callable[..., Result]
SPOKEN, OTHER = Turn(0, "x" * 28, name="[b]ana"), Turn(1, "x" * 14)
RECORDED = Turn(1, "x" * 999, recording=Recording(Path("a.wav")))
TALK = Conversation((SPOKEN, RECORDED, OTHER))


def uttered(turn: Turn, frames: int, stop: str) -> Utterance:
    return Utterance(TALK, turn, torch.zeros(frames, 8), Audio(np.zeros(frames * 1920, np.float32), 24000), stop)


def test_frames_and_characters_of_generated_turns_are_counted() -> None:
    meter = ProgressMeter([TALK], 12.5)
    assert (meter.frames, meter.done_chars, meter.total_chars) == (0, 0, 42)
    for count in (1, 2, 3):
        meter.update(FrameProgress(TALK, SPOKEN, count, 99, 1))
    assert (meter.frames, meter.audio_seconds, meter.done_chars) == (3, 0.24, pytest.approx(0.24 * 14))
    assert meter.label == "turn 1/3 [b]ana"
    meter.update(uttered(SPOKEN, 4, "eos"))
    meter.update(uttered(RECORDED, 50, "recorded"))
    assert (meter.frames, meter.done_chars, meter.total_chars) == (4, 28, 42)
    meter.update(uttered(OTHER, 20, "cap"))
    assert (meter.frames, meter.done_chars, meter.total_chars) == (24, 42, 42)
    assert meter.stops == {"eos": 1, "recorded": 1, "cap": 1} and meter.finished_items == 1


def test_rtf_and_time_left_count_computation_only() -> None:
    meter = ProgressMeter([TALK], 12.5)
    assert meter.rtf == 0 and meter.seconds_left is None and not str(meter).endswith("left")

    def events() -> Iterator[Event]:
        time.sleep(0.2)
        yield FrameProgress(TALK, SPOKEN, 25, 99)

    for _ in meter.watch(events()):
        time.sleep(0.5)  # the consumer plays or writes audio
    assert 0.2 <= meter.seconds < 0.5
    assert meter.rtf == pytest.approx(meter.seconds / 2)
    assert meter.seconds_left == pytest.approx(meter.seconds / 28 * 14)
    assert str(meter).startswith("25 frames  2.0 s  RTF 0.1") and str(meter).endswith("0:00 left")


def test_a_failed_conversation_leaves_nothing_to_do() -> None:
    meter = ProgressMeter([TALK], 12.5)
    meter.update(FrameProgress(TALK, SPOKEN, 25, 99))
    meter.update(ConversationFailed(TALK, GenerationFailed("no")))
    assert meter.done_chars == meter.total_chars == 42


def test_a_batch_counts_its_items() -> None:
    talks = [Conversation((OTHER,), id=str(number)) for number in range(3)]
    meter = ProgressMeter([], 12.5, lambda: 42, items=3)
    for talk in talks[:2]:
        meter.update(FrameProgress(talk, OTHER, 5, 99))
        meter.update(replace(uttered(OTHER, 10, "eos"), conversation=talk))
    assert str(meter).startswith("2 of 3  20 frames") and meter.done_chars == 28


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
        meter.update(FrameProgress(TALK, replace(SPOKEN, name="Scheherazade"), 12345, 99))
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
