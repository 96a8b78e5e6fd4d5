"""When a take ends early, what of it is kept, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from csm_cli.generation.take import Take, TakeBuilder, TakeSpec, Transcription, best_take, worst_stop

RATE, SAMPLES = 12.5, 4
LOUD, SOFT, MUTE = 300, 20, 0


class FakeChunk:
    """Each frame sounds as loud as its first code says, in thousandths."""

    def __init__(self, codes: Tensor, is_last: bool) -> None:
        self.codes, self.is_last = codes, is_last

    def samples(self) -> NDArray[np.float32]:
        return (self.codes[:, :1] / 1000.0).expand(-1, SAMPLES).reshape(-1).numpy()


class FakeCodec:
    frame_rate, frame_samples, codebooks = RATE, SAMPLES, 2

    def decoder(self) -> None:
        return None


class FakeChunkDecoder:
    def __init__(self, deferred: bool) -> None:
        self.codec, self.deferred = FakeCodec(), deferred
        self.chunks: list[int] = []

    def submit(self, decoder: None, codes: Tensor, is_last: bool = False) -> FakeChunk:
        self.chunks.append(len(codes))
        return FakeChunk(codes, is_last)

    def discard(self, decoder: None) -> None:
        pass


def new_builder(text: str = "Hello.", capped: bool = False, trim: bool = True, deferred: bool = False) -> TakeBuilder:
    return TakeBuilder(FakeChunkDecoder(deferred), TakeSpec(text, 7, capped, trim))  # type: ignore[arg-type]


def play(builder: TakeBuilder, levels: Sequence[int], stuck: bool = False) -> str | None:
    """Adds frames, each unlike the one before unless `stuck`, until the builder returns a stop reason."""
    for index, level in enumerate(levels):
        stop = builder.add_frame(torch.tensor([level, 0 if stuck else index]))
        if stop:
            return stop
    return None


def test_a_take_that_ends_by_itself_is_not_cut() -> None:
    builder = new_builder()
    assert play(builder, [MUTE] * 5 + [LOUD] * 20 + [MUTE] * 10) is None
    made = builder.finish("eos")
    assert (made.stop, made.seed, made.fault, made.codes.shape) == ("eos", 7, "", (35, 2))
    np.testing.assert_allclose(made.samples.reshape(35, SAMPLES)[:, 0], [0] * 5 + [0.3] * 20 + [0] * 10, atol=1e-6)


def test_a_silence_in_the_last_chunk_does_not_end_a_take() -> None:
    builder = new_builder()
    assert play(builder, [LOUD] * 10 + [MUTE] * 28) is None
    made = builder.finish("eos")
    assert (made.stop, len(made.codes)) == ("eos", 38)


@pytest.mark.parametrize("hum", [MUTE, 1])
def test_silence_ends_a_take_within_a_chunk_and_a_short_pause_of_it_stays(hum: int) -> None:
    builder = new_builder()
    assert play(builder, [LOUD] * 20 + [hum] * 200) == "silence"
    assert 20 + 25 <= len(builder) < 20 + 25 + 12
    made = builder.finish("silence")
    assert (made.stop, made.fault, len(made.codes)) == ("silence", "", 23)
    assert len(made.samples) == 23 * SAMPLES


def test_soft_speech_and_short_pauses_are_not_silence() -> None:
    assert play(new_builder(), ([LOUD] * 10 + [SOFT] * 30 + [MUTE] * 20) * 4) is None


def test_a_take_without_a_sound_is_empty() -> None:
    builder = new_builder()
    assert play(builder, [MUTE] * 99) == "silence"
    made = builder.finish("silence")
    assert (made.stop, made.fault, len(made.codes), len(made.samples)) == ("empty", "came out silent", 0, 0)


def test_a_take_without_a_frame_is_empty() -> None:
    made = new_builder().finish("eos")
    assert (made.stop, made.fault, made.codes.shape) == ("empty", "came out empty", (0, 2))


def test_a_repeated_frame_ends_a_take_and_appears_once() -> None:
    builder = new_builder()
    assert play(builder, [LOUD] * 20) is None
    assert play(builder, [LOUD] * 99, stuck=True) == "repeat"
    assert len(builder) == 20 + 12
    made = builder.finish("repeat")
    assert (made.stop, len(made.codes)) == ("repeat", 21)
    assert made.fault == "got stuck on one sound after 1.7 s"


def test_the_same_silent_frame_is_silence_and_no_repeat() -> None:
    builder = new_builder()
    play(builder, [LOUD] * 20)
    assert play(builder, [MUTE] * 99, stuck=True) == "silence"


@pytest.mark.parametrize(
    ("text", "frames", "stop", "capped", "fault"),
    [
        ("Hello.", 20, "cap", False, "had not ended after 1.6 s"),
        ("Hello.", 20, "cap", True, ""),
        ("word " * 100, 20, "cap", True, ""),
        ("word " * 100, 20, "eos", False, "broke off after 1.6 s"),
        ("word " * 100, 200, "eos", False, ""),
        ("...", 1, "eos", False, ""),
    ],
)
def test_faults(text: str, frames: int, stop: str, capped: bool, fault: str) -> None:
    builder = new_builder(text, capped)
    play(builder, [LOUD] * frames)
    assert builder.finish(stop).fault == fault


def test_silence_does_not_make_a_take_long_enough() -> None:
    builder = new_builder("word " * 20)
    play(builder, [LOUD] * 20 + [MUTE] * 24)
    assert builder.finish("eos").fault == "broke off after 1.6 s"


def test_without_trimming_a_take_has_all_frames() -> None:
    builder = new_builder("word " * 100, trim=False)
    assert play(builder, [MUTE] * 60) is None and play(builder, [LOUD] * 60, stuck=True) is None
    made = builder.finish("cap")
    assert (made.stop, made.fault, len(made.codes), len(made.samples)) == ("cap", "", 120, 120 * SAMPLES)


def test_samples_are_decoded_in_chunks() -> None:
    decoder = FakeChunkDecoder(deferred=False)
    builder = TakeBuilder(decoder, TakeSpec("Hello.", 7, trim=True))  # type: ignore[arg-type]
    play(builder, [LOUD] * 30)
    builder.finish("eos")
    assert decoder.chunks == [4, 4, 8, 12, 2]


def made(frames: Sequence[tuple[int, int]], stop: str, deferred: bool, burst: int) -> Take:
    """The take of these frames, built from `burst` frames at a time."""
    builder = new_builder("word " * 3, deferred=deferred)
    for first in range(0, len(frames), burst):
        for index, frame in enumerate(frames[first : first + burst], first):
            early = builder.add_frame(torch.tensor(frame))
            capped = "cap" if stop == "cap" and index == len(frames) - 1 else None
            if ended := capped or early:
                builder.finish_frames()
                return builder.finish(ended)
    return builder.finish(stop)


SOUNDS = st.tuples(st.sampled_from([LOUD, SOFT, MUTE]), st.integers(1, 40), st.booleans())


@settings(max_examples=300, deadline=None)
@given(runs=st.lists(SOUNDS, min_size=1, max_size=5), stop=st.sampled_from(["eos", "cap"]))
@example(runs=[(LOUD, 8, False), (MUTE, 32, False)], stop="cap")
@example(runs=[(LOUD, 8, False), (MUTE, 32, False)], stop="eos")
@example(runs=[(LOUD, 3, False), (MUTE, 30, False)], stop="cap")
@example(runs=[(LOUD, 3, False), (MUTE, 37, False)], stop="cap")
@example(runs=[(LOUD, 8, False), (MUTE, 40, False), (LOUD, 12, False)], stop="eos")
def test_asynchronous_decoding_makes_the_same_takes(runs: list[tuple[int, int, bool]], stop: str) -> None:
    """They are analysed a chunk later, and their result counts from where they ended."""
    frames = [
        (level, run if stuck else 1000 * run + at) for run, (level, n, stuck) in enumerate(runs) for at in range(n)
    ]
    wanted = made(frames, stop, deferred=False, burst=1)
    got = made(frames, stop, deferred=True, burst=4)
    assert (got.stop, got.fault) == (wanted.stop, wanted.fault)
    assert torch.equal(got.codes, wanted.codes)
    np.testing.assert_array_equal(got.samples, wanted.samples)


def test_an_asynchronous_chunk_is_returned_when_the_next_is_submitted() -> None:
    builder = new_builder(deferred=True)
    returned = []
    for index in range(28):
        builder.add_frame(torch.tensor([LOUD, index]))
        returned.append(len(builder.new_samples()) // SAMPLES)
    assert {index + 1: count for index, count in enumerate(returned) if count} == {8: 4, 16: 4, 28: 8}


def test_a_stream_returns_samples_when_it_is_due() -> None:
    builder = TakeBuilder(FakeChunkDecoder(deferred=True), TakeSpec("Hello.", 7, stream=True))  # type: ignore[arg-type]
    returned = []
    for index in range(8):
        builder.add_frame(torch.tensor([LOUD, index]))
        if builder.due:
            builder.analyse()
        returned.append(len(builder.new_samples()) // SAMPLES)
    assert returned == [0, 0, 0, 4, 0, 0, 0, 4]


def take(stop: str, fault: str, seed: int) -> Take:
    return Take(torch.zeros(1, 2), np.zeros(SAMPLES, np.float32), stop, seed, fault)


def test_the_best_take_is_a_good_one_or_the_best_of_the_bad() -> None:
    bad = [take("empty", "x", 1), take("repeat", "x", 2), take("cap", "x", 3), take("cap", "x", 4)]
    assert best_take(bad).seed == 3
    assert best_take([*bad, take("silence", "", 5), take("eos", "", 6)]).fault == ""


def long_take(frames: int, error_rate: float | None = None, fault: str = "") -> Take:
    transcription = None if error_rate is None else Transcription("", error_rate, 1)
    return replace(take("eos", fault, frames), codes=torch.zeros(frames, 2), transcription=transcription)


def test_usable_takes_are_ranked_by_wrong_words_then_by_length() -> None:
    assert len(best_take([long_take(20, 0.2), long_take(90, 0.0), long_take(30, 0.1)]).codes) == 90
    assert len(best_take([long_take(20), long_take(90), long_take(30)]).codes) == 30
    assert len(best_take([long_take(20), long_take(90), long_take(30)], expected_frames=80).codes) == 90
    assert (
        len(best_take([long_take(20), long_take(90, fault="x"), long_take(95, fault="x")], expected_frames=80).codes)
        == 20
    )
    assert len(best_take([long_take(20), long_take(20)]).codes) == 20


def test_the_worst_stop_counts() -> None:
    assert worst_stop(["eos", "silence", "eos"]) == "silence"
    assert worst_stop(["eos", "empty", "cap"]) == "empty"
