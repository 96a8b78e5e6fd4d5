"""Mimi's modules under their on-disk names, over chunks [B, N, C] and a streaming state; filled from a checkpoint.

A convolutional encoder and decoder (SEANet, arXiv 2210.13438), each with a transformer, around a split residual vector
quantizer: two chains of codebooks quantize one latent, their outputs are summed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csm_cli.errors import CheckpointInvalid
from csm_cli.models.mimi.config import CodecConfig
from csm_cli.models.mimi.layers import CausalConv, CausalConvTranspose, Elu, MonoConv, linear
from csm_cli.models.mimi.streaming import StreamingState
from csm_cli.models.mimi.transformer import MimiTransformer

_MAX_GROUP = 12  # positions of which `MonoConv` computes one channel at a time
_MAX_BATCHED_SIZE = 1 << 14  # numbers of a row; larger ones would not fit a CPU's cache together
_MIN_USAGE = 1e-5  # MimiEuclideanCodebook's epsilon, for entries that no vector was ever assigned to


class MimiNetwork(nn.Module):
    """Mimi's modules under their on-disk names."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        hidden = config.transformer.hidden
        self.encoder = encoder(config)
        self.encoder_transformer = MimiTransformer(config.transformer)
        self.downsample = CausalConv(
            (hidden, hidden), 2 * config.stride, stride=config.stride, bias=False, replicate=True
        )
        self.quantizer = SplitQuantizer(config)
        self.upsample = CausalConvTranspose((hidden, hidden), config.stride, groups=config.upsample_groups, bias=False)
        self.decoder_transformer = MimiTransformer(config.transformer)
        self.decoder = decoder(config)

    def pack_weights(self) -> None:
        """Stores the loaded tensors as they are computed with."""
        self.quantizer.pack_weights()
        self.decoder_transformer.pack_weights()

    @cached_property
    def _packed_encoder_transformer(self) -> MimiTransformer:
        """Packed at the first encoding: a codec that only decodes never reads these weights from the file."""
        self.encoder_transformer.pack_weights()
        return self.encoder_transformer

    def encode(self, samples: Tensor, codebooks: int, state: StreamingState) -> Tensor:
        """[B, N] -> [B, K, T]"""
        latents = self._packed_encoder_transformer(self.encoder(samples[:, :, None], state), state)
        return self.quantizer.encode(self.downsample(latents, state), codebooks)

    def decode(self, codes: Tensor, state: StreamingState) -> Tensor:
        """[B, K, T] -> [B, T * frame_samples]"""
        latents = self.decoder_transformer(self.upsample(self.quantizer.decode(codes), state), state)
        on_cpu = codes.device.type == "cpu"
        samples: Tensor = (self.decoder.forward_cached if on_cpu else self.decoder)(latents, state)
        return samples[:, :, 0]


class Residual(nn.Module):
    """Two convolutions through a bottleneck, added to their input: [B, N, C] -> [B, N, C]."""

    def __init__(self, channels: int, dilation: int, config: CodecConfig) -> None:
        super().__init__()
        narrow = channels // config.compress
        self.block = nn.ModuleList(
            [
                Elu(in_place=False),
                CausalConv((channels, narrow), config.residual_kernel, dilation=dilation),
                Elu(),
                CausalConv((narrow, channels), 1),
            ]
        )
        self.shortcut = CausalConv((channels, channels), 1) if config.conv_shortcut else None

    def forward(self, x: Tensor, state: StreamingState) -> Tensor:
        y = _apply(self.block, x, state)
        return y + (x if self.shortcut is None else self.shortcut(x, state))


