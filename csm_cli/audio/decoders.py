"""Opens a sound file with libsndfile, after a conversion by PyAV or ffmpeg where libsndfile does not read its kind."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import soundfile

from csm_cli.audio.headers import SharedFile, is_placeholder, with_lengths
from csm_cli.audio.limits import MAX_CONVERT_SECONDS, MAX_CONVERTED_BYTES, MAX_SAMPLES
from csm_cli.errors import AudioUnreadable

TOLERANCE_SECONDS = 0.01  # past the end of a file, for durations that were rounded
_CONVERTED_TOLERANCE = 0.3  # seconds: the durations of containers are those of whole packets
# libsndfile logs the size in a header and the actual size, if they differ
_SIZE_MISMATCH = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_FFMPEG_DURATION = re.compile(rb"Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)")
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class AudioBytes:
    """An audio file that is stored inside another file. name: for diagnostics."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Container:
    """A kind of file by its first bytes. demuxer: libav's.

    only: libsndfile reads none of these files. sized: its header states its length; libav estimates it otherwise.
    """

    pattern: re.Pattern[bytes]
    demuxer: str
    name: str
    only: bool = True
    sized: bool = False


def _container(pattern: bytes, demuxer: str, name: str, only: bool = True, sized: bool = False) -> _Container:
    return _Container(re.compile(pattern, re.DOTALL), demuxer, name, only, sized)


# Only kinds of which one file is the whole: playlists could lead libav to other files and to the network.
_CONTAINERS = (
    _container(rb".{4}(?:ftyp|moov|mdat|wide|pnot)", "mov", "MP4 / M4A", sized=True),
    _container(rb"\x1a\x45\xdf\xa3", "matroska", "WebM / Matroska", sized=True),
    _container(rb"\xff[\xf0\xf1\xf8\xf9]", "aac", "AAC"),
    _container(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf", "WMA", sized=True),
    _container(rb"#!AMR", "amr", "AMR"),
    _container(rb"FLV\x01", "flv", "FLV"),
    _container(rb"RIFF.{4}AVI ", "avi", "AVI"),
    _container(rb"\x47.{187}\x47", "mpegts", "MPEG-TS"),
    _container(rb"\x00\x00\x01\xba", "mpeg", "MPEG"),
    _container(rb"wvpk", "wv", "WavPack", sized=True),
    _container(rb"MAC ", "ape", "Monkey's Audio", sized=True),
    _container(rb"TTA1", "tta", "TTA", sized=True),
    _container(rb"DSD ", "dsf", "DSF"),
    _container(rb"\x0b\x77", "ac3", "AC-3"),
    _container(rb"OggS", "ogg", "OGG", only=False),
    _container(rb"(?:RIFF|RF64).{4}WAVE", "wav", "WAV", only=False),
    _container(rb"caff", "caf", "CAF", only=False),
    _container(rb"FORM.{4}AIF[FC]", "aiff", "AIFF", only=False),
    _container(rb"ID3|\xff[\xe2-\xff]", "mp3", "MP3", only=False),
)


@contextmanager
def open_sound(path: Path | AudioBytes) -> Iterator[soundfile.SoundFile]:
    """The file, open at its first sample; it knows its length.

    Raises:
        AudioUnreadable: missing, not audio, empty or truncated; or of a kind that needs PyAV or ffmpeg, without these.
    """
    try:
        if isinstance(path, Path) and path.is_dir():
            raise AudioUnreadable(f"{path}: is a directory; name an audio file in it")
        if isinstance(path, Path) and path.exists() and not path.is_file():  # opening a named pipe would block
            raise AudioUnreadable(f"{path}: is a pipe or a device; save the audio to a file first")
        # a file object, since libsndfile's own opening hides the reason of a failure
        opened = path.open("rb") if isinstance(path, Path) else io.BytesIO(path.data)
        with opened as source, _open_either(path, source) as file:
            if file.frames <= 0:
                raise AudioUnreadable(f"{path}: holds no audio (zero length)")
            duration, sizes = file.frames / file.samplerate, _SIZE_MISMATCH.search(file.extra_info)
            if sizes and not is_placeholder(int(sizes[1])):
                expected = duration * int(sizes[1]) / int(sizes[2])
                if expected > duration + TOLERANCE_SECONDS:
                    raise truncated(path, expected, duration)
            yield file
    except OSError as error:
        raise AudioUnreadable(f"{path}: {error.strerror or error}; name an audio file that can be read") from error


def _open_either(path: Path | AudioBytes, source: BinaryIO) -> soundfile.SoundFile:
    """By libsndfile, else converted."""
    head = source.read(512)
    after_tag = head
    if head[:3] == b"ID3" and len(head) >= 10:  # also before AAC
        source.seek(10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False)))
        after_tag = source.read(512)
    found = (each for each in _CONTAINERS if each.pattern.match(after_tag) or each.pattern.match(head))
    container = next(found, None)
    try:
        if container and container.only:
            return soundfile.SoundFile(with_lengths(_converted(path, source, container)))
        return soundfile.SoundFile(with_lengths(SharedFile(source)))
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a suffix of headerless samples
        if container is None or container.only or not decoder_name():
            raise unreadable(path, error) from error
        try:
            return soundfile.SoundFile(with_lengths(_converted(path, source, container)))
        except (AudioUnreadable, soundfile.SoundFileError):
            raise unreadable(path, error) from error


