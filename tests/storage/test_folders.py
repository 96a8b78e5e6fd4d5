"""Folders that csm owns: replaced as a whole, recovered after a kill, never at the cost of other files."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest

from csm_cli.errors import OutputFailed, OutputRefused
from csm_cli.storage import folders
from csm_cli.storage.files import MARKER
from csm_cli.storage.folders import (
    check_replaceable,
    claim_folder,
    recover_folder,
    recover_folders,
    remove_folder,
    replace_folder,
)


@pytest.fixture(params=["exchange", "two renames"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to put a folder in place: one system call, and two where a system lacks it."""
    if request.param == "two renames":
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)


def write(folder: Path, name: str, force: bool = False) -> None:
    with replace_folder(folder, "checkpoint", force) as fresh:
        (fresh / name).write_text(name)


def content(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != MARKER)


@pytest.mark.usefixtures("renames")
def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "a", "one")
    write(tmp_path / "a", "two")
    with pytest.raises(OutputFailed, match="No space left"), replace_folder(tmp_path / "a", "checkpoint") as fresh:
        (fresh / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert content(tmp_path) == ["a", "a/two"]
    with pytest.raises(OutputRefused):
        write(tmp_path / "a" / "two" / "in", "x")


def test_an_interrupt_between_two_renames_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.suffix == ".new":
            raise KeyboardInterrupt
        return rename(path, target)

    write(tmp_path / "a", "one")
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", "two")
    assert content(tmp_path) == ["a", "a/one"]


@pytest.mark.parametrize("foreign", ["notes.txt", "deep/notes.txt", "config.json"])
def test_a_folder_with_other_files_is_refused_unless_forced(tmp_path: Path, foreign: str) -> None:
    folder = tmp_path / "a"
    write(folder, "model")
    (folder / foreign).parent.mkdir(exist_ok=True)
    (folder / foreign).write_text("mine")
    with pytest.raises(OutputRefused, match=re.escape(foreign)):
        write(folder, "new")
    assert content(folder) == sorted({*content(folder), "model", foreign}) and (folder / foreign).read_text() == "mine"
    write(folder, "new", force=True)
    assert content(folder) == ["new"]


def test_a_folder_without_a_marker_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    check_replaceable(tmp_path / "a", "checkpoint")  # empty
    (tmp_path / "a" / "config.json").touch()
    with pytest.raises(OutputRefused, match=r"config\.json"):
        check_replaceable(tmp_path / "a", "checkpoint")
    check_replaceable(tmp_path / "a", "checkpoint", known=["config.json"])
    write(tmp_path / "b", "model")
    with pytest.raises(OutputRefused, match="model"):
        check_replaceable(tmp_path / "b", "voice")
    (tmp_path / "file").touch()
    with pytest.raises(OutputRefused, match="is a file"):
        check_replaceable(tmp_path / "file", "checkpoint")


@pytest.mark.parametrize(
    "marker", ["[" * 100_000, '{"kind": "checkpoint", "files": 3}', '{"files": {}}', "no json", ""]
)
def test_a_marker_is_data_and_may_be_anything(tmp_path: Path, marker: str) -> None:
    (tmp_path / "mine").touch()
    (tmp_path / MARKER).write_text(marker)
    with pytest.raises(OutputRefused, match="mine"):
        check_replaceable(tmp_path, "checkpoint")


def test_siblings_with_similar_names_stay(tmp_path: Path) -> None:
    for name in ("a.old", "a.new", ".a.old", "a.0123456789abcdef.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    write(tmp_path / "a", "one")
    write(tmp_path / "a", "two")
    assert len(list(tmp_path.glob("**/mine"))) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["a", "a.old", "a.new", ".a.old", "a.0123456789abcdef.old"]
    )


def test_a_link_to_a_folder_is_written_through(tmp_path: Path) -> None:
    write(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink() and content(tmp_path / "real") == ["two"]


def test_a_killed_replacement_is_undone(tmp_path: Path) -> None:
    (tmp_path / ".a.0123456789abcdef.old" / "whole").mkdir(parents=True)
    (tmp_path / ".a.0123456789abcdee.new" / "half").mkdir(parents=True)
    recover_folder(tmp_path / "a")
    assert content(tmp_path) == ["a", "a/whole"]


def test_all_killed_replacements_in_a_folder_are_undone(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f".{name}.0123456789abcdef.old" / "whole").mkdir(parents=True)
    (tmp_path / ".c.0123456789abcdef.gone" / "removed").mkdir(parents=True)
    recover_folders(tmp_path)
    assert content(tmp_path) == ["a", "a/whole", "b", "b/whole"]


def test_a_removed_folder_is_gone_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a", "one")
    remove_folder(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_claimed_folder_keeps_other_files(tmp_path: Path) -> None:
    own = re.compile(r"state\.pt")
    (tmp_path / "notes.txt").touch()
    claim_folder(tmp_path, "training run", own)
    (tmp_path / "state.pt").touch()
    claim_folder(tmp_path, "training run", own)
    assert json.loads((tmp_path / MARKER).read_text())["kind"] == "training run"
    with pytest.raises(OutputRefused, match=r"state\.pt"):
        claim_folder(tmp_path, "training data", own)


def test_a_folder_is_not_claimed_over_a_file_that_would_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_text("mine")
    with pytest.raises(OutputRefused, match=r"holds state\.pt"):
        claim_folder(tmp_path, "training run", re.compile(r"state\.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
