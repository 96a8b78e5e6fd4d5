"""Tensors from a checkpoint into modules, by on-disk name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from csm_cli.errors import CheckpointInvalid

_EPSILON = 1e-5  # MimiEuclideanCodebook's, for entries no vector was ever assigned to


def load_weights(modules: nn.Module, weights: Mapping[str, Tensor], device: torch.device) -> None:
    """Fills modules built on the meta device, in float32 and contiguous.

    Raises:
        CheckpointInvalid: tensors missing, unexpected or misshapen.
    """
    names = set(weights)
    expected = modules.state_dict()
    wanted = {part for name in expected for part in _stored(name)}
    _complain("lacks", wanted - names)
    _complain("has unexpected", {name for name in names - wanted if not name.endswith("codebook.initialized")})
    found = {name: _read(name, weights).to(device, torch.float32).contiguous() for name in expected}
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, not {list(expected[name].shape)}"
            raise CheckpointInvalid(f"the codec's tensor {name} is {shapes}: config.json and weights do not match")
    modules.load_state_dict(found, assign=True)
    modules.requires_grad_(False).eval()


def _stored(name: str) -> tuple[str, ...]:
    """The on-disk names a module's tensor is made of: codebooks are stored as sums and counts."""
    if name.endswith("codebook.embed"):
        return name + "_sum", name.removesuffix("embed") + "cluster_usage"
    return (name,)


def _read(name: str, weights: Mapping[str, Tensor]) -> Tensor:
    if not name.endswith("codebook.embed"):
        return weights[name]
    total, count = (weights[part].float() for part in _stored(name))
    if total.ndim != 2 or count.shape != total.shape[:1]:
        raise CheckpointInvalid(
            f"the codec's codebook {name} has sums {list(total.shape)} for counts {list(count.shape)}"
        )
    return total / count.clamp(min=_EPSILON)[:, None]


def _complain(what: str, names: set[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointInvalid(f"the codec {what} tensor {min(names)}{more}: the checkpoint is not a whole Mimi")
