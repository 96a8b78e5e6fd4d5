"""Encodes audio chunk by chunk: each chunk is returned as soon as it is encoded."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from csm_cli.audio.encode import to_int16
from csm_cli.audio.formats import FORMATS
from csm_cli.audio.io import encode_pcm
from csm_cli.errors import UsageError

Samples = NDArray[np.float32]
_UNKNOWN_SIZE = 0xFFFFFFFF  # of a WAV whose length is not known when its header is sent


class StreamEncoder(Protocol):
    """push: the bytes that more samples [N] give. finish: the last ones."""

    def push(self, samples: Samples) -> bytes: ...

    def finish(self) -> bytes: ...


def new_encoder(name: str, rate: int, comment: str = "") -> StreamEncoder:
    """An encoder of a format that can be streamed, for mono samples at `rate`.

    comment: metadata, where the format has any.

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


class _Buffer:
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
        self._sink = _Buffer()
        tags = {"comment": comment} if comment else {}
        self._writer = LibavWriter(self._sink, name, rate, 1, FORMATS[name].bit_rate, tags)

    def push(self, samples: Samples) -> bytes:
        self._writer.write(samples[:, None])
        return self._sink.take()

    def finish(self) -> bytes:
        self._writer.close()
        return self._sink.take()


class LibavWriter:
    """Encodes samples with libav into `file`, which need not seek for a stream.

    Raises:
        UsageError: PyAV is not installed or lacks the codec.
    """

    def __init__(
        self, file: Any, name: str, rate: int, channels: int, bit_rate: int | None, tags: Mapping[str, str]
    ) -> None:
        try:
            import av
        except ImportError as problem:
            raise UsageError(f"{name} needs PyAV: pip install 'csm-cli[av]', or ask for wav or pcm") from problem
        target, self._layout = FORMATS[name], "mono" if channels == 1 else "stereo"
        self._frame: Callable[..., Any] = av.AudioFrame.from_ndarray
        self._rate, self._samples = rate, 0
        try:
            self._container: Any = av.open(file, "w", format=target.muxer, options=dict(target.options))
            self._container.metadata.update(tags)
            stream: Any = self._container.add_stream(target.codec, rate=rate, layout=self._layout)
        except (ValueError, av.FFmpegError) as problem:
            raise UsageError(f"this PyAV cannot write {name}; ask for wav or pcm") from problem
        self._stream = stream
        if bit_rate:
            stream.bit_rate = bit_rate
        self._resampler = av.AudioResampler(format=stream.codec_context.format, layout=self._layout, rate=rate)

    def write(self, samples: Samples) -> None:
        """Encodes samples [N, channels]."""
        if len(samples):
            frame = self._frame(to_int16(samples).reshape(1, -1), format="s16", layout=self._layout)
            frame.sample_rate, frame.pts = self._rate, self._samples
            self._samples += len(samples)
            self._encode(self._resampler.resample(frame))

    def close(self) -> None:
        """Encodes what is left and finishes the file."""
        if self._samples:
            self._encode(self._resampler.resample(None))
        self._encode([None])
        self._container.close()

    def _encode(self, frames: list[Any]) -> None:
        for frame in frames:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
