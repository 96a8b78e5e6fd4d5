"""Names that come from data: contained below their folder, and possible on every system."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csm_cli.errors import InputError
from csm_cli.storage.paths import contained_path, name_problem, portable_name

PARTS = st.one_of(
    st.sampled_from(["..", ".", "", "~", "a", "link", "deep", "C:", "con", "\\", "..\\..", "/etc", "a\0b", "\udcff"]),
    st.text(max_size=8),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    inner = root / "in"
    (inner / "deep").mkdir(parents=True)
    (inner / "link").symlink_to("..")
    (inner / "deep" / "link").symlink_to(root)
    (inner / "inside").symlink_to("deep")
    return inner


@given(parts=st.lists(PARTS, max_size=5), separator=st.sampled_from(["/", "\\", "//"]))
def test_no_name_leads_out_of_its_folder(folder: Path, parts: list[str], separator: str) -> None:
    try:
        path = contained_path(folder, separator.join(parts))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert os.path.realpath(path) == str(folder) or os.path.realpath(path).startswith(f"{folder}/")


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "C:\\x", "C:x", "\\\\host\\x", "..\\x", "", "a\0b", None, 3, ["a"]],
)
def test_names_that_lead_out_are_refused(folder: Path, name: object) -> None:
    with pytest.raises(InputError):
        contained_path(folder, name)


@pytest.mark.parametrize("name", ["link/x", "deep/link/x", "link"])
def test_links_that_lead_out_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match="through a link"):
        contained_path(folder, name)


@pytest.mark.parametrize("name", ["a.wav", "deep/a.wav", "inside/a.wav", "~", "a b.wav", "..a"])
def test_names_inside_are_paths(folder: Path, name: str) -> None:
    assert contained_path(folder, name) == folder / name


@pytest.mark.parametrize(
    "name", ["CON", "con.wav", "Aux", "LPT1", "a:b", "a\nb", "a/b", "a\\b", "..", ".", "", "a.", "a ", "a?", "x" * 250]
)
def test_names_that_some_system_lacks_have_a_problem(name: str) -> None:
    assert name_problem(name)


@pytest.mark.parametrize("name", ["a", "~", "scene 1.2", "conrad", "ünï", "日本", ".hidden", "a-b_c", "x" * 240])
def test_other_names_have_none(name: str) -> None:
    assert name_problem(name) == ""


def test_names_that_some_disk_takes_for_one_are_equal() -> None:
    with tempfile.TemporaryDirectory() as folder:
        names = [portable_name(Path(folder) / name) for name in ("A\u0308.wav", "ä.WAV", "\u00c4.wav", "b.wav")]
    assert names[0] == names[1] == names[2] != names[3]
