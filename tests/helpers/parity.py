"""Prompts for transformers and for the engine, and the codes transformers generates for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from helpers.tiny import (
    AUDIO,
    AUDIO_EOS,
    BOS,
    EOS,
    SPECIALS,
    frame_rows,
    text_rows,
)
from torch import Tensor
from transformers import CsmForConditionalGeneration


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


def reference(model: CsmForConditionalGeneration, prompts: list[Prompt], frames: int) -> Tensor:
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
        max_new_tokens=frames,
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
