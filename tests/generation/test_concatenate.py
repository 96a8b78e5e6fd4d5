"""Parts joined: no click, a pause as people make it, the turn's own edges untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csm_cli.generation.concatenate import CLAUSE_SECONDS, SENTENCE_SECONDS, SpokenChunk, concatenate
from csm_cli.generation.take import Take

RATE = 24000


def said(text: str, before: float, loud: float, after: float) -> SpokenChunk:
    """Seconds of silence, of a loud tone that begins and ends away from zero, and of silence."""
    tone = np.full(round(loud * RATE), 0.5, np.float32)
    samples = np.pad(tone, (round(before * RATE), round(after * RATE)))
    return SpokenChunk(text, Take(torch.zeros(1, 4), samples, "eos", 1, ""))


def silences(samples: np.ndarray) -> list[float]:
    """Seconds of each stretch without a sample above 1 percent."""
    edges = np.flatnonzero(np.diff(np.abs(np.pad(samples, 1, constant_values=1)) < 0.005))
    return [float(b - a) / RATE for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_one_part_is_left_as_it_is() -> None:
    only = said("One.", 0.1, 0.5, 0.3)
    samples, pieces = concatenate([only], RATE)
    np.testing.assert_array_equal(samples, only.take.samples)
    assert [(piece.text, piece.start, piece.end) for piece in pieces] == [("One.", 0.0, 0.9)]


@pytest.mark.parametrize("edge", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(
    ("text", "pause"),
    [("One.", SENTENCE_SECONDS), ('"One?" ', SENTENCE_SECONDS), ("一。", SENTENCE_SECONDS), ("one,", CLAUSE_SECONDS)],
)
def test_the_pause_is_the_same_however_much_silence_was_there(text: str, pause: float, edge: float) -> None:
    samples, _ = concatenate([said(text, 0, 0.5, edge), said("Two.", edge, 0.5, 0)], RATE)
    assert max(silences(samples)) == pytest.approx(pause, abs=0.05)


def test_joints_do_not_click_and_the_ends_are_untouched() -> None:
    samples, _ = concatenate([said(f"Number {n}.", 0.0, 0.3, 0.0) for n in range(4)], RATE)
    steps = np.abs(np.diff(samples))
    assert steps.max() < 0.01
    assert samples[0] == samples[-1] == 0.5


def test_pieces_lie_where_their_sound_is() -> None:
    samples, pieces = concatenate([said("One.", 0.2, 0.5, 0.4), said("Two.", 0.4, 0.25, 0.3)], RATE)
    assert [piece.text for piece in pieces] == ["One.", "Two."]
    first, second = (samples[round(piece.start * RATE) : round(piece.end * RATE)] for piece in pieces)
    assert np.sum(first > 0.4) == pytest.approx(0.5 * RATE, rel=0.05)
    assert np.sum(second > 0.4) == pytest.approx(0.25 * RATE, rel=0.1)
    assert pieces[-1].end == len(samples) / RATE
    assert pieces[0].end < pieces[1].start


def test_silent_parts_are_joined_too() -> None:
    samples, pieces = concatenate([said("One.", 0, 0, 0), said("Two.", 0.2, 0, 0), said("Three.", 0, 0.1, 0)], RATE)
    assert len(pieces) == 3 and len(samples) > 0 and np.isfinite(samples).all()
