"""Files put in their places, or said to be impossible there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from csm_cli.errors import OutputFailed, OutputRefused
from csm_cli.storage.files import check_writable, expand_path, resolved_name, write_atomically, write_together


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


def test_places_that_cannot_be_are_refused(tmp_path: Path) -> None:
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


def test_a_folder_that_not_even_root_can_write_to_is_refused(tmp_path: Path) -> None:
    assert "the folder /proc cannot be written to" in refusal(Path("/proc/out"))
    (tmp_path / "link").symlink_to("/proc/none/out")
    assert "the folder /proc cannot be written to" in refusal(tmp_path / "link")


def test_checking_a_place_makes_nothing(tmp_path: Path) -> None:
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


def test_a_name_leads_where_the_file_lies(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "circle").symlink_to("circle")
    names = [resolved_name(tmp_path / name) for name in ("file", "link", "none/../file", "other", "circle")]
    assert names[0] == names[1] == names[2] and len(set(names)) == 3


def test_the_home_of_nobody_is_no_place_for_an_output() -> None:
    with pytest.raises(OutputRefused, match="no such user"):
        expand_path("~nobody-of-that-name/a.wav")
