"""Sesame's original model in plain torch, from its description: torchtune's Llama 3.2, RoPE on interleaved pairs.

Source: github.com/SesameAILabs/csm (models.py). Nothing of csm_cli is used here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BOOKS, VOCAB, TEXT_VOCAB = 4, 35, 60
HEADS, KV_HEADS = 4, 2
BACKBONE_DIM, DECODER_DIM, INNER = 64, 32, 48
BACKBONE_HEAD, DECODER_HEAD = 16, 8
LAYERS = {"backbone": 2, "decoder": 1}

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class StackSizes:
    """Sizes of one stack of the original model."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int


BACKBONE = StackSizes(LAYERS["backbone"], BACKBONE_DIM, HEADS, KV_HEADS, BACKBONE_HEAD, INNER)
DECODER = StackSizes(LAYERS["decoder"], DECODER_DIM, HEADS, KV_HEADS, DECODER_HEAD, INNER)
Sizes = dict[str, StackSizes]
TINY: Sizes = {"backbone": BACKBONE, "decoder": DECODER}
# MisoTTS in small: half the heads, a 16th of their size, an MLP 3.5 and 4.5 times as wide, an eighth of the layers
MISO: Sizes = {
    "backbone": StackSizes(layers=4, dim=128, heads=16, kv_heads=4, head_dim=8, inner=448),
    "decoder": StackSizes(layers=1, dim=48, heads=12, kv_heads=3, head_dim=4, inner=216),
}


def original_weights(sizes: Sizes = TINY) -> Weights:
    generator = torch.Generator().manual_seed(0)
    backbone, decoder = sizes["backbone"].dim, sizes["decoder"].dim

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 2 / math.sqrt(shape[-1])

    weights = {
        "text_embeddings.weight": random(TEXT_VOCAB, backbone) * 4,
        "audio_embeddings.weight": random(BOOKS * VOCAB, backbone) * 4,
        "projection.weight": random(decoder, backbone),
        "codebook0_head.weight": random(VOCAB, backbone),
        "audio_head": random(BOOKS - 1, decoder, VOCAB),
    }
    for stack, own in sizes.items():
        dim, head = own.dim, own.head_dim
        for layer in range(own.layers):
            weights |= {
                f"{stack}.layers.{layer}.attn.q_proj.weight": random(own.heads * head, dim),
                f"{stack}.layers.{layer}.attn.k_proj.weight": random(own.kv_heads * head, dim),
                f"{stack}.layers.{layer}.attn.v_proj.weight": random(own.kv_heads * head, dim),
                f"{stack}.layers.{layer}.attn.output_proj.weight": random(dim, own.heads * head),
                f"{stack}.layers.{layer}.mlp.w1.weight": random(own.inner, dim),
                f"{stack}.layers.{layer}.mlp.w2.weight": random(dim, own.inner),
                f"{stack}.layers.{layer}.mlp.w3.weight": random(own.inner, dim),
                f"{stack}.layers.{layer}.sa_norm.scale": 1 + random(dim),
                f"{stack}.layers.{layer}.mlp_norm.scale": 1 + random(dim),
            }
        weights[f"{stack}.norm.scale"] = 1 + random(dim)
    return weights


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * scale


def rope_frequencies(head_dim: int) -> Tensor:
    """Llama 3.2's: base 500000; wavelengths over 8192 slowed 32 times, under 2048 kept, a blend between."""
    frequencies = []
    for pair in range(head_dim // 2):
        frequency = 500_000.0 ** (-2 * pair / head_dim)
        wavelength = 2 * math.pi / frequency
        blend = min(max((8192 / wavelength - 1) / (4 - 1), 0.0), 1.0)
        frequencies.append((1 - blend) * frequency / 32 + blend * frequency)
    return torch.tensor(frequencies)


def rotated(x: Tensor) -> Tensor:
    """[S, heads, head_dim]; each pair (2i, 2i + 1) is a complex number turned by position * frequency i."""
    angles = torch.arange(len(x))[:, None] * rope_frequencies(x.shape[-1])  # [S, head_dim / 2]
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)


