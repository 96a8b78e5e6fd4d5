"""Tensor names as wrappers of a module leave them, brought back to the model's own; for checkpoints and adapters alike.

Sources: `DataParallel` and DDP (`module.`), `torch.compile` (`_orig_mod.`), FSDP, Fabric, peft (`base_model.model.`,
`.default.`, `.modules_to_save.`, `.base_layer.`), and trainers that hold the model as `self.model`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from csm_cli.checkpoint.weights import StoredTensor, TensorMap
from csm_cli.errors import CheckpointInvalid

_T = TypeVar("_T")
_WRAPPER_PARTS = {  # parts of a path that no module of a CSM or of its codec has
    "module",
    "_orig_mod",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "base_layer",
}
_LEADING_PARTS = ("base_model", "model", "ema_model", "ema")
_FACTOR_ADAPTER = re.compile(r"(\.lora_(?:embedding_)?[AB])\.(?!weight$)[^.]+?(\.weight)?$")
_SAVED_MODULE = re.compile(r"\.modules_to_save(\.(?!weight$|bias$)[^.]+)?(?=\.)")
_ORIGINAL_MODULE = ".original_module."
_LORA = re.compile(r"\.lora_\w+|\.lora\.")
_DERIVED = re.compile(
    r"(^|\.)("
    r"(backbone|decoder)_causal_mask"  # Sesame's generator registers them, so trainers that sample save them
    r"|kv_cache\.(k_cache|v_cache|cache_pos)|pos_embeddings\.(theta|cache)"  # torchtune
    r"|rotary_emb\.(original_)?inv_freq|audio_tokens_offsets"  # transformers
    r"|codebook_embedding\.weight"  # csm-streaming: used in its training only
    r")$"
)


def own_name(name: str) -> str:
    """The model's own name of a tensor; wrappers may be nested in any order."""
    parts = [part for part in name.split(".") if part not in _WRAPPER_PARTS]
    while len(parts) > 1 and parts[0] in _LEADING_PARTS:
        del parts[0]
    name = _FACTOR_ADAPTER.sub(r"\1\2", ".".join(parts))
    return _SAVED_MODULE.sub("", name)


def own_names(tensors: Mapping[str, _T], where: str) -> dict[str, _T]:
    """Tensors by the model's own names, without buffers that are computed from the config.

    Raises:
        CheckpointInvalid: no tensor at all, or two tensors of one name.
    """
    if not tensors:
        raise CheckpointInvalid(f"{where} holds no tensor: nothing was saved in it; save or download it again")
    found: dict[str, _T] = {}
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        if _ORIGINAL_MODULE in name or _DERIVED.search(name):  # peft keeps what a saved module replaces
            continue
        own = own_name(name)
        if own in found:
            raise CheckpointInvalid(f"{where} holds {own} twice, as {origin[own]} and {name}; keep one of them")
        found[own], origin[own] = tensor, name
    return found


def model_tensors(tensors: TensorMap, where: str, codec_prefix: str) -> dict[str, StoredTensor]:
    """The tensors of a whole checkpoint by the model's own names; biases that are zero are left out.

    Raises:
        CheckpointInvalid: as `own_names`; LoRA factors that are not merged, or biases, which a CSM does not have.
    """
    found = own_names(tensors, where)
    if factor := next((name for name in found if _LORA.search(name)), None):
        hint = "merge them (peft: merge_and_unload; csm-streaming: loadandmergecheckpoint.py) and name the result"
        raise CheckpointInvalid(f"{where} holds LoRA factors beside the weights, such as {factor}; {hint}")
    biases = [name for name in found if name.endswith(".bias") and not name.startswith(codec_prefix)]
    for name in biases:  # csm-streaming's layers have them
        if found[name].read().any():
            raise CheckpointInvalid(
                f"{where}: {name} is not zero, and a CSM has no biases; save the model without them"
            )
        del found[name]
    return found
