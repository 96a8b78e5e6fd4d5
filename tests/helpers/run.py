"""What a run of the command line gave, and processes that can be interrupted."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """What one call of the command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def allow_sigint() -> None:
    """`preexec_fn` of children that get SIGINT: those of a suite started in the background would ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
