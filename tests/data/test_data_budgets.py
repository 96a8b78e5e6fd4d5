"""Complexity budgets of the readers of datasets: at most 2.6 times the cost for twice the input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.budget import assert_linear

from csm_cli.data.dataset import SpeakerNumbers
from csm_cli.data.discovery import find_datasets
from csm_cli.data.readers import RowReader, read_datasets


def test_many_speakers() -> None:
    def number(n: int) -> None:
        speakers = SpeakerNumbers()
        for index in range(n):
            speakers.number(f"name {index}")

    assert_linear(number, 4000)


def test_numbers_and_names_keep_apart() -> None:
    speakers = SpeakerNumbers()
    labels = ["1", "ana", "0", "ben", "2", "ana", "cleo"]
    assert [speakers.number(label) for label in labels] == [1, 0, 0, 2, 2, 0, 3]


TABLES: dict[str, tuple[Callable[[int], str], str, int]] = {
    "rows": (lambda n: "file_name,text\n" + "".join(f"{i}.wav,hi\n" for i in range(n)), "metadata.csv", 500),
    "columns": (lambda n: "file_name,text" + "".join(f",c{i}" for i in range(n)) + "\n", "metadata.csv", 3000),
    "objects": (
        lambda n: "".join(json.dumps({"file_name": f"{i}.wav", "text": "hi"}) + "\n" for i in range(n)),
        "metadata.jsonl",
        500,
    ),
    "brackets": (lambda n: '{"file_name": ' + "[" * n + "\n", "metadata.jsonl", 20_000),
    "quotes": (lambda n: 'file_name,text\n"' + '""' * n, "metadata.csv", 20_000),
    "words and bars": (lambda n: "a.wav|x|" + "b " * n + "|c" * n + "\n", "list.csv", 500),
    "a long word": (lambda n: "a|" + "b" * n + "|c d\n", "list.csv", 10_000),
    "bars": (lambda n: "a|b" + "|" * n + "\n", "list.csv", 20_000),
}


@pytest.mark.parametrize("case", TABLES.values(), ids=TABLES)
def test_tables(case: tuple[Callable[[int], str], str, int], tmp_path: Path) -> None:
    write, name, n = case
    for size in (n, 8 * n):
        (tmp_path / str(size)).mkdir()
        (tmp_path / str(size) / name).write_text(write(size))

    def read(size: int) -> object:
        return list(read_datasets(find_datasets([tmp_path / str(size) / name]), RowReader(SpeakerNumbers())))

    assert_linear(read, n)
