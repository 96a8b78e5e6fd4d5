"""Tiny random CSMs in transformers' own classes, for tests that hold our code against them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import CsmConfig, CsmForConditionalGeneration

from csm_cli.engine import Engine, Request, SamplingParams, decode
from csm_cli.models.csm.config import ModelConfig, model_config
from csm_cli.models.csm.model import CsmModel
from csm_cli.models.mimi import Codec
from csm_cli.models.mimi.config import codec_config
from csm_cli.models.mimi.network import MimiNetwork

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 0.125}
LLAMA3 |= {"high_freq_factor": 0.5, "original_max_position_embeddings": 64}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}

AUDIO, AUDIO_EOS, BOS, EOS = 258, 259, 256, 257
SPECIALS = 3  # ids above the codes: eos-like, begin, pad


@dataclass(frozen=True)
class Shape:
    """What parity is tried over."""

    codebooks: int = 8
    kv_heads: int = 2
    rope: str = "llama3"
    codes: int = 64
    positions: int = 512

    def config(self) -> CsmConfig:
        rope: dict[str, Any] = LLAMA3 if self.rope == "llama3" else PLAIN
        vocab = self.codes + SPECIALS
        stack = {"vocab_size": vocab, "num_codebooks": self.codebooks, "num_attention_heads": 4}
        stack |= {"num_key_value_heads": self.kv_heads, "rope_parameters": rope}
        depth = stack | {"backbone_hidden_size": 64, "hidden_size": 48, "intermediate_size": 96}
        depth |= {
            "num_hidden_layers": 2,
            "max_position_embeddings": self.codebooks + 1,
            "model_type": "csm_depth_decoder_model",
        }
        return CsmConfig(
            **stack,
            text_vocab_size=260,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            max_position_embeddings=self.positions,
            bos_token_id=BOS,
            pad_token_id=EOS,
            audio_token_id=AUDIO,
            audio_eos_token_id=AUDIO_EOS,
            codebook_pad_token_id=vocab - 1,
            codebook_eos_token_id=0,
            depth_decoder_config=depth,
            codec_config=self.codec(),
        )

    def codec(self) -> dict[str, Any]:
        """A Mimi of 1920 samples a frame, as transformers' processor counts."""
        sizes = {"num_filters": 4, "num_residual_layers": 0, "upsampling_ratios": [8, 10, 12], "hidden_size": 32}
        sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
        sizes |= {"intermediate_size": 32, "codebook_dim": 16, "vector_quantization_hidden_dimension": 16}
        sizes |= {"codebook_size": self.codes, "num_quantizers": self.codebooks, "upsample_groups": 32}
        return {"model_type": "mimi", "sampling_rate": 24000, "sliding_window": 25} | sizes


def random_csm(shape: Shape, seed: int = 0) -> CsmForConditionalGeneration:
    """Random weights, large enough that greedy decoding wanders instead of repeating one frame."""
    torch.manual_seed(seed)
    model = CsmForConditionalGeneration(shape.config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.startswith("codec_model"):
                parameter.mul_(4)
    return model


def random_codec(config: Mapping[str, Any], device: str = "cpu") -> Codec:
    """A Mimi of these sizes, missing ones its own; on `meta` one without numbers."""
    sizes = codec_config(config)
    with torch.device("meta" if device == "meta" else "cpu"):
        network = MimiNetwork(sizes).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for tensor in network.state_dict().values():
        if not tensor.is_meta:
            tensor.normal_(0, 0.1, generator=generator)
    return Codec(network.to(device), sizes, sizes.quantizers, torch.device(device))


def random_codes(codec: Codec, frames: int) -> Tensor:
    """[T, K]"""
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(codec.config.codebook_size, (frames, codec.codebooks), generator=generator)


def ours(model: CsmForConditionalGeneration) -> tuple[CsmModel, ModelConfig]:
    """The same weights in our modules, float32 on the CPU."""
    config = model_config(model.config.to_dict())
    return CsmModel(config, model.state_dict(), torch.device("cpu"), torch.float32), config


def greedy(frames: int) -> SamplingParams:
    return SamplingParams(temperature=0, top_k=0, depth_temperature=0, depth_top_k=0, seed=0, max_frames=frames)


def decode_all(engine: Engine, requests: list[Request]) -> list[Tensor]:
    """The codes [T, K] of each request, the frame that ends speech included."""
    waiting = iter(requests)
    frames: dict[Request, list[Tensor]] = {request: [] for request in requests}
    for frame in decode(engine, lambda: next(waiting, None)):
        frames[frame.request].append(frame.codes)
    return [torch.stack(codes) for codes in frames.values()]


def text_rows(ids: Tensor, codebooks: int) -> Tensor:
    """[S] text ids to prompt rows [S, K + 1]."""
    rows = torch.full((len(ids), codebooks + 1), -1)
    rows[:, -1] = ids
    return rows


def frame_rows(codes: Tensor) -> Tensor:
    """[T, K] codes to prompt rows, the end of speech after them."""
    ended = torch.nn.functional.pad(codes, (0, 0, 0, 1))
    return torch.nn.functional.pad(ended, (0, 1), value=-1)


def assert_same_codes(name: str, got: Tensor, wanted: Tensor) -> None:
    """[T, K] of each; ours may be shorter by ending where transformers only pads."""
    wanted = wanted[: len(got)]
    differs = (got != wanted).nonzero()
    if len(differs):
        frame, codebook = differs[0].tolist()
        pytest.fail(f"{name}: frame {frame}, codebook {codebook}: {got[frame, codebook]} != {wanted[frame, codebook]}")


TOKENS = {"<|begin_of_text|>": BOS, "<|end_of_text|>": EOS, "<|AUDIO|>": AUDIO, "<|audio_eos|>": AUDIO_EOS}


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and the special tokens after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(TOKENS))
    assert {token: tokenizer.token_to_id(token) for token in TOKENS} == TOKENS
    return tokenizer


def save_checkpoint(model: CsmForConditionalGeneration, folder: Path) -> Path:
    """A whole checkpoint in transformers format: greedy by default, so that tests repeat."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.codec_model.named_buffers():
        if name.endswith("embed_sum"):  # zero as transformers makes them: every code would sound the same
            buffer.normal_(generator=generator)
    model.save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    generation = {"do_sample": False, "depth_decoder_do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
