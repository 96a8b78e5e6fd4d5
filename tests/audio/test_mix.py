from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from csm_cli.audio.loudness import loudness
from csm_cli.audio.mix import TrackClip, TrackSpan, match_loudness, mix

RATE = 100


def level(value: float, samples: int = 10) -> NDArray[np.float32]:
    return np.full(samples, value, dtype=np.float32)


def test_clips_follow_one_another_with_gaps_and_a_tail() -> None:
    track = mix([TrackClip(level(0.1)), TrackClip(level(0.2), gap=0.05)], RATE, tail=0.02)
    assert np.allclose(track.audio.samples, np.repeat([0.1, 0, 0.2, 0], [10, 5, 10, 2]))
    assert track.spans == (TrackSpan(0.0, 0.1), TrackSpan(0.15, 0.25))
    assert (track.audio.rate, track.audio.samples.dtype) == (RATE, np.float32)


def test_the_first_gap_is_silence_before_the_track() -> None:
    assert mix([TrackClip(level(0.1), gap=0.5)], RATE).spans == (TrackSpan(0.5, 0.6),)


def test_a_negative_gap_overlaps_and_sums() -> None:
    track = mix([TrackClip(level(0.1)), TrackClip(level(0.2), gap=-0.04)], RATE)
    assert np.allclose(track.audio.samples, np.repeat([0.1, 0.3, 0.2], [6, 4, 6]))


def test_no_clip_starts_before_the_track_and_the_longest_ends_it() -> None:
    track = mix([TrackClip(level(0.1, 20)), TrackClip(level(0.2, 5), gap=-1.0)], RATE)
    assert track.spans == (TrackSpan(0.0, 0.2), TrackSpan(0.0, 0.05))
    assert len(track.audio.samples) == 20


def test_gain_is_in_decibels() -> None:
    assert np.allclose(mix([TrackClip(level(0.1), gain=20 * np.log10(2))], RATE).audio.samples, 0.2)


def test_a_track_over_full_scale_is_attenuated_as_a_whole() -> None:
    track = mix([TrackClip(level(0.9)), TrackClip(level(0.9), gap=-0.05), TrackClip(level(0.45))], RATE)
    assert np.abs(track.audio.samples).max() == pytest.approx(1.0)
    assert track.audio.samples[-1] == pytest.approx(0.25)


def test_the_clips_are_not_modified() -> None:
    clip = TrackClip(level(0.5), gain=-6.0)
    mix([clip, clip], RATE)
    assert np.array_equal(clip.samples, level(0.5))


def test_no_clips_make_an_empty_track() -> None:
    track = mix([], RATE)
    assert (len(track.audio.samples), track.spans) == (0, ())


def two_speakers(seconds: float = 2.0) -> list[TrackClip]:
    """Two speakers far apart in level, overlapping, one of them with a gain."""
    random = np.random.default_rng(1)
    levels = {"a": 0.3, "b": 0.02}
    return [
        TrackClip(
            (levels[speaker] * random.standard_normal(round(seconds * 24000))).astype(np.float32),
            gap,
            gain,
            speaker=speaker,
        )
        for speaker, gap, gain in (("a", 0.0, 0.0), ("b", -0.5, -3.0), ("a", -0.2, 0.0))
    ]


@pytest.mark.parametrize("target", [None, -19.0, -12.0])
def test_stems_add_up_to_the_track_to_the_last_bit(target: float | None) -> None:
    track = mix(two_speakers(), 24000, tail=0.3, target=target)
    stems = track.stems()
    assert list(stems) == ["a", "b"]
    steps = [np.rint(stem.samples * 32768) for stem in stems.values()]
    assert {len(step) for step in steps} == {len(track.audio.samples)}
    assert np.array_equal(sum(steps), np.clip(np.rint(track.audio.samples * 32768), -32768, 32767))
    first, last = (round(moment * 24000) for moment in (track.spans[0].end, track.spans[2].start))
    assert not steps[0][first:last].any() and steps[1][first:last].any()


def test_a_turn_by_itself_is_as_it_sounds_in_the_track() -> None:
    track = mix(two_speakers(), 24000, target=-16.0)
    first = round(0.5 * 24000)
    assert np.array_equal(track.turn(0).samples[:first], track.audio.samples[:first])


def test_speakers_are_matched_and_gains_stay() -> None:
    clips = match_loudness(two_speakers(), 24000)
    levels = [loudness(clip.samples * np.float32(10 ** (clip.gain / 20)), 24000) for clip in clips]
    assert levels[0] - levels[1] == pytest.approx(3.0, abs=0.1)
    assert levels[0] == pytest.approx(levels[2], abs=0.5)


def test_a_take_far_from_its_speakers_level_is_corrected() -> None:
    random = np.random.default_rng(2)
    loud = random.standard_normal(48000).astype(np.float32)
    clips = match_loudness(
        [TrackClip(loud * np.float32(level), speaker="a") for level in (0.1, 0.1, 0.001, 0.08)], 24000
    )
    levels = [loudness(clip.samples * np.float32(10 ** (clip.gain / 20)), 24000) for clip in clips]
    assert levels[0] - levels[2] <= 6.1
    assert levels[0] - levels[3] == pytest.approx(1.9, abs=0.3)
