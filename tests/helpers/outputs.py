"""Outputs of batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csm_cli.batch.merge import merge_ledgers
from csm_cli.storage.outputs import open_outputs


def merge(sources: Sequence[Path | str], target: Path | str) -> tuple[int, int]:
    return merge_ledgers(list(map(open_outputs, sources)), open_outputs(target))
