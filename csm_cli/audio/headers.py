"""Lengths that programs leave open in the headers of sound that they write to a pipe, found and filled in.

`with_lengths` presents such a file as if its header had the length: libsndfile reads some of them only in part, or not.
"""

from __future__ import annotations

import io
import struct
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import BinaryIO

from csm_cli.audio.limits import MAX_HEADER_BYTES

# Placeholders: 2^31 and 2^32 with a header or a block taken off or added, and sox's of AIFF.
_PLACEHOLDERS = (1 << 31, 1 << 32, 0x7F000000)
_PLACEHOLDER_MARGIN = 1 << 16  # the largest known one: 0x7FFF0000
_MAX_32 = 0xFFFFFFFF
_MAX_POSITION = 1 << 53
_LAST_FLAC_BYTES = 1 << 20  # searched for the last frame, which has up to 64 thousand samples
_FLAC_RATE_BYTES = {12: 1, 13: 2, 14: 2}
_MP3_KBPS = {  # of layer III, by the version's two bits: 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    0: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_MP3_TAG_KBPS = 64  # of the frame with the length: large enough at each rate


class SharedFile:
    """A file that several read at once. owned: it is closed when the last reader is gone."""

    def __init__(self, file: BinaryIO, owned: bool = False) -> None:
        self._file, self._lock = file, Lock()
        self.size = file.seek(0, io.SEEK_END)
        if owned:
            weakref.finalize(self, file.close)

    def read(self, start: int, count: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            return self._file.read(count)


class PatchedFile(io.RawIOBase):
    """`source` with its first `skip` bytes replaced by `head`, and with a position of its own.

    A seek to an impossible position does nothing: libsndfile follows the sizes of damaged files.
    """

    def __init__(self, source: SharedFile, head: bytes = b"", skip: int = 0) -> None:
        self._source, self._head, self._skip = source, head, skip
        self._size = max(0, source.size - skip) + len(head)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if 0 <= base + offset <= _MAX_POSITION:
            self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted, start = len(buffer), self._position
        data = self._head[start : start + wanted]
        if not data and wanted:
            data = self._source.read(start - len(self._head) + self._skip, wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def with_lengths(source: SharedFile) -> PatchedFile:
    """The file of `source` with a true length in its header, where that was left open."""
    plain = PatchedFile(source)
    kind = plain.read(12)
    found = None
    if kind[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM", b"caff"):
        found = _chunks_head(plain, kind)
    elif kind[:4] == b"fLaC":
        found = _flac_head(plain)
    elif kind[:3] == b"ID3" or kind[:1] == b"\xff":
        found = _mp3_head(plain)
    plain.seek(0)
    return PatchedFile(source, *found) if found else plain


def is_placeholder(size: int) -> bool:
    """Whether the size of a chunk says that its writer did not know it."""
    return size <= 0 or any(abs(size - each) <= _PLACEHOLDER_MARGIN for each in _PLACEHOLDERS) or size >= 1 << 62


@dataclass(frozen=True)
class _Chunk:
    """start: of its data."""

    name: bytes
    start: int
    size: int


def _chunks_head(file: PatchedFile, kind: bytes) -> tuple[bytes, int] | None:
    """The bytes before the samples of WAV, RF64, AIFF and CAF with their true sizes; None where they are right."""
    caf, big = kind[:4] == b"caff", kind[:4] in (b"RIFX", b"FORM", b"caff")
    end = file.seek(0, io.SEEK_END)
    chunks = list(_chunks(file, 8 if caf else 12, ">4sq" if caf else ">4sI" if big else "<4sI"))
    samples = next((each for each in chunks if each.name in (b"data", b"SSND")), None)
    if samples is None or samples.start > MAX_HEADER_BYTES or samples.start >= end:
        return None
    available, stated, wide = end - samples.start, samples.size, None
    if kind[:4] == b"RF64":
        wide = next((each for each in chunks if each.name == b"ds64" and each.size >= 24), None)
        if wide is None:
            return None
        file.seek(wide.start + 8)
        (stated,) = struct.unpack("<q", file.read(8))
    whole = _int(file, 4, big)  # of the whole file, as it is stated
    is_open = is_placeholder(stated) or (kind[:4] == b"RIFF" and whole and is_placeholder(whole))
    after = samples.start + stated
    if not is_open or (0 <= stated <= available and (after in (end, end - 1) or _is_chunk(file, after, big))):
        return None
    file.seek(0)
    head = bytearray(file.read(samples.start))
    size = min(available, _MAX_32)
    if caf:
        struct.pack_into(">q", head, samples.start - 8, available)
    elif wide:
        frame = _block_bytes(file, chunks)
        struct.pack_into("<qqq", head, wide.start, end - 8, available, available // frame)
    else:
        struct.pack_into(">I" if big else "<I", head, samples.start - 4, size)
        struct.pack_into(">I" if big else "<I", head, 4, min(end - 8, _MAX_32))
    if kind[:4] == b"FORM" and (common := next((each for each in chunks if each.name == b"COMM"), None)):
        channels, _, bits = struct.unpack_from(">hIh", head, common.start)
        frame = max(1, channels * ((bits + 7) // 8))
        struct.pack_into(">I", head, common.start + 2, min((available - 8) // frame, _MAX_32))
    return bytes(head), samples.start


def _chunks(file: PatchedFile, start: int, layout: str) -> Iterator[_Chunk]:
    """The chunks up to that of the samples, which is the last one here."""
    length = struct.calcsize(layout)
    for _ in range(1000):
        file.seek(start)
        header = file.read(length)
        if len(header) < length:
            return
        name, size = struct.unpack(layout, header)
        yield _Chunk(name, start + length, size)
        if name in (b"data", b"SSND") or size < 0:
            return
        start += length + size + (size % 2 if length == 8 else 0)


def _is_chunk(file: PatchedFile, start: int, big: bool) -> bool:
    """Whether another chunk follows, so that the one before is empty."""
    file.seek(start)
    name, size = file.read(4), _int(file, start + 4, big)
    is_name = len(name) == 4 and name.isascii() and name.decode().isprintable()
    return is_name and start + 8 + size <= file.seek(0, io.SEEK_END)


def _int(file: PatchedFile, start: int, big: bool) -> int:
    file.seek(start)
    return int.from_bytes(file.read(4), "big" if big else "little")


def _block_bytes(file: PatchedFile, chunks: list[_Chunk]) -> int:
    """Bytes of one sample of all channels, as the format chunk states."""
    found = next((each for each in chunks if each.name == b"fmt "), None)
    return max(1, _int(file, found.start + 12, big=False) & 0xFFFF) if found else 1


def _flac_head(file: PatchedFile) -> tuple[bytes, int] | None:
    """The beginning of a FLAC with the number of samples that its last frame states; None if it has one.

    Format: https://www.rfc-editor.org/rfc/rfc9639#name-frame-header
    """
    file.seek(0)
    head = bytearray(file.read(26))
    if len(head) < 26 or (head[21] & 0x0F) or any(head[22:26]):
        return None
    block_size = int.from_bytes(head[8:10], "big")
    file.seek(max(0, file.seek(0, io.SEEK_END) - _LAST_FLAC_BYTES))
    tail = file.readall() or b""
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        if samples := _flac_frame_end(tail[at : at + 16], block_size):
            head[21] |= samples >> 32 & 0x0F
            head[22:26] = (samples & _MAX_32).to_bytes(4, "big")
            return bytes(head), len(head)
    return None


def _flac_frame_end(data: bytes, block_size: int) -> int:
    """The number of samples up to the end of the frame that begins with `data`; 0 where none does."""
    if len(data) < 7 or data[1] & 0xFE != 0xF8 or data[3] & 1 or data[2] >> 4 == 0 or data[2] & 15 == 15:
        return 0
    ones = 8 - (data[4] ^ 0xFF).bit_length()  # as in UTF-8: how many bytes the number takes
    if ones in (1, 8):
        return 0
    at = 4 + max(1, ones)
    number = data[4] & (0x7F >> ones)
    for byte in data[5:at]:
        number = number << 6 | byte & 0x3F
    code = data[2] >> 4
    if code in (6, 7):
        samples = int.from_bytes(data[at : at + code - 5], "big") + 1
        at += code - 5
    else:
        samples = 192 if code == 1 else 576 << (code - 2) if code < 6 else 256 << (code - 8)
    at += _FLAC_RATE_BYTES.get(data[2] & 15, 0)
    if at >= len(data) or _crc8(data[:at]) != data[at]:
        return 0
    return samples + (number if data[1] & 1 else number * block_size)


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 0x07) & 0xFF if value & 0x80 else value << 1
    return value


def _mp3_head(file: PatchedFile) -> tuple[bytes, int] | None:
    """A first frame that states the number of frames, and where the sound begins; None if the file states it.

    libsndfile takes the length from the first frame's bit rate otherwise, and leaves out what is beyond.
    """
    start = 0
    file.seek(0)
    tag = file.read(10)
    if tag[:3] == b"ID3" and len(tag) == 10:
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
    file.seek(start)
    first = file.read(256)
    if not _mp3_frame_bytes(first[:4]):
        return None
    version, mono = first[1] >> 3 & 3, first[3] >> 6 == 3
    side = 4 + ((17 if mono else 32) if version == 3 else (9 if mono else 17))
    if first[36:40] == b"VBRI":
        return None
    if first[side : side + 4] in (b"Xing", b"Info"):
        flags, frames = struct.unpack(">II", first[side + 4 : side + 12].ljust(8, b"\0"))
        if flags & 1 and frames:
            return None
        start += _mp3_frame_bytes(first[:4])
    frames, at = 0, start
    while True:
        file.seek(at)
        size = _mp3_frame_bytes(file.read(4))
        if size:
            frames, at = frames + 1, at + size
        elif (next_frame := _next_mp3_frame(file, at)) is None:
            break
        else:
            at = next_frame
    rate_bits, mode = first[2] & 0x0C, first[3]
    bits = _MP3_KBPS[version].index(_MP3_TAG_KBPS) + 1
    header = bytes([0xFF, first[1] | 1, bits << 4 | rate_bits, mode])
    body = bytes(side - 4) + b"Xing" + struct.pack(">II", 1, frames)
    return (header + body).ljust(_mp3_frame_bytes(header), b"\0"), start


def _next_mp3_frame(file: PatchedFile, start: int) -> int | None:
    """Where the next two frames in a row begin after damage, as libmpg123 finds them; None where only tags follow."""
    overlap = 4096  # more than the largest frame and the next header
    while True:
        file.seek(start)
        data = file.read(1 << 16)
        at = data.find(b"\xff")
        while at >= 0:
            size = _mp3_frame_bytes(data[at : at + 4])
            if size and _mp3_frame_bytes(data[at + size : at + size + 4]):
                return start + at
            at = data.find(b"\xff", at + 1)
        if len(data) < 1 << 16:
            return None
        start += len(data) - overlap


def _mp3_frame_bytes(header: bytes) -> int:
    """The size of a frame of layer III with this header; 0 where it is none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2 or header[2] & 0x0C == 0x0C:
        return 0
    version, bits = header[1] >> 3 & 3, header[2] >> 4
    if version == 1 or not 0 < bits < 15:
        return 0
    rate, padding = _MP3_RATES[version][header[2] >> 2 & 3], header[2] >> 1 & 1
    return (144 if version == 3 else 72) * _MP3_KBPS[version][bits - 1] * 1000 // rate + padding
