"""Items packed into WebDataset tar files or Parquet tables, for those who train on them.

Items are generated as files of their own in a hidden folder beside the shards, and recorded as always. Whenever there
are enough, they are packed: the shard is written, then a second result of each item says where it is, then their files
are removed. A run that ends in between writes the same shard again, since its number is in no result yet.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import string
import tarfile
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

from csm_cli.batch.items import BatchItem, OutputPattern
from csm_cli.batch.ledger import CODES_SUFFIX, Ledger, LedgerRecord
from csm_cli.errors import InputError, OutputFailed, OutputRefused, UsageError
from csm_cli.storage.files import atomic_file
from csm_cli.storage.outputs import OutputStore
from csm_cli.storage.paths import contained_path, expand_path
from csm_cli.storage.remote import is_url

SHARD_SUFFIXES = (".tar", ".parquet")
SPOOL = ".items"  # folder of the items that are in no shard yet
ITEM_SUFFIX = ".flac"
_MAX_JOBS = 2  # shards that wait to be written, while items are generated


@dataclass(frozen=True)
class ShardPattern:
    """A pattern of shards, such as 'out/part-{shard:05d}.tar', of `size` items each.

    Raises:
        UsageError: other fields than {shard}, or none.
    """

    text: str
    size: int

    def __post_init__(self) -> None:
        try:
            names = {self.text.format(shard=number) for number in (1, 2)}
        except (LookupError, ValueError) as error:
            raise UsageError(f"-o {self.text!r}: shards have one field, as in 'out/part-{{shard:05d}}.tar'") from error
        if len(names) < 2 or len({str(Path(name).parent) for name in names}) > 1:
            raise UsageError(
                f"-o {self.text!r}: put {{shard}} into the file's name, as in 'out/part-{{shard:05d}}.tar'"
            )

    @cached_property
    def items(self) -> OutputPattern:
        """The pattern of the items' own files, in the folder of the shards and their results.jsonl."""
        name = self.text.format(shard=1)
        root = name.rpartition("/")[0] if is_url(name) else str(expand_path(name).parent)
        folder = f"{root}/{SPOOL}".replace("{", "{{").replace("}", "}}")
        return OutputPattern(f"{folder}/{{id}}{ITEM_SUFFIX}", root=root)

    @property
    def suffix(self) -> str:
        return Path(self.text).suffix.lower()

    def path(self, number: int) -> Path:
        return self.items.folder / Path(self.text.format(shard=number)).name

    def number(self, name: str) -> int:
        """Of the shard with this name; 0 for a name of another pattern."""
        parts = string.Formatter().parse(Path(self.text).name)
        expression = "".join(re.escape(literal) + (r"0*(\d+)" if field else "") for literal, field, _, _ in parts)
        match = re.fullmatch(expression, name)
        return int(match[1]) if match else 0


def is_shard_pattern(text: str | None) -> bool:
    return Path(text or "").suffix.lower() in SHARD_SUFFIXES


class ShardWriter:
    """Packs the finished items of a ledger into shards; for an object store in a thread, while others are generated.

    Raises:
        OutputRefused: pyarrow is missing for Parquet.
    """

    def __init__(self, pattern: ShardPattern, ledger: Ledger) -> None:
        self._pattern, self._ledger, self._outputs = pattern, ledger, ledger.outputs
        self._waiting: dict[str, LedgerRecord] = {}  # in the spool, by id
        self.packed: dict[str, str] = {}  # shard by id
        for record in ledger.latest():
            self.add(record)
        self._number = max(map(pattern.number, self.packed.values()), default=0)
        if pattern.suffix == ".parquet":
            _require_pyarrow()
        self._thread = ThreadPoolExecutor(1) if self._outputs.interval else None
        self._jobs: deque[Future[Path]] = deque()

    def close(self) -> None:
        """Ends the shard that is being written."""
        if self._thread:
            self._thread.shutdown(cancel_futures=True)

    def check(self, item: BatchItem) -> None:
        """Raises UsageError for an item to generate that a shard has already, with another text or voice."""
        shard = self.packed.get(item.id)
        if shard and self._outputs.exists(self._outputs.folder / shard):
            hint = "name another -o, or remove the shard to generate all its items again"
            raise UsageError(f'"{item.id}" is in {shard} as it was before; {hint}')

    def add(self, record: LedgerRecord) -> None:
        """A result of the ledger, in its order."""
        name = str(record["id"])
        self._waiting.pop(name, None)
        if record["status"] == "ok" and "shard" in record:
            self.packed[name] = record["shard"]
        elif record["status"] == "ok":
            self._waiting[name] = record

    def pack(self, all_items: bool = False, wait: bool = False) -> list[Path]:
        """Writes shards while there are enough items. all_items: also a last one of fewer; wait: until all are written.

        Returns the paths of those that are written since the last call.

        Raises:
            OutputRefused, OutputFailed: a shard cannot be written; it is not there then, and its items stay.
        """
        written = []
        while len(self._waiting) >= self._pattern.size or (all_items and self._waiting):
            group = [self._waiting.pop(name) for name in list(self._waiting)[: self._pattern.size]]
            if self._thread:
                self._jobs.append(self._thread.submit(self._write, group))
            else:
                written.append(self._write(group))
        while self._jobs and (wait or len(self._jobs) > _MAX_JOBS or self._jobs[0].done()):
            written.append(self._jobs.popleft().result())
        if all_items:  # of a run that was killed before it removed what it had packed
            for path in self._outputs.files(SPOOL):
                self._outputs.remove(path)
        with suppress(OSError):
            (self._outputs.folder / SPOOL).rmdir()  # if it is empty
        return written

    def _write(self, records: Sequence[LedgerRecord]) -> Path:
        self._ledger.flush()  # results and audio of the items are on disk
        self._number += 1
        path = self._pattern.path(self._number)
        with ThreadPoolExecutor(self._outputs.threads) as pool:
            items = list(pool.map(partial(PackedItem.read, self._outputs), records))
        with atomic_file(path) as file:
            (write_parquet if self._pattern.suffix == ".parquet" else write_tar)(file, items)
        self._outputs.publish(path)
        for item in items:
            record = {name: value for name, value in item.record.items() if name != "schema"}
            record |= {"shard": path.name, "file": path.name, "output": self._outputs.location(path), "key": item.key}
            self._ledger.append(record)
            self.packed[str(record["id"])] = path.name
        self._ledger.flush()
        with ThreadPoolExecutor(self._outputs.threads) as pool:
            list(pool.map(self._outputs.remove, (file for item in items for file in item.files)))
        return path


