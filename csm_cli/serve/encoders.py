"""Encodes audio chunk by chunk: each chunk is returned as soon as it is encoded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from csm_cli.audio.io import encode_pcm
from csm_cli.errors import UsageError

Samples = NDArray[np.float32]
_UNKNOWN_SIZE = 0xFFFFFFFF  # of a WAV whose length is not known when its header is sent


class StreamEncoder(Protocol):
    """push: the bytes that more samples [N] give. finish: the last ones."""

    def push(self, samples: Samples) -> bytes: ...

    def finish(self) -> bytes: ...


@dataclass(frozen=True)
class StreamFormat:
    """A format of responses: its media type, and as libav names it its container, its codec and their options."""

    media_type: str
    container: str = ""
    codec: str = ""
    bit_rate: int | None = None
    options: dict[str, str] = field(default_factory=dict)


# Opus pages of 20 ms, since a page is sent when it is full. No Xing header: it could only be filled in at the end.
STREAM_FORMATS = {
    "mp3": StreamFormat("audio/mpeg", "mp3", "libmp3lame", 96_000, {"write_xing": "0"}),
    "opus": StreamFormat("audio/ogg", "ogg", "libopus", 48_000, {"page_duration": "20000"}),
    "aac": StreamFormat("audio/aac", "adts", "aac", 96_000),
    "flac": StreamFormat("audio/flac", "flac", "flac"),
    "wav": StreamFormat("audio/wav"),
    "pcm": StreamFormat("audio/pcm"),
}


def new_encoder(name: str, rate: int, comment: str = "") -> StreamEncoder:
    """An encoder of one of `STREAM_FORMATS` for mono samples at `rate`. comment: metadata, where the format has any.

    Raises:
        UsageError: the format needs PyAV, which is not installed or lacks its codec.
    """
    if name == "pcm":
        return _PcmEncoder(b"")
    if name == "wav":
        return _PcmEncoder(wav_header(rate))
    return _LibavEncoder(name, rate, comment)


def wav_header(rate: int, samples: int | None = None) -> bytes:
    """The 44 bytes before 16-bit mono samples. None: of unknown number; readers then read to the end."""
    size = _UNKNOWN_SIZE if samples is None else 2 * samples
    riff = size if samples is None else size + 36
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", size
    )


class _PcmEncoder:
    """16-bit little-endian samples after a header."""

    def __init__(self, header: bytes) -> None:
        self._header = header

    def push(self, samples: Samples) -> bytes:
        header, self._header = self._header, b""
        return header + encode_pcm(samples)

    def finish(self) -> bytes:
        header, self._header = self._header, b""
        return header


class _Sink:
    """What libav writes. It cannot seek, so headers are final."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        self._data += bytes(data)
        return len(data)

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data


class _LibavEncoder:
    def __init__(self, name: str, rate: int, comment: str) -> None:
        try:
            import av
        except ImportError as problem:
            raise UsageError(f"{name} needs PyAV: pip install 'csm-cli[serve]', or ask for wav or pcm") from problem
        target = STREAM_FORMATS[name]
        self._frame: Callable[..., Any] = av.AudioFrame.from_ndarray
        self._sink = _Sink()
        self._rate, self._samples = rate, 0
        try:
            self._container: Any = av.open(self._sink, "w", format=target.container, options=target.options)
            if comment:
                self._container.metadata["comment"] = comment
            stream: Any = self._container.add_stream(target.codec, rate=rate, layout="mono")
        except (ValueError, av.FFmpegError) as problem:
            raise UsageError(f"this PyAV cannot write {name}; ask for wav or pcm") from problem
        self._stream = stream
        if target.bit_rate:
            stream.bit_rate = target.bit_rate
        self._resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate)

    def push(self, samples: Samples) -> bytes:
        if len(samples):
            pcm = np.frombuffer(encode_pcm(samples), "<i2").astype(np.int16)[None]
            frame = self._frame(pcm, format="s16", layout="mono")
            frame.sample_rate, frame.pts = self._rate, self._samples
            self._samples += len(samples)
            self._encode(self._resampler.resample(frame))
        return self._sink.take()

    def finish(self) -> bytes:
        if self._samples:
            self._encode(self._resampler.resample(None))
        self._encode([None])
        self._container.close()
        return self._sink.take()

    def _encode(self, frames: list[Any]) -> None:
        for frame in frames:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
