"""Sound files: whatever libsndfile reads, to mono float32 at one rate; and back to 16 bits."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from csm_cli.errors import AudioUnreadable, OutputRefused
from csm_cli.storage.files import check_writable, write_atomically

MAX_SECONDS = 600.0  # seconds; many times what a model's window holds
FORMATS = {".wav": "WAV", ".flac": "FLAC"}
_SLACK = 0.01  # seconds an `end` may lie past the end of a file, for durations rounded by hand
# libsndfile notes what a header promises and the file does not hold
_SHORT = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_LENGTHS = (0x7FFFFFFF, 0xFFFFFFFF)  # what a WAV streamed through a pipe says of itself


@dataclass(frozen=True, eq=False)
class Audio:
    """Mono sound: samples float32 [N], full scale -1..1, at `rate` per second."""

    samples: NDArray[np.float32]
    rate: int

    @property
    def duration(self) -> float:
        return len(self.samples) / self.rate


@dataclass(frozen=True)
class Tags:
    """What a sound file says of itself: a WAV's INFO chunk (ISFT, ICMT, INAM), a FLAC's Vorbis comments."""

    software: str = ""
    comment: str = ""
    title: str = ""


@dataclass(frozen=True)
class AudioInfo:
    """What a sound file's header says; `frames` is samples per channel."""

    frames: int
    rate: int
    channels: int

    @property
    def duration(self) -> float:
        return self.frames / self.rate


