"""Audio and codes inside of a tar file or Parquet table, by row; what `csm batch` has written beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csm_cli.audio.decoders import AudioBytes
from csm_cli.data import parquet, webdataset
from csm_cli.errors import AudioUnreadable, InputError


def read_packed_audio(path: Path, row: int) -> AudioBytes | Path | None:
    """Audio of a row, counted from 1: embedded, or a file; None where it has none. Raises AudioUnreadable."""
    try:
        is_tar = path.suffix.lower() == webdataset.SUFFIX
        table = webdataset.open_shard(path) if is_tar else parquet.open_table(path)
    except (OSError, InputError) as problem:
        raise AudioUnreadable(f"{path}: row {row} cannot be read ({problem})") from problem
    return table.audio(row)


def read_packed_codes(path: Path, row: int) -> bytes | None:
    """The saved codes of a row as a .npy file; None where it has none, or where they cannot be read."""
    try:
        if path.suffix.lower() == webdataset.SUFFIX:
            return webdataset.open_shard(path).codes(row)
        return parquet.open_table(path).codes(row)
    except (OSError, ValueError, IndexError, InputError):
        return None


def generated_turns(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The turns of an item of `csm batch`, each with speaker, text, start_s and end_s; empty for anything else."""
    turns = metadata.get("turns")
    if not isinstance(turns, list) or not {"seed", "model"} <= metadata.keys():
        return []
    is_whole = all(
        isinstance(turn, Mapping)
        and isinstance(turn.get("text"), str)
        and all(isinstance(turn.get(name), int | float) for name in ("start_s", "end_s"))
        for turn in turns
    )
    return turns if is_whole else []
