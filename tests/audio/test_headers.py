"""Sound that programs wrote to a pipe, without its length in the header."""

from __future__ import annotations

import io
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from csm_cli.audio.headers import SharedFile, with_lengths
from csm_cli.audio.io import probe, read_audio
from csm_cli.errors import AudioUnreadable

RATE = 24000
OPEN_SIZES = [0x7FFFF000, 0x7FFF0000, 0x7FFFFFFF, 0x80000000, 0x80000000 - 36, 0xFFFFFFFF, 0xFFFFFFFF - 36, 0]


def tone(seconds: float = 0.5) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def sound(kind: str, subtype: str = "PCM_16", seconds: float = 0.5) -> bytearray:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(seconds), RATE, format=kind, subtype=subtype)
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize("size", OPEN_SIZES)
@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_wav_with_an_open_size_is_read_to_its_end(tmp_path: Path, size: int, kind: str, subtype: str) -> None:
    data = sound(kind, subtype)
    at = data.index(b"data") + 4
    struct.pack_into("<I", data, 4, min(size + 36, 0xFFFFFFFF))
    struct.pack_into("<I", data, at, size)
    path = tmp_path / "pipe.wav"
    path.write_bytes(data)
    assert probe(path).frames == RATE // 2
    assert np.abs(read_audio(path, RATE).samples - tone()).max() < 1e-4


@pytest.mark.parametrize(("riff", "size"), [(0, 0), (36, 0), (8, 0), (0xFFFFFFFF, 123_456_789), (2**31, 10**8)])
def test_the_size_of_the_whole_file_says_it_too(tmp_path: Path, riff: int, size: int) -> None:
    data = sound("WAV")
    struct.pack_into("<I", data, 4, riff)
    struct.pack_into("<I", data, 40, size)
    (tmp_path / "pipe.wav").write_bytes(data)
    assert read_audio(tmp_path / "pipe.wav", RATE).duration == 0.5


@pytest.mark.parametrize("size", [-1, 0, 2**63 - 1])
def test_rf64_with_an_open_size_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    data = sound("RF64")
    struct.pack_into("<qqq", data, data.index(b"ds64") + 8, size, size, 0)
    data[4:8] = data[data.index(b"data") + 4 : data.index(b"data") + 8] = b"\xff" * 4
    (tmp_path / "pipe.wav").write_bytes(data)
    assert read_audio(tmp_path / "pipe.wav", RATE).duration == 0.5


@pytest.mark.parametrize("size", [0x7F000008, 0xFFFFFFFF, 0])
def test_aiff_with_an_open_size_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    data = sound("AIFF")
    struct.pack_into(">I", data, data.index(b"SSND") + 4, size)
    struct.pack_into(">I", data, data.index(b"COMM") + 10, size // 2)
    (tmp_path / "pipe.aiff").write_bytes(data)
    assert read_audio(tmp_path / "pipe.aiff", RATE).duration == 0.5


def test_a_pipe_of_more_than_the_open_size_is_read_to_its_end(tmp_path: Path) -> None:
    data = sound("WAV", seconds=0)
    struct.pack_into("<I", data, 40, 0x7FFFF000)
    with (tmp_path / "pipe.wav").open("wb") as file:
        file.write(data[:44])
        file.truncate(44 + 2_400_000_000)  # of a hole
    assert probe(tmp_path / "pipe.wav").frames == 1_200_000_000


def test_chunks_after_the_sound_are_none(tmp_path: Path) -> None:
    data = sound("WAV") + b"LIST" + struct.pack("<I", 4) + b"INFO"
    struct.pack_into("<I", data, 4, 0xFFFFFFFF)
    (tmp_path / "tagged.wav").write_bytes(data)
    assert read_audio(tmp_path / "tagged.wav", RATE).duration == 0.5


def test_flac_without_a_length_is_read_to_its_end(tmp_path: Path) -> None:
    data = sound("FLAC", seconds=1.3)
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "pipe.flac").write_bytes(data)
    assert probe(tmp_path / "pipe.flac").frames == round(1.3 * RATE)
    assert np.abs(read_audio(tmp_path / "pipe.flac", RATE, start=0.9).samples - tone(1.3)[21600:]).max() < 1e-4


def test_mp3_without_a_length_is_read_to_its_end(tmp_path: Path) -> None:
    """libsndfile takes the length from the first frame's bit rate, which is higher here than that of the others."""
    first, others = io.BytesIO(), io.BytesIO()
    soundfile.write(first, tone(0.2), RATE, format="MP3", bitrate_mode="CONSTANT", compression_level=0.0)
    soundfile.write(others, tone(3.0), RATE, format="MP3", bitrate_mode="CONSTANT", compression_level=0.9)
    joined = first.getvalue() + others.getvalue()
    (tmp_path / "pipe.mp3").write_bytes(b"".join(joined.split(b"Info", 1)).replace(b"LAME", b"\0\0\0\0", 1))
    assert read_audio(tmp_path / "pipe.mp3", RATE).duration > 3.1


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "AIFF"])
def test_a_file_that_is_cut_off_keeps_its_message(tmp_path: Path, kind: str) -> None:
    data = sound(kind, seconds=2.0)
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioUnreadable, match=r"is cut off: its header says 2.00 s"):
        probe(tmp_path / "cut")


def test_an_empty_wav_before_other_chunks_has_no_audio(tmp_path: Path) -> None:
    data = sound("WAV", seconds=0)
    (tmp_path / "empty.wav").write_bytes(data + b"LIST" + struct.pack("<I", 4) + b"INFO")
    with pytest.raises(AudioUnreadable, match="no audio"):
        probe(tmp_path / "empty.wav")


@pytest.mark.espeak
def test_espeak_ngs_pipe_is_read(tmp_path: Path) -> None:
    said = subprocess.run(["espeak-ng", "--stdout", "yes"], stdout=subprocess.PIPE, check=True).stdout
    (tmp_path / "e.wav").write_bytes(said)
    assert probe(tmp_path / "e.wav").frames == (len(said) - 44) // 2


@given(
    st.sampled_from(["WAV", "WAVEX", "RF64", "AIFF", "CAF", "FLAC", "MP3"]),
    st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=8)), max_size=4),
    st.integers(0, 3000),
)
def test_any_damage_is_read_or_refused(kind: str, patches: list[tuple[int, bytes]], length: int) -> None:
    data = sound(kind, "MPEG_LAYER_III" if kind == "MP3" else "PCM_16", 0.05)
    for at, patch in patches:
        data[at : at + len(patch)] = patch
    file = with_lengths(SharedFile(io.BytesIO(bytes(data[:length]))))
    assert len(file.read()) <= len(data) + 4096
