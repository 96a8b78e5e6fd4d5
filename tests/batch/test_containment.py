"""What a ledger, an id or a moved folder may not do: reach a file outside the batch's folder."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.outputs import merge
from helpers.run import Result

from csm_cli.batch.items import OutputPattern, check_outputs
from csm_cli.batch.ledger import Ledger
from csm_cli.errors import InputError, OutputFailed, UsageError
from csm_cli.storage.outputs import LocalOutputs
from csm_cli.types import Conversation, Turn

Csm = Callable[..., Result]
HOSTILE = ["../../.bashrc", "d/../../.bashrc", "/etc/passwd", "..", "C:\\a.wav", "a\0b", "", 3, None, "link/.bashrc"]


def ledger(folder: Path, file: object) -> Path:
    folder.mkdir(exist_ok=True)
    record = {"schema": 2, "id": "a", "status": "ok", "fingerprint": "1", "file": file}
    (folder / "results.jsonl").write_text(json.dumps(record) + "\n")
    return folder


@pytest.mark.parametrize("file", HOSTILE)
def test_merging_a_hostile_ledger_writes_nothing(tmp_path: Path, file: object) -> None:
    (tmp_path / "target").mkdir()
    victim = tmp_path / ".bashrc"
    victim.write_text("mine")
    source = ledger(tmp_path / "part", file)
    for folder in (source, tmp_path / "target"):
        (folder / "link").symlink_to("..")
    with pytest.raises((InputError, UsageError)):
        merge([source], tmp_path / "target")
    assert victim.read_text() == "mine" and sorted(path.name for path in tmp_path.iterdir()) == [
        ".bashrc",
        "part",
        "target",
    ]


def test_a_link_in_the_target_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine.wav").write_text("mine")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a.wav").symlink_to("../mine.wav")
    source = ledger(tmp_path / "part", "a.wav")
    (source / "a.wav").write_text("theirs")
    with pytest.raises(InputError):
        merge([source], tmp_path / "target")
    assert (tmp_path / "mine.wav").read_text() == "mine"


def test_a_report_reads_no_file_outside(csm: Csm, tiny_checkpoint: Path, tmp_path: Path, tone: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("Hello.\n")
    arguments = ["batch", lines, "-o", tmp_path / "out" / "{index}.wav", "--model", tiny_checkpoint]
    limits = ["--max-duration", 0.3, "-q"]
    assert csm(*arguments, *limits).code == 0
    record = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    other = {**record, "id": "other", "file": "link/" + tone.name}
    (tmp_path / "out" / "link").symlink_to(tone.parent)
    (tmp_path / "out" / "results.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(other) + "\n")
    assert csm(*arguments, *limits, "--report", tmp_path / "page.html", "--embed").code == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:audio/flac") == 1 and "leads out" in page


def items(pattern: str, *ids: str) -> None:
    conversations = [Conversation(id=each, turns=(Turn(0, "Hi."),)) for each in ids]
    list(check_outputs(OutputPattern(pattern).items(conversations)))


@pytest.mark.parametrize("name", ["..", ".", "a\nb", "CON", "aux.txt", "a:b", "a.", "a?", "x" * 250])
def test_ids_that_cannot_be_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="file name"):
        items(f"{tmp_path}/out/{{id}}/a.wav", name)
    items(f"{tmp_path}/out/{{index}}.wav", name)


def test_a_tilde_in_an_id_is_a_name(tmp_path: Path) -> None:
    conversations = [Conversation(id="~", turns=(Turn(0, "Hi."),))]
    (item,) = OutputPattern(f"{tmp_path}/{{id}}/a.wav").items(conversations)
    assert item.path == tmp_path / "~" / "a.wav"


@pytest.mark.parametrize("ids", [("A", "a"), (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"))])
def test_ids_that_some_disk_takes_for_one_collide(tmp_path: Path, ids: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="earlier row"):
        items(f"{tmp_path}/{{id}}.wav", *ids)


def test_a_folder_moved_while_it_is_written_to_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(OutputFailed, match="moved"), Ledger(LocalOutputs(tmp_path / "out")) as results:
        (tmp_path / "out").rename(tmp_path / "elsewhere")
        (tmp_path / "out").mkdir()
        results.append({"id": "a", "status": "ok"})
        results.flush()


@pytest.mark.parametrize(
    "field",
    [
        {"file": None},
        {"file": ["a.wav"]},
        {"fingerprint": 1},
        {"duration_s": "1"},
        {"seeds_tried": 7},
        {"seeds_tried": ["7"]},
        {"warnings": "none"},
        {"turns": [1]},
        {"turns": [{"takes": 1}]},
    ],
    ids=str,
)
def test_a_line_with_a_field_of_another_type_is_refused(field: dict[str, object], tmp_path: Path) -> None:
    record = {"schema": 2, "id": "a", "status": "ok", "fingerprint": "1", "file": "a.wav", **field}
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(InputError, match=f":1: .*{next(iter(field))}"):
        Ledger(LocalOutputs(tmp_path))
