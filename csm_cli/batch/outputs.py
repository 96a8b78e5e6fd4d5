"""Where each item of a batch goes: the pattern behind -o, its fields and its folder."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from csm_cli.errors import CsmError, InputError, UsageError
from csm_cli.storage.paths import expand_path, resolved_name
from csm_cli.types import Conversation, Turn

FIELDS = ("id", "index", "speaker", "shard")


@dataclass(frozen=True)
class BatchItem:
    """A line of the manifest and its file: `file` is its path below the ledger's folder.

    fingerprint: of what it is made (see `Fingerprinter`; empty until known).
    """

    conversation: Conversation
    path: Path
    file: str = ""
    fingerprint: str = ""

    @property
    def id(self) -> str:
        return self.conversation.id


@dataclass(frozen=True)
class OutputPattern:
    """Names of outputs, such as 'out/{id}.wav'. The fields are {id}, {index} (from 1), {speaker} and {shard}.

    Raises:
        UsageError: a field there is not, or a pattern that cannot be read.
    """

    text: str
    shard: int = 1

    def __post_init__(self) -> None:
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None]
            if unknown := [name for name in names if name not in FIELDS]:
                raise UsageError(f"-o {self.text!r}: no field {{{unknown[0]}}}; there are {_listed()}")
            self.text.format(id="a", index=1, speaker="a", shard=1)
        except (ValueError, LookupError) as error:
            raise UsageError(f"-o {self.text!r}: {error}") from error

    @property
    def folder(self) -> Path:
        """The part of the path that is the same for all items."""
        lead = ""
        for literal, name, spec, _ in string.Formatter().parse(self.text):
            lead += literal
            if name not in (None, "shard"):
                break
            lead += format(self.shard, spec or "") if name else ""
        return expand_path(f"{lead}x").parent

    def path(self, conversation: Conversation, index: int) -> Path:
        names = {"id": conversation.id, "index": index, "speaker": file_name(conversation.turns[0])}
        return expand_path(self.text.format(**names, shard=self.shard))

    def item(self, conversation: Conversation, index: int) -> BatchItem:
        """A conversation, the index-th, with its file."""
        path = self.path(conversation, index)
        return BatchItem(conversation, path, os.path.relpath(path, self.folder))

    def items(self, conversations: Iterable[Conversation]) -> Iterator[BatchItem]:
        """Each conversation with its file."""
        return (self.item(each, index) for index, each in enumerate(conversations, 1))


class OutputNames:
    """Sees to it that every file of a batch can be written, is one item's only, and none that the batch reads.

    Of each name it keeps a number. read: what the batch goes by beside its items' recordings.
    """

    def __init__(self, read: Iterable[Path] = ()) -> None:
        self._written: set[int] = set()
        self._read = set(map(_number, read))
        self._trouble: CsmError | None = None

    def add(self, item: BatchItem) -> None:
        from csm_cli.audio.io import check_output

        name = _number(item.path)
        heard = {_number(path): path for path in _recordings(item.conversation)}
        self._read.update(heard)
        try:
            if name in self._written:
                raise InputError(
                    f'"{item.id}" and a line before it would both be written to {item.path}; put {{id}} into -o'
                )
            check_output(item.path)
            if taken := heard.keys() & self._written:
                path = heard[min(taken)]
                raise UsageError(f'"{item.id}" reads {path}, which a line before it would replace; name another -o')
            if name in self._read:
                raise UsageError(f'"{item.id}" would replace {item.path}, which this batch reads; name another -o')
        except CsmError as error:
            self._trouble = self._trouble or error
        self._written.add(name)

    def settle(self) -> None:
        """Raises what was wrong with the first bad name.

        Raises:
            InputError: two items share a file.
            UsageError: a file that is read, here or by another line.
            OutputRefused: a file that cannot be written.
        """
        if self._trouble:
            raise self._trouble


def _number(path: Path) -> int:
    return hash(resolved_name(path))


def _recordings(conversation: Conversation) -> Iterator[Path]:
    turns = (*conversation.context, *conversation.turns)
    return (turn.recording.path for turn in turns if turn.recording)


def file_name(turn: Turn) -> str:
    """A turn's speaker for a file's name; what cannot stand in one on every system becomes an underscore."""
    return re.sub(r"[^\w-]", "_", turn.name or str(turn.speaker))


def _listed() -> str:
    *most, last = (f"{{{name}}}" for name in FIELDS)
    return f"{', '.join(most)} and {last}"
