"""Parity: the same checkpoint and prompt give transformers' greedy codes."""

from __future__ import annotations

import pytest
import torch
from helpers.parity import prompt, reference, stacked_audio
from helpers.tiny import (
    Shape,
    assert_same_codes,
    decode_all,
    greedy,
    ours,
    random_csm,
)
from torch import Tensor

from csm_cli.engine import Engine, Request
from csm_cli.models.csm.kv_cache import PrefillSlots

FRAMES = {2: 40, 8: 30, 32: 10}  # by codebooks: each costs transformers one forward pass of the depth decoder
SHAPES = [
    Shape(codebooks=2, kv_heads=4, rope="plain"),
    Shape(codebooks=8, kv_heads=2, rope="llama3"),
    Shape(codebooks=32, kv_heads=1, rope="llama3"),
    Shape(codebooks=8, kv_heads=4, rope="llama3", codes=32),
    Shape(codebooks=32, kv_heads=2, rope="plain", codes=128),
]


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_greedy_codes_equal_transformers(shape: Shape, turns: int) -> None:
    theirs = random_csm(shape, seed=turns)
    model, _ = ours(theirs)
    given, frames = prompt(theirs, turns, seed=turns), FRAMES[shape.codebooks]
    (codes,) = decode_all(Engine(model), [Request(given.rows, greedy(frames))])
    assert len(codes) == frames
    assert len(codes.unique(dim=0)) > 5, "a model that repeats itself shows nothing"
    assert_same_codes(f"{turns} turns", codes, reference(theirs, [given], frames)[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ragged_batch_equals_transformers(shape: Shape) -> None:
    theirs = random_csm(shape, seed=9)
    model, _ = ours(theirs)
    given = [prompt(theirs, turns, seed=20 + turns) for turns in (2, 0, 3, 1)]
    frames = FRAMES[shape.codebooks]
    expected = reference(theirs, given, frames)
    got = decode_all(Engine(model, slots=4), [Request(p.rows, greedy(frames)) for p in given])
    for row, codes in enumerate(got):
        assert_same_codes(f"row {row}", codes, expected[row])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_equal_transformers(shape: Shape) -> None:
    theirs = random_csm(shape, seed=3)
    model, config = ours(theirs)
    given = prompt(theirs, 1, seed=5)
    frame = torch.randint(0, config.codebook_size, (1, config.codebooks))
    with torch.inference_mode():
        inputs = {"input_ids": given.ids[None]} | stacked_audio([given])
        outputs = theirs(**inputs, output_hidden_states=True)
        cache = model.backbone.new_cache(1, len(given.rows))
        hidden = model.backbone(model.embed_prompt(given.rows)[None], cache, PrefillSlots(0, 1, 0, len(given.rows)))
        torch.testing.assert_close(
            model.head(hidden[0])[None], outputs.logits[..., : config.codebook_size], atol=1e-4, rtol=0
        )

        last = outputs.hidden_states[-1][:, -1]
        padded = torch.nn.functional.pad(frame[:, :-1], (1, 0))
        depth = theirs.depth_decoder(padded, backbone_last_hidden_state=last).logits  # [1, K - 1, V]
        embedded = torch.stack((model.projector(hidden[:, -1]), *_depth_inputs(model, frame)), 1)
        mixed = model.depth(
            embedded, model.depth.new_cache(1, config.codebooks), PrefillSlots(0, 1, 0, config.codebooks)
        )
        logits = torch.stack([head(mixed[:, n + 1]) for n, head in enumerate(model.depth_heads)], 1)
        torch.testing.assert_close(logits, depth[..., : config.codebook_size], atol=1e-4, rtol=0)


def _depth_inputs(model, frame: Tensor) -> list[Tensor]:
    return [model.depth_table[frame[:, n] + n * model.config.vocab] for n in range(model.config.codebooks - 1)]
