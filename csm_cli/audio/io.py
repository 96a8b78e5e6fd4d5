"""Reads any audio file that libsndfile reads, as mono float32 at one rate; writes 16-bit WAV and FLAC."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from csm_cli.audio import AUDIO_FORMATS
from csm_cli.audio.limits import BLOCK_SAMPLES, MAX_LEVEL, MAX_SAMPLES, MAX_SECONDS, MAX_TAG_BYTES
from csm_cli.errors import AudioUnreadable, OutputRefused
from csm_cli.storage.files import check_writable, write_atomically

_TOLERANCE_SECONDS = 0.01  # past the end of a file, for durations that were rounded
# libsndfile logs the size in a header and the actual size, if they differ
_SIZE_MISMATCH = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_SIZES = (0x7FFFFFFF, 0xFFFFFFFF)  # in the header of a WAV that was streamed through a pipe

Samples = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Audio:
    """Mono audio: samples float32 [N], full scale -1 to 1; rate in Hz."""

    samples: Samples
    rate: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.rate


@dataclass(frozen=True)
class Tags:
    """Metadata of an audio file: a WAV's INFO chunk (ISFT, ICMT, INAM), a FLAC's Vorbis comments."""

    software: str = ""
    comment: str = ""
    title: str = ""


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


@dataclass(frozen=True, eq=False)
class AudioBytes:
    """An audio file that is stored inside another file. name: for diagnostics."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


def probe(path: Path | AudioBytes) -> AudioInfo:
    """Length, rate and channels of an audio file, from its header.

    Raises:
        AudioUnreadable: missing, not audio, empty or truncated.
    """
    with _open(path) as file:
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
    with _open(path) as file:
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
            mono = _read_mono(file, last - first)
        except soundfile.SoundFileError as error:
            raise _unreadable(path, error) from error
        if len(mono) < last - first:
            raise _truncated(path, last / source_rate, (first + len(mono)) / source_rate)
    if not (len(mono) and max(-mono.min(), mono.max()) <= MAX_LEVEL):  # false for NaN
        problem = "has NaN or infinite samples, or some beyond all sound"
        raise AudioUnreadable(f"{path}: {problem}; export it again from its source")
    return resample(Audio(mono, source_rate), rate)


