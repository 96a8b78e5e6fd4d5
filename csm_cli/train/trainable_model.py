"""The trained model: transformers' CSM with a checkpoint's weights, full or LoRA, how it is saved, and its samples."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import CsmConfig, CsmForConditionalGeneration

from csm_cli.audio.io import Audio, write_audio
from csm_cli.checkpoint import Checkpoint, expected_shapes, open_checkpoint, processor_files
from csm_cli.checkpoint.adapter import WEIGHTS
from csm_cli.checkpoint.export import replace_checkpoint, save_tensors, write_checkpoint
from csm_cli.checkpoint.weights import CheckpointWeights, StoredTensor
from csm_cli.errors import UsageError
from csm_cli.models.csm.config import model_config
from csm_cli.models.mimi import Codec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from csm_cli.generation.prompt import PromptBuilder
    from csm_cli.train.settings import FromScratchSettings, LoraSettings, TrainSettings

_SPEAKER_TAG = re.compile(r"\s*\[(\d{1,3})\](.*)", re.DOTALL)
_CHARACTERS_PER_SECOND, _SLOWEST = 14.0, 2.0  # of a sample's length limit


class TrainableModel:
    """A model under training and the checkpoint it started from; the codec is not loaded.

    Raises as `open_checkpoint` and `LoraAdapter`.
    """

    def __init__(self, settings: TrainSettings, offline: bool = False) -> None:
        base = open_checkpoint(settings.model, settings.revision, offline=offline)
        resized = settings.from_scratch
        self.checkpoint = base if resized is None else _resize(base, resized)
        # Which tables are tied is `tie_codebooks_embeddings` alone.
        config = CsmConfig.from_dict({**self.checkpoint.config_json, "tie_word_embeddings": False})
        torch.manual_seed(settings.seed)
        if resized is not None:
            self.model = CsmForConditionalGeneration(config).float()
        else:
            weights = {name: tensor.float() for name, tensor in base.weights.items()}
            self.model = CsmForConditionalGeneration.from_pretrained(
                None, config=config, state_dict=weights, dtype=torch.float32
            )
        self.model.codec_model = torch.nn.Identity()  # training reads prepared codes only
        self._adapter = LoraAdapter(self.model, settings.lora, base.name) if settings.lora else None
        self._processor_files = {} if settings.lora else processor_files(settings.model, settings.revision, offline)
        if settings.gradient_checkpointing:  # transformers 5.23 renames it
            enable = getattr(self.model, "activation_checkpointing_enable", None)
            (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
            # With an adapter, transformers makes embeddings require gradients, which its depth decoder writes into.
            self.model.disable_input_require_grads()

    def save(self, folder: Path) -> None:
        """Writes the adapter, or the whole checkpoint in transformers' format. Raises as `write_checkpoint`."""
        if self._adapter is not None:
            self._adapter.save(folder)
            return
        state: dict[str, Tensor] = self.model.state_dict()
        tokenizer = self.checkpoint.tokenizer_file

        def stored(name: str) -> StoredTensor:
            return StoredTensor(tuple(state[name].shape), partial(state.__getitem__, name), tokenizer)

        weights = CheckpointWeights({name: stored(name) for name in expected_shapes(self.checkpoint.config)})
        write_checkpoint(replace(self.checkpoint, weights=weights), self._processor_files, folder)


def _resize(base: Checkpoint, sizes: FromScratchSettings) -> Checkpoint:
    """The checkpoint with other layer sizes and no weights; its codec and tokenizer stay."""
    backbone: dict[str, Any] = {**base.config_json, **sizes.backbone}
    hidden = {"backbone_hidden_size": backbone["hidden_size"]}
    depth = {**base.config_json["depth_decoder_config"], **hidden, **sizes.depth}
    config = {**backbone, "depth_decoder_config": depth}
    return replace(base, config_json=config, config=model_config(config), weights=CheckpointWeights({}))


