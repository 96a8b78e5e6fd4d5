from __future__ import annotations

import io
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from csm_cli.audio.io import Audio, Tags, check_output, encode, probe, read_audio, resample, write_audio
from csm_cli.errors import AudioUnreadable, OutputRefused

RATE = 24000


def tone(seconds: float = 0.5, rate: int = RATE) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def written(path: Path, samples: NDArray[np.float32], rate: int = RATE, subtype: str | None = None) -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def diagnostic(path: Path, **options: float) -> str:
    with pytest.raises(AudioUnreadable) as caught:
        read_audio(path, RATE, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("suffix", "subtype", "error"),
    [
        ("wav", "PCM_16", 1e-4),
        ("wav", "PCM_24", 1e-6),
        ("wav", "FLOAT", 0),
        ("wav", "PCM_U8", 1e-2),
        ("flac", "PCM_16", 1e-4),
        ("aiff", "PCM_16", 1e-4),
        ("ogg", "VORBIS", 5e-2),
        ("mp3", None, 5e-2),
    ],
)
def test_reads_the_formats_of_libsndfile(tmp_path: Path, suffix: str, subtype: str | None, error: float) -> None:
    path = written(tmp_path / f"tone.{suffix}", tone(), subtype=subtype)
    audio = read_audio(path, RATE)
    assert (audio.rate, audio.samples.dtype, len(audio.samples)) == (RATE, np.float32, RATE // 2)
    inner = slice(1200, -1200)
    assert np.abs(audio.samples - tone())[inner].max() <= error


def test_the_suffix_does_not_decide_the_format(tmp_path: Path) -> None:
    written(tmp_path / "tone.wav", tone()).rename(tmp_path / "tone.mp3")
    assert read_audio(tmp_path / "tone.mp3", RATE).duration == 0.5


def test_headerless_samples_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tone.raw").write_bytes(tone().tobytes())
    assert "not readable as audio" in diagnostic(tmp_path / "tone.raw")


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.stack([tone(), np.zeros_like(tone())], axis=1)
    audio = read_audio(written(tmp_path / "stereo.wav", stereo, subtype="FLOAT"), RATE)
    assert np.allclose(audio.samples, tone() / 2)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_any_rate_is_resampled(tmp_path: Path, rate: int) -> None:
    audio = read_audio(written(tmp_path / "tone.wav", tone(rate=rate), rate, "FLOAT"), RATE)
    assert len(audio.samples) == RATE // 2
    inner = slice(1200, -1200)
    assert np.abs(audio.samples - tone())[inner].max() < 1e-3


def test_a_range_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "tone.wav", tone(), subtype="FLOAT")
    assert np.array_equal(read_audio(path, RATE, start=0.1, end=0.3).samples, tone()[2400:7200])
    assert np.array_equal(read_audio(path, RATE, start=0.4).samples, tone()[9600:])
    assert read_audio(path, RATE, end=0.505).duration == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 4.8}, "end 4.8 s is past the end of the file (0.5 s)"),
        ({"start": 0.5}, "start 0.5 s is past the end of the file (0.5 s)"),
        ({"start": -1.0}, "start -1 s is before the beginning"),
        ({"start": 0.3, "end": 0.2}, "end 0.2 s is not after start 0.3 s"),
        ({"start": 0.2, "end": 0.200001}, "is empty"),
        ({"start": float("nan")}, "start nan s"),
    ],
)
def test_a_range_outside_the_file_is_refused(tmp_path: Path, options: dict[str, float], message: str) -> None:
    assert message in diagnostic(written(tmp_path / "tone.wav", tone()), **options)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    assert "No such file" in diagnostic(tmp_path / "none.wav")
    assert "directory" in diagnostic(tmp_path)
    assert "File name too long" in diagnostic(tmp_path / ("n" * 300))


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    assert "is a pipe" in diagnostic(tmp_path / "fifo.wav")
    reading, writing = os.pipe()
    try:
        assert "is a pipe" in diagnostic(Path(f"/dev/fd/{reading}"))
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"not a sound " * 100], ids=["empty", "head only", "text"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    assert "not readable as audio" in diagnostic(path)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_a_file_cut_in_half_is_refused(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"cut.{suffix}", tone(2.0))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert any(words in diagnostic(path) for words in ("is cut off: its header says 2.00 s", "not readable as audio"))


def test_a_wav_streamed_through_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    path = written(tmp_path / "streamed.wav", tone())
    data = path.read_bytes()
    path.write_bytes(data[:40] + b"\xff\xff\xff\xff" + data[44:])
    assert read_audio(path, RATE).duration == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinite_samples_are_refused(tmp_path: Path, value: float) -> None:
    samples = tone()
    samples[100] = value
    assert "NaN or infinite" in diagnostic(written(tmp_path / "nan.wav", samples, subtype="FLOAT"))


def test_zero_length_is_refused(tmp_path: Path) -> None:
    assert "no audio" in diagnostic(written(tmp_path / "empty.wav", tone(0)))


def test_hours_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "long.wav", np.zeros(10 * 3600, dtype=np.float32), rate=1)
    assert "36000 s of audio, at most 600 s" in diagnostic(path)
    assert "at most 5 s" in diagnostic(path, max_seconds=5.0)
    assert "35999 s of audio" in diagnostic(path, start=1.0)
    assert read_audio(path, 1, 0.0, 3.0).duration == 3
    assert probe(path).duration == 36000


