"""The only table of audio formats: what each can hold, and how one is chosen from a suffix and flags."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from csm_cli.errors import OutputRefused, UsageError

DEFAULT_QUALITY = 7.0  # of lossy formats, 0 to 10
MIN_RATE, MAX_RATE = 8000, 192_000  # Hz
_MPEG_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_LOSSLESS, _LOSSY = {"16": "PCM_16", "24": "PCM_24"}, "lossy"


@dataclass(frozen=True)
class AudioFormat:
    """One format.

    container and subtypes: libsndfile's, by bit depth; lossy formats have one subtype, for `_LOSSY`. muxer, codec and
    bit_rate: libav's, for streams and for what libsndfile cannot write. options: of the muxer. rates: in Hz; empty for
    any. is_file: whether commands write files of it.
    """

    media_type: str
    container: str = ""
    subtypes: Mapping[str, str] = field(default_factory=dict)
    muxer: str = ""
    codec: str = ""
    bit_rate: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    rates: tuple[int, ...] = ()
    is_file: bool = True

    @property
    def is_lossy(self) -> bool:
        return _LOSSY in self.subtypes or (not self.container and bool(self.codec))


# Streams: Opus pages of 20 ms, since a page is sent when it is full. No Xing header: it could only be filled in at the
# end.
FORMATS = {
    "wav": AudioFormat("audio/wav", "WAV", {**_LOSSLESS, "float": "FLOAT"}),
    "flac": AudioFormat("audio/flac", "FLAC", _LOSSLESS, "flac", "flac"),
    "mp3": AudioFormat(
        "audio/mpeg",
        "MP3",
        {_LOSSY: "MPEG_LAYER_III"},
        "mp3",
        "libmp3lame",
        96_000,
        {"write_xing": "0"},
        rates=_MPEG_RATES,
    ),
    "ogg": AudioFormat("audio/ogg", "OGG", {_LOSSY: "VORBIS"}),
    "opus": AudioFormat(
        "audio/ogg",
        "OGG",
        {_LOSSY: "OPUS"},
        "ogg",
        "libopus",
        48_000,
        {"page_duration": "20000"},
        rates=(8000, 12000, 16000, 24000, 48000),
    ),
    "m4a": AudioFormat("audio/mp4", muxer="ipod", codec="aac", rates=(*_MPEG_RATES, 64000, 88200, 96000)),
    "aac": AudioFormat("audio/aac", muxer="adts", codec="aac", bit_rate=96_000, is_file=False),
    "pcm": AudioFormat("audio/pcm", subtypes={"16": "PCM_16"}, is_file=False),
}
FILE_FORMATS = tuple(name for name, each in FORMATS.items() if each.is_file)
"""The formats that a file can have by its suffix."""


@dataclass(frozen=True)
class AudioEncoding:
    """How samples become a file.

    name: of `FORMATS`; None: by the suffix. bits: "16", "24" or "float"; None for 16. rate: in Hz, None for that of the
    samples. stereo: both channels are the same. quality: of a lossy format, 0 to 10.
    """

    name: str | None = None
    bits: str | None = None
    rate: int | None = None
    stereo: bool = False
    quality: float | None = None

    def __post_init__(self) -> None:
        if self.name is not None and self.name not in (*FILE_FORMATS, "pcm"):
            raise UsageError(f"--format takes {', '.join(FILE_FORMATS)} or pcm, not {self.name!r}")
        if self.bits not in (None, "16", "24", "float"):
            raise UsageError(f"--bits takes 16, 24 or float, not {self.bits!r}")
        if self.rate is not None and not MIN_RATE <= self.rate <= MAX_RATE:
            raise UsageError(f"--rate takes {MIN_RATE} to {MAX_RATE} Hz, not {self.rate}")
        if self.quality is not None and not 0 <= self.quality <= 10:
            raise UsageError(f"--quality takes 0 (smallest) to 10 (best), not {self.quality:g}")
        if self.name is not None and (problem := self._problem(self.name)):
            raise UsageError(problem)

    @property
    def format(self) -> AudioFormat:
        """The format of a resolved encoding."""
        assert self.name is not None
        return FORMATS[self.name]

    @property
    def channels(self) -> int:
        return 2 if self.stereo else 1

    @property
    def subtype(self) -> str:
        """libsndfile's."""
        return self.format.subtypes[_LOSSY if self.format.is_lossy else self.bits or "16"]

    def for_file(self, path: Path) -> AudioEncoding:
        """This encoding with its format, by the suffix of `path` if it names none.

        Raises:
            OutputRefused: an unknown suffix, a format that cannot be written here, or options that it does not have.
        """
        if self.name is not None:
            return self
        name = path.suffix.lower().removeprefix(".")
        if name not in FILE_FORMATS:
            known = ", ".join(f".{each}" for each in FILE_FORMATS)
            raise OutputRefused(f"{path}: unknown audio format {path.suffix!r}; known: {known}")
        if problem := self._problem(name):
            raise OutputRefused(f"{path}: {problem}")
        return replace(self, name=name)

    def set_values(self) -> dict[str, Any]:
        """What is set, by name: for fingerprints, so that the defaults change none of them."""
        return {name: value for name, value in vars(self).items() if value not in (None, False)}

    def _problem(self, name: str) -> str:
        """Why this cannot be a file of format `name`, with what to do; "" if it can."""
        found = FORMATS[name]
        if self.bits and found.is_lossy:
            return f"{name} has no bit depth; leave out --bits, or write wav or flac"
        if self.bits and self.bits not in found.subtypes:
            return f"{name} cannot have --bits {self.bits}; it takes {' or '.join(found.subtypes)}"
        if self.quality is not None and not found.is_lossy:
            return f"{name} loses nothing and has no quality; leave out --quality, or write mp3, ogg, opus or m4a"
        if self.rate and found.rates and self.rate not in found.rates:
            return f"{name} cannot have --rate {self.rate}; it takes {', '.join(map(str, found.rates))}"
        if not found.container and found.codec and not aac_encoder():
            return f"{name} needs PyAV or ffmpeg; run pip install 'csm-cli[av]', or write mp3 or opus"
        return ""


DEFAULT_ENCODING = AudioEncoding()
"""16 bits, mono, the rate of the samples, the format of the suffix."""


def aac_encoder() -> str:
    """What writes M4A: "PyAV", the path of ffmpeg, or ""."""
    return "PyAV" if find_spec("av") else shutil.which("ffmpeg") or ""


def check_stream_encoding(encoding: AudioEncoding) -> None:
    """Raises UsageError where raw samples that are streamed would have to be changed."""
    changed = [name for name in ("rate", "stereo") if getattr(encoding, name)]
    if changed:
        raise UsageError(f"--{changed[0]} cannot be combined with a stream of samples; ask for --format wav")
