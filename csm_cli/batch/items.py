"""The items of a batch: their output files, fingerprints and seeds, and which of them a run generates."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from csm_cli.audio.formats import DEFAULT_ENCODING, AudioEncoding
from csm_cli.batch.ledger import LedgerEntry
from csm_cli.errors import CsmError, InputError, UsageError, failure_of
from csm_cli.storage.files import check_writable
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.storage.outputs import OutputStore, open_outputs
from csm_cli.storage.paths import expand_path, name_problem, portable_form, resolved_name
from csm_cli.storage.remote import is_url
from csm_cli.types import Conversation, Turn

if TYPE_CHECKING:
    from csm_cli.generation.fingerprint import SynthesisSetup

SCHEMA = 3  # of fingerprints; incremented when the same input is to sound different
FIELDS = ("id", "index", "speaker", "shard")


@dataclass(frozen=True)
class BatchItem:
    """A row of the manifest and its output: `path`; `file` is its path below the ledger's folder.

    fingerprint: equal where the result would be (see `with_fingerprint`); empty until known. error: why it could not be
    known, where a recording can no longer be read. problem: why the id cannot be part of a file name; empty where it
    can. subtitles: files beside the audio, by format.
    """

    conversation: Conversation
    path: Path
    file: str = ""
    fingerprint: str = ""
    error: CsmError | None = None
    problem: str = ""
    subtitles: Mapping[str, Path] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.conversation.id

    @property
    def chars(self) -> int:
        """Characters of all turns to generate."""
        return sum(len(turn.text) for turn in self.conversation.turns if not turn.recording)


@dataclass(frozen=True)
class OutputPattern:
    """A pattern of output names, such as 'out/{id}.wav'; fields are {id}, {index} (from 1), {speaker} and {shard}.

    A URL such as 's3://bucket/out/{id}.wav' is a pattern too. root: a folder or URL above all outputs, if it is not to
    be found from the pattern.

    Raises:
        UsageError: an unknown field, or a malformed pattern.
    """

    text: str
    shard: int = 1
    root: str = ""

    def __post_init__(self) -> None:
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None]
            if unknown := [name for name in names if name not in FIELDS]:
                known = ", ".join(f"{{{name}}}" for name in FIELDS)
                raise UsageError(f"-o {self.text!r}: unknown field {{{unknown[0]}}}; known: {known}")
            self.text.format(id="a", index=1, speaker="a", shard=1)
        except (ValueError, LookupError) as error:
            raise UsageError(f"-o {self.text!r}: {error}") from error
        name = Path(self.text).name
        if "{" not in name and not Path(name).suffix:
            example = f"{self.text.rstrip('/')}/{{id}}.wav"
            raise UsageError(f"-o {self.text!r} names a folder; name the files in it, as in -o '{example}'")

    @cached_property
    def outputs(self) -> OutputStore:
        """The part of the path that is the same for all items. Raises UsageError as `open_outputs`."""
        if self.root:
            return open_outputs(self.root)
        prefix = ""
        for literal, name, spec, _ in string.Formatter().parse(self.text):
            prefix += literal
            if name not in (None, "shard"):
                break
            prefix += format(self.shard, spec or "") if name else ""
        return open_outputs(prefix.rpartition("/")[0] if is_url(prefix) else expand_path(f"{prefix}x").parent)

    @property
    def folder(self) -> Path:
        """Where the outputs are written."""
        return self.outputs.folder

    def items(self, conversations: Iterable[Conversation]) -> Iterator[BatchItem]:
        """Each conversation with its output."""
        return (self.item(conversation, index) for index, conversation in enumerate(conversations, 1))

    def item(self, conversation: Conversation, index: int) -> BatchItem:
        """A conversation with its output. index: of its row, from 1."""
        values = {"id": conversation.id, "index": index, "speaker": file_name(conversation.turns[0])}
        name = self._expanded.format(**values, shard=self.shard)
        if is_url(name):
            name = str(self.folder) + name.removeprefix(self.outputs.location(self.folder))
        path = Path(name)
        problem = name_problem(conversation.id) if self._has_id else ""
        return BatchItem(conversation, path, os.path.relpath(path, self.folder), problem=problem)

    @cached_property
    def _expanded(self) -> str:
        return (
            self.text if is_url(self.text) else str(expand_path(self.text))
        )  # `~` is expanded in the pattern, never in an id

    @cached_property
    def _has_id(self) -> bool:
        return any(name == "id" for _, name, _, _ in string.Formatter().parse(self.text))


def file_name(turn: Turn) -> str:
    """A turn's speaker as part of a file name; characters that not every system allows become underscores."""
    return re.sub(r"[^\w-]", "_", turn.label)


