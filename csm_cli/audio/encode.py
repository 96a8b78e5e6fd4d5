"""Writes mono samples as a sound file, block by block: by libsndfile, and M4A by PyAV or ffmpeg.

Metadata is written in each format's own way: INFO chunk (WAV), Vorbis comments (FLAC, Ogg), ID3v2.4 (MP3), atoms (M4A).
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from csm_cli.audio.formats import DEFAULT_QUALITY, AudioEncoding, aac_encoder
from csm_cli.audio.limits import BLOCK_SAMPLES, MAX_TAG_BYTES
from csm_cli.errors import OutputFailed, OutputRefused

Samples = NDArray[np.float32]
_SAMPLE_BYTES = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}
_MAX_WAV_BYTES = (1 << 32) - (1 << 20)  # its sizes have 32 bits
_OPUS_BIT_RATES = 6000, 256_000  # of a channel, which libsndfile's compression levels 1 and 0 mean
_AAC_MIN_BIT_RATE, _AAC_MAX_BITS = 24_000, 6  # of a channel: bits per second, and bits per sample


@dataclass(frozen=True)
class Tags:
    """Metadata of an audio file."""

    software: str = ""
    comment: str = ""
    title: str = ""

    def set_values(self) -> dict[str, str]:
        """Those that are not empty, as UTF-8 of at most MAX_TAG_BYTES: a name that is not UTF-8 may be part of one."""
        values = {}
        for name, text in asdict(self).items():
            data = text.encode("utf-8", "replace")
            is_long = len(data) > MAX_TAG_BYTES
            short = data[: MAX_TAG_BYTES - 3 if is_long else None].decode("utf-8", "ignore")
            values[name] = f"{short}..." if is_long else short
        return {name: text for name, text in values.items() if text}


def encode_into(file: BinaryIO, samples: Samples, rate: int, encoding: AudioEncoding, tags: Tags) -> None:
    """Writes a whole file of samples [N] to `file`, which is empty, readable and can seek.

    Raises:
        OutputRefused: too long for the format. OutputFailed: the encoder of M4A failed. OSError: as `file`.
        ValueError: samples with NaN or infinity.
    """
    if encoding.name == "pcm":
        for block in _blocks(samples, rate, encoding):
            file.write(to_int16(block).astype("<i2").tobytes())
    elif encoding.name == "m4a":
        _encode_m4a(file, samples, rate, encoding, tags)
    else:
        _encode_sndfile(file, samples, rate, encoding, tags)


def to_int16(samples: Samples) -> NDArray[np.int16]:
    """Rounded and clipped; exact for samples that were read from 16 bits."""
    rounded: NDArray[np.int16] = np.clip(np.rint(_finite(samples) * 32768.0), -32768, 32767).astype(np.int16)
    return rounded


def _finite(samples: Samples) -> Samples:
    if not np.isfinite(samples.sum(dtype=np.float64)):
        raise ValueError("samples have NaN or infinity")
    return samples


def _blocks(samples: Samples, rate: int, encoding: AudioEncoding) -> Iterator[Samples]:
    """The samples at the rate and with the channels of the encoding, [n, channels] at a time."""
    target = encoding.rate or rate
    resampler: Any = None
    if target != rate:
        import soxr

        resampler = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    length, done = -(-len(samples) * target // rate), 0
    for first in range(0, len(samples), BLOCK_SAMPLES):
        block = samples[first : first + BLOCK_SAMPLES]
        last = first + len(block) == len(samples)
        if resampler:
            block = resampler.resample_chunk(_finite(block), last=last)[: length - done]
            if last:
                block = np.pad(block, (0, length - done - len(block)))
        done += len(block)
        yield np.repeat(block[:, None], encoding.channels, axis=1)


def _encode_sndfile(file: BinaryIO, samples: Samples, rate: int, encoding: AudioEncoding, tags: Tags) -> None:
    target, subtype = encoding.rate or rate, encoding.subtype
    if encoding.name == "wav":
        size = -(-len(samples) * target // rate) * encoding.channels * _SAMPLE_BYTES[subtype]
        if size > _MAX_WAV_BYTES:
            raise OutputRefused(
                f"{size / 1e9:.1f} GB are more than a WAV can hold; write flac, or lower --bits, --rate"
            )
    sink = _Sink(file)
    options: dict[str, Any] = {"samplerate": target, "channels": encoding.channels, "subtype": subtype}
    if encoding.format.is_lossy:
        options["compression_level"] = _compression(encoding)
    if encoding.name == "mp3":  # libsndfile writes ID3 as Latin-1
        sink.skip(_id3(tags))
    with soundfile.SoundFile(sink, "w", format=encoding.format.container, **options) as sound:
        for name, text in tags.set_values().items() if encoding.name != "mp3" else ():
            setattr(sound, name, text)
        for block in _blocks(samples, rate, encoding):
            sound.write(_values(block, subtype))
            sink.raise_error()
    sink.raise_error()


def _values(block: Samples, subtype: str) -> NDArray[Any]:
    """Samples as libsndfile should get them: its own conversion of floats wraps around beyond full scale."""
    if subtype == "PCM_16":
        return to_int16(block)
    if subtype == "PCM_24":
        scaled = np.clip(np.rint(_finite(block).astype(np.float64) * (1 << 23)), -(1 << 23), (1 << 23) - 1)
        return scaled.astype(np.int32) << 8
    return _finite(block) if subtype == "FLOAT" else np.clip(_finite(block), -1, 1)


def _compression(encoding: AudioEncoding) -> float:
    """libsndfile's level from 0 to 1. Ogg Vorbis and MP3 have the quality scales of their own encoders (VBR)."""
    if encoding.name == "opus":
        least, most = _OPUS_BIT_RATES
        return 1 - (min(max(_bit_rate(encoding), least), most) - least) / (most - least)
    return min(1 - _quality(encoding) / 10, 0.999)  # LAME's scale ends before 10


