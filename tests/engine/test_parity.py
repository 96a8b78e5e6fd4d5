"""Parity: the same checkpoint and prompt give transformers' greedy codes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tiny import (
    AUDIO,
    AUDIO_EOS,
    BOS,
    EOS,
    SPECIALS,
    Shape,
    assert_same_codes,
    decode_all,
    frame_rows,
    greedy,
    ours,
    random_csm,
    text_rows,
)
from torch import Tensor
from transformers import CsmForConditionalGeneration

from csm_cli.engine import Engine, Request
from csm_cli.models.csm import PrefillSlots

FRAMES = 40
SHAPES = [
    Shape(codebooks=2, kv_heads=4, rope="plain"),
    Shape(codebooks=8, kv_heads=2, rope="llama3"),
    Shape(codebooks=32, kv_heads=1, rope="llama3"),
    Shape(codebooks=8, kv_heads=4, rope="llama3", codes=32),
    Shape(codebooks=32, kv_heads=2, rope="plain", codes=128),
]


@dataclass
class Prompt:
    """One prompt in both forms: transformers' ids and audio, and our rows."""

    ids: Tensor
    audio: list[Tensor]
    rows: Tensor


def prompt(model: CsmForConditionalGeneration, turns: int, seed: int) -> Prompt:
    """`turns` context turns of random text and noise, then a text to speak; lengths vary with the seed."""
    generator = torch.Generator().manual_seed(seed)
    codebooks = model.config.num_codebooks
    ids, audio, rows = [], [], []
    for turn in range(turns + 1):
        length = int(torch.randint(3, 12, (), generator=generator))
        text = torch.cat(
            (torch.tensor([BOS]), torch.randint(0, 250, (length,), generator=generator), torch.tensor([EOS]))
        )
        ids.append(text)
        rows.append(text_rows(text, codebooks))
        if turn == turns:
            break
        samples = 0.3 * torch.randn(1920 * int(torch.randint(3, 9, (), generator=generator)), generator=generator)
        with torch.no_grad():
            codes = model.codec_model.encode(samples[None, None], num_quantizers=codebooks).audio_codes[0].T
        ids.append(torch.cat((torch.full((len(codes),), AUDIO), torch.tensor([AUDIO_EOS]))))
        rows.append(frame_rows(codes))
        audio.append(samples)
    return Prompt(torch.cat(ids), audio, torch.cat(rows))


def reference(model: CsmForConditionalGeneration, prompts: list[Prompt]) -> Tensor:
    """transformers' greedy codes [B, T, K] for left-padded prompts; special ids are suppressed, as ours are masked."""
    longest = max(len(p.ids) for p in prompts)
    ids = torch.stack([torch.nn.functional.pad(p.ids, (longest - len(p.ids), 0), value=EOS) for p in prompts])
    mask = torch.stack([(torch.arange(longest) >= longest - len(p.ids)).long() for p in prompts])
    specials = list(range(model.config.vocab_size - SPECIALS, model.config.vocab_size))
    inputs = {"input_ids": ids, "attention_mask": mask} | stacked_audio(prompts)
    return model.generate(
        **inputs,
        do_sample=False,
        depth_decoder_do_sample=False,
        max_new_tokens=FRAMES,
        suppress_tokens=specials,
        depth_decoder_suppress_tokens=specials,
    )


def stacked_audio(prompts: list[Prompt]) -> dict[str, Tensor]:
    if not any(p.audio for p in prompts):
        return {}
    joined = [torch.cat((*p.audio, torch.zeros(0))) for p in prompts]
    longest, most = max(map(len, joined)), max(len(p.audio) for p in prompts)
    values = torch.stack([torch.nn.functional.pad(samples, (0, longest - len(samples))) for samples in joined])
    cutoffs = torch.full((len(prompts), most), -1)
    for row, p in enumerate(prompts):
        cutoffs[row, : len(p.audio)] = torch.tensor([len(a) for a in p.audio]).cumsum(0)
    return {"input_values": values[:, None], "input_values_cutoffs": cutoffs}


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_greedy_codes_equal_transformers(shape: Shape, turns: int) -> None:
    theirs = random_csm(shape, seed=turns)
    model, _ = ours(theirs)
    given = prompt(theirs, turns, seed=turns)
    (codes,) = decode_all(Engine(model), [Request(given.rows, greedy(FRAMES))])
    assert len(codes) == FRAMES
    assert len(codes.unique(dim=0)) > 5, "a model that repeats itself shows nothing"
    assert_same_codes(f"{turns} turns", codes, reference(theirs, [given])[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ragged_batch_equals_transformers(shape: Shape) -> None:
    theirs = random_csm(shape, seed=9)
    model, _ = ours(theirs)
    given = [prompt(theirs, turns, seed=20 + turns) for turns in (2, 0, 3, 1)]
    expected = reference(theirs, given)
    got = decode_all(Engine(model, slots=4), [Request(p.rows, greedy(FRAMES)) for p in given])
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
