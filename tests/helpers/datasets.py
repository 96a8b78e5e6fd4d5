"""Chunks of a dataset on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from csm_cli.data.dataset import DatasetChunk, SpeakerNumbers
from csm_cli.data.discovery import find_datasets
from csm_cli.data.readers import RowReader, read_datasets, split_chunks


def chunks(dataset: Path, clips: int = 2) -> Iterator[DatasetChunk]:
    return split_chunks(read_datasets(find_datasets([dataset]), RowReader(SpeakerNumbers())), clips)
