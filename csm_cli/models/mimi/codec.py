"""The codec as a whole: loaded from a checkpoint's tensors, encoding, and decoding chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from csm_cli.errors import CheckpointInvalid
from csm_cli.models.mimi.config import CodecConfig, codec_config
from csm_cli.models.mimi.convolution import CausalConv, CausalConvTranspose
from csm_cli.models.mimi.quantizer import SplitQuantizer
from csm_cli.models.mimi.seanet import decoder, encoder
from csm_cli.models.mimi.streaming import StreamingConv, StreamStart, finished
from csm_cli.models.mimi.streaming_state import StateLayout, StreamingState, pack, unpack
from csm_cli.models.mimi.transformer import MimiTransformer
from csm_cli.models.mimi.weights import load_weights
from csm_cli.storage.fingerprint import Fingerprint

_PIECE = 50  # frames computed together at most, which bounds the memory a long recording takes
_CPU_TOGETHER = 1000  # frames of several rows, of which only what is small is computed together
_CUDA_BYTES = 64 << 20  # on CUDA as many more as the device has of these; each takes less than a tenth of it
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
        modules.arrange()
        self.layout: StateLayout = []  # of a decoder's memory, once there is one

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
    def together(self) -> int:
        """How many frames of several rows are computed together at most."""
        if self.device.type != "cuda":
            return _CPU_TOGETHER
        return max(_PIECE, torch.cuda.get_device_properties(self.device).total_memory // _CUDA_BYTES)

    @cached_property
    def start_work(self) -> StreamStart:
        """How work is begun; on CUDA on one stream for all that use this codec, whose memory is then had once."""
        return StreamingConv(self.device) if self.device.type == "cuda" else finished

    @cached_property
    def mark(self) -> str:
        """Which codec this is, by its sizes and values from all over what encodes: the same mark, the same codes."""
        digest = Fingerprint(f"{self.config} {self.codebooks}")
        for name, tensor in self.modules.state_dict().items():
            if not name.startswith(_DECODING):
                values = tensor.flatten()[:: max(1, tensor.numel() // _MARKED)]
                digest.add(values.float().cpu().numpy().tobytes())
        return digest.hex(16)

    @torch.inference_mode()
    def encode(self, samples: Tensor) -> Tensor:
        """Codes [T, K] int64 of a waveform [N] at `rate`; a part frame at the end counts as one, T = ceil(N / frame).

        Raises:
            ValueError: not one row of at least one sample.
        """
        if samples.ndim != 1 or not len(samples):
            raise ValueError(f"expected samples [N] with N > 0, got {list(samples.shape)}")
        return self._encode(samples[None])[0].contiguous()

    @torch.inference_mode()
    def encode_many(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Codes [T, K] of each of several waveforms [N] of whole frames, encoded together.

        Mimi is causal, so what pads a shorter one behind is not heard. Sums may be rounded otherwise than alone, and a
        value between two codes may then fall to the other.

        Raises:
            ValueError: not rows of whole frames.
        """
        size = self.frame_samples
        wrong = next((each for each in clips if each.ndim != 1 or not len(each) or len(each) % size), None)
        if wrong is not None:
            raise ValueError(f"expected samples [T * {size}] with T > 0, got {list(wrong.shape)}")
        rows = nn.utils.rnn.pad_sequence(list(clips), batch_first=True)
        codes = self._encode(rows)
        return [row[: len(each) // size].contiguous() for row, each in zip(codes, clips, strict=True)]

    def _encode(self, rows: Tensor) -> Tensor:
        """[B, N] -> [B, T, K]"""
        memory: StreamingState = {}
        pieces = torch.split(rows, _PIECE * self.frame_samples, dim=-1)
        codes = [self.modules.encode(self._here(piece), self.codebooks, memory) for piece in pieces]
        return torch.cat(codes, dim=-1).transpose(1, 2)

    def _here(self, samples: Tensor) -> Tensor:
        return samples.to(self.device, torch.float32)

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
        self._memory: Tensor | None = None  # [M], once there is one
        self._frames = 0

    def push(self, codes: Tensor) -> Tensor:
        """The samples [T * frame_samples] of the next codes [T, K]; raises as `Codec.decode` does."""
        (samples,) = push_all([self], [codes])
        return samples

    @property
    def _kind(self) -> bool:
        """What those computed together have in common: on a CPU, so that sums are the same, whether they begin."""
        return self._codec.device.type == "cpu" and self._memory is None

    def _check(self, codes: Tensor) -> None:
        codec = self._codec
        if codes.ndim != 2 or codes.shape[1] != codec.codebooks:
            raise ValueError(f"expected codes [T, {codec.codebooks}], got {list(codes.shape)}")
        if len(codes):
            low, high = (int(end) for end in torch.aminmax(codes))
            if low < 0 or high >= codec.config.codes:
                raise ValueError(self._wrong(codes))

    def _wrong(self, codes: Tensor) -> str:
        """Where the first id is that is no code."""
        last = self._codec.config.codes - 1
        frame, codebook = ((codes < 0) | (codes > last)).nonzero()[0].tolist()
        found = int(codes[frame, codebook])
        return f"frame {self._frames + frame}, codebook {codebook} holds {found}; codes go from 0 to {last}"


@torch.inference_mode()
def push_all(decoders: Sequence[StreamingDecoder], chunks: Sequence[Tensor]) -> list[Tensor]:
    """Each decoder's samples [T * frame_samples] of its next codes [T, K]; chunks of one length are computed together.

    Raises:
        ValueError: as `Codec.decode` does, before any decoder has taken anything.
    """
    for each, codes in zip(decoders, chunks, strict=True):
        each._check(codes)
    if not decoders:
        return []
    codec = decoders[0]._codec
    samples = [torch.zeros(0, device=codec.device)] * len(decoders)
    kinds = [(len(codes), each._kind) for each, codes in zip(decoders, chunks, strict=True)]
    for kind in sorted(each for each in set(kinds) if each[0]):
        alike = [index for index, each in enumerate(kinds) if each == kind]
        most = max(1, codec.together // kind[0])
        for group in (alike[start : start + most] for start in range(0, len(alike), most)):
            together = _push_alike(
                [decoders[index] for index in group], torch.stack([chunks[index] for index in group])
            )
            for index, row in zip(group, together, strict=True):
                samples[index] = row
    return samples


def _push_alike(decoders: Sequence[StreamingDecoder], codes: Tensor) -> Tensor:
    """[B, T * frame_samples] of [B, T, K]."""
    codec = decoders[0]._codec
    memory = _joined(codec, [decoder._memory for decoder in decoders])
    here = codes.to(codec.device, non_blocking=codec.device.type == "cuda")
    pieces = torch.split(here.transpose(1, 2), _PIECE, dim=-1)  # [B, K, T]
    samples = torch.cat([codec.modules.decode(piece, memory) for piece in pieces], dim=-1)
    packed, codec.layout = pack(memory)
    for each, own in zip(decoders, packed, strict=True):
        each._memory = own
        each._frames += codes.shape[1]
    return samples


def _joined(codec: Codec, rows: Sequence[Tensor | None]) -> StreamingState:
    """One memory of all rows, each [M] or, where it has none yet, of zeros."""
    known = [row for row in rows if row is not None]
    if not known:
        return {}
    if len(rows) == 1:
        return unpack(known[0][None], codec.layout)
    empty = torch.zeros_like(known[0])
    return unpack(torch.stack([empty if row is None else row for row in rows]), codec.layout)


class _Mimi(nn.Module):
    """Mimi's parts under their on-disk names."""

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

    def arrange(self) -> None:
        """Lays the loaded tensors out as they are computed with."""
        self.quantizer.stack()
        self.decoder_transformer.arrange()

    @cached_property
    def _encoding(self) -> MimiTransformer:
        """The encoder's, laid out once something is encoded: what only decodes leaves its weights in the file."""
        self.encoder_transformer.arrange()
        return self.encoder_transformer

    def encode(self, samples: Tensor, codebooks: int, memory: StreamingState) -> Tensor:
        """[B, N] -> [B, K, T]"""
        positions = self._encoding(self.encoder(samples[:, :, None], memory), memory)
        return self.quantizer.encode(self.downsample(positions, memory), codebooks)

    def decode(self, codes: Tensor, memory: StreamingState) -> Tensor:
        """[B, K, T] -> [B, T * frame_samples]"""
        positions = self.decoder_transformer(self.upsample(self.quantizer.decode(codes), memory), memory)
        samples: Tensor = (self.decoder.nearby if codes.device.type == "cpu" else self.decoder)(positions, memory)
        return samples[:, :, 0]
