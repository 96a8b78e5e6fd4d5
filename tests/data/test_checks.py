"""Quality checks of clips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.audio import speech, write_m4a
from numpy.typing import NDArray

from csm_cli.data.checks import ClipLimits, UnsuitableClip, check_chunk, check_clip, clipped_share, read_clips
from csm_cli.data.dataset import (
    REASONS,
    ChunkResult,
    DatasetCounts,
    DroppedClip,
    TrainingClip,
    TrainingConversation,
)
from csm_cli.types import Recording

RATE = 16000
Samples = NDArray[np.float64]


def voice(seconds: float, level: float = 0.2, rate: int = RATE) -> Samples:
    """Something that is neither silent nor cut off."""
    return level * np.sin(np.arange(round(seconds * rate)) * 2 * np.pi * 210 / rate)


def clip(folder: Path, samples: Samples, text: str = "Ten letters.", rate: int = RATE) -> TrainingClip:
    soundfile.write(folder / "clip.wav", samples, rate, subtype="FLOAT")
    return TrainingClip(0, text, Recording(folder / "clip.wav"), "set:1")


def reason(clip: TrainingClip, limits: ClipLimits | None = None) -> str:
    with pytest.raises(UnsuitableClip) as caught:
        check_clip(clip, limits or ClipLimits())
    assert caught.value.reason in REASONS
    return f"{caught.value.reason}: {caught.value.detail}"


def test_good_clip_has_its_own_rate(tmp_path: Path) -> None:
    audio = check_clip(clip(tmp_path, np.stack([voice(1.5)] * 2, axis=1)), ClipLimits())
    assert audio.rate == RATE and audio.duration == 1.5


def test_a_part_of_a_file(tmp_path: Path) -> None:
    whole = clip(tmp_path, np.concatenate([np.zeros(RATE * 40), voice(2)]))
    assert (
        check_clip(replace(whole, recording=Recording(tmp_path / "clip.wav", 40.5, 42)), ClipLimits()).duration == 1.5
    )
    past = replace(whole, recording=Recording(tmp_path / "clip.wav", 41, 44))
    assert "clip.wav: end 44 s is past the end" in reason(past)


def test_clips_beyond_the_limit_of_other_readers(tmp_path: Path) -> None:
    long = clip(tmp_path, voice(700, rate=8000), "Letters. " * 100, rate=8000)
    assert check_clip(long, ClipLimits(max_duration=800)).duration == 700


@pytest.mark.parametrize("text", ["", " \n", "...", "—"])
def test_text_without_words(tmp_path: Path, text: str) -> None:
    assert reason(clip(tmp_path, voice(1), text)).startswith("no text: ")


def test_no_audio_file(tmp_path: Path) -> None:
    assert reason(TrainingClip(0, "Hi", None, "")).startswith("no audio")
    assert "none.wav" in reason(TrainingClip(0, "Hi", Recording(tmp_path / "none.wav"), ""))


def test_an_empty_clip(tmp_path: Path) -> None:
    assert reason(clip(tmp_path, voice(0))).startswith("unreadable: ")
    assert reason(clip(tmp_path, voice(0.1))) == "too short: 0.10 s, minimum 0.2 s"


def test_a_long_clip(tmp_path: Path) -> None:
    assert reason(clip(tmp_path, voice(2)), ClipLimits(max_duration=1.5)) == "too long: 2.00 s, maximum 1.5 s"


def test_rates(tmp_path: Path) -> None:
    low = clip(tmp_path, voice(1, rate=6000), rate=6000)
    assert reason(low) == "wrong rate: 6000 samples per second, minimum 8000"
    other = replace(clip(tmp_path, voice(1)), rate=24000)
    assert reason(other) == "wrong rate: the dataset states 24000, the file has 16000 samples per second"


def test_wrong_duration(tmp_path: Path) -> None:
    said = clip(tmp_path, voice(2))
    assert check_clip(replace(said, duration=2.1), ClipLimits()).duration == 2
    assert reason(replace(said, duration=3.0)) == "wrong duration: the dataset states 3.00 s, the file has 2.00 s"


def test_silence(tmp_path: Path) -> None:
    assert reason(clip(tmp_path, np.zeros(RATE))) == "silence: it is silent throughout"
    assert reason(clip(tmp_path, voice(1, level=1e-3))) == "silence: it is silent throughout"
    gap = np.concatenate([voice(1), np.zeros(RATE * 3), voice(1)])
    assert reason(clip(tmp_path, gap)) == "silence: 3.0 s of silence after 1.0 s, maximum 2 s"
    assert check_clip(clip(tmp_path, gap), ClipLimits(max_silence=3.5)).duration == 5


def test_noise_far_below_the_speech_is_silence(tmp_path: Path) -> None:
    assert reason(clip(tmp_path, np.concatenate([voice(1, 0.9), voice(3, 0.005)]))).startswith("silence: 3.0 s")


def test_clipping(tmp_path: Path) -> None:
    cut = np.clip(voice(1, level=1.2), -1, 1)
    assert reason(clip(tmp_path, cut)).startswith("clipping: ") and clipped_share(cut) > 0.3
    assert check_clip(clip(tmp_path, voice(1, level=0.99)), ClipLimits()).duration == 1


def test_single_peaks_at_full_scale_are_not_clipping() -> None:
    touching = np.zeros(1000, np.float32)
    touching[::10] = 1.0
    assert clipped_share(touching) == 0


def test_text_that_does_not_match_the_audio(tmp_path: Path) -> None:
    assert reason(clip(tmp_path, voice(1), "a" * 40)) == "too much text: 40 letters for 1.00 s of speech"
    assert reason(clip(tmp_path, voice(9), "Hi.")) == "too little text: 2 letters for 9.00 s of speech"


def test_chunk_result(tmp_path: Path) -> None:
    good = clip(tmp_path, voice(1.5))
    conversation = TrainingConversation("set/1", (good, replace(good, text="", place="set:2"), good))
    first, bad, last = read_clips(conversation, ClipLimits())
    assert not isinstance(first, DroppedClip) and not isinstance(last, DroppedClip)
    assert bad == DroppedClip("set/1", "set:2", "no text", "it has no text")
    broken = DroppedClip("", "set:3", "invalid row", "is no row")
    result = check_chunk([broken, conversation], ClipLimits())
    assert result.usable == [(0, 1.5), (0, 1.5)] and result.dropped == [broken, bad]
    assert str(bad) == "set:2: no text: it has no text"


def test_a_usable_clip_gets_warnings_by_kind(tmp_path: Path) -> None:
    noisy = voice(3) + np.random.default_rng(0).normal(size=3 * RATE) * 0.05
    samples = {"noise": noisy, "out of phase": np.stack([spoken(3), -spoken(3)], axis=1), "": spoken(3)}
    chunk = []
    for number, (kind, each) in enumerate(samples.items(), 1):
        soundfile.write(tmp_path / f"{number}.wav", each, RATE, subtype="FLOAT")
        recording = Recording(tmp_path / f"{number}.wav")
        chunk.append(TrainingConversation(kind, (TrainingClip(0, "Ten letters.", recording, f"set:{number}"),)))
    result = check_chunk(list(chunk), ClipLimits())
    assert [kind for kind, _ in result.warnings] == ["noise", "out of phase"] and len(result.usable) == 3
    assert [line.split(": ")[:2] for _, line in result.warnings] == [
        [f"set:{number}", str(tmp_path / f"{number}.wav")] for number in (1, 2)
    ]
    counts = DatasetCounts()
    counts.add(ChunkResult.from_json(json.loads(json.dumps(result.to_json()))))
    assert counts.to_json()["warnings"] == {"noise": 1, "out of phase": 1}


def spoken(seconds: float) -> Samples:
    """Words with pauses between them."""
    return voice(seconds) * (np.arange(round(seconds * RATE)) % (RATE // 2) < RATE // 3)


def test_a_clip_of_a_phone_is_checked(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = write_m4a(tmp_path / "clip.m4a", speech(2.0))
    audio = check_clip(TrainingClip(0, "Ten letters.", Recording(path, 0.5, 1.5), "set:1"), ClipLimits())
    assert audio.duration == 1.0