def attention(weights: Weights, prefix: str, x: Tensor, sizes: StackSizes) -> Tensor:
    head_dim = sizes.head_dim
    query, key, value = (
        F.linear(x, weights[f"{prefix}.{kind}_proj.weight"]).unflatten(-1, (-1, head_dim)) for kind in "qkv"
    )
    query, key = rotated(query), rotated(key)
    mixed = []
    for head in range(sizes.heads):
        shared = head // (sizes.heads // sizes.kv_heads)
        scores = query[:, head] @ key[:, shared].T / math.sqrt(head_dim)
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
        mixed.append(scores.softmax(-1) @ value[:, shared])
    return F.linear(torch.cat(mixed, -1), weights[f"{prefix}.output_proj.weight"])


def stack(weights: Weights, name: str, x: Tensor, sizes: StackSizes) -> Tensor:
    """[S, dim] through a whole stack."""
    for layer in range(sizes.layers):
        prefix = f"{name}.layers.{layer}"
        x = x + attention(weights, f"{prefix}.attn", rms_norm(x, weights[f"{prefix}.sa_norm.scale"]), sizes)
        y = rms_norm(x, weights[f"{prefix}.mlp_norm.scale"])
        gate, up = (F.linear(y, weights[f"{prefix}.mlp.{part}.weight"]) for part in ("w1", "w3"))
        x = x + F.linear(F.silu(gate) * up, weights[f"{prefix}.mlp.w2.weight"])
    return rms_norm(x, weights[f"{name}.norm.scale"])


def reference_logits(weights: Weights, rows: Tensor, sizes: Sizes = TINY) -> tuple[Tensor, Tensor]:
    """Codebook-0 logits [S, V] of all rows and the depth logits [K - 1, V] that follow the last but one."""
    offsets = torch.arange(BOOKS) * VOCAB
    text, audio = weights["text_embeddings.weight"], weights["audio_embeddings.weight"]
    inputs = torch.stack([text[row[-1]] if row[-1] >= 0 else audio[row[:-1] + offsets].sum(0) for row in rows])
    hidden = stack(weights, "backbone", inputs, sizes["backbone"])
    codes = audio[rows[-1, :-1] + offsets][:-1]  # the last code of a frame is not fed
    depth_inputs = F.linear(torch.cat([hidden[-2:-1], codes]), weights["projection.weight"])
    depth = stack(weights, "decoder", depth_inputs, sizes["decoder"])[1:]
    return F.linear(hidden, weights["codebook0_head.weight"]), torch.einsum("kd,kdv->kv", depth, weights["audio_head"])


def conversation() -> Tensor:
    """Prompt rows [S, K + 1]: text, frames, and once more."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for length in (9, 23, 7, 61):
        rows = torch.full((length, BOOKS + 1), -1)
        if len(parts) % 2:
            rows[:, :-1] = torch.randint(0, 32, (length, BOOKS), generator=generator)
        else:
            rows[:, -1] = torch.randint(0, TEXT_VOCAB, (length,), generator=generator)
        parts.append(rows)
    return torch.cat(parts)


CONFIG = {
    "backbone_flavor": "tiny",
    "decoder_flavor": "tiny",
    "backbone_head_dim": BACKBONE_HEAD,
    "decoder_head_dim": DECODER_HEAD,
    "text_vocab_size": TEXT_VOCAB,
    "audio_vocab_size": VOCAB,
    "audio_num_codebooks": BOOKS,
}


MIMI = {"num_filters": 4, "num_residual_layers": 0, "hidden_size": 32, "num_hidden_layers": 1, "head_dim": 16}


MIMI |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32, "codebook_dim": 16}


MIMI |= {"vector_quantization_hidden_dimension": 16, "codebook_size": 32, "num_quantizers": 4, "upsample_groups": 32}