class SeanetStack(nn.Module):
    """Layers one after another; their indices are part of the on-disk tensor names."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, state: StreamingState) -> Tensor:
        return _apply(self.layers, x, state)

    def forward_cached(self, x: Tensor, state: StreamingState) -> Tensor:
        """The same on a CPU: from the layer on where rows are too large for the cache together, each row is alone."""
        layers = list(self.layers)
        while layers and x[0].numel() <= _MAX_BATCHED_SIZE:
            x = layers.pop(0)(x, state)
        if not layers:
            return x
        carried = {module: state[module] for layer in layers for module in layer.modules() if module in state}
        states: list[StreamingState] = [
            {module: tuple(part[row : row + 1] for part in parts) for module, parts in carried.items()}
            for row in range(len(x))
        ]
        y = torch.cat([_apply(layers, row[None], each) for row, each in zip(x, states, strict=True)])
        for module in states[0]:
            state[module] = tuple(torch.cat(parts) for parts in zip(*(each[module] for each in states), strict=True))
        return y


def _apply(layers: Iterable[nn.Module], x: Tensor, state: StreamingState) -> Tensor:
    for layer in layers:
        x = layer(x, state)
    return x


def encoder(config: CodecConfig) -> SeanetStack:
    """Waveform [B, N, 1] -> [B, N / hop, hidden]."""
    widths = [config.filters * 2**i for i in range(len(config.ratios) + 1)]
    layers: list[nn.Module] = [CausalConv((1, widths[0]), config.kernel)]
    for ratio, (narrow, wide) in zip(reversed(config.ratios), pairwise(widths), strict=True):
        layers += [*_residuals(narrow, config), Elu(), CausalConv((narrow, wide), 2 * ratio, stride=ratio)]
    return SeanetStack([*layers, Elu(), CausalConv((widths[-1], config.transformer.hidden), config.last_kernel)])


def decoder(config: CodecConfig) -> SeanetStack:
    """The encoder's mirror: [B, N, hidden] -> waveform [B, N * hop, 1]."""
    widths = [config.filters * 2**i for i in reversed(range(len(config.ratios) + 1))]
    layers: list[nn.Module] = [CausalConv((config.transformer.hidden, widths[0]), config.kernel)]
    for ratio, (wide, narrow) in zip(config.ratios, pairwise(widths), strict=True):
        layers += [Elu(), CausalConvTranspose((wide, narrow), ratio), *_residuals(narrow, config)]
    # The largest group of positions that divides a hop and whose overlap ends within the next group.
    hop = math.prod(config.ratios)
    groups = [size for size in range(max(1, config.last_kernel - 1), _MAX_GROUP + 1) if hop % size == 0]
    last: nn.Module = CausalConv((widths[-1], 1), config.last_kernel)
    if groups:
        last = MonoConv(widths[-1], config.last_kernel, groups[-1])
    return SeanetStack([*layers, Elu(), last])


def _residuals(channels: int, config: CodecConfig) -> list[nn.Module]:
    return [Residual(channels, config.dilation_growth**j, config) for j in range(config.residual_layers)]


