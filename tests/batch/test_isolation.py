"""One bad item costs itself: whatever fails is recorded with its class, and the other items are spoken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.run import Result

from csm_cli.audio import io
from csm_cli.batch import items as batch_items
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.generation.take import TakeBuilder

Csm = Callable[..., Result]
BAD = "Bad."


class PanicException(BaseException):
    """As that of pyo3, with which the tokenizer reports a bug."""


FAILURES = [MemoryError(), PanicException("index out of bounds"), ValueError("odd"), OSError(5, "Input/output error")]


def run(csm: Csm, checkpoint: Path, folder: Path, *flags: object, **bad: Any) -> tuple[Result, dict[str, Any]]:
    """A batch of five, the third of which says `BAD` and has these fields; its result and records by id."""
    rows = [{"id": f"n{n}", "speaker": 0, "text": f"Hello {n}.", "max_duration": 0.4} for n in range(5)]
    rows[2] |= {"text": BAD} | bad
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = folder / "out"
    arguments = ("batch", folder / "m.jsonl", "-o", output / "{id}.wav", "--model", checkpoint)
    result = csm(*arguments, "--batch-size", 2, "--retries", 0, *flags)
    records = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    return result, {record["id"]: record for record in records}


def assert_only_the_bad_one_failed(result: Result, records: dict[str, Any], folder: Path, kind: str) -> None:
    assert result.code == 5, result.err
    assert {name for name, record in records.items() if record["status"] == "ok"} == {"n0", "n1", "n3", "n4"}
    assert records["n2"]["error_class"] == kind
    assert {path.name for path in (folder / "out").glob("*.wav")} == {"n0.wav", "n1.wav", "n3.wav", "n4.wav"}


def failing(function: Callable[..., Any], problem: BaseException, is_bad: Callable[..., bool]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if is_bad(*args, **kwargs):
            raise problem
        return function(*args, **kwargs)

    return call


# Where an item can fail: the object that has the function, its name, and which calls are for the bad item.
PLACES: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "its prompt": (PromptBuilder, "turn_tokens", lambda self, speaker, text, *_: text == BAD),
    "its first frame": (TakeBuilder, "add_frame", lambda self, *_: self._spec.text == BAD),
    "the end of its take": (TakeBuilder, "finish", lambda self, *_: self._spec.text == BAD),
    "its fingerprint": (batch_items, "_with_fingerprint", lambda item, *_: item.id == "n2"),
}


@pytest.mark.parametrize("problem", FAILURES, ids=lambda problem: type(problem).__name__)
@pytest.mark.parametrize("place", PLACES)
def test_any_exception_is_the_failure_of_its_item(
    csm: Csm,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    problem: BaseException,
) -> None:
    owner, name, is_bad = PLACES[place]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), problem, is_bad))
    result, records = run(csm, tiny_checkpoint, tmp_path)
    assert_only_the_bad_one_failed(result, records, tmp_path, type(problem).__name__)


def test_a_failure_while_it_is_mixed_or_encoded(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = failing(io.encode_audio, MemoryError(), lambda path, *_: path.name == "n2.wav")
    monkeypatch.setattr(io, "encode_audio", encode)
    assert_only_the_bad_one_failed(*run(csm, tiny_checkpoint, tmp_path), tmp_path, "MemoryError")
    monkeypatch.undo()


def test_a_failed_item_is_done_by_the_next_run(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, is_bad = PLACES["its prompt"]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing(getattr(owner, name), MemoryError(), is_bad))
        run(csm, tiny_checkpoint, tmp_path)
    result, records = run(csm, tiny_checkpoint, tmp_path)
    assert (result.code, records["n2"]["status"]) == (0, "ok")


def test_an_interrupt_still_stops(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name, is_bad in PLACES.values():
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, failing(getattr(owner, name), KeyboardInterrupt(), is_bad))
            result, _ = run(csm, tiny_checkpoint, tmp_path, "--force")
            assert result.code == 130


@pytest.mark.parametrize("level", [3e38, 1e7, -1e30, np.nan, np.inf])
def test_samples_that_are_no_sound(csm: Csm, tiny_checkpoint: Path, tmp_path: Path, level: float) -> None:
    samples = np.full((24000, 2), 0.1, np.float32)
    samples[100] = level, -level
    soundfile.write(tmp_path / "loud.wav", samples, 24000, subtype="FLOAT")
    context = [{"speaker": 1, "audio": "loud.wav", "text": "Hi"}]
    result, records = run(csm, tiny_checkpoint, tmp_path, context=context)
    assert_only_the_bad_one_failed(result, records, tmp_path, "AudioUnreadable")


def test_a_flac_of_too_many_samples_is_refused_by_its_header(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "bomb.flac", np.zeros((655_350, 8), np.int16), 655_350)
    monkeypatch.setattr(io, "MAX_SAMPLES", 500_000)
    context = [{"speaker": 1, "audio": "bomb.flac", "text": "Hi"}]
    result, records = run(csm, tiny_checkpoint, tmp_path, context=context)
    assert_only_the_bad_one_failed(result, records, tmp_path, "AudioUnreadable")


def test_a_conversation_fails_in_one_line(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.yaml").write_text("turns:\n- a: Hello.\n- a: Bad.\n")
    owner, name, is_bad = PLACES["its first frame"]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), PanicException("bad"), is_bad))
    flags = "--max-duration", 0.4, "--model", tiny_checkpoint, "-q"
    result = csm("converse", tmp_path / "s.yaml", "-o", tmp_path / "o.wav", *flags)
    assert result.code == 1
    assert "PanicException" in result.err.splitlines()[-1]
    assert not (tmp_path / "o.wav").exists()
