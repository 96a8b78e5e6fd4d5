"""Reads sound files as mono float32 at one rate; writes them in any of the output formats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from csm_cli.audio.decoders import TOLERANCE_SECONDS, AudioBytes, open_sound, truncated, unreadable
from csm_cli.audio.encode import Tags as Tags
from csm_cli.audio.encode import encode_bytes, encode_into, to_int16
from csm_cli.audio.formats import DEFAULT_ENCODING, AudioEncoding
from csm_cli.audio.limits import BLOCK_SAMPLES, MAX_LEVEL, MAX_SAMPLES, MAX_SECONDS
from csm_cli.errors import AudioUnreadable
from csm_cli.storage.files import FileContent, check_writable, write_atomically

_CANCELLED = 0.25  # of the mean's variance: two channels with a correlation below -0.75

Samples = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Audio:
    """Mono audio: samples float32 [N], full scale -1 to 1; rate in Hz. notes: what is unusual about its file."""

    samples: Samples
    rate: int
    notes: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.rate


@dataclass(frozen=True)
class AudioInfo:
    """The header of an audio file. frames: samples per channel; rate in Hz."""

    frames: int
    rate: int
    channels: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.rate


def probe(path: Path | AudioBytes) -> AudioInfo:
    """Length, rate and channels of an audio file, from its header.

    Raises:
        AudioUnreadable: missing, not audio, empty or truncated.
    """
    with open_sound(path) as file:
        return AudioInfo(file.frames, file.samplerate, file.channels)


def read_audio(
    path: Path | AudioBytes,
    rate: int,
    start: float | None = None,
    end: float | None = None,
    max_seconds: float = MAX_SECONDS,
) -> Audio:
    """An audio file, or its range from `start` to `end` seconds, mixed to mono and resampled to `rate` Hz.

    Raises:
        AudioUnreadable: as `probe`; or the range is outside the file, longer than `max_seconds` or MAX_SAMPLES, or has
            samples that are no sound.
    """
    with open_sound(path) as file:
        source_rate: int = file.samplerate
        duration = file.frames / source_rate
        if problem := range_problem(duration, start, end, max_seconds):
            raise AudioUnreadable(f"{path}: {problem}")
        first = round((start or 0.0) * source_rate)
        last = min(round((duration if end is None else end) * source_rate), file.frames)
        if first >= last:
            raise AudioUnreadable(f"{path}: the range from {start or 0:g} s to {end or duration:g} s is empty")
        if last - first > MAX_SAMPLES:
            sizes = f"{last - first:,} samples at {source_rate:,} Hz, at most {MAX_SAMPLES:,}"
            raise AudioUnreadable(f"{path}: {sizes}; resample it to 48 kHz, or take a part")
        try:
            file.seek(first)
            read = _read_mono(file, last - first)
            notes: tuple[str, ...] = ()
            if read.is_cancelled:
                loudest = int(read.channels.argmax())
                file.seek(first)
                read = _read_mono(file, last - first, loudest)
                notes = (f"its channels cancel each other (out of phase); only channel {loudest + 1} is used",)
        except soundfile.SoundFileError as error:
            raise unreadable(path, error) from error
        if len(read.samples) < last - first:
            raise truncated(path, last / source_rate, (first + len(read.samples)) / source_rate)
    mono = read.samples
    if not (len(mono) and max(-mono.min(), mono.max()) <= MAX_LEVEL):  # false for NaN
        problem = "has NaN or infinite samples, or some beyond all sound"
        raise AudioUnreadable(f"{path}: {problem}; export it again from its source")
    return resample(Audio(mono, source_rate, notes), rate)


def _read_mono(file: soundfile.SoundFile, count: int, channel: int | None = None) -> _Mono:
    """The next `count` samples as the mean of all channels, or one channel; fewer where the file ends before.

    They are decoded in blocks. The level of a channel beyond MAX_LEVEL stays one in the mean, which is NaN then.
    """
    mono = np.empty(count, np.float32)
    size = max(1, BLOCK_SAMPLES // file.channels)
    sums = np.zeros((2, file.channels + 1))  # of samples and of their squares: for each channel, and the mean
    done = 0
    while done < count:
        block = file.read(min(size, count - done), dtype="float32", always_2d=True)
        if not len(block):
            break
        if not max(-block.min(), block.max()) <= MAX_LEVEL:
            block[:] = np.nan
        mean = block.mean(axis=1) if channel is None else block[:, channel]
        mono[done : done + len(block)] = mean
        if channel is None and file.channels > 1:
            for index, samples in enumerate((*block.T, mean)):
                sums[:, index] += samples.sum(dtype=np.float64), np.square(samples, dtype=np.float64).sum()
        done += len(block)
    variances = sums[1] / max(1, done) - np.square(sums[0] / max(1, done))
    return _Mono(mono[:done], variances[:-1], variances[-1])


@dataclass(frozen=True, eq=False)
class _Mono:
    """samples: [N]; variances: of the channels [C], and of their mean."""

    samples: Samples
    channels: NDArray[np.float64]
    mean: np.float64

    @property
    def is_cancelled(self) -> bool:
        """Whether the channels cancel each other in the mean, as with one of two wires swapped.

        Channels that have nothing in common have a mean whose variance is the sum of theirs by the square of their
        number. It is near 0 where they are opposite.
        """
        unrelated = self.channels.sum() / len(self.channels) ** 2
        return bool(len(self.channels) > 1 and unrelated > 0 and self.mean < _CANCELLED * unrelated)


def range_problem(duration: float, start: float | None, end: float | None, max_seconds: float = MAX_SECONDS) -> str:
    """What is wrong with the range from `start` to `end` seconds of a file of `duration`; "" if nothing is."""
    first, last = start or 0.0, duration if end is None else end
    end_of_file = f"the end of the file ({round(duration, 2):g} s)"
    if not 0 <= first < duration:
        return f"start {first:g} s is {'before the beginning' if first < 0 else f'past {end_of_file}'}"
    if not last <= duration + TOLERANCE_SECONDS:
        return f"end {last:g} s is past {end_of_file}"
    if last <= first:
        return f"end {last:g} s is not after start {first:g} s"
    if last - first > max_seconds:
        hint = "cut it, or take a part with a script's start and end"
        return f"{last - first:.0f} s of audio, at most {max_seconds:.0f} s; {hint}"
    return ""


def resample(audio: Audio, rate: int) -> Audio:
    """The same audio at `rate` Hz: what librosa.resample gives with "soxr_hq", without the cache that numba needs."""
    if audio.rate == rate:
        return audio
    import soxr

    length = -(-len(audio.samples) * rate // audio.rate)
    samples: Samples = soxr.resample(audio.samples, audio.rate, rate, quality="HQ")[:length]
    return replace(audio, samples=np.pad(samples, (0, length - len(samples))), rate=rate)


def check_output(path: Path, clobber: bool = True, encoding: AudioEncoding = DEFAULT_ENCODING) -> None:
    """Checks that an audio file can be written, before any work is done for it.

    Raises:
        OutputRefused: as `AudioEncoding.for_file` and `check_writable`.
    """
    check_writable(path, clobber)
    encoding.for_file(path)


def write_audio(
    path: Path,
    audio: Audio,
    clobber: bool = True,
    tags: Tags | None = None,
    encoding: AudioEncoding = DEFAULT_ENCODING,
) -> None:
    """Writes a file, by its suffix if `encoding` names no format, atomically. Creates missing folders.

    Raises:
        OutputRefused: as `check_output`.
        OutputFailed: the disk is full or failed.
    """
    check_output(path, clobber, encoding)
    write_atomically(path, encode_audio(path, audio, tags, encoding))


def encode_audio(
    path: Path, audio: Audio, tags: Tags | None = None, encoding: AudioEncoding = DEFAULT_ENCODING
) -> FileContent:
    """The content of a file, encoded while it is written; in the format of `path`'s suffix if `encoding` has none."""
    resolved = encoding.for_file(path)
    return lambda file: encode_into(file, audio.samples, audio.rate, resolved, tags or Tags())


def encode(audio: Audio, kind: str | AudioEncoding, tags: Tags | None = None) -> bytes:
    """A whole file in memory, for a pipe or a response. kind: an encoding with its format, or just that."""
    encoding = AudioEncoding(kind) if isinstance(kind, str) else kind
    return encode_bytes(audio.samples, audio.rate, encoding, tags or Tags())


def encode_pcm(samples: Samples) -> bytes:
    """Samples as 16-bit little-endian integers."""
    return to_int16(samples).astype("<i2").tobytes()
