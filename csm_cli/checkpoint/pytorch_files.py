"""Weights in files of `torch.save`: a state dict, alone or inside what a trainer saved; no code of theirs is run.

Source of the wrappers: sesame-finetune (`model` beside `optimizer`, `args` and more), Lightning (`state_dict`),
DeepSpeed (`module`), and the usual `model_state_dict` and `ema`.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli.errors import CheckpointInvalid

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger(__name__)
_WRAPPERS = ("model", "model_state_dict", "state_dict", "module", "ema", "ema_model", "model_ema", "shadow")
_MAX_IGNORED = 50  # classes; sesame-finetune's have two
_MAX_NESTED = 4  # a Lightning checkpoint of a trainer's dictionary has two
_UNKNOWN_CLASS = re.compile(r"GLOBAL (?P<name>[\w.]+)")
_MODULES_OF_VALUES = (
    "argparse",
    "pathlib",
    "numpy",
    "omegaconf",
    "builtins",
    "collections",
    "typing",
    "enum",
    "datetime",
)
"""Modules whose classes trainers save beside the weights, as settings and numbers."""
_NO_VALUES = re.compile(r"builtins\.(?!(int|float|complex|slice|range|frozenset|list|dict|tuple|object)$)")


class _Ignored:
    """Stands for a value that is no tensor: its class is neither imported nor called."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_pytorch(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, memory-mapped where the file's format allows it.

    Raises:
        CheckpointInvalid: a damaged file, one that holds other classes than tensors and settings, or no tensors.
    """
    weights = _find_state_dict(_load(path), path)
    if odd := next((name for name, tensor in weights.items() if not _is_stored_whole(tensor)), None):
        raise CheckpointInvalid(f"{path}: tensor {odd} is not stored as plain numbers; save it again")
    return weights


def _load(path: Path) -> Any:
    """The file's value; classes of settings are replaced by `_Ignored`, one after another as they are met."""
    import torch

    ignored: dict[str, Any] = {}
    while True:
        try:
            stand_ins: list[Any] = [(kind, name) for name, kind in ignored.items()]
            with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
                warnings.simplefilter("ignore", UserWarning)  # of pickle protocols other than 2
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except (RuntimeError, OSError, EOFError, LookupError, ValueError, pickle.UnpicklingError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            found = _UNKNOWN_CLASS.search(str(error))
            if found is None:
                problem = f"is damaged or not a PyTorch weights file ({reason[0][:200]}); get it again"
                raise CheckpointInvalid(f"{path} {problem}") from error
            name = found["name"]
            if (
                len(ignored) == _MAX_IGNORED
                or name in ignored
                or name.split(".")[0] not in _MODULES_OF_VALUES
                or _NO_VALUES.match(name)
            ):
                hint = "save model.state_dict() alone, as in torch.save(model.state_dict(), FILE)"
                raise CheckpointInvalid(
                    f"{path} holds {name[:100]}, code that csm does not run, and not only tensors; {hint}"
                ) from error
            ignored[name] = type(f"Ignored_{len(ignored)}", (_Ignored,), {})


def _find_state_dict(value: Any, path: Path, depth: int = 0) -> dict[str, Tensor]:
    """The state dict itself, or the one under the first of the usual keys."""
    import torch

    if not isinstance(value, Mapping):
        kind = "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
        raise CheckpointInvalid(f"{path} is not a mapping of names to tensors, but {kind}")
    held = [key for key in _WRAPPERS if isinstance(value.get(key), Mapping) and value[key]]
    if held and depth < _MAX_NESTED:
        if len(held) > 1:
            _LOG.warning("%s holds weights as %s; reads %s", path, " and ".join(held), held[0])
        return _find_state_dict(value[held[0]], path, depth + 1)
    if not all(isinstance(name, str) and isinstance(each, torch.Tensor) for name, each in value.items()):
        keys = ", ".join(str(key)[:40] for key in list(value)[:5])
        expected = f"neither is one of them a state dict ({', '.join(_WRAPPERS[:5])})"
        raise CheckpointInvalid(f"{path} is not a mapping of names to tensors: it holds {keys}; {expected}")
    return dict(value)


def _is_stored_whole(tensor: Tensor) -> bool:
    """False for sparse and quantized tensors, and for a view that has more elements than its file has numbers."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
