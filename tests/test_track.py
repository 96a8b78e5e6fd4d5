from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from csm_cli.track import Part, Span, place

RATE = 100


def level(value: float, samples: int = 10) -> NDArray[np.float32]:
    return np.full(samples, value, dtype=np.float32)


def test_parts_follow_one_another_with_gaps_and_a_tail() -> None:
    track = place([Part(level(0.1)), Part(level(0.2), gap=0.05)], RATE, tail=0.02)
    assert np.allclose(track.audio.samples, np.repeat([0.1, 0, 0.2, 0], [10, 5, 10, 2]))
    assert track.spans == (Span(0.0, 0.1), Span(0.15, 0.25))
    assert (track.audio.rate, track.audio.samples.dtype) == (RATE, np.float32)


def test_the_first_gap_is_silence_before_the_track() -> None:
    assert place([Part(level(0.1), gap=0.5)], RATE).spans == (Span(0.5, 0.6),)


def test_a_negative_gap_overlaps_and_sums() -> None:
    track = place([Part(level(0.1)), Part(level(0.2), gap=-0.04)], RATE)
    assert np.allclose(track.audio.samples, np.repeat([0.1, 0.3, 0.2], [6, 4, 6]))


def test_no_part_begins_before_the_track_and_the_longest_ends_it() -> None:
    track = place([Part(level(0.1, 20)), Part(level(0.2, 5), gap=-1.0)], RATE)
    assert track.spans == (Span(0.0, 0.2), Span(0.0, 0.05))
    assert len(track.audio.samples) == 20


def test_gain_is_in_decibels() -> None:
    assert np.allclose(place([Part(level(0.1), gain=20 * np.log10(2))], RATE).audio.samples, 0.2)


def test_a_track_over_full_scale_is_turned_down_as_a_whole() -> None:
    track = place([Part(level(0.9)), Part(level(0.9), gap=-0.05), Part(level(0.45))], RATE)
    assert np.abs(track.audio.samples).max() == pytest.approx(1.0)
    assert track.audio.samples[-1] == pytest.approx(0.25)


def test_the_parts_themselves_are_left_alone() -> None:
    part = Part(level(0.5), gain=-6.0)
    place([part, part], RATE)
    assert np.array_equal(part.samples, level(0.5))


def test_nothing_makes_an_empty_track() -> None:
    track = place([], RATE)
    assert (len(track.audio.samples), track.spans) == (0, ())
