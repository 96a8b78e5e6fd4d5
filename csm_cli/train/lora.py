"""LoRA by peft: which linears are adapted, and the adapter as a folder that peft and `--adapter` read."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from csm_cli.checkpoint.adapter import WEIGHTS
from csm_cli.checkpoint.export import replace_checkpoint, save_tensors
from csm_cli.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import CsmForConditionalGeneration

    from csm_cli.train.settings import LoraSettings


class LoraAdapter:
    """The adapter of a model, whose own weights are frozen.

    Raises:
        UsageError: peft is not installed, or a target names no linear.
    """

    def __init__(self, model: CsmForConditionalGeneration, plan: LoraSettings, base: str) -> None:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as problem:
            raise UsageError('LoRA needs peft; pip install "csm-cli[train]"') from problem
        self._config = LoraConfig(
            r=plan.rank,
            lora_alpha=plan.alpha,  # type: ignore[arg-type]
            lora_dropout=plan.dropout,
            target_modules=_pattern(model, plan.targets),
            base_model_name_or_path=base,
        )
        model.name_or_path = base
        model.config.tie_word_embeddings = False  # peft takes it for a tie of what it adapts; the tables stay one
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in words that are going out of use
            self._model: Any = get_peft_model(model, self._config)

    def save(self, folder: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors; raises as `replace_checkpoint`."""
        from peft import get_peft_model_state_dict

        factors = get_peft_model_state_dict(self._model, save_embedding_layers=False)
        with replace_checkpoint(folder) as fresh:
            save_tensors(factors, fresh / WEIGHTS)
            replace(self._config, inference_mode=True).save_pretrained(str(fresh))


def _pattern(model: CsmForConditionalGeneration, targets: list[str]) -> str:
    """A regular expression for whole names: the codec has modules of the same ends, which are not trained."""
    import torch

    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linears):
            ends = sorted({name.rsplit(".", 1)[-1] for name in linears})
            raise UsageError(f"lora.targets: the model has no linear {target!r}; there are {', '.join(ends)}")
    return rf"(?!codec_model)(?:.*\.)?(?:{'|'.join(targets)})"