class SplitQuantizer(nn.Module):
    """Latents [B, T, hidden] to codes [B, K, T] and back, for the first K codebooks of those the checkpoint holds."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.semantic = config.semantic
        self.semantic_residual_vector_quantizer = _ResidualQuantizer(config, config.semantic)
        self.acoustic_residual_vector_quantizer = _ResidualQuantizer(config, config.quantizers - config.semantic)

    def pack_weights(self) -> None:
        """Moves the loaded codebooks of each chain into one table, of which they become views."""
        self.semantic_residual_vector_quantizer.pack_weights()
        self.acoustic_residual_vector_quantizer.pack_weights()

    def encode(self, latents: Tensor, codebooks: int) -> Tensor:
        semantic = self.semantic_residual_vector_quantizer.encode(latents, min(codebooks, self.semantic))
        acoustic = self.acoustic_residual_vector_quantizer.encode(latents, max(0, codebooks - self.semantic))
        return torch.stack(semantic + acoustic, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """[B, K, T] to [B, T, hidden]"""
        latents = self.semantic_residual_vector_quantizer.decode(codes[:, : self.semantic])
        if codes.shape[1] > self.semantic:
            latents = latents + self.acoustic_residual_vector_quantizer.decode(codes[:, self.semantic :])
        return latents


class _ResidualQuantizer(nn.Module):
    """A chain of codebooks, each of which quantizes the residual of those before it."""

    def __init__(self, config: CodecConfig, codebooks: int) -> None:
        super().__init__()
        hidden, dim = config.transformer.hidden, config.codebook_dim
        self.layers = nn.ModuleList([nn.ModuleDict({"codebook": _Codebook(config)}) for _ in range(codebooks)])
        self.input_proj = nn.Conv1d(hidden, dim, 1, bias=False) if dim != hidden else nn.Identity()
        self.output_proj = nn.Conv1d(dim, hidden, 1, bias=False) if dim != hidden else nn.Identity()

    def pack_weights(self) -> None:
        codebooks = [layer.get_submodule("codebook") for layer in self.layers]
        self._tables = torch.stack([book.get_buffer("embed") for book in codebooks])  # [K, codes, D]
        for book, table in zip(codebooks, self._tables, strict=True):
            book.embed = table

    def encode(self, latents: Tensor, codebooks: int) -> list[Tensor]:
        residual = _project(self.input_proj, latents)  # [B, T, D]
        codes = []
        for table in self._tables[:codebooks]:
            nearest = torch.cdist(residual, table[None]).argmin(dim=-1)  # [B, T]
            residual = residual - F.embedding(nearest, table)
            codes.append(nearest)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        tables = self._tables[: codes.shape[1]]
        offsets = torch.arange(0, tables.shape[0] * tables.shape[1], tables.shape[1], device=codes.device)
        indices, table = codes.transpose(1, 2) + offsets, tables.flatten(0, 1)  # [B, T, K]
        if indices.device.type == "cpu":  # embedding_bag: sums that do not depend on the batch size; MPS may lack it
            bags = F.embedding_bag(indices.flatten(0, 1), table, mode="sum")
            latents = bags.view(*indices.shape[:2], table.shape[1])
        else:
            latents = F.embedding(indices, table).sum(dim=2)
        return _project(self.output_proj, latents)


def _project(projection: nn.Module, x: Tensor) -> Tensor:
    """A convolution of width 1 over [B, T, C]."""
    return linear(x, projection.weight[:, :, 0]) if isinstance(projection, nn.Conv1d) else x


class _Codebook(nn.Module):
    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.embed = nn.Buffer(torch.empty(config.codebook_size, config.codebook_dim))


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], device: torch.device) -> None:
    """Fills a network built on the meta device, in float32 and contiguous.

    Raises:
        CheckpointInvalid: tensors missing, unexpected or misshapen.
    """
    expected = network.state_dict()
    needed = {part for name in expected for part in _stored_names(name)}
    unexpected = {name for name in weights.keys() - needed if not name.endswith("codebook.initialized")}
    for problem, names in (("lacks", needed - weights.keys()), ("has unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointInvalid(
                f"the codec {problem} tensor {min(names)}{more}: the checkpoint is not a complete Mimi"
            )
    tensors = {name: _read(name, weights).to(device, torch.float32).contiguous() for name in expected}
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, not {list(expected[name].shape)}"
            raise CheckpointInvalid(f"the codec's tensor {name} is {shapes}: config.json and weights do not match")
    network.load_state_dict(tensors, assign=True)
    network.requires_grad_(False).eval()


def _stored_names(name: str) -> tuple[str, ...]:
    """The on-disk names a tensor is made of: codebooks are stored as sums and counts."""
    if name.endswith("codebook.embed"):
        return name + "_sum", name.removesuffix("embed") + "cluster_usage"
    return (name,)


def _read(name: str, weights: Mapping[str, Tensor]) -> Tensor:
    if not name.endswith("codebook.embed"):
        return weights[name]
    total, count = (weights[part].float() for part in _stored_names(name))
    if total.ndim != 2 or count.shape != total.shape[:1]:
        raise CheckpointInvalid(
            f"the codec's codebook {name} has sums {list(total.shape)} for counts {list(count.shape)}"
        )
    return total / count.clamp(min=_MIN_USAGE)[:, None]
