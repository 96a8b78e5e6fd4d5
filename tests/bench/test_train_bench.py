"""`csm bench train`: both sides train on the same batch, and the figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.run import Result

from csm_cli.bench import train
from csm_cli.bench.timing import peak_memory_mb
from csm_cli.bench.train import TrainWorkload
from csm_cli.checkpoint import open_checkpoint
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.train.batches import example_row

Run = Callable[..., Result]


def test_both_sides_have_the_same_batch(tiny_checkpoint: Path) -> None:
    checkpoint, workload = open_checkpoint(str(tiny_checkpoint)), TrainWorkload(batch=2, frames=4)
    inputs = train.transformers_inputs(checkpoint, workload)
    prompt_builder = PromptBuilder(checkpoint.tokenizer_file, checkpoint.config)
    rows = [example_row(example, prompt_builder) for example in train.examples(checkpoint, workload)]
    assert inputs["input_ids"].shape == (2, len(rows[0]))
    for ids, labels, row in zip(inputs["input_ids"], inputs["labels"], rows, strict=True):
        assert (ids[torch.from_numpy(row.is_text)].numpy() == row.text_ids[row.is_text]).all()
        assert ((labels.numpy() == -100) == (row.labels[:, 0] == -100)).all()
        assert np.count_nonzero(labels.numpy() == checkpoint.config.audio_token) == workload.frames


def test_steps_of_both_sides_are_timed(csm: Run, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "peak_of_process", lambda side, *_: {"csm_cli": 1.0, "transformers": 2.0}[side])
    result = csm("bench", "train", "--model", tiny_checkpoint, "--batch", 2, "--frames", 3, "--steps", 1, "--json")
    figures = result.json
    assert result.code == 0 and (figures["peak_mb"], figures["transformers_peak_mb"]) == (1.0, 2.0)
    assert figures["speedup"] == pytest.approx(
        figures["steps_per_second"] / figures["transformers_steps_per_second"], rel=0.01
    )


def test_peak_memory_grows_with_this_process() -> None:
    before = peak_memory_mb(torch.device("cpu"))
    held = torch.ones(2**24)
    assert peak_memory_mb(torch.device("cpu")) >= before and len(held)
