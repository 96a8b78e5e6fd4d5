"""Reads tar shards of csm batch with webdataset and Parquet shards with datasets; prints what they gave as JSON.

Arguments: a folder with tar files, and one with Parquet tables.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy
import soundfile
import webdataset


def facts(text: str, audio: bytes, codes: Any) -> dict[str, Any]:
    samples, rate = soundfile.read(io.BytesIO(audio))
    return {"text": text, "seconds": len(samples) / rate, "rate": rate, "frames": len(codes)}


def main() -> None:
    tars = sorted(map(str, Path(sys.argv[1]).glob("*.tar")))
    tables = sorted(map(str, Path(sys.argv[2]).glob("*.parquet")))
    found: dict[str, list[dict[str, Any]]] = {"webdataset": [], "datasets": []}
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        codes = numpy.load(io.BytesIO(sample["codes.npy"]))
        own = facts(sample["txt"].decode(), sample["flac"], codes)
        found["webdataset"].append(own | {"id": json.loads(sample["json"])["id"]})
    table = datasets.load_dataset("parquet", data_files=tables, split="train")
    assert isinstance(table.features["audio"], datasets.Audio), table.features
    for row in table.cast_column("audio", datasets.Audio(decode=False)):
        codes = numpy.load(io.BytesIO(row["codes"]))
        found["datasets"].append(facts(row["text"], row["audio"]["bytes"], codes) | {"id": row["id"]})
    print(json.dumps(found))


main()
