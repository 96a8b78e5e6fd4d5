"""Segments of a turn joined: no click, a natural pause, the turn's own edges unchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from csm_cli.generation.events import Segment
from csm_cli.generation.take import CLAUSE_PAUSE_SECONDS, SENTENCE_PAUSE_SECONDS, Take, concatenate

RATE = 24000


def take(before: float, loud: float, after: float) -> Take:
    """Seconds of silence, of a loud tone that begins and ends away from zero, and of silence."""
    tone = np.full(round(loud * RATE), 0.5, np.float32)
    return Take(torch.zeros(1, 4), np.pad(tone, (round(before * RATE), round(after * RATE))), "eos", 1, "")


def join(**takes: Take) -> tuple[NDArray[np.float32], tuple[Segment, ...]]:
    return concatenate([f"{text}." for text in takes], list(takes.values()), RATE)


def silences(samples: np.ndarray) -> list[float]:
    """Seconds of each stretch without a sample above 1 percent."""
    edges = np.flatnonzero(np.diff(np.abs(np.pad(samples, 1, constant_values=1)) < 0.005))
    return [float(b - a) / RATE for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_a_single_take_is_not_changed() -> None:
    only = take(0.1, 0.5, 0.3)
    samples, segments = join(One=only)
    np.testing.assert_array_equal(samples, only.samples)
    assert segments == (Segment("One.", 0.0, 0.9, 1),)


@pytest.mark.parametrize("edge", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(
    ("text", "pause"),
    [
        ("One.", SENTENCE_PAUSE_SECONDS),
        ('"One?" ', SENTENCE_PAUSE_SECONDS),
        ("一。", SENTENCE_PAUSE_SECONDS),
        ("one,", CLAUSE_PAUSE_SECONDS),
    ],
)
def test_the_pause_does_not_depend_on_the_silence_in_the_takes(text: str, pause: float, edge: float) -> None:
    samples, _ = concatenate([text, "Two."], [take(0, 0.5, edge), take(edge, 0.5, 0)], RATE)
    assert max(silences(samples)) == pytest.approx(pause, abs=0.05)


def test_joints_do_not_click_and_the_ends_are_unchanged() -> None:
    samples, _ = concatenate([f"Number {n}." for n in range(4)], [take(0.0, 0.3, 0.0)] * 4, RATE)
    steps = np.abs(np.diff(samples))
    assert steps.max() < 0.01
    assert samples[0] == samples[-1] == 0.5


def test_segments_are_where_their_audio_is() -> None:
    samples, segments = join(One=take(0.2, 0.5, 0.4), Two=take(0.4, 0.25, 0.3))
    assert [segment.text for segment in segments] == ["One.", "Two."]
    first, second = (samples[round(segment.start * RATE) : round(segment.end * RATE)] for segment in segments)
    assert np.sum(first > 0.4) == pytest.approx(0.5 * RATE, rel=0.05)
    assert np.sum(second > 0.4) == pytest.approx(0.25 * RATE, rel=0.1)
    assert segments[-1].end == len(samples) / RATE
    assert segments[0].end < segments[1].start


def test_silent_and_empty_takes_are_joined_too() -> None:
    samples, segments = join(One=take(0, 0, 0), Two=take(0.2, 0, 0), Three=take(0, 0.1, 0))
    assert len(segments) == 3 and len(samples) > 0 and np.isfinite(samples).all()
