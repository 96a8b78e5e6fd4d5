"""Sizes and ids of a config.json, and configs of other models."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.tiny import Shape

from csm_cli.errors import CheckpointInvalid
from csm_cli.models.csm.config import Rope, model_config


def config(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = Shape().config().to_dict()
    return found | changes


def test_reads_sizes_and_ids() -> None:
    model = model_config(config())
    assert (model.codebooks, model.codebook_size, model.vocab, model.text_vocab, model.eos) == (8, 64, 67, 260, 0)
    assert (model.backbone.layers, model.backbone.hidden, model.backbone.heads, model.backbone.kv_heads) == (
        3,
        64,
        4,
        2,
    )
    assert (model.depth.hidden, model.depth.max_seq_len) == (48, 9)


def test_both_rope_spellings_are_equal() -> None:
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 0.125, "high_freq_factor": 0.5}
    scaling["original_max_position_embeddings"] = 64
    old = config(rope_parameters=None, rope_scaling=scaling, rope_theta=10000.0)
    new = config(rope_parameters=scaling | {"rope_theta": 10000.0})
    assert model_config(old).backbone.rope == model_config(new).backbone.rope == Rope(10000.0, 32.0, 0.125, 0.5, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', not 'csm'"),
        ({"hidden_size": None}, 'no "hidden_size"'),
        ({"num_codebooks": 0}, '"num_codebooks" is 0'),
        ({"num_codebooks": 4}, "num_codebooks is 4, depth_decoder_config's is 8"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "SiLU"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "type 'yarn'"),
        ({"codebook_eos_token_id": 99}, "from 0 to 66"),
        ({"codec_config": None}, 'no "codec_config"'),
    ],
)
def test_other_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointInvalid) as caught:
        model_config(config(**changes))
    assert message in str(caught.value)