def check_outputs(
    items: Iterable[BatchItem], inputs: Iterable[Path] = (), encoding: AudioEncoding = DEFAULT_ENCODING
) -> Iterator[BatchItem]:
    """Passes all items on, then raises the first problem found with their outputs.

    Only hashes of names are stored, so that memory stays small. inputs: files read besides the items' recordings.

    Raises:
        InputError: two items have the same output, on any system, or an id that cannot be a file name.
        UsageError: an output is read by this batch.
        OutputRefused: an output cannot be written.
    """
    from csm_cli.audio.io import check_output

    outputs, portable_outputs = set[int](), set[int]()
    read = {hash(resolved_name(path)) for path in inputs}
    problem: CsmError | None = None
    for item in items:
        name = resolved_name(item.path)
        output, portable = hash(name), hash(portable_form(name))
        turns = (*item.conversation.context, *item.conversation.turns)
        recordings = {hash(resolved_name(turn.recording.path)): turn.recording.path for turn in turns if turn.recording}
        read.update(recordings)
        try:
            if item.problem:
                hint = "change it, or use {index} in -o"
                raise InputError(f'the id "{item.id}" cannot be a file name on every system: it {item.problem}; {hint}')
            if output in outputs:
                raise InputError(f'"{item.id}" and an earlier row have the same output {item.path}; put {{id}} into -o')
            if portable in portable_outputs:
                reason = "differ only in case or in Unicode form, which many disks take for one"
                raise InputError(f'{item.path} of "{item.id}" and the output of an earlier row {reason}; rename one')
            check_output(item.path, encoding=encoding)
            if clash := [path for path in item.subtitles.values() if hash(resolved_name(path)) in outputs | read]:
                raise UsageError(f'"{item.id}" would replace {clash[0]}, which belongs to another row; name another -o')
            for path in item.subtitles.values():
                check_writable(path)
            if replaced := recordings.keys() & outputs:
                path = recordings[min(replaced)]
                raise UsageError(f'"{item.id}" reads {path}, which an earlier row would replace; name another -o')
            if output in read:
                raise UsageError(f'"{item.id}" would replace {item.path}, which this batch reads; name another -o')
        except CsmError as error:
            problem = problem or error
        outputs.update((output, *(hash(resolved_name(path)) for path in item.subtitles.values())))
        portable_outputs.add(portable)
        yield item
    if problem:
        raise problem


def with_fingerprint(
    item: BatchItem, setup: SynthesisSetup, delivery: Mapping[str, Any] = MappingProxyType({})
) -> BatchItem:
    """`item` with its fingerprint, and with all its seeds: those of the command line included.

    A fingerprint covers id, text, speakers, the bytes of recordings, options, checkpoint, schema, the output's name and
    `delivery`: how the command line says that the audio is mixed and encoded. The seed of an item without one is
    derived from all of these but the last two.
    """
    try:
        return _with_fingerprint(item, setup, delivery)
    except BaseException as problem:  # it is recorded as this item's failure
        return replace(item, error=failure_of(problem))


def _with_fingerprint(item: BatchItem, setup: SynthesisSetup, delivery: Mapping[str, Any]) -> BatchItem:
    conversation = item.conversation
    sound = fingerprint(
        SCHEMA,
        conversation.id,
        setup.content(),
        [conversation.tail, conversation.loudness],
        [setup.turn_content(turn) for turn in conversation.context],
        [_turn_values(conversation, turn, setup) for turn in conversation.turns],
        [setup.turn_content(turn, conversation) for turn in conversation.turns],
    )
    if setup.flags.seed is not None:
        conversation = _with_seed(conversation, setup.flags.seed)
    elif conversation.defaults.seed is None:
        defaults = replace(conversation.defaults, seed=int(sound[:8], 16) >> 1)
        conversation = replace(conversation, defaults=defaults)
    written = [dict(delivery)] if delivery else []
    return replace(item, conversation=conversation, fingerprint=fingerprint(sound, item.file, *written))


def _turn_values(conversation: Conversation, turn: Turn, setup: SynthesisSetup) -> list[Any]:
    speed = [] if turn.speed == 1 else [turn.speed]
    return [turn.gap, turn.gain, setup.options(conversation, turn).set_values(), *speed]