@dataclass(frozen=True)
class PackedItem:
    """An item as a shard has it. key: its name there, without dots. codes: a .npy [T, K], if they are saved."""

    record: LedgerRecord
    key: str
    audio: bytes
    codes: bytes | None
    files: tuple[Path, ...]

    @classmethod
    def read(cls, outputs: OutputStore, record: LedgerRecord) -> PackedItem:
        """Raises InputError where its file is missing."""
        path = contained_path(outputs.folder, record["file"])
        files, saved = [path], None
        try:
            audio = outputs.read(path)
            if "codec" in record:
                files.append(path.with_suffix(CODES_SUFFIX))
                saved = outputs.read(files[1])
        except OSError as error:
            problem = f"{outputs.location(files[-1])}: {error.strerror or 'no such file'}"
            raise InputError(f"{problem}; run with --force to generate it again") from error
        return cls(record, _key(str(record["id"])), audio, saved, tuple(files))

    @property
    def metadata(self) -> dict[str, Any]:
        """What training needs to know of it; of the result, all but its place."""
        turns = self.record["turns"]
        speakers = list(dict.fromkeys(turn["speaker"] for turn in turns))
        names = ("id", "duration_s", "seed", "model", "revision", "codec", "turns", "extra")
        return {
            "text": " ".join(turn["text"] for turn in turns),
            "speaker": speakers[0] if len(speakers) == 1 else None,
            **{name: self.record[name] for name in names if name in self.record},
        }


def write_tar(file: BinaryIO, items: Iterable[PackedItem]) -> None:
    """WebDataset: KEY.flac, KEY.txt, KEY.json and KEY.codes.npy; the same bytes whenever it is written."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for item in items:
            metadata = item.metadata
            members = {
                ITEM_SUFFIX: item.audio,
                ".txt": metadata["text"].encode("utf-8", "replace"),
                ".json": json.dumps(metadata, ensure_ascii=True).encode(),
                CODES_SUFFIX: item.codes,
            }
            for suffix, data in members.items():
                if data is not None:
                    info = tarfile.TarInfo(item.key + suffix)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def write_parquet(file: BinaryIO, items: Iterable[PackedItem]) -> None:
    """A table as Hugging Face's `datasets` and `csm data` read it: audio is a struct of a file's bytes and name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: list[tuple[str, Any]] = [
        ("id", pa.string()),
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("audio", audio),
        ("duration_s", pa.float64()),
        ("seed", pa.int64()),
        ("metadata", pa.string()),
        ("codes", pa.binary()),
    ]
    features = {name: {"dtype": str(kind).replace("double", "float64"), "_type": "Value"} for name, kind in columns}
    features["audio"] = {"_type": "Audio"}
    schema = pa.schema(columns, {"huggingface": json.dumps({"info": {"features": features}})})
    rows = []
    for item in items:
        found = item.metadata
        rows.append(
            {
                "id": str(found["id"]),
                "text": found["text"],
                "speaker": found["speaker"],
                "audio": {"bytes": item.audio, "path": item.key + ITEM_SUFFIX},
                "duration_s": found["duration_s"],
                "seed": found.get("seed"),
                "metadata": json.dumps(found, ensure_ascii=True),
                "codes": item.codes,
            }
        )
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, row_group_size=100)
    except pa.ArrowException as error:
        raise OutputFailed(f"a Parquet table could not be written ({error})") from error


def _require_pyarrow() -> None:
    import importlib.util

    if importlib.util.find_spec("pyarrow") is None:
        raise OutputRefused('Parquet shards need pyarrow; pip install "csm-cli[parquet]", or write .tar')


def _key(item_id: str) -> str:
    """An id as the name of files in a tar, where a name ends at its first dot; two ids have two names."""
    name = re.sub(r"[^\w-]", "_", item_id)
    return name if name == item_id else f"{name}-{hashlib.sha256(item_id.encode('utf-8', 'replace')).hexdigest()[:8]}"