def _read_mono(file: soundfile.SoundFile, count: int) -> Samples:
    """The next `count` samples as the mean of all channels, decoded in blocks; fewer where the file ends before.

    The level of a channel beyond MAX_LEVEL stays one in the mean, which is NaN then.
    """
    mono = np.empty(count, np.float32)
    size = max(1, BLOCK_SAMPLES // file.channels)
    done = 0
    while done < count:
        block = file.read(min(size, count - done), dtype="float32", always_2d=True)
        if not len(block):
            break
        if not max(-block.min(), block.max()) <= MAX_LEVEL:
            block[:] = np.nan
        mono[done : done + len(block)] = block.mean(axis=1)
        done += len(block)
    return mono[:done]


def range_problem(duration: float, start: float | None, end: float | None, max_seconds: float = MAX_SECONDS) -> str:
    """What is wrong with the range from `start` to `end` seconds of a file of `duration`; "" if nothing is."""
    first, last = start or 0.0, duration if end is None else end
    end_of_file = f"the end of the file ({round(duration, 2):g} s)"
    if not 0 <= first < duration:
        return f"start {first:g} s is {'before the beginning' if first < 0 else f'past {end_of_file}'}"
    if not last <= duration + _TOLERANCE_SECONDS:
        return f"end {last:g} s is past {end_of_file}"
    if last <= first:
        return f"end {last:g} s is not after start {first:g} s"
    if last - first > max_seconds:
        hint = "cut it, or take a part with a script's start and end"
        return f"{last - first:.0f} s of audio, at most {max_seconds:.0f} s; {hint}"
    return ""


@contextmanager
def _open(path: Path | AudioBytes) -> Iterator[soundfile.SoundFile]:
    """Raises AudioUnreadable: missing, not audio, empty or truncated."""
    try:
        if isinstance(path, Path) and path.is_dir():
            raise AudioUnreadable(f"{path}: is a directory; name an audio file in it")
        if isinstance(path, Path) and path.exists() and not path.is_file():  # opening a named pipe would block
            raise AudioUnreadable(f"{path}: is a pipe or a device; save the audio to a file first")
        # a file object, since libsndfile's own opening hides the reason of a failure
        with path.open("rb") if isinstance(path, Path) else io.BytesIO(path.data) as source:
            try:
                file = soundfile.SoundFile(source)
            except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a suffix of headerless samples
                raise _unreadable(path, error) from error
            with file:
                if file.frames <= 0:
                    raise AudioUnreadable(f"{path}: holds no audio (zero length)")
                duration, sizes = file.frames / file.samplerate, _SIZE_MISMATCH.search(file.extra_info)
                if sizes and int(sizes[1]) not in _UNKNOWN_SIZES:
                    expected = duration * int(sizes[1]) / int(sizes[2])
                    if expected > duration + _TOLERANCE_SECONDS:
                        raise _truncated(path, expected, duration)
                yield file
    except OSError as error:
        raise AudioUnreadable(f"{path}: {error.strerror or error}; name an audio file that can be read") from error


def _unreadable(path: Path | AudioBytes, error: Exception) -> AudioUnreadable:
    reason = str(getattr(error, "error_string", error)).rstrip(".")
    return AudioUnreadable(f"{path}: not readable as audio ({reason}); WAV, FLAC, OGG, MP3 and AIFF are")


def _truncated(path: Path | AudioBytes, expected: float, actual: float) -> AudioUnreadable:
    return AudioUnreadable(
        f"{path}: is cut off: its header says {expected:.2f} s, it holds {actual:.2f} s; copy or export it again"
    )


def resample(audio: Audio, rate: int) -> Audio:
    """The same audio at `rate` Hz."""
    if audio.rate == rate:
        return audio
    import librosa

    length = -(-len(audio.samples) * rate // audio.rate)  # librosa's ceil, in floats, can be one sample too many
    samples: Samples = librosa.resample(audio.samples, orig_sr=audio.rate, target_sr=rate, res_type="soxr_hq")
    return Audio(samples[:length], rate)


def check_output(path: Path, clobber: bool = True, kind: str | None = None) -> None:
    """Checks that an output can be written, before any work is done for it. kind: as for `encode`; None: by suffix.

    Raises:
        OutputRefused: an unknown suffix, or as `check_writable`.
    """
    check_writable(path, clobber)
    if kind is None and path.suffix.lower().removeprefix(".") not in AUDIO_FORMATS:
        raise OutputRefused(
            f"{path}: unknown audio format {path.suffix!r}; known: {', '.join(f'.{name}' for name in AUDIO_FORMATS)}"
        )


def write_audio(path: Path, audio: Audio, clobber: bool = True, tags: Tags | None = None) -> None:
    """Writes a file in the format of its suffix, atomically. Creates missing folders.

    Raises:
        OutputRefused: as `check_output`.
        OutputFailed: the disk is full or failed.
    """
    check_output(path, clobber)
    write_atomically(path, encode_audio(path, audio, tags))


def encode_audio(path: Path, audio: Audio, tags: Tags | None = None, kind: str | None = None) -> bytes:
    """A whole file in the format `kind`, or in that of `path`'s suffix."""
    return encode(audio, kind or path.suffix.lower().removeprefix("."), tags)


def encode(audio: Audio, kind: str, tags: Tags | None = None) -> bytes:
    """A whole file in one of `AUDIO_FORMATS`, or "pcm": raw 16-bit samples without tags.

    In memory, since libsndfile cannot fix the header of a file that it writes to a pipe.
    """
    if kind == "pcm":
        return encode_pcm(audio.samples)
    container, subtype = AUDIO_FORMATS[kind]
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", audio.rate, channels=1, subtype=subtype, format=container) as file:
        for name, text in asdict(tags or Tags()).items():
            if text:
                data = text.encode("utf-8", "replace")  # a name that is not UTF-8 may be part of it
                is_long = len(data) > MAX_TAG_BYTES
                text = data[: MAX_TAG_BYTES - 3 if is_long else None].decode("utf-8", "ignore")
                setattr(file, name, f"{text}..." if is_long else text)
        file.write(_to_int16(audio.samples))
    return buffer.getvalue()


def encode_pcm(samples: Samples) -> bytes:
    """Samples as 16-bit little-endian integers."""
    return _to_int16(samples).astype("<i2").tobytes()


def _to_int16(samples: Samples) -> NDArray[np.int16]:
    """Rounded and clipped; exact for samples that were read from 16 bits."""
    if not math.isfinite(float(samples.sum(dtype=np.float64))):
        raise ValueError("samples have NaN or infinity")
    rounded: NDArray[np.int16] = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    return rounded