def test_probing_reads_the_header(tmp_path: Path) -> None:
    info = probe(written(tmp_path / "stereo.flac", np.zeros((4410, 2), dtype=np.float32), 44100))
    assert (info.frames, info.rate, info.channels, info.duration) == (4410, 44100, 2, 0.1)


@pytest.mark.parametrize("name", ["out.wav", "out.flac", "OUT.WAV"])
def test_sixteen_bits_round_trip(tmp_path: Path, name: str) -> None:
    samples = (np.arange(-32768, 32768, 7) / 32768).astype(np.float32)
    write_audio(tmp_path / name, Audio(samples, RATE))
    assert soundfile.info(tmp_path / name).subtype == "PCM_16"
    assert np.array_equal(read_audio(tmp_path / name, RATE).samples, samples)


def test_loud_samples_are_clipped(tmp_path: Path) -> None:
    write_audio(tmp_path / "loud.wav", Audio(np.array([2.0, -2.0], dtype=np.float32), RATE))
    assert np.abs(read_audio(tmp_path / "loud.wav", RATE).samples - [1, -1]).max() < 1e-4


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NaN"):
        write_audio(tmp_path / "nan.wav", Audio(np.array([np.nan], dtype=np.float32), RATE))
    assert not list(tmp_path.iterdir())


def test_folders_are_made_and_files_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "out.wav"
    write_audio(path, Audio(tone(0.1), RATE))
    write_audio(path, Audio(tone(0.2), RATE))
    assert read_audio(path, RATE).duration == 0.2
    assert [entry.name for entry in path.parent.iterdir()] == ["out.wav"]


def test_an_output_is_refused_when_checked_as_when_written(tmp_path: Path) -> None:
    file = written(tmp_path / "there.wav", tone())
    before = file.read_bytes()
    assert "exists already" in refusal(file, clobber=False)
    assert file.read_bytes() == before
    assert "known: .wav, .flac" in refusal(tmp_path / "out.mp4")
    assert "''" in refusal(tmp_path / "out")


def refusal(path: Path, clobber: bool = True) -> str:
    with pytest.raises(OutputRefused) as checked:
        check_output(path, clobber)
    with pytest.raises(OutputRefused) as tried:
        write_audio(path, Audio(tone(), RATE), clobber)
    assert str(checked.value) == str(tried.value)
    return str(checked.value)


def test_a_wav_in_memory_is_complete() -> None:
    samples, rate = soundfile.read(io.BytesIO(encode(Audio(tone(), RATE), "wav")), dtype="float32")
    assert rate == RATE
    assert np.abs(samples - tone()).max() < 1e-4


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_tags_are_written(tmp_path: Path, suffix: str) -> None:
    comment = "synthetic speech; " + "seed: 1, " * 200
    path = tmp_path / f"a{suffix}"
    write_audio(path, Audio(np.full(50, 0.25, np.float32), 24000), tags=Tags("csm-cli 1", comment, "Folge é"))
    with soundfile.SoundFile(path) as file:
        assert (file.comment, file.title) == (comment, "Folge é") and file.software.startswith("csm-cli 1")
    assert np.array_equal(read_audio(path, 24000).samples, np.full(50, 0.25, np.float32))


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("title", ["a" * 51_196, "\N{GRINNING FACE}" * 20_000, "\udcff" * 5000])
def test_a_tag_of_any_length_leaves_a_readable_file(tmp_path: Path, suffix: str, title: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_audio(path, Audio(np.full(50, 0.25, np.float32), 24000), tags=Tags("csm-cli 1", title, title))
    with soundfile.SoundFile(path) as file:
        assert (file.frames, len(file.title) > 400, file.title) == (50, True, file.comment)


def test_memory_does_not_grow_with_the_channels(tmp_path: Path) -> None:
    peaks = []
    for channels in (1, 8):
        soundfile.write(tmp_path / "a.flac", np.zeros((2_000_000, channels), np.int16), 24000)
        tracemalloc.start()
        read_audio(tmp_path / "a.flac", 24000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.slow  # librosa compiles with numba
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("count", [1, 2, 1001, 24000])
def test_resampling_equals_librosas(rate: int, count: int) -> None:
    import librosa

    samples = np.random.default_rng(0).normal(size=count).astype(np.float32)
    expected = librosa.resample(samples, orig_sr=rate, target_sr=RATE, res_type="soxr_hq")
    resampled = resample(Audio(samples, rate), RATE)
    assert len(resampled.samples) == -(-count * RATE // rate)
    assert np.array_equal(resampled.samples, expected[: len(resampled.samples)])


def test_an_install_that_nobody_may_write_to_reads_any_rate(tmp_path: Path) -> None:
    """numba, which librosa imports, fails where it finds no folder for its cache."""
    path = written(tmp_path / "clip.wav", tone(2.0, 48000), 48000)
    code = (
        "import sys; from pathlib import Path; from csm_cli.audio.io import read_audio;"
        "from csm_cli.voices.clip import prepare_clip;"
        f"audio = read_audio(Path({str(path)!r}), 24000); prepare_clip(audio, 'Hello there, you.');"
        "assert len(audio.samples) == 48000;"
        "assert not {'numba', 'librosa'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
