"""One run at a time in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from csm_cli.errors import OutputRefused, UsageError
from csm_cli.storage.lock import exclusive_lock


def test_the_second_is_refused_until_the_first_has_left(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    with (
        exclusive_lock(folder),
        pytest.raises(UsageError, match=f"{folder} is in use by another run"),
        exclusive_lock(folder),
    ):
        pass
    with exclusive_lock(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_other_names_are_other_locks(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path), exclusive_lock(tmp_path, "other.lock"):
        assert (tmp_path / "other.lock").exists()


def test_it_is_let_go_where_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive_lock(tmp_path):
        raise ZeroDivisionError
    with exclusive_lock(tmp_path):
        pass


def test_a_folder_that_nothing_was_put_into_is_gone_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive_lock(tmp_path / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    (tmp_path / "made").mkdir()
    with exclusive_lock(tmp_path / "made"), exclusive_lock(tmp_path / "used"):
        (tmp_path / "used" / "work").touch()
    assert (tmp_path / "made").exists() and (tmp_path / "used" / "work").exists()


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputRefused, match="file/in: cannot be written"), exclusive_lock(tmp_path / "file" / "in"):
        pass