def unreadable(path: Path | AudioBytes, error: Exception) -> AudioUnreadable:
    reason = str(getattr(error, "error_string", error)).rstrip(".")
    return AudioUnreadable(f"{path}: not readable as audio ({reason}); WAV, FLAC, OGG, MP3, AIFF and M4A are")


def truncated(path: Path | AudioBytes, expected: float, actual: float) -> AudioUnreadable:
    return AudioUnreadable(
        f"{path}: is cut off: its header says {expected:.2f} s, it holds {actual:.2f} s; copy or export it again"
    )


class _Conversions:
    """The last converted file, since a header and then many ranges of one recording are read.

    It is a temporary file without a name, which no killed process leaves behind.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._key: object = None
        self._last: SharedFile | None = None

    def get(self, path: Path, source: BinaryIO, container: _Container) -> SharedFile:
        stat = path.stat()
        key = (path.absolute(), stat.st_size, stat.st_mtime_ns, os.getpid())
        with self._lock:
            if self._last is None or key != self._key:
                self._last = _convert(path, source, container)
                self._key = key
            return self._last


_CONVERSIONS = _Conversions()


def _converted(path: Path | AudioBytes, source: BinaryIO, container: _Container) -> SharedFile:
    """A WAV of the file's first sound track. Raises AudioUnreadable."""
    if isinstance(path, Path):
        return _CONVERSIONS.get(path, source, container)
    return _convert(path, source, container)


def decoder_name() -> str:
    """What converts the files that libsndfile does not read: PyAV with its version, the path of ffmpeg, or ""."""
    try:
        import av
    except ImportError:
        return shutil.which("ffmpeg") or ""
    return f"PyAV {av.__version__}"


def _convert(path: Path | AudioBytes, source: BinaryIO, container: _Container) -> SharedFile:
    decoder = decoder_name()
    if decoder:
        by_pyav = decoder.startswith("PyAV ")
        return _with_pyav(path, source, container) if by_pyav else _with_ffmpeg(path, decoder, container)
    wav = Path(str(path)).with_suffix(".wav")
    wav = wav if str(wav) != str(path) else wav.with_name(f"{wav.stem}-converted.wav")
    command = shlex.join(["ffmpeg", "-i", str(path), str(wav)])
    raise AudioUnreadable(
        f"{path}: {container.name} needs PyAV or ffmpeg; run pip install 'csm-cli[av]', or convert it: {command}"
    )


