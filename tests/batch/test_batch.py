"""Batch items and the ledger: fingerprints, seeds, output patterns, shards, merging."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.outputs import merge

from csm_cli.batch.items import BatchItem, Counts, OutputPattern, Shard, select_items, with_fingerprint
from csm_cli.batch.ledger import Ledger, LedgerEntry
from csm_cli.checkpoint import Checkpoint, open_checkpoint
from csm_cli.errors import InputError, UsageError
from csm_cli.generation.fingerprint import SynthesisSetup
from csm_cli.storage.outputs import LocalOutputs
from csm_cli.types import Conversation, GenerationOptions, Recording, RetryPolicy, Turn

LINES = [
    {"schema": 2, "id": "a", "status": "ok", "fingerprint": "1", "file": "a.wav"},
    {"schema": 2, "id": "b", "status": "failed", "fingerprint": "2"},
]


def ledger_of(folder: Path, text: str) -> Path:
    path = folder / "results.jsonl"
    path.write_text(text)
    return path


def whole() -> str:
    return "".join(json.dumps(line) + "\n" for line in LINES)


def test_appended_results_are_read_at_the_next_opening(tmp_path: Path) -> None:
    with Ledger(LocalOutputs(tmp_path / "new" / "folder")) as ledger:
        for line in [*LINES, LINES[1] | {"status": "ok", "file": "b.wav"}]:
            ledger.append(line)
    with Ledger(LocalOutputs(tmp_path / "new" / "folder")) as again:
        assert again.entries == {"a": LedgerEntry("ok", "1"), "b": LedgerEntry("ok", "2")}
    assert len((tmp_path / "new" / "folder" / "results.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("torn", ["{", '{"id": "c", "status": "ok"}', "x" * 100_000])
def test_an_unfinished_last_line_is_removed(tmp_path: Path, torn: str) -> None:
    path = ledger_of(tmp_path, whole() + torn)
    with Ledger(LocalOutputs(tmp_path)) as ledger:
        assert set(ledger.entries) == {"a", "b"}
        ledger.append({"id": "d", "status": "ok", "file": "d.wav"})
    assert path.read_text() == whole() + '{"schema": 2, "id": "d", "status": "ok", "file": "d.wav"}\n'


def test_a_ledger_of_one_unfinished_line_is_empty(tmp_path: Path) -> None:
    path = ledger_of(tmp_path, '{"id"')
    with Ledger(LocalOutputs(tmp_path)) as ledger:
        assert not ledger.entries
    assert not path.read_text()


@pytest.mark.parametrize("line", ["hello\n", "[1]\n", '{"a": 1}\n', '{"a": 1}'])
def test_a_file_that_is_not_a_ledger_is_left_unchanged(tmp_path: Path, line: str) -> None:
    path = ledger_of(tmp_path, whole() + line)
    with pytest.raises(InputError, match=r"results\.jsonl:3: is not a result"):
        Ledger(LocalOutputs(tmp_path))
    assert path.read_text() == whole() + line


def test_a_process_has_the_lock_until_it_ends(tmp_path: Path) -> None:
    code = (
        "import pathlib; from csm_cli.batch.ledger import Ledger; from csm_cli.storage.outputs import LocalOutputs;"
        "held = Ledger(LocalOutputs(pathlib.Path())); print('held'); input()"
    )
    command = [sys.executable, "-uc", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path) as holder:
        assert holder.stdout and holder.stdout.readline()
        with pytest.raises(UsageError, match="in use by another run"):
            Ledger(LocalOutputs(tmp_path))
        holder.kill()
    Ledger(LocalOutputs(tmp_path)).close()


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [
        ("out/{id}.wav", "out"),
        ("{id}.wav", "."),
        ("a/b/x-{index}/{id}.wav", "a/b"),
        ("a{{b}}/{id}.wav", "a{b}"),
        ("/{id}.wav", "/"),
        ("one.wav", "."),
        ("out/{shard:03d}/{id}.wav", "out/007"),
    ],
)
def test_the_folder_is_the_common_prefix_of_all_outputs(pattern: str, folder: str) -> None:
    assert OutputPattern(pattern, 7).folder == Path(folder)


@pytest.mark.parametrize(("text", "shard"), [("1/1", Shard(1, 1)), ("3/8", Shard(3, 8)), ("slurm", Shard(3, 4))])
def test_a_shard_is_read(text: str, shard: Shard) -> None:
    array = {"ID": "14", "MIN": "10", "MAX": "16", "COUNT": "4", "STEP": "2"}
    assert Shard.read(text, {f"SLURM_ARRAY_TASK_{name}": value for name, value in array.items()}) == shard


def test_an_array_with_holes_is_refused() -> None:
    array = {"ID": "1", "MIN": "1", "MAX": "7", "COUNT": "3", "STEP": "1"}
    with pytest.raises(UsageError, match="without holes"):
        Shard.read("slurm", {f"SLURM_ARRAY_TASK_{name}": value for name, value in array.items()})


def test_some_tasks_of_an_array_can_run_again() -> None:
    array = {"ID": "7", "MIN": "3", "MAX": "7", "COUNT": "2", "STEP": "1"}
    environment = {f"SLURM_ARRAY_TASK_{name}": value for name, value in array.items()}
    assert Shard.read("slurm/8", environment) == Shard(7, 8)


@pytest.mark.parametrize("task", ["0", "9", "", "x"])
def test_a_task_outside_of_the_array_is_refused(task: str) -> None:
    with pytest.raises(UsageError, match="1 to 8"):
        Shard.read("slurm/8", {"SLURM_ARRAY_TASK_ID": task})


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "", "slurm", "-1/2", "slurm/0", "slurm/x"])
def test_an_impossible_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Shard.read(text, {})


def items(count: int) -> list[BatchItem]:
    return [
        BatchItem(Conversation((Turn(0, "Hi."),), id=f"{n}"), Path(f"{n}.wav"), f"{n}.wav", "f") for n in range(count)
    ]


def test_shards_partition_all_items() -> None:
    parts = [Shard(index, 3).of(items(10)) for index in (1, 2, 3)]
    assert sorted(item.id for part in parts for item in part) == [item.id for item in items(10)]


def test_an_item_is_done_if_ok_unchanged_and_present(tmp_path: Path) -> None:
    made = [replace(item, path=tmp_path / item.path) for item in items(5)]
    for item in made[:4]:
        item.path.touch()
    entries = {
        "0": LedgerEntry("ok", "f"),
        "1": LedgerEntry("ok", "old"),
        "2": LedgerEntry("failed", "f"),
        "4": LedgerEntry("ok", "f"),
    }

    def selected(**scope: Any) -> tuple[str, int, int]:
        counts = Counts()
        names = "".join(item.id for item in select_items(made, entries, counts, **scope))
        assert counts.total == 5 and counts.selected == len(names)
        return names, counts.done, counts.chars

    assert selected() == ("1234", 1, 12)
    assert selected(limit=3) == ("123", 1, 9)
    assert selected(retry_failed=True) == ("2", 1, 3)
    assert selected(force=True) == ("01234", 0, 15)


def test_a_retried_item_goes_on_after_the_seeds_that_failed(tmp_path: Path) -> None:
    options = GenerationOptions(seed=1)
    conversation = Conversation((Turn(0, "Hi.", options=options), Turn(1, "Ho.")), id="a", defaults=options)
    item = BatchItem(conversation, tmp_path / "a.wav", "a.wav", "f")
    with Ledger(LocalOutputs(tmp_path)) as ledger:
        for seeds in ([7, 9, 8], [3], []):
            ledger.append({"id": "a", "status": "failed", "fingerprint": "f", "seeds_tried": seeds})
        ledger.append({"id": "b", "status": "failed", "fingerprint": "old", "seeds_tried": [5]})
        ledger.append({"id": "b", "status": "failed", "fingerprint": "new", "seeds_tried": []})
    with Ledger(LocalOutputs(tmp_path)) as ledger:
        entries = ledger.entries
    assert entries == {"a": LedgerEntry("failed", "f", 9), "b": LedgerEntry("failed", "new", -1)}

    def seeds_of(fingerprint: str, retry_failed: bool) -> list[int | None]:
        (found,) = select_items([replace(item, fingerprint=fingerprint)], entries, Counts(), retry_failed=retry_failed)
        return [found.conversation.defaults.seed, *(turn.options.seed for turn in found.conversation.turns)]

    assert seeds_of("f", True) == [10, None, None]
    assert seeds_of("changed", True) == seeds_of("f", False) == [1, 1, None]


@pytest.mark.parametrize("schema", [None, 1, 3])
def test_a_ledger_of_another_version_is_refused_and_left_alone(tmp_path: Path, schema: int | None) -> None:
    line = {"id": "a", "status": "ok", "file": "a.wav"} | ({"schema": schema} if schema else {})
    path = ledger_of(tmp_path, json.dumps(line) + "\n")
    before = path.read_bytes()
    with pytest.raises(InputError, match="another version of csm"):
        Ledger(LocalOutputs(tmp_path))
    with pytest.raises(InputError, match="another version of csm"):
        merge([tmp_path], tmp_path / "all")
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint))


def mark(
    checkpoint: Checkpoint, item: BatchItem, flags: GenerationOptions | None = None, trim: bool = False
) -> BatchItem:
    return with_fingerprint(item, SynthesisSetup(checkpoint, flags or GenerationOptions(), RetryPolicy(trim)))


CONVERSATION = Conversation((Turn(0, "Hi."),), id="a")
CHANGES: list[Callable[[Conversation], Conversation]] = [
    lambda given: replace(given, id="b"),
    lambda given: replace(given, tail=1.0),
    lambda given: replace(given, turns=(Turn(1, "Hi."),)),
    lambda given: replace(given, turns=(Turn(0, "Hi!"),)),
    lambda given: replace(given, turns=(Turn(0, "Hi.", gain=1.0),)),
    lambda given: replace(given, turns=(Turn(0, "Hi.", options=GenerationOptions(top_k=3)),)),
    lambda given: replace(given, defaults=GenerationOptions(seed=3)),
    lambda given: replace(given, context=(Turn(0, "Ho.", recording=Recording(Path("none.wav"))),)),
]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_sound_changes_the_fingerprint(
    checkpoint: Checkpoint, change: Callable[[Conversation], Conversation]
) -> None:
    same, other = (
        mark(checkpoint, BatchItem(each, Path("a.wav"))).fingerprint for each in (CONVERSATION, change(CONVERSATION))
    )
    assert same == mark(checkpoint, BatchItem(CONVERSATION, Path("a.wav"))).fingerprint != other


def test_flags_and_the_output_name_change_the_fingerprint(checkpoint: Checkpoint) -> None:
    item = BatchItem(CONVERSATION, Path("a.wav"))
    policies = [RetryPolicy(True, takes=3), RetryPolicy(True, chunk_chars=80)]
    setups = [SynthesisSetup(checkpoint, GenerationOptions(), retry_policy) for retry_policy in policies]
    setups.append(SynthesisSetup(checkpoint, GenerationOptions(), verified=True))
    marks = [
        mark(checkpoint, item),
        mark(checkpoint, item, GenerationOptions(temperature=0.5)),
        mark(checkpoint, item, trim=True),
        mark(checkpoint, replace(item, file="a.flac")),
        *(with_fingerprint(item, setup) for setup in setups),
    ]
    assert len({each.fingerprint for each in marks}) == 4 + len(setups)


def test_only_lexicon_entries_of_the_text_change_the_fingerprint(checkpoint: Checkpoint) -> None:
    plain, other, respelled = (
        mark(checkpoint, BatchItem(replace(CONVERSATION, lexicon=lexicon), Path("a.wav"))).fingerprint
        for lexicon in ({}, {"Ho": "Hoh"}, {"Hi": "High"})
    )
    assert plain == other != respelled


def test_an_item_without_a_seed_gets_a_derived_one(checkpoint: Checkpoint) -> None:
    seeds = [
        mark(checkpoint, BatchItem(CONVERSATION, Path(name), name)).conversation.defaults.seed
        for name in ("a.wav", "b.wav")
    ]
    assert seeds[0] is not None and seeds[0] == seeds[1]
    assert (
        mark(checkpoint, BatchItem(CONVERSATION, Path("a.wav")), GenerationOptions(seed=0)).conversation.defaults.seed
        == 0
    )


def test_the_bytes_of_a_recording_change_the_fingerprint(checkpoint: Checkpoint, tone: Path) -> None:
    item = BatchItem(replace(CONVERSATION, context=(Turn(0, "Ho.", recording=Recording(tone)),)), Path("a.wav"))
    before = mark(checkpoint, item).fingerprint
    tone.write_bytes(tone.read_bytes()[:-2] + b"\x01\x00")
    assert mark(checkpoint, item).fingerprint != before


def test_a_checkpoint_is_fingerprinted_by_content_not_path(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def copy(name: str, change: bool) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file in tiny_checkpoint.iterdir():
            data = bytearray(file.read_bytes())
            if change and file.suffix == ".safetensors":
                data[-len(data) // 3] ^= 1
            (folder / file.name).write_bytes(data)
        return open_checkpoint(str(folder)).fingerprint

    original = open_checkpoint(str(tiny_checkpoint)).fingerprint
    assert copy("same", False) == original != copy("other", True)


def result(id: str, status: str = "ok", fingerprint: str = "1") -> dict[str, str]:
    return {"id": id, "status": status, "file": f"{id}.wav", "output": "elsewhere", "fingerprint": fingerprint}


def written(folder: Path, *results: dict[str, str]) -> Path:
    with Ledger(LocalOutputs(folder)) as ledger:
        for each in results:
            (folder / each["file"]).write_text(f"{folder.name} {each['fingerprint']}")
            ledger.append(each)
    return folder


def entries(folder: Path) -> dict[str, LedgerEntry]:
    with Ledger(LocalOutputs(folder)) as ledger:
        return ledger.entries


def test_shards_are_merged_and_merged_again(tmp_path: Path) -> None:
    one = written(tmp_path / "one", result("a"), result("b", "failed"), result("a", fingerprint="2"))
    two = written(tmp_path / "two", result("b"), result("c", "failed"))
    assert merge([one, two], tmp_path / "all") == (2, 1) == merge([one, two], tmp_path / "all")
    assert entries(tmp_path / "all") == {
        "a": LedgerEntry("ok", "2"),
        "b": LedgerEntry("ok", "1"),
        "c": LedgerEntry("failed", "1"),
    }
    assert {file.name: file.read_text() for file in (tmp_path / "all").glob("*.wav")} == {
        "a.wav": "one 2",
        "b.wav": "two 1",
    }
    lines = [json.loads(line) for line in (tmp_path / "all" / "results.jsonl").read_text().splitlines()]
    assert [line["output"] for line in lines if line["id"] == "a"] == [str(tmp_path / "all" / "a.wav")]


def test_merging_copies_subtitles_and_codes(tmp_path: Path) -> None:
    one = written(tmp_path / "one", result("a") | {"subtitles": {"srt": "one/a.srt", "vtt": "one/a.vtt"}})
    for name in ("a.srt", "a.vtt", "a.codes.npy"):
        (one / name).write_text(name)
    merge([one], tmp_path / "all")
    assert {path.name for path in (tmp_path / "all").glob("a.*")} == {"a.wav", "a.srt", "a.vtt", "a.codes.npy"}
    (line,) = [json.loads(line) for line in (tmp_path / "all" / "results.jsonl").read_text().splitlines()]
    assert line["subtitles"] == {name: str(tmp_path / "all" / f"a.{name}") for name in ("srt", "vtt")}
    (tmp_path / "all" / "a.srt").unlink()
    merge([one], tmp_path / "all")
    assert (tmp_path / "all" / "a.srt").read_text() == "a.srt"
    (one / "a.vtt").unlink()
    with pytest.raises(InputError, match=r"a\.vtt: .*run its shard again"):
        merge([one], tmp_path / "other")


def test_subtitles_that_would_be_merged_into_one_file_are_refused(tmp_path: Path) -> None:
    one = written(tmp_path / "one", result("a") | {"subtitles": {"srt": "a.srt"}})
    two = written(tmp_path / "two", result("b") | {"file": "a.mp3", "subtitles": {"srt": "a.srt"}})
    with pytest.raises(InputError, match=r'"a" and "b" have the same file a\.srt'):
        merge([one, two], tmp_path / "all")


def test_folders_that_cannot_be_merged_are_refused(tmp_path: Path) -> None:
    one = written(tmp_path / "one", result("a"))
    with pytest.raises(InputError, match=r"has no results\.jsonl"):
        merge([one, tmp_path], tmp_path / "all")
    two = written(tmp_path / "two", result("b") | {"file": "a.wav"})
    with pytest.raises(InputError, match=r'"a" and "b" have the same file a\.wav'):
        merge([one, two], tmp_path / "all")
    (one / "a.wav").unlink()
    with pytest.raises(InputError, match="run its shard again"):
        merge([one], tmp_path / "all")


@pytest.mark.parametrize("pattern", ["out", "a/out/", "takes 1"])
def test_a_folder_in_place_of_a_pattern_is_refused_with_the_pattern_to_write(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"\{id\}\.wav"):
        OutputPattern(pattern)
