"""WebDataset tar files: a sample is the files of one name up to its first dot, read from their place in the tar."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from csm_cli.audio.decoders import AudioBytes
from csm_cli.audio.limits import MAX_CODES_BYTES
from csm_cli.data.columns import AUDIO_SUFFIXES
from csm_cli.errors import AudioUnreadable, InputError
from csm_cli.storage.untrusted import parse_json

SUFFIX = ".tar"
CODES = "codes.npy"
_TEXTS = ("txt", "text", "lab", "transcript", "trans")
_MAX_TEXT_BYTES = 64 << 10
_MAX_JSON_BYTES = 1 << 20
_MAX_AUDIO_BYTES = 1 << 30


@dataclass(frozen=True)
class TarMember:
    """A file in a tar: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarSample:
    """Files of one key by the rest of their names, in lower case, such as `flac` or `codes.npy`."""

    key: str
    members: dict[str, TarMember] = field(default_factory=dict)

    @property
    def audio(self) -> TarMember | None:
        found = (member for suffix, member in self.members.items() if f".{suffix}".endswith(AUDIO_SUFFIXES))
        return next(found, None)


class TarShard:
    """The samples of an uncompressed tar file, in its order. Raises InputError where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.samples: list[TarSample] = []
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.isfile():
                        self._add(TarMember(member.name, member.offset_data, member.size))
                    tar.members = []  # type: ignore[attr-defined]  # which it would keep
        except (OSError, tarfile.TarError, ValueError) as problem:
            hint = "uncompress it if it is compressed, or write it again"
            raise InputError(f"{path}: cannot be read as a tar file ({problem}); {hint}") from problem

    def _add(self, member: TarMember) -> None:
        path = PurePosixPath(member.name)
        stem, _, suffix = path.name.partition(".")
        key = str(path.with_name(stem)) if stem else ""
        if not stem or not suffix:
            return  # hidden, or without a kind
        if not self.samples or self.samples[-1].key != key:
            self.samples.append(TarSample(key))
        self.samples[-1].members.setdefault(suffix.lower(), member)

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | str]]:
        """Number from 1 and fields of each sample: those of its JSON, `text` from a text file, and `audio`, its name.

        A text where the fields cannot be read.
        """
        for number, sample in enumerate(self.samples, 1):
            try:
                yield number, self._fields(sample)
            except (OSError, ValueError) as problem:
                yield number, f"its text cannot be read ({getattr(problem, 'strerror', None) or problem})"

    def _fields(self, sample: TarSample) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if member := sample.members.get("json"):
            value = parse_json(self.read(member, _MAX_JSON_BYTES))
            fields |= value if isinstance(value, Mapping) else {}
        text = next((sample.members[suffix] for suffix in _TEXTS if suffix in sample.members), None)
        if text and not isinstance(fields.get("text"), str):
            fields["text"] = self.read(text, _MAX_TEXT_BYTES).decode("utf-8-sig")
        return fields | {"__key__": sample.key, "__audio__": sample.audio.name if sample.audio else None}

    def read(self, member: TarMember, max_bytes: int) -> bytes:
        """Raises OSError, ValueError."""
        if member.size > max_bytes:
            raise ValueError(f"{member.name} has {member.size:,} bytes, more than {max_bytes:,}")
        with self._path.open("rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
        if len(data) < member.size:
            raise ValueError(f"{member.name} is cut off")
        return data

    def audio(self, number: int) -> AudioBytes | None:
        """Audio of a sample, counted from 1; None where it has none. Raises AudioUnreadable."""
        try:
            member = self.samples[number - 1].audio
            return AudioBytes(member.name, self.read(member, _MAX_AUDIO_BYTES)) if member else None
        except (OSError, ValueError, IndexError) as problem:
            raise AudioUnreadable(f"{self._path}: sample {number} cannot be read ({problem})") from problem

    def codes(self, number: int) -> bytes | None:
        """The saved codes of a sample, a .npy file. Raises OSError, ValueError, IndexError."""
        member = self.samples[number - 1].members.get(CODES)
        return self.read(member, MAX_CODES_BYTES) if member else None


def open_shard(path: Path) -> TarShard:
    """The shard last used stays open. Raises InputError; OSError where there is no such file."""
    stat = path.stat()
    return _open_shard(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _open_shard(path: Path, *_: int) -> TarShard:
    return TarShard(path)
