"""Processes that train together: where each computes, and what they say where one of them has ended."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from csm_cli.device import pick_device
from csm_cli.errors import PeerLost

if TYPE_CHECKING:
    from pathlib import Path

_LOG = logging.getLogger(__name__)
# torch's own classes, and the words of gloo, which raises plain RuntimeError
_LOST = re.compile(r"^Dist\w*Error|gloo|NCCL|\bpeer\b|Broken pipe")


@contextmanager
def all_reduce(state: Path, step: Callable[[], int]) -> Iterator[None]:
    """What processes do together. state: where a run is saved; step: the last one that is done.

    Raises:
        PeerLost: one of the others has ended.
    """
    try:
        yield
    except RuntimeError as problem:
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        if alone or not _LOST.search(f"{type(problem).__name__}: {problem}"):
            raise
        when = f"after step {step()}" if step() else "before its first step"
        saved = "what was saved last is whole, and the same command goes on from it"
        raise PeerLost(
            f"{when}, another process of this run has ended: killed, short of memory, or for what it told; "
            + (saved if state.exists() else "nothing was saved yet, and the same command begins anew")
        ) from problem


def make_accelerator(device: str, bfloat16: bool) -> Accelerator:
    """This process's, on the device as `pick_device` names it; `auto` is accelerate's choice.

    Of processes that a launcher has started each has the device that it was given, unless all are to be on the CPU.

    Raises:
        UsageError, DeviceMissing: as `pick_device`.
    """
    asked = None if device == "auto" else pick_device(device)
    given = "LOCAL_RANK" in os.environ
    if asked and asked.index is not None and not given:
        torch.cuda.set_device(asked)  # accelerate's "cuda" is the current one
    on_cpu = asked is not None and asked.type == "cpu"
    found = Accelerator(mixed_precision="bf16" if bfloat16 else "no", cpu=on_cpu or None)
    if asked and (asked.type != found.device.type or (given and asked.index is not None)) and found.is_main_process:
        _LOG.warning("device %s is not heeded: the launcher decides, and gives %s here", device, found.device)
    return found
