"""Atomic files and folders, locks, paths and fingerprints."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from csm_cli.errors import OutputFailed, OutputRefused, UsageError
from csm_cli.storage.files import (
    atomic_file,
    check_writable,
    exclusive_lock,
    remove_temp_files,
    write_atomically,
    write_together,
)
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.storage.paths import expand_path, resolved_name


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").is_file()


def refusal(path: Path, clobber: bool = True) -> str:
    with pytest.raises(OutputRefused) as caught:
        check_writable(path, clobber)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def test_unwritable_paths_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "there"
    file.write_bytes(b"x")
    check_writable(file)
    assert "exists already" in refusal(file, clobber=False)
    assert "is a directory" in refusal(tmp_path)
    assert "is not a regular file" in refusal(Path(os.devnull))
    assert "is not a folder" in refusal(file / "out")
    assert "File name too long" in refusal(tmp_path / ("n" * 300))
    (tmp_path / "circle").symlink_to("circle")
    assert "symbolic links" in refusal(tmp_path / "circle" / "out")


@contextmanager
def nobody() -> Iterator[None]:
    """For root, whom permissions do not stop: a user without any."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(("mode", "message"), [(0o555, "cannot be written to"), (0o000, "cannot be created")])
@pytest.mark.parametrize("name", ["out", "new/out"])
def test_folders_without_permission_are_refused(mode: int, message: str, name: str) -> None:
    with TemporaryDirectory() as folder:  # tmp_path lies in a folder that is root's alone
        Path(folder).chmod(mode)
        with nobody():
            said = refusal(Path(folder) / name)
    assert message in said and "(Permission denied)" in said


def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    assert "the folder /proc cannot be written to" in refusal(Path("/proc/out"))
    (tmp_path / "link").symlink_to("/proc/none/out")
    assert "the folder /proc cannot be written to" in refusal(tmp_path / "link")


def test_a_check_creates_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(_: int) -> None:
        raise failure

    path = tmp_path / "out.bin"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((OutputFailed, KeyboardInterrupt)) as caught:
        write_atomically(path, b"new")
    assert isinstance(failure, KeyboardInterrupt) or "No space left" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.bin"]


def test_a_failed_write_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputFailed):
        write_atomically(tmp_path / "new" / "deep" / "out.bin", b"new")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputFailed):
        write_atomically(tmp_path / "mine" / "out.bin", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_files_written_together_appear_together_or_not_at_all(tmp_path: Path) -> None:
    write_together([(tmp_path / "a", b"1"), (tmp_path / "new" / "b", b"2")])
    assert (tmp_path / "a").read_bytes() + (tmp_path / "new" / "b").read_bytes() == b"12"
    with pytest.raises(OutputRefused):
        write_together([(tmp_path / "a", b"3"), (tmp_path / "a" / "c", b"4")])
    assert (tmp_path / "a").read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "new"]


def test_resolved_names_follow_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "circle").symlink_to("circle")
    names = [resolved_name(tmp_path / name) for name in ("file", "link", "none/../file", "other", "circle")]
    assert names[0] == names[1] == names[2] and len(set(names)) == 3


def test_the_home_of_an_unknown_user_is_refused() -> None:
    with pytest.raises(OutputRefused, match="no such user"):
        expand_path("~nobody-of-that-name/a.wav")


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_only_our_temporary_files_are_removed(tmp_path: Path) -> None:
    for name in (".0123456789abcdef.tmp", ".mine.tmp", "a.wav"):
        (tmp_path / name).touch()
    remove_temp_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".mine.tmp", "a.wav"}


def test_a_temporary_file_of_a_running_process_stays(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.bin") as file:
        file.write(b"half")
        remove_temp_files(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_a_write_removes_what_killed_processes_left(tmp_path: Path) -> None:
    (tmp_path / ".0123456789abcdef.tmp").write_bytes(b"half")
    write_atomically(tmp_path / "a.bin", b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize(
    ("before", "umask", "after"), [(0o600, 0o022, 0o600), (None, 0o077, 0o600), (None, 0o022, 0o644)]
)
def test_permissions_are_those_of_the_replaced_file_or_of_the_umask(
    tmp_path: Path, before: int | None, umask: int, after: int
) -> None:
    path = tmp_path / "a.bin"
    if before is not None:
        path.touch()
        path.chmod(before)
    old = os.umask(umask)
    try:
        write_atomically(path, b"x")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == after


def test_equal_content_has_equal_fingerprints(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"text")
    assert fingerprint(file) == fingerprint("text") == fingerprint(b"te", b"xt")
    assert fingerprint({"a": 1, "b": [None]}) == fingerprint({"b": [None], "a": 1}) != fingerprint({"a": 1})
    assert len(fingerprint("a\udcff", length=16)) == 16


def test_a_locked_folder_is_refused_until_released(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    with (
        exclusive_lock(folder),
        pytest.raises(UsageError, match=f"{folder} is in use by another run"),
        exclusive_lock(folder),
    ):
        pass
    with exclusive_lock(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_locks_of_other_names_are_independent(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path), exclusive_lock(tmp_path, "other.lock"):
        assert (tmp_path / "other.lock").exists()


def test_an_exception_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive_lock(tmp_path):
        raise ZeroDivisionError
    with exclusive_lock(tmp_path):
        pass


def test_a_folder_that_stays_empty_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive_lock(tmp_path / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    (tmp_path / "made").mkdir()
    with exclusive_lock(tmp_path / "made"), exclusive_lock(tmp_path / "used"):
        (tmp_path / "used" / "work").touch()
    assert (tmp_path / "made").exists() and (tmp_path / "used" / "work").exists()


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputRefused, match="file/in: cannot be written"), exclusive_lock(tmp_path / "file" / "in"):
        pass