def _quality(encoding: AudioEncoding) -> float:
    return DEFAULT_QUALITY if encoding.quality is None else encoding.quality


def _bit_rate(encoding: AudioEncoding) -> float:
    """Bits per second of a channel, where a format has no quality scale: from 8,000 to 256,000."""
    return float(8000 * 2 ** (_quality(encoding) / 2))


class _Sink:
    """A file for libsndfile, which loses exceptions: the first one is kept until `raise_error`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._start = file, 0
        self._error: OSError | None = None

    def skip(self, head: bytes) -> None:
        """Writes what comes before that which libsndfile writes."""
        self._file.write(head)
        self._start = len(head)

    def write(self, data: bytes) -> int:
        try:
            if not self._error:
                self._file.write(data)
        except OSError as error:
            self._error = error
        return len(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset + (self._start if whence == os.SEEK_SET else 0), whence) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start

    def raise_error(self) -> None:
        if self._error:
            raise self._error


def _id3(tags: Tags) -> bytes:
    """An ID3v2.4 tag in UTF-8 (https://id3.org/id3v2.4.0-frames)."""
    values = tags.set_values()
    frames = b""
    for frame, name in (("TIT2", "title"), ("TSSE", "software"), ("COMM", "comment")):
        if text := values.get(name):
            language = b"eng\0" if frame == "COMM" else b""
            content = b"\x03" + language + text.encode()
            frames += frame.encode() + _synchsafe(len(content)) + b"\0\0" + content
    return b"ID3\x04\0\0" + _synchsafe(len(frames)) + frames if frames else b""


def _synchsafe(size: int) -> bytes:
    """28 bits in four bytes of 7 each."""
    return bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))


def _encode_m4a(file: BinaryIO, samples: Samples, rate: int, encoding: AudioEncoding, tags: Tags) -> None:
    target = encoding.rate or rate
    bit_rate = round(
        encoding.channels * min(max(_bit_rate(encoding), _AAC_MIN_BIT_RATE), _AAC_MAX_BITS * target, 256_000)
    )
    program = aac_encoder()
    if program == "PyAV":
        from csm_cli.audio.stream_encoders import LibavWriter

        writer = LibavWriter(file, "m4a", target, encoding.channels, bit_rate, _mp4_tags(tags))
        for block in _blocks(samples, rate, encoding):
            writer.write(_finite(block))
        writer.close()
        return
    with tempfile.TemporaryDirectory(prefix="csm-") as folder:  # ffmpeg can only seek in a file that it opens
        result = os.path.join(folder, "audio.m4a")  # noqa: PTH118
        sound = ["-f", "f32le", "-ar", str(target), "-ac", str(encoding.channels), "-i", "pipe:0"]
        pairs = _mp4_tags(tags).items()
        metadata = [part for name, text in pairs for part in ("-metadata", f"{name}={text}")]
        command = [program, "-hide_banner", "-v", "error", *sound, *metadata, "-b:a", str(bit_rate), "-f", "ipod"]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen([*command, result], stdin=subprocess.PIPE, stderr=errors)
            assert process.stdin is not None
            try:
                for block in _blocks(samples, rate, encoding):
                    process.stdin.write(_finite(block).astype("<f4").tobytes())
                process.stdin.close()
            except BrokenPipeError:  # its message says why
                pass
            finally:
                process.stdin = None
                status = process.wait()
            if status:
                errors.seek(0)
                lines = errors.read().decode("utf-8", "replace").strip().splitlines()
                reason = lines[-1] if lines else f"ended with {status}"
                raise OutputFailed(f"ffmpeg could not write M4A ({reason}); install PyAV, or write mp3 or opus")
        with open(result, "rb") as encoded:  # noqa: PTH123
            shutil.copyfileobj(encoded, file)


def _mp4_tags(tags: Tags) -> dict[str, str]:
    """Metadata by libav's names."""
    return {"encoder" if name == "software" else name: text for name, text in tags.set_values().items()}


def encode_bytes(samples: Samples, rate: int, encoding: AudioEncoding, tags: Tags) -> bytes:
    """A whole file in memory, for a pipe. Raises as `encode_into`."""
    buffer = io.BytesIO()
    encode_into(buffer, samples, rate, encoding, tags)
    return buffer.getvalue()