def _with_seed(conversation: Conversation, seed: int) -> Conversation:
    """The conversation with `seed` for its first turn and the following ones for the others."""
    turns = tuple(replace(turn, options=replace(turn.options, seed=None)) for turn in conversation.turns)
    return replace(conversation, turns=turns, defaults=replace(conversation.defaults, seed=seed))


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`: every count-th row."""

    index: int = 1
    count: int = 1

    @classmethod
    def read(cls, text: str, environment: Mapping[str, str]) -> Shard:
        """From "2/8", or from Slurm's array variables for "slurm"; "slurm/8" is task 1 to 8, whatever tasks run.

        Raises:
            UsageError: neither.
        """
        if match := re.fullmatch(r"slurm/([1-9]\d{0,5})", text):
            number, shards = environment.get("SLURM_ARRAY_TASK_ID", ""), int(match[1])
            if not number.isdecimal() or not 1 <= int(number) <= shards:
                found = f"SLURM_ARRAY_TASK_ID is {number!r}" if number else "no array variables are set"
                raise UsageError(f"--shard {text}: {found}; number the tasks of the array 1 to {shards}")
            return cls(int(number), shards)
        if text == "slurm":
            names = ("ID", "MIN", "MAX", "COUNT", "STEP")
            try:
                task, first, last, count, step = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in names)
            except (KeyError, ValueError) as error:
                hint = "it is for jobs of a Slurm array (sbatch --array=1-8)"
                raise UsageError(f"--shard slurm: no array variables are set; {hint}") from error
            if (last - first) // step + 1 != count:
                hint = "to run some tasks of an array of 8 again, give --shard slurm/8 to all of them"
                raise UsageError(f"--shard slurm needs an array without holes, such as --array=1-8; {hint}")
            return cls((task - first) // step + 1, count)
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        index, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= index <= count:
            raise UsageError(f"--shard takes i/n from 1/n to n/n, slurm or slurm/n, not {text!r}")
        return cls(index, count)

    @classmethod
    def read_count(cls, text: str, environment: Mapping[str, str]) -> int:
        """How many shards "2/8" or "slurm/8" speak of, in any process. Raises UsageError as `read`."""
        match = re.fullmatch(r"slurm/([1-9]\d{0,5})", text)
        return int(match[1]) if match else cls.read(text, environment).count

    def of(self, items: Iterable[BatchItem]) -> Iterator[BatchItem]:
        return islice(items, self.index - 1, None, self.count)


def _is_written(item: BatchItem, entry: LedgerEntry, exists: Callable[[Path], bool]) -> bool:
    """Whether the file that has the item's audio exists: its own, or a shard in the ledger's folder."""
    if not entry.shard:
        return all(exists(path) for path in (item.path, *item.subtitles.values()))
    return exists(item.path.parents[len(Path(item.file).parts) - 1] / entry.shard)


@dataclass
class Counts:
    """How many items there are, how many are done by earlier runs, how many are selected, and their characters."""

    total: int = 0
    done: int = 0
    selected: int = 0
    chars: int = 0

    @classmethod
    def of(cls, items: Iterable[BatchItem]) -> Counts:
        """Of items that are all selected."""
        counts = cls()
        for item in items:
            counts.total, counts.chars = counts.total + 1, counts.chars + item.chars
        return replace(counts, selected=counts.total)


def select_items(
    items: Iterable[BatchItem],
    entries: Mapping[str, LedgerEntry],
    counts: Counts,
    force: bool = False,
    retry_failed: bool = False,
    limit: int | None = None,
    exists: Callable[[Path], bool] = Path.exists,
) -> Iterator[BatchItem]:
    """The items to generate; `counts` is complete when all are consumed.

    An item is done if it is ok in the ledger with the same fingerprint and its file exists. force: also items that are
    done. retry_failed: only items that failed before, with seeds after those that failed. limit: at most so many.
    exists: whether a file is there, as `OutputStore.exists`.
    """
    for item in items:
        counts.total += 1
        entry = entries.get(item.id)
        is_same = entry is not None and entry.fingerprint == item.fingerprint
        if not force and entry and is_same and entry.status == "ok" and _is_written(item, entry, exists):
            counts.done += 1
        elif retry_failed and (entry is None or entry.status != "failed"):
            continue
        elif limit is None or counts.selected < limit:
            counts.selected += 1
            counts.chars += item.chars
            if retry_failed and entry and is_same and entry.last_seed >= 0:
                item = replace(item, conversation=_with_seed(item.conversation, entry.last_seed + 1))
            yield item
