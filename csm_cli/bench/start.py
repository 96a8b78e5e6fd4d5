"""`csm bench start`: from the shell's Enter to a finished sentence, in cold processes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from csm_cli.errors import CsmError

SENTENCE = "The old clock on the wall has stopped again today."
_IMPORT = [sys.executable, "-c", "import torch"]


def measure(model: str | None, runs: int = 3) -> dict[str, Any]:
    """`csm say` of ten words over what it cannot do without: importing torch, and its own decoding.

    Both kinds of process take turns; their figures are medians.

    Raises:
        CsmError: `csm say` failed.
    """
    imports, says, decodes = [], [], []
    for _ in range(runs):
        imports.append(_run(_IMPORT)[0])
        seconds, told = _say(model)
        says.append(seconds)
        decodes.append(told["rtf"] * told["duration_s"])
    needed = median(imports) + median(decodes)
    return {
        "bench": "start",
        "model": told["model"],
        "say_seconds": median(says),
        "import_torch_seconds": median(imports),
        "decode_seconds": median(decodes),
        "times_needed": median(says) / needed,
    }


def _say(model: str | None) -> tuple[float, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        named = ["--model", model] if model else []
        output = str(Path(folder) / "out.wav")
        command = [sys.executable, "-m", "csm_cli", "say", SENTENCE, "--seed", "1", "--json", "-o", output, *named]
        seconds, told = _run(command)
        return seconds, json.loads(told)


def _run(command: Sequence[str]) -> tuple[float, str]:
    """Seconds a process takes, and what it printed."""
    started = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise CsmError(f"{' '.join(command[1:4])} failed: {(process.stderr.strip().splitlines() or ['?'])[-1]}")
    return seconds, process.stdout
