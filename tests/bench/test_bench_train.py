"""csm bench train: both sides learn from the same batch, and the figures come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result

from csm_cli.bench import train
from csm_cli.bench.train import TrainLoad
from csm_cli.checkpoint import open_checkpoint
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.train.batches import example_row

Run = Callable[..., Result]


def test_both_sides_have_the_same_batch(tiny_checkpoint: Path) -> None:
    checkpoint, load = open_checkpoint(str(tiny_checkpoint)), TrainLoad(rows=2, frames=4)
    inputs = train._inputs(checkpoint, load)
    prompt_builder = PromptBuilder(checkpoint.tokenizer_file, checkpoint.config)
    rows = [example_row(example, prompt_builder) for example in train._examples(checkpoint, load)]
    assert inputs["input_ids"].shape == (2, len(rows[0]))
    for ids, labels, row in zip(inputs["input_ids"], inputs["labels"], rows, strict=True):
        assert (ids[torch.from_numpy(row.is_text)].numpy() == row.text_ids[row.is_text]).all()
        assert ((labels.numpy() == -100) == (row.labels[:, 0] == -100)).all()
        assert np.count_nonzero(labels.numpy() == checkpoint.config.audio_token) == load.frames


def test_steps_of_both_sides_are_timed(csm: Run, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_alone", lambda name, *_: {"ours": 1.0, "plain": 2.0}[name])
    result = csm("bench", "train", "--model", tiny_checkpoint, "--rows", 2, "--frames", 3, "--steps", 1, "--json")
    figures = result.json
    assert result.code == 0 and (figures["peak_mb"], figures["plain_peak_mb"]) == (1.0, 2.0)
    assert figures["speedup"] == pytest.approx(
        figures["steps_per_second"] / figures["plain_steps_per_second"], rel=0.01
    )


def test_the_peak_is_of_this_process(tiny_checkpoint: Path) -> None:
    before = train._resident_peak()
    held = torch.ones(2**24)
    assert train._resident_peak() >= before and len(held)
