"""Processes that train together: where one of them ends, the others cannot go on and say so."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from csm_cli.errors import PeerLost

if TYPE_CHECKING:
    from pathlib import Path

# torch's own classes, and the words of gloo, which raises plain RuntimeError
_LOST = re.compile(r"^Dist\w*Error|gloo|NCCL|\bpeer\b|Broken pipe")


@contextmanager
def together(state: Path, step: Callable[[], int]) -> Iterator[None]:
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
