"""Output formats, read back by other decoders than the library that wrote them."""

from __future__ import annotations

import json
import shutil
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from csm_cli.audio import formats
from csm_cli.audio.formats import FILE_FORMATS, AudioEncoding
from csm_cli.audio.io import Audio, Tags, check_output, encode, read_audio, write_audio
from csm_cli.errors import CsmError, OutputRefused, UsageError

RATE = 24000
TAGS = Tags("csm-cli 1", "synthetic speech; model: m; seed: 7", "Folge é 日本")
ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")


def tone(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def decoded(path: Path) -> tuple[NDArray[np.float32], int, dict[str, str]]:
    """Samples [N, channels], rate and lower-case tags, as libav reads them."""
    media: Any
    with av.open(str(path)) as media:
        stream = media.streams.audio[0]
        tags = {name.lower(): text for name, text in {**media.metadata, **stream.metadata}.items()}
        resampler = av.AudioResampler(format="flt", rate=stream.rate)
        frames = [part for frame in media.decode(stream) for part in resampler.resample(frame)]
        channels = stream.codec_context.layout.nb_channels
        samples = np.concatenate([frame.to_ndarray().reshape(-1, channels) for frame in frames])
        return samples, stream.rate, tags


@pytest.mark.parametrize("name", FILE_FORMATS)
@pytest.mark.parametrize(("rate", "stereo"), [(None, False), (48000, True)])
def test_another_decoder_reads_every_format(tmp_path: Path, name: str, rate: int | None, stereo: bool) -> None:
    path, wanted = tmp_path / f"a.{name}", rate or RATE
    write_audio(path, Audio(tone(), RATE), tags=TAGS, encoding=AudioEncoding(rate=rate, stereo=stereo))
    samples, found_rate, tags = decoded(path)
    assert found_rate == (48000 if name == "opus" else wanted)  # Opus always has this rate
    assert samples.shape[1] == (2 if stereo else 1)
    assert abs(len(samples) / found_rate - 1) < 0.1  # with the padding of lossy codecs
    middle = samples[found_rate // 4 : found_rate // 4 * 3, 0]
    assert np.sqrt(np.square(middle).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() * found_rate / len(middle) == pytest.approx(440, abs=3)
    assert np.array_equal(samples[:, 0], samples[:, -1]) or name in ("mp3", "opus", "m4a", "ogg")
    assert (tags["comment"], tags["title"]) == (TAGS.comment, TAGS.title)


@ffmpeg
@pytest.mark.parametrize("name", FILE_FORMATS)
def test_ffmpeg_reads_length_and_comment(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.{name}"
    write_audio(path, Audio(tone(2.0), RATE), tags=TAGS)
    shown = ["ffprobe", "-v", "error", "-show_format", "-show_streams", "-of", "json", str(path)]
    found = json.loads(subprocess.run(shown, capture_output=True, text=True, check=True).stdout)
    tags = {**found["format"].get("tags", {}), **found["streams"][0].get("tags", {})}
    lower = {key.lower(): value for key, value in tags.items()}
    assert lower["comment"] == TAGS.comment and lower["title"] == TAGS.title
    assert float(found["format"]["duration"]) == pytest.approx(2.0, abs=0.1)  # MP3: of whole frames
    wav = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(path), "-f", "s16le", "-"], capture_output=True, check=True
    )
    assert len(wav.stdout) / 2 / float(found["streams"][0]["sample_rate"]) == pytest.approx(2.0, abs=0.06)


@pytest.mark.parametrize(
    ("name", "bits", "subtype", "error"),
    [
        ("wav", "24", "PCM_24", 2**-24),
        ("wav", "float", "FLOAT", 0),
        ("flac", "24", "PCM_24", 2**-24),
        ("wav", "16", "PCM_16", 2**-16),
    ],
)
def test_bit_depth(tmp_path: Path, name: str, bits: str, subtype: str, error: float) -> None:
    write_audio(tmp_path / f"a.{name}", Audio(tone(), RATE), encoding=AudioEncoding(bits=bits))
    assert soundfile.info(tmp_path / f"a.{name}").subtype == subtype
    samples, _ = soundfile.read(tmp_path / f"a.{name}", dtype="float64")
    assert np.abs(samples - tone()).max() <= error


@pytest.mark.parametrize("name", ["mp3", "ogg", "opus", "m4a"])
def test_quality_changes_the_size(tmp_path: Path, name: str) -> None:
    noise = (0.1 * np.random.default_rng(0).normal(size=3 * RATE)).astype(np.float32)
    sizes = []
    for quality in (0, 5, 10):
        write_audio(tmp_path / f"a.{name}", Audio(noise, RATE), encoding=AudioEncoding(quality=quality))
        sizes.append((tmp_path / f"a.{name}").stat().st_size)
    assert sizes == sorted(sizes) and sizes[2] > 1.5 * sizes[0]


@pytest.mark.parametrize("name", [*FILE_FORMATS, "pcm"])
def test_full_scale_and_one_sample_survive(tmp_path: Path, name: str) -> None:
    loud = np.tile(np.float32([1.5, -1.5]), 6000).repeat(20)[: 2 * RATE]
    for samples in (loud, np.float32([0.25])):
        data = encode(Audio(samples, RATE), AudioEncoding(name))
        assert data
        if name not in ("m4a", "pcm"):
            (tmp_path / "a.bin").write_bytes(data)
            assert len(read_audio(tmp_path / "a.bin", RATE).samples) == len(samples)


def test_a_new_rate_has_the_same_length_and_sound_in_blocks(tmp_path: Path) -> None:
    samples = tone(30.0)  # several blocks
    write_audio(tmp_path / "a.wav", Audio(samples, RATE), encoding=AudioEncoding(rate=44100, bits="float"))
    found, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert (len(found), rate) == (30 * 44100, 44100)
    assert np.abs(found - tone(30.0, 44100))[2000:-2000].max() < 1e-3


@pytest.mark.parametrize("name", ["wav", "flac", "ogg"])
def test_a_long_file_is_not_copied_in_memory(tmp_path: Path, name: str) -> None:
    samples = np.tile(tone(), 90)
    tracemalloc.start()
    write_audio(tmp_path / f"a.{name}", Audio(samples, RATE))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * samples.nbytes


def test_ffmpeg_writes_m4a_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which("ffmpeg")
    if not program:
        pytest.skip("ffmpeg is not installed")
    monkeypatch.setattr("csm_cli.audio.encode.aac_encoder", lambda: program)
    write_audio(tmp_path / "a.m4a", Audio(tone(), RATE), tags=TAGS, encoding=AudioEncoding(rate=44100, stereo=True))
    samples, rate, tags = decoded(tmp_path / "a.m4a")
    assert (rate, samples.shape[1], tags["comment"], tags["title"]) == (44100, 2, TAGS.comment, TAGS.title)


def test_m4a_needs_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "aac_encoder", lambda: "")
    with pytest.raises(OutputRefused, match=r"csm-cli\[av\]"):
        check_output(tmp_path / "a.m4a")


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("mp3", {"bits": "24"}, "leave out --bits"),
        ("flac", {"bits": "float"}, "16 or 24"),
        ("wav", {"quality": 5}, "leave out --quality"),
        ("opus", {"rate": 44100}, "48000"),
        ("mp3", {"rate": 96000}, "48000"),
    ],
)
def test_impossible_combinations_say_what_to_do(tmp_path: Path, name: str, options: Any, hint: str) -> None:
    with pytest.raises(OutputRefused, match=hint) as by_suffix:
        check_output(tmp_path / f"a.{name}", encoding=AudioEncoding(**options))
    with pytest.raises(UsageError, match=hint):
        AudioEncoding(name, **options)
    assert "\n" not in str(by_suffix.value) and str(tmp_path) in str(by_suffix.value)


def test_a_full_disk_is_reported_for_every_format(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    from csm_cli.audio.encode import encode_into

    for name in FILE_FORMATS:
        with Path("/dev/full").open("r+b", buffering=0) as full, pytest.raises((OSError, CsmError)):
            encode_into(full, tone(3.0), RATE, AudioEncoding(name), TAGS)
