"""Sizes of a tiny bundled voice."""

from __future__ import annotations

CODEC = {
    "hidden_size": 16,
    "num_filters": 2,
    "num_residual_layers": 0,
    "upsampling_ratios": [8, 10, 12],
    "upsample_groups": 16,
    "num_quantizers": 4,
    "codebook_size": 512,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


STACK = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


BACKBONE = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, **STACK}


DEPTH = {"hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 32, **STACK}
