"""Long texts, streamed: chunks are joined while they are decoded."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from csm_cli.generation.stream_joiner import StreamJoiner
from csm_cli.generation.take import Take, concatenate

RATE = 24000


def sound(seconds: float, level: float = 0.2) -> np.ndarray:
    return (level * np.sin(np.arange(round(seconds * RATE)) / 9)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def joined(takes: list[np.ndarray], size: int) -> tuple[np.ndarray, StreamJoiner]:
    joiner = StreamJoiner(RATE)
    for number, samples in enumerate(takes, 1):
        for start in range(0, len(samples), size):
            joiner.push(samples[start : start + size])
        joiner.end_take("Hello there.", 1, len(samples), number == len(takes))
        joiner.start_take()
    return joiner.samples, joiner


@given(st.integers(100, 30_000))
def test_a_turn_of_one_take_is_not_changed(size: int) -> None:
    take = np.concatenate((silence(0.2), sound(0.5), silence(0.3), sound(0.2), silence(0.4)))
    np.testing.assert_array_equal(joined([take], size)[0], take)


@given(st.integers(500, 30_000))
def test_a_stream_is_what_the_finished_takes_give(size: int) -> None:
    takes = [
        np.concatenate((silence(0.1), sound(0.5), silence(0.4))),
        np.concatenate((silence(0.5), sound(0.3), silence(0.2))),
        np.concatenate((silence(0.3), sound(0.4), silence(0.3))),
    ]
    streamed, joiner = joined(takes, size - size % 240 + 240)
    codes = np.zeros((1, 1))
    whole, segments = concatenate(["Hello there."] * 3, [Take(codes, each, "eos", 1, "") for each in takes], RATE)
    np.testing.assert_allclose(streamed, whole, atol=1e-6)
    assert [round(each.end, 3) for each in joiner.segments] == [round(each.end, 3) for each in segments]


def test_a_silent_take_gives_nothing_and_can_be_replaced() -> None:
    joiner = StreamJoiner(RATE)
    assert not len(joiner.push(silence(1))) and not joiner.audible
    joiner.start_take()
    assert len(joiner.push(sound(0.5))) and joiner.audible