@dataclass(frozen=True, eq=False)
class AudioBytes:
    """The bytes of a sound file that lies within another. name: what diagnostics call it."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


def probe(path: Path | AudioBytes) -> AudioInfo:
    """Length, rate and channels of a sound file, from its header.

    Raises:
        AudioUnreadable: no such file, no sound file, no sound in it, or cut off.
    """
    with _opened(path) as sound:
        return AudioInfo(sound.frames, sound.samplerate, sound.channels)


def read_audio(
    path: Path | AudioBytes,
    rate: int,
    start: float | None = None,
    end: float | None = None,
    longest: float = MAX_SECONDS,
) -> Audio:
    """A sound file, or the part of it from `start` to `end` seconds, mixed to mono and resampled to `rate`.

    Raises:
        AudioUnreadable: as `probe`; also a part outside the file, more than `longest` seconds, or NaN.
    """
    with _opened(path) as sound:
        duration = sound.frames / sound.samplerate
        if trouble := range_problem(duration, start, end, longest):
            raise AudioUnreadable(f"{path}: {trouble}")
        first = round((start or 0.0) * sound.samplerate)
        last = min(round((duration if end is None else end) * sound.samplerate), sound.frames)
        if first >= last:
            raise AudioUnreadable(f"{path}: the part from {start or 0:g} s to {end or duration:g} s holds no sound")
        try:
            sound.seek(first)
            samples = sound.read(last - first, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise _unreadable(path, error) from error
        if len(samples) < last - first:
            raise _cut_off(path, last / sound.samplerate, (first + len(samples)) / sound.samplerate)
        source_rate = sound.samplerate
    if not np.isfinite(samples).all():
        raise AudioUnreadable(f"{path}: holds NaN or infinite samples; export it again from its source")
    return Audio(_resampled(samples.mean(axis=1), source_rate, rate), rate)


def range_problem(duration: float, start: float | None, end: float | None, longest: float = MAX_SECONDS) -> str:
    """What is wrong with the part from `start` to `end` seconds of a sound of `duration`; empty where nothing is."""
    begin, stop = start or 0.0, duration if end is None else end
    whole = f"the end of the file ({round(duration, 2):g} s)"
    if not 0 <= begin < duration:
        return f"start {begin:g} s is {'before the beginning' if begin < 0 else f'past {whole}'}"
    if not stop <= duration + _SLACK:
        return f"end {stop:g} s is past {whole}"
    if stop <= begin:
        return f"end {stop:g} s is not after start {begin:g} s"
    if stop - begin > longest:
        hint = "cut it, or take a part with a script's start and end"
        return f"{stop - begin:.0f} s of sound, at most {longest:.0f} s; {hint}"
    return ""


@contextmanager
def _opened(path: Path | AudioBytes) -> Iterator[soundfile.SoundFile]:
    if isinstance(path, AudioBytes):
        with _decoder(path, io.BytesIO(path.data)) as sound:
            yield sound
        return
    try:
        if path.is_dir():
            raise AudioUnreadable(f"{path}: is a directory; name a sound file in it")
        if path.exists() and not path.is_file():  # opening a named pipe waits for ever
            raise AudioUnreadable(f"{path}: is a pipe or a device; save the sound to a file first")
        # a file object, since libsndfile's own opening hides the reason of a failure
        with path.open("rb") as file, _decoder(path, file) as sound:
            yield sound
    except OSError as error:
        raise AudioUnreadable(f"{path}: {error.strerror or error}; name a sound file that can be read") from error


def _decoder(path: Path | AudioBytes, file: BinaryIO) -> soundfile.SoundFile:
    try:
        sound = soundfile.SoundFile(file)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a suffix that stands for headerless samples
        raise _unreadable(path, error) from error
    if sound.frames <= 0:
        raise AudioUnreadable(f"{path}: holds no sound (zero length)")
    held = sound.frames / sound.samplerate
    promised = held * _promise(sound.extra_info)
    if promised > held + _SLACK:
        raise _cut_off(path, promised, held)
    return sound


def _promise(notes: str) -> float:
    """How many times the data that is there a WAV's or AIFF's header promises."""
    short = _SHORT.search(notes)
    return int(short[1]) / int(short[2]) if short and int(short[1]) not in _UNKNOWN_LENGTHS else 1.0


def resample(audio: Audio, rate: int) -> Audio:
    """The same sound at `rate` samples per second."""
    return Audio(_resampled(audio.samples, audio.rate, rate), rate)


def _resampled(samples: NDArray[np.float32], source_rate: int, rate: int) -> NDArray[np.float32]:
    if source_rate == rate:
        return samples
    import librosa

    length = -(-len(samples) * rate // source_rate)  # librosa's own ceil, in floats, can be one too many: a frame more
    resampled: NDArray[np.float32] = librosa.resample(samples, orig_sr=source_rate, target_sr=rate, res_type="soxr_hq")
    return resampled[:length]


def _unreadable(path: Path | AudioBytes, error: Exception) -> AudioUnreadable:
    reason = str(getattr(error, "error_string", error)).rstrip(".")
    return AudioUnreadable(f"{path}: not readable as sound ({reason}); WAV, FLAC, OGG, MP3 and AIFF are")


def _cut_off(path: Path | AudioBytes, promised: float, held: float) -> AudioUnreadable:
    message = f"its header promises {promised:.2f} s, it holds {held:.2f} s; copy or export it again"
    return AudioUnreadable(f"{path}: is cut off: {message}")


def check_output(path: Path, clobber: bool = True, kind: str | None = None) -> None:
    """Refuses an output that could not be written, before any work is done for it. kind: as `encode_audio`'s.

    Raises:
        OutputRefused: no format by that suffix, or as `check_place`.
    """
    check_writable(path, clobber)
    if kind is None and path.suffix.lower() not in FORMATS:
        raise OutputRefused(f"{path}: no format by the suffix {path.suffix!r}; known: {', '.join(FORMATS)}")


def write_audio(path: Path, audio: Audio, clobber: bool = True, tags: Tags | None = None) -> None:
    """Writes 16-bit WAV or FLAC by the suffix; the file appears whole or not at all. Missing folders are made.

    Raises:
        OutputRefused: as `check_output`.
        OutputFailed: the disk is full or failed.
    """
    check_output(path, clobber)
    write_atomically(path, encode_audio(path, audio, tags))


def encode_audio(path: Path, audio: Audio, tags: Tags | None = None, kind: str | None = None) -> bytes:
    """A complete 16-bit file in the format of `path`'s suffix, or of `kind`, as `encode`'s."""
    return encode(audio, kind or path.suffix.lower().removeprefix("."), tags)


def encode(audio: Audio, kind: str, tags: Tags | None = None) -> bytes:
    """A complete 16-bit "wav", "flac" or "pcm", which is raw and has no place for tags.

    Whole for a pipe too: libsndfile cannot mend the header of what has already gone through one.
    """
    return encode_pcm(audio.samples) if kind == "pcm" else _encoded(audio, kind.upper(), tags)


def encode_pcm(samples: NDArray[np.float32]) -> bytes:
    """Samples as 16-bit little-endian integers."""
    return _pcm16(samples).astype("<i2").tobytes()


def _encoded(audio: Audio, kind: str, tags: Tags | None) -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", audio.rate, channels=1, subtype="PCM_16", format=kind) as file:
        for name, text in asdict(tags or Tags()).items():
            if text:
                setattr(file, name, text)
        file.write(_pcm16(audio.samples))
    return buffer.getvalue()


def _pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Rounded to nearest and held within full scale; what was read from 16 bits comes out the same."""
    if not math.isfinite(float(samples.sum(dtype=np.float64))):
        raise ValueError("samples hold NaN or infinity")
    rounded: NDArray[np.int16] = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    return rounded
