"""The samples that come with the repository, on the bundled voice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.run import Result

ROOT = Path(__file__).parents[2]


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return shutil.copytree(ROOT / "samples", tmp_path / "samples")


@pytest.mark.parametrize(
    ("sample", "turns"), [("dialogue.yaml", 8), ("dialogue.jsonl", 8), ("chat.json", 1), ("conversation.yaml", 1)]
)
def test_every_turn_ends_by_itself(sample: str, turns: int, samples: Path, csm: Callable[..., Result]) -> None:
    done = csm("converse", samples / sample, "-o", samples / "out.wav", "--seed", 1, "--json")
    assert done.code == 0, done.err
    assert [turn["stop"] for turn in done.json["turns"]] == ["eos"] * turns
    if sample == "dialogue.yaml":
        assert done.json["duration_s"] >= 10
        assert {turn["speaker"] for turn in done.json["turns"]} == {"ana", "ben"}


def test_tag_in_plain_text_is_not_spoken(samples: Path, csm: Callable[..., Result]) -> None:
    done = csm("say", "-f", samples / "plain.txt", "-o", samples / "plain.wav", "--json", "--seed", 1)
    assert done.code == 0, done.err
    assert done.json["turns"][0]["text"] == "Hello from the bundled voice."


def test_batch_items_with_and_without_context(samples: Path, csm: Callable[..., Result]) -> None:
    done = csm("batch", samples / "batch.jsonl", "-o", samples / "out" / "{id}.wav", "--json", "--seed", 1)
    assert done.code == 0, done.err
    assert '"id": "alone", "status": "ok"' in done.out and '"id": "answer", "status": "ok"' in done.out
    assert all((samples / "out" / f"{name}.wav").exists() for name in ("alone", "answer"))
