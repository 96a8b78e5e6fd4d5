"""Manifests in Parquet: a row is an item, as in a table of text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.run import Result

from csm_cli.errors import ScriptInvalid
from csm_cli.script import Manifest
from csm_cli.script.manifest import ManifestColumns

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def table(folder: Path, **columns: list[Any]) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_rows_are_items_and_other_columns_are_carried(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        id=["a", None, "c"],
        text=["One.", "Two.", "Three."],
        speaker=[0, 1, None],
        split=["train", "test", None],
        audio=[{"bytes": b"x"}, None, None],
        temperature=[0.5, None, None],
    )
    items = list(Manifest(path).checked())
    assert [item.id for item in items] == ["a", "0003", "c"]
    assert [item.turns[0].text for item in items] == ["One.", "Two.", "Three."]
    assert [item.turns[0].speaker for item in items] == [0, 1, 0]
    assert [dict(item.extra) for item in items] == [{"split": "train"}, {"split": "test"}, {}]
    assert items[0].defaults.temperature == 0.5 or items[0].turns[0].options.temperature == 0.5


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    path = table(tmp_path, sentence=["Hello."], key=[17])
    (item,) = Manifest(path, columns=ManifestColumns(text="sentence", id="key")).checked()
    assert item.turns[0].text == "Hello." and item.id == "17"


def test_a_file_that_is_not_parquet_is_named(csm: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(ScriptInvalid):
        list(Manifest(path).checked())
    result = csm("batch", path, "-o", tmp_path / "{id}.wav")
    assert result.code == 3 and "rows.parquet" in result.err


def test_a_text_with_nothing_to_speak_has_its_row(csm: Callable[..., Result], tmp_path: Path) -> None:
    result = csm("batch", table(tmp_path, text=["Hello.", "..."]), "-o", tmp_path / "{id}.wav")
    assert result.code == 3 and "rows.parquet:3" in result.err
