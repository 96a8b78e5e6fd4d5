"""A larger codec that starts as a smaller one: it computes what the smaller one does, before it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import CsmForConditionalGeneration, MimiConfig, MimiModel

from csm_cli.recipe.quantizer import reserve_code_zero

if TYPE_CHECKING:
    from pathlib import Path

_RESIDUAL = "MimiResnetBlock"
_CHAINS = ("semantic_residual_vector_quantizer", "acoustic_residual_vector_quantizer")


@torch.no_grad()
def grow_codec(voice: Path, shape: dict[str, Any]) -> MimiModel:
    """A codec of `shape` with the weights of the checkpoint `voice`'s codec.

    `shape` may have more residual blocks and transformer layers, which start as the identity, and larger codebooks,
    which are left to k-means; the convolutions' sizes stay as they are.
    """
    source = CsmForConditionalGeneration.from_pretrained(voice, dtype=torch.float32).codec_model
    model = MimiModel(MimiConfig(**{**source.config.to_dict(), **shape}))
    _copy_convolutions(model.encoder.encoder_seanet, source.encoder.encoder_seanet)
    _copy_convolutions(model.decoder.decoder_seanet, source.decoder.decoder_seanet)
    _copy_transformer(model.encoder.encoder_transformer, source.encoder.encoder_transformer)
    _copy_transformer(model.decoder.decoder_transformer, source.decoder.decoder_transformer)
    model.encoder.downsample.load_state_dict(source.encoder.downsample.state_dict())
    model.decoder.upsample.load_state_dict(source.decoder.upsample.state_dict())
    for chain in _CHAINS:
        for projection in ("input_proj", "output_proj"):
            own, other = (getattr(getattr(each.quantizer, chain), projection) for each in (model, source))
            own.load_state_dict(other.state_dict())
    reserve_code_zero(model)
    return model


def _copy_convolutions(target: Any, source: Any) -> None:
    (plain, blocks), (source_plain, source_blocks) = _split_layers(target), _split_layers(source)
    for layer, other in zip(plain, source_plain, strict=True):
        layer.load_state_dict(other.state_dict())
    for index, block in enumerate(blocks):
        if len(source_blocks) == len(blocks):
            block.load_state_dict(source_blocks[index].state_dict())
        else:
            block.block[-1].conv.weight.zero_()
            block.block[-1].conv.bias.zero_()


def _split_layers(stack: Any) -> tuple[list[Any], list[Any]]:
    """(layers without residual blocks, residual blocks)."""
    blocks = [layer for layer in stack.layers if type(layer).__name__ == _RESIDUAL]
    return [layer for layer in stack.layers if type(layer).__name__ != _RESIDUAL], blocks


def _copy_transformer(target: Any, source: Any) -> None:
    for index, layer in enumerate(target.layers):
        if index < len(source.layers):
            layer.load_state_dict(source.layers[index].state_dict())
        else:
            layer.self_attn_layer_scale.scale.zero_()
            layer.mlp_layer_scale.scale.zero_()