class LoraAdapter:
    """A peft adapter on a model whose own weights are frozen.

    Raises:
        UsageError: peft is not installed, or a target names no linear layer.
    """

    def __init__(self, model: CsmForConditionalGeneration, settings: LoraSettings, base: str) -> None:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as problem:
            raise UsageError('LoRA needs peft; pip install "csm-cli[train]"') from problem
        self._config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]
            lora_dropout=settings.dropout,
            target_modules=_target_pattern(model, settings.target_modules),
            base_model_name_or_path=base,
        )
        model.name_or_path = base
        model.config.tie_word_embeddings = False  # peft would untie the tables that it adapts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft calls deprecated functions of transformers
            self._model: Any = get_peft_model(model, self._config)

    def save(self, folder: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors; raises as `replace_checkpoint`."""
        from peft import get_peft_model_state_dict

        factors = get_peft_model_state_dict(self._model, save_embedding_layers=False)
        with replace_checkpoint(folder) as fresh:
            save_tensors(factors, fresh / WEIGHTS)
            replace(self._config, inference_mode=True).save_pretrained(str(fresh))


def _target_pattern(model: CsmForConditionalGeneration, targets: list[str]) -> str:
    """A regular expression for whole module names that leaves out the codec, whose modules have the same last parts."""
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linears):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linears}))
            raise UsageError(f"lora.target_modules: the model has no linear {target!r}; it has {known}")
    return rf"(?!codec_model)(?:.*\.)?(?:{'|'.join(targets)})"


class SampleGenerator:
    """Generates sample sentences during training with transformers' `generate`: training does not use the engine."""

    def __init__(self, texts: Sequence[str], checkpoint: Checkpoint, prompts: PromptBuilder) -> None:
        """Texts are tagged [n] or for speaker 0. Raises InputError where a text cannot be tokenized."""
        self._checkpoint = checkpoint
        self._prompts: list[tuple[list[int], int]] = []  # ids, characters
        for tagged in texts:
            found = _SPEAKER_TAG.fullmatch(tagged)
            speaker, text = (int(found[1]), found[2].strip()) if found else (0, tagged)
            self._prompts.append((prompts.text_ids(speaker, text), len(text)))

    @cached_property
    def _codec(self) -> Codec:
        checkpoint = self._checkpoint
        return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, codebooks=checkpoint.config.codebooks)

    @torch.no_grad()
    def write(self, model: CsmForConditionalGeneration, folder: Path, seed: int) -> None:
        """Writes one WAV file per text; a frame of silence where the model generates none."""
        model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for number, (ids, characters) in enumerate(self._prompts):
                codes = self._generate(model, ids, characters)
                samples = self._codec.decode(codes.cpu()) if len(codes) else torch.zeros(self._codec.frame_samples)
                write_audio(folder / f"{number:02}.wav", Audio(samples.numpy(), self._codec.rate))
        model.train()

    def _generate(self, model: CsmForConditionalGeneration, ids: list[int], characters: int) -> Tensor:
        """Codes [T, K] up to the end of speech, with the checkpoint's sampling defaults."""
        config = self._checkpoint.config
        temperature, top_k, depth_temperature, depth_top_k = self._checkpoint.defaults.sampling
        max_frames = 12 + round(characters / _CHARACTERS_PER_SECOND * self._codec.frame_rate * _SLOWEST)
        sampling: dict[str, Any] = {}
        for prefix, heat, candidates in (
            ("", temperature, top_k),
            ("depth_decoder_", depth_temperature, depth_top_k),
        ):
            sampling[f"{prefix}do_sample"] = bool(heat)
            sampling[f"{prefix}suppress_tokens"] = list(range(config.codebook_size, config.vocab))  # special codes
            if heat:
                sampling |= {f"{prefix}temperature": heat, f"{prefix}top_k": candidates}
        prompt = torch.tensor([ids], device=model.device)
        codes: Tensor = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=min(max_frames, config.backbone.max_seq_len - len(ids)),
            **sampling,
        )[0]
        ends = (codes[:, :-1] == config.eos).all(dim=-1).nonzero()
        return codes[: int(ends[0])] if len(ends) else codes
