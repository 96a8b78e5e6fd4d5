"""The codec as a whole: loaded from a checkpoint's tensors, encoding, and decoding chunk by chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from csm_cli.codec.config import CodecConfig, codec_config
from csm_cli.codec.layers import Conv, Memory, UpConv, decoder, encoder
from csm_cli.codec.quantizer import SplitQuantizer
from csm_cli.codec.transformer import Transformer
from csm_cli.codec.weights import load_weights
from csm_cli.errors import CheckpointInvalid

_PIECE = 50  # frames computed together at most, which bounds the memory a long recording takes
_DECODING = ("decoder", "upsample")
_MARKED = 512  # values of a tensor that tell it from another


class Codec:
    """A Mimi in float32: 24 kHz mono samples to codes [T, K] and back, one row per frame.

    K is the number of codebooks the speech model uses, which may be less than the codec holds.
    """

    def __init__(self, modules: _Mimi, config: CodecConfig, codebooks: int, device: torch.device) -> None:
        self.modules = modules
        self.config = config
        self.codebooks = codebooks
        self.device = device
        self.rate = config.rate
        self.frame_samples = config.frame_samples
        self.frame_rate = config.frame_rate

    @classmethod
    def load(
        cls,
        config: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        device: str | torch.device = "cpu",
        codebooks: int | None = None,
    ) -> Codec:
        """From `codec_config` as transformers writes it and tensors under MimiModel's on-disk names, of any dtype.

        Raises:
            CheckpointInvalid: a config that is no causal Mimi, or tensors that are missing, unexpected or misshapen.
        """
        sizes = codec_config(config)
        codebooks = codebooks or sizes.quantizers
        if codebooks > sizes.quantizers:
            raise CheckpointInvalid(f"the model speaks {codebooks} codebooks, but its codec holds {sizes.quantizers}")
        with torch.device("meta"):
            modules = _Mimi(sizes)
        load_weights(modules, weights, torch.device(device))
        return cls(modules, sizes, codebooks, torch.device(device))

    @cached_property
    def mark(self) -> str:
        """Which codec this is, by its sizes and values from all over what encodes: the same mark, the same codes."""
        digest = hashlib.sha256(f"{self.config} {self.codebooks}".encode())
        for name, tensor in self.modules.state_dict().items():
            if not name.startswith(_DECODING):
                values = tensor.flatten()[:: max(1, tensor.numel() // _MARKED)]
                digest.update(values.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def encode(self, samples: Tensor) -> Tensor:
        """Codes [T, K] int64 of a waveform [N] at `rate`; a part frame at the end counts as one, T = ceil(N / frame).

        Raises:
            ValueError: not one row of at least one sample.
        """
        if samples.ndim != 1 or not len(samples):
            raise ValueError(f"expected samples [N] with N > 0, got {list(samples.shape)}")
        memory: Memory = {}
        pieces = torch.split(samples, _PIECE * self.frame_samples)
        with _full_precision():
            codes = [self.modules.encode(self._here(piece), self.codebooks, memory) for piece in pieces]
        return torch.cat(codes, dim=-1)[0].T.contiguous()

    def _here(self, samples: Tensor) -> Tensor:
        return samples.to(self.device, torch.float32)[None, None]

    def decode(self, codes: Tensor) -> Tensor:
        """The waveform [T * frame_samples] of codes [T, K].

        Raises:
            ValueError: another shape, or an id that is no code; names its frame and codebook.
        """
        return self.decoder().push(codes)

    def decoder(self) -> StreamingDecoder:
        """A decoder at the start of an utterance."""
        return StreamingDecoder(self)


class StreamingDecoder:
    """One utterance decoded chunk by chunk: however it is cut, the samples are those of decoding it at once."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._memory: Memory = {}
        self._frames = 0

    @torch.inference_mode()
    def push(self, codes: Tensor) -> Tensor:
        """The samples [T * frame_samples] of the next codes [T, K]; raises as `Codec.decode` does."""
        self._check(codes)
        if not len(codes):
            return torch.zeros(0, device=self._codec.device)
        self._frames += len(codes)
        columns = torch.split(codes.to(self._codec.device).T[None], _PIECE, dim=-1)  # [1, K, T]
        with _full_precision():
            pieces = [self._codec.modules.decode(piece, self._memory) for piece in columns]
        return torch.cat(pieces, dim=-1)[0, 0]

    def _check(self, codes: Tensor) -> None:
        codec = self._codec
        if codes.ndim != 2 or codes.shape[1] != codec.codebooks:
            raise ValueError(f"expected codes [T, {codec.codebooks}], got {list(codes.shape)}")
        wrong = ((codes < 0) | (codes >= codec.config.codes)).nonzero()
        if len(wrong):
            frame, codebook = wrong[0].tolist()
            found = int(codes[frame, codebook])
            where = f"frame {self._frames + frame}, codebook {codebook}"
            raise ValueError(f"{where} holds {found}; codes go from 0 to {codec.config.codes - 1}")


class _Mimi(nn.Module):
    """Mimi's parts under their on-disk names."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        hidden = config.transformer.hidden
        self.encoder = encoder(config)
        self.encoder_transformer = Transformer(config.transformer)
        self.downsample = Conv((hidden, hidden), 2 * config.stride, stride=config.stride, bias=False, replicate=True)
        self.quantizer = SplitQuantizer(config)
        self.upsample = UpConv((hidden, hidden), config.stride, groups=config.upsample_groups, bias=False)
        self.decoder_transformer = Transformer(config.transformer)
        self.decoder = decoder(config)

    def encode(self, samples: Tensor, codebooks: int, memory: Memory) -> Tensor:
        """[B, 1, N] -> [B, K, T]"""
        positions = self.encoder_transformer(self.encoder(samples, memory), memory)
        return self.quantizer.encode(self.downsample(positions, memory), codebooks)

    def decode(self, codes: Tensor, memory: Memory) -> Tensor:
        """[B, K, T] -> [B, 1, T * frame_samples]"""
        positions = self.upsample(self.quantizer.decode(codes), memory)
        samples: Tensor = self.decoder(self.decoder_transformer(positions, memory), memory)
        return samples


@contextmanager
def _full_precision() -> Iterator[None]:
    """CUDA's convolutions in float32: TF32, the default, changes codes and breaks the equality of chunked decoding."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, fp32_precision="ieee"):
        yield