def _with_pyav(path: Path | AudioBytes, source: BinaryIO, container: _Container) -> SharedFile:
    import av

    source.seek(0)
    file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        # no protocol is allowed, so that nothing in the file leads to another one
        options = {"protocol_whitelist": "none"}
        media: Any  # typed as of either direction
        with av.open(source, format=container.demuxer, options=options, metadata_errors="replace") as media:
            stream = media.streams.best("audio")
            if stream is None:
                raise AudioUnreadable(f"{path}: has no sound track")
            if stream.codec_context is None:
                raise _not_decodable(path, container, "its sound is of an unknown codec")
            rate, layout = stream.codec_context.sample_rate, stream.codec_context.layout
            resampler = av.AudioResampler(format="s16", layout=layout.name, rate=rate)
            with soundfile.SoundFile(file, "w", rate, layout.nb_channels, "PCM_16", format="WAV") as wav:
                for frame in _frames(media, stream):
                    for each in resampler.resample(frame):
                        wav.write(each.to_ndarray().reshape(-1, layout.nb_channels))
                    if 2 * wav.frames * layout.nb_channels > _max_bytes(path):
                        raise _too_long(path)
                decoded = wav.frames / rate
            stated = float(stream.duration * stream.time_base) if stream.duration else 0.0
            if not stated and media.duration and not media.streams.video:
                stated = media.duration / av.time_base
    except (av.FFmpegError, ValueError, TypeError, OverflowError, soundfile.SoundFileError) as error:
        file.close()
        raise _not_decodable(path, container, getattr(error, "strerror", None) or str(error)) from error
    except BaseException:
        file.close()
        raise
    converted = SharedFile(file, owned=True)
    if container.sized:
        _check_converted(path, stated, decoded)
    return converted


def _not_decodable(path: Path | AudioBytes, container: _Container, reason: str) -> AudioUnreadable:
    hint = "is it whole? copy or export it again"
    return AudioUnreadable(f"{path}: not readable as {container.name} ({reason}); {hint}")


def _frames(media: Any, stream: Any) -> Iterator[Any]:
    """The decoded frames of a stream, and None to flush the resampler."""
    yield from media.decode(stream)
    yield None


def _with_ffmpeg(path: Path | AudioBytes, program: str, container: _Container) -> SharedFile:
    file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
    command = [program, "-nostdin", "-hide_banner", "-v", "info", "-nostats", "-protocol_whitelist", "file,pipe"]
    output = ["-map", "0:a:0", "-f", "wav", "-c:a", "pcm_s16le", "-fs", str(_max_bytes(path)), "pipe:1"]
    with tempfile.NamedTemporaryFile() if isinstance(path, AudioBytes) else path.open("rb") as named:
        if isinstance(path, AudioBytes):
            named.write(path.data)
            named.flush()
        source = ["-f", container.demuxer, "-i", f"file:{Path(named.name).absolute()}"]
        try:
            done = subprocess.run(
                [*command, *source, *output],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.PIPE,
                timeout=MAX_CONVERT_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            file.close()
            raise _too_long(path) from error
    converted = SharedFile(file, owned=True)
    if done.returncode or not converted.size:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        if any("matches no streams" in line for line in lines):
            raise AudioUnreadable(f"{path}: has no sound track")
        reason = lines[-1].rpartition(": ")[2] if lines else f"ffmpeg ended with {done.returncode}"
        raise _not_decodable(path, container, reason)
    if converted.size >= _max_bytes(path) - _BLOCK_BYTES:
        raise _too_long(path)
    duration = _FFMPEG_DURATION.search(done.stderr)
    if container.sized and duration and b"Video:" not in done.stderr:  # the duration is of the longest track
        hours, minutes, seconds = map(float, duration.groups())
        with soundfile.SoundFile(with_lengths(converted)) as wav:
            decoded = wav.frames / wav.samplerate
        _check_converted(path, 3600 * hours + 60 * minutes + seconds, decoded)
    return converted


def _check_converted(path: Path | AudioBytes, stated: float, decoded: float) -> None:
    """Raises AudioUnreadable where much less was decoded than the container states."""
    if decoded + max(_CONVERTED_TOLERANCE, 0.01 * stated) < stated:
        raise truncated(path, stated, decoded)


def _max_bytes(path: Path | AudioBytes) -> int:
    """Of a conversion. What comes inside a request or a row of a dataset is one clip, no long recording."""
    return MAX_CONVERTED_BYTES if isinstance(path, Path) else 2 * MAX_SAMPLES


def _too_long(path: Path | AudioBytes) -> AudioUnreadable:
    minutes = _max_bytes(path) / (2 * 2 * 48000) / 60
    return AudioUnreadable(
        f"{path}: is too long to convert (at most {minutes:.0f} minutes of stereo at 48 kHz); cut it into parts"
    )
