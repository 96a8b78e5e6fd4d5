"""Sentences spoken on the way, so that progress can be heard."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from csm_cli.audio.io import Audio, write_audio
from csm_cli.models.mimi import Codec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import CsmForConditionalGeneration

    from csm_cli.checkpoint import Checkpoint
    from csm_cli.generation.prompt import PromptBuilder

_TAGGED = re.compile(r"\s*\[(\d{1,3})\](.*)", re.DOTALL)
_CHARACTERS_A_SECOND, _SLOWEST = 14.0, 2.0


class SampleSpeaker:
    """Texts, tagged [n] or for speaker 0, said by transformers' own `generate`: training does not know the engine."""

    def __init__(self, texts: Sequence[str], checkpoint: Checkpoint, prompt_builder: PromptBuilder) -> None:
        """Raises InputError where a text cannot be spoken."""
        self._checkpoint = checkpoint
        self._prompts = [(prompt_builder.text_ids(*_spoken(text)), len(_spoken(text)[1])) for text in texts]

    @cached_property
    def _codec(self) -> Codec:
        found = self._checkpoint
        return Codec.load(found.codec_config, found.codec_weights, codebooks=found.config.codebooks)

    @torch.no_grad()
    def write(self, model: CsmForConditionalGeneration, folder: Path, seed: int) -> list[Path]:
        """One WAV file a text; one that ends at once is a frame of silence."""
        model.eval()
        paths = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for number, (ids, length) in enumerate(self._prompts):
                codes = self._codes(model, ids, length)
                samples = self._codec.decode(codes.cpu()) if len(codes) else torch.zeros(self._codec.frame_samples)
                paths.append(folder / f"{number:02}.wav")
                write_audio(paths[-1], Audio(samples.numpy(), self._codec.rate))
        model.train()
        return paths

    def _codes(self, model: CsmForConditionalGeneration, ids: list[int], length: int) -> Tensor:
        """[T, K] up to the end of speech."""
        frames = 12 + round(length / _CHARACTERS_A_SECOND * self._codec.frame_rate * _SLOWEST)
        window = self._checkpoint.config.backbone.max_seq_len - len(ids)
        prompt = torch.tensor([ids], device=model.device)
        codes: Tensor = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=min(frames, window),
            **self._sampling(),
        )[0]
        ends = (codes[:, :-1] == self._checkpoint.config.eos).all(dim=-1).nonzero()
        return codes[: int(ends[0])] if len(ends) else codes

    def _sampling(self) -> dict[str, Any]:
        """The checkpoint's own; special codes are never drawn."""
        config = self._checkpoint.config
        backbone_temperature, backbone_top_k, depth_temperature, depth_top_k = self._checkpoint.defaults.sampling
        found: dict[str, Any] = {}
        for prefix, temperature, top_k in (
            ("", backbone_temperature, backbone_top_k),
            ("depth_decoder_", depth_temperature, depth_top_k),
        ):
            found[f"{prefix}do_sample"] = bool(temperature)
            found[f"{prefix}suppress_tokens"] = list(range(config.codebook_size, config.vocab))
            if temperature:
                found |= {f"{prefix}temperature": temperature, f"{prefix}top_k": top_k}
        return found


def _spoken(text: str) -> tuple[int, str]:
    found = _TAGGED.fullmatch(text)
    return (int(found[1]), found[2].strip()) if found else (0, text)
