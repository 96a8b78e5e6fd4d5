"""The codec as a whole: loaded from a checkpoint's tensors, encoding waveforms and decoding codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from csm_cli.errors import CheckpointInvalid
from csm_cli.models.mimi.config import CodecConfig, codec_config
from csm_cli.models.mimi.network import MimiNetwork, load_weights
from csm_cli.models.mimi.streaming import (
    CudaStreamExecutor,
    Executor,
    StateLayout,
    StreamingDecoder,
    StreamingState,
    run_inline,
)
from csm_cli.storage.fingerprint import Fingerprint

_MAX_FRAMES = 50  # encoded at once, which bounds the memory of a long recording
_CPU_BATCH_FRAMES = 1000
_CUDA_BYTES_PER_FRAME = 64 << 20  # a frame takes less than a tenth of it
_DECODING_MODULES = ("decoder", "upsample")
_FINGERPRINT_VALUES = 512  # of each tensor


class Codec:
    """A Mimi in float32: mono samples at `rate` to codes [T, K] and back, one line per frame.

    K is the number of codebooks the speech model uses, which may be less than the codec holds.
    """

    def __init__(self, network: MimiNetwork, config: CodecConfig, codebooks: int, device: torch.device) -> None:
        self.network = network
        self.config = config
        self.codebooks = codebooks
        self.device = device
        self.rate = config.rate
        self.frame_samples = config.frame_samples
        self.frame_rate = config.frame_rate
        network.pack_weights()
        self.state_layout: StateLayout = []  # of a decoder's state, known from the first chunk on

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
            CheckpointInvalid: a config that is not a causal Mimi, or tensors that are missing, unexpected or misshapen.
        """
        sizes = codec_config(config)
        codebooks = codebooks or sizes.quantizers
        if codebooks > sizes.quantizers:
            raise CheckpointInvalid(f"the model uses {codebooks} codebooks, but its codec holds {sizes.quantizers}")
        with torch.device("meta"):
            network = MimiNetwork(sizes)
        load_weights(network, weights, torch.device(device))
        return cls(network, sizes, codebooks, torch.device(device))

    @cached_property
    def max_batch_frames(self) -> int:
        """How many frames of several rows are decoded together at most."""
        if self.device.type != "cuda":
            return _CPU_BATCH_FRAMES
        return max(_MAX_FRAMES, torch.cuda.get_device_properties(self.device).total_memory // _CUDA_BYTES_PER_FRAME)

    @cached_property
    def executor(self) -> Executor:
        """On CUDA one stream for all users of this codec, so that its memory is allocated once."""
        return CudaStreamExecutor(self.device) if self.device.type == "cuda" else run_inline

    @cached_property
    def fingerprint(self) -> str:
        """Identifies what encodes: its sizes and a sample of its weights. Equal fingerprints give equal codes."""
        digest = Fingerprint(f"{self.config} {self.codebooks}")
        for name, tensor in self.network.state_dict().items():
            if not name.startswith(_DECODING_MODULES):
                values = tensor.flatten()[:: max(1, tensor.numel() // _FINGERPRINT_VALUES)]
                digest.add(values.float().cpu().numpy().tobytes())
        return digest.hex(16)

    @torch.inference_mode()
    def encode(self, samples: Tensor) -> Tensor:
        """Codes [T, K] int64 of a waveform [N] at `rate`; a partial frame at the end counts, T = ceil(N / frame).

        Raises:
            ValueError: not a waveform of at least one sample.
        """
        if samples.ndim != 1 or not len(samples):
            raise ValueError(f"expected samples [N] with N > 0, got {list(samples.shape)}")
        return self._encode(samples[None])[0].contiguous()

    @torch.inference_mode()
    def encode_batch(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Codes [T, K] of each of several waveforms [N] of whole frames, encoded together.

        Mimi is causal, so padding at the end changes nothing before it. Rounding may differ from that of a single clip,
        and a value between two codes may then become the other one.

        Raises:
            ValueError: not waveforms of whole frames.
        """
        size = self.frame_samples
        wrong = next((each for each in clips if each.ndim != 1 or not len(each) or len(each) % size), None)
        if wrong is not None:
            raise ValueError(f"expected samples [T * {size}] with T > 0, got {list(wrong.shape)}")
        codes = self._encode(nn.utils.rnn.pad_sequence(list(clips), batch_first=True))
        return [row[: len(each) // size].contiguous() for row, each in zip(codes, clips, strict=True)]

    def _encode(self, rows: Tensor) -> Tensor:
        """[B, N] -> [B, T, K]"""
        state: StreamingState = {}
        pieces = torch.split(rows, _MAX_FRAMES * self.frame_samples, dim=-1)
        codes = [self.network.encode(piece.to(self.device, torch.float32), self.codebooks, state) for piece in pieces]
        return torch.cat(codes, dim=-1).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """The waveform [T * frame_samples] of codes [T, K].

        Raises:
            ValueError: another shape, or a value that is not a code; names its frame and codebook.
        """
        return self.decoder().push(codes)

    def decoder(self) -> StreamingDecoder:
        """A decoder at the start of an utterance."""
        return StreamingDecoder(self)
