"""8-bit linear layers: close to the original, rows independent, refused where unsupported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import Shape, decode_all, greedy, ours, random_csm, text_rows

from csm_cli.bench.speed import quantize_and_compare, teacher_forced_logits
from csm_cli.bench.timing import BenchModel
from csm_cli.checkpoint import open_checkpoint
from csm_cli.engine import Engine, Request
from csm_cli.errors import UsageError
from csm_cli.models.csm.layers import Int8Linear
from csm_cli.models.csm.model import CsmModel

CPU = torch.device("cpu")


def test_int8_product_is_within_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(48, 64, generator=generator), torch.randn(5, 64, generator=generator)
    expected = x @ weight.T
    error = (Int8Linear(weight)(x) - expected).square().mean().sqrt() / expected.std()
    assert error < 0.015


def test_rows_are_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    linear, x = Int8Linear(torch.randn(48, 64, generator=generator)), torch.randn(16, 64, generator=generator)
    loud = torch.cat((x[:1], 1e4 * x[1:]))
    assert torch.equal(linear(x)[:1], linear(loud)[:1])
    assert torch.equal(linear(x)[:1], linear(x[:1]))


def test_int8_weights_are_contiguous_per_output() -> None:
    """A product with them the other way is exact too, but takes twice as long."""
    weight = torch.randn(64, 48).T
    assert Int8Linear(weight).weight.is_contiguous() and not weight.is_contiguous()


def test_zeros_stay_zeros() -> None:
    assert not Int8Linear(torch.zeros(8, 16))(torch.ones(2, 16)).any()
    assert not Int8Linear(torch.ones(8, 16))(torch.zeros(2, 16)).any()


def test_teacher_forced_logits_equal_decoding() -> None:
    """Greedy codes are the likeliest ones of the logits they were drawn from."""
    model, config = ours(random_csm(Shape()))
    rows = text_rows(torch.arange(10), config.codebooks)
    (codes,) = decode_all(Engine(model), [Request(rows, greedy(12))])
    assert torch.equal(teacher_forced_logits(model, rows, codes).argmax(-1), codes)


def test_int8_changes_little(tiny_checkpoint: Path) -> None:
    ready = BenchModel(open_checkpoint(str(tiny_checkpoint)), CPU, torch.float32)
    changes = quantize_and_compare(ready)
    assert 0.8 < changes["codes_equal"] <= 1
    assert 0 < changes["logits_error"] < 0.2
    layers = (*ready.model.backbone.layers, *ready.model.depth.layers)
    assert all(isinstance(each, Int8Linear) for layer in layers for each in (layer.qkv, layer.out, layer.down))


def test_other_dtypes_are_refused() -> None:
    theirs = random_csm(Shape())
    model = CsmModel(ours(theirs)[1], theirs.state_dict(), CPU, torch.bfloat16)
    with pytest.raises(UsageError, match="float32"):
        model.quantize()


def test_say_accepts_int8_only(csm: Callable[..., Any], tiny_checkpoint: Path, tmp_path: Path) -> None:
    flags = ("--model", tiny_checkpoint, "--seed", "1", "--max-duration", "0.5", "--no-trim")
    out = tmp_path / "a.wav"
    assert csm("say", "hi", "-o", out, *flags, "--quantize", "int8").code == 0
    assert out.stat().st_size > 44
    refused = csm("say", "hi", "-o", out, *flags, "--quantize", "int4")
    assert refused.code == 2 and "none or int8" in refused.err
