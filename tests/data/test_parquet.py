"""Parquet as Hugging Face writes it: rows, embedded audio, and damage."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from helpers.run import Result
from pyarrow.parquet import ParquetFile, write_table

from csm_cli.data.checks import ClipLimits, UnsuitableClip, check_clip
from csm_cli.data.columns import ColumnChoice
from csm_cli.data.dataset import DroppedClip, SpeakerNumbers, TrainingClip, TrainingConversation
from csm_cli.data.discovery import find_datasets
from csm_cli.data.parquet import open_table
from csm_cli.data.prepare import clip_fingerprint
from csm_cli.data.readers import RowReader, read_datasets
from csm_cli.errors import InputError

SOUND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def flac(seconds: float = 1.0, hertz: float = 210.0, rate: int = 16000) -> bytes:
    samples = 0.2 * np.sin(np.arange(round(seconds * rate)) * 2 * np.pi * hertz / rate)
    held = io.BytesIO()
    soundfile.write(held, samples, rate, format="FLAC")
    return held.getvalue()


def table(path: Path, sounds: Sequence[dict[str, Any] | None], rows_of_a_group: int = 2, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"text": [f"Sentence {number}." for number in range(len(sounds))]} | columns
    write_table(pa.table({"audio": pa.array(sounds, SOUND)} | columns), path, row_group_size=rows_of_a_group)
    return path


def read(*sources: Path, columns: Sequence[str] = ("text",)) -> list[TrainingConversation | DroppedClip]:
    return list(read_datasets(find_datasets(sources), RowReader(SpeakerNumbers(), ColumnChoice(*columns))))


def clips(path: Path) -> list[TrainingClip]:
    return [item.clips[0] for item in read(path) if isinstance(item, TrainingConversation)]


def test_folder_of_tables(tmp_path: Path) -> None:
    sounds = [{"bytes": flac(1 + number / 10), "path": "same.flac"} for number in range(5)]
    path = table(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", sounds, speaker_id=[4, 4, 2, 2, 4])
    items = read(tmp_path / "set")
    assert [item.id for item in items] == [f"set/data/train-00000-of-00001/{row}" for row in range(1, 6)]
    found = clips(tmp_path / "set")
    assert [clip.speaker for clip in found] == [4, 4, 2, 2, 4]
    assert (found[2].text, found[2].place) == ("Sentence 2.", f"{path}:3")
    audio = [check_clip(clip, ClipLimits()) for clip in found]
    assert [each.duration for each in audio] == [1.0, 1.1, 1.2, 1.3, 1.4] and audio[0].rate == 16000
    backwards = [check_clip(clip, ClipLimits()).duration for clip in reversed(found)]
    assert backwards == [each.duration for each in reversed(audio)]


def test_ids_and_speaker_names_of_rows(tmp_path: Path) -> None:
    sounds = [{"bytes": flac(), "path": None}] * 3
    path = table(
        tmp_path / "a.parquet", sounds, id=["x", "y", "x"], sentence=["One.", None, "Three."], speaker=[*"aba"]
    )
    one, two, again = read(path, columns=["sentence"])
    assert (one.id, two.id) == ("a/x", "a/y") and isinstance(again, DroppedClip) and again.reason == "duplicate id"
    assert isinstance(two, TrainingConversation) and (two.clips[0].text, two.clips[0].speaker) == ("", 1)


def test_audio_file_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(flac(1.5))
    (within,) = clips(table(tmp_path / "a.parquet", [{"bytes": None, "path": "a.flac"}]))
    write_table(pa.table({"file_name": ["a.flac"], "text": ["Hello."]}), tmp_path / "b.parquet")
    (named,) = clips(tmp_path / "b.parquet")
    assert check_clip(within, ClipLimits()).duration == check_clip(named, ClipLimits()).duration == 1.5


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ({"bytes": b"no sound", "path": "a.wav"}, "unreadable: a.wav: not"),
        ({"bytes": b"", "path": None}, "unreadable: embedded audio: not"),
        ({"bytes": None, "path": "a.wav"}, "unreadable: {folder}/a.wav: No such file"),
        ({"bytes": None, "path": None}, "no audio: "),
        (None, "no audio: "),
    ],
)
def test_unreadable_audio_drops_its_row_only(tmp_path: Path, held: dict[str, Any] | None, reason: str) -> None:
    good = {"bytes": flac(), "path": "b.wav"}
    path = table(tmp_path / "set.parquet", [good, held, good])
    first, broken, last = clips(path)
    assert check_clip(first, ClipLimits()).duration == check_clip(last, ClipLimits()).duration == 1.0
    with pytest.raises(UnsuitableClip) as caught:
        check_clip(broken, ClipLimits())
    message = f"{caught.value.reason}: {caught.value.detail}"
    assert message.startswith(reason.format(folder=tmp_path))


def test_damaged_pages_drop_their_rows(tmp_path: Path) -> None:
    path = table(tmp_path / "set.parquet", [{"bytes": flac(hertz=100 + number), "path": None} for number in range(6)])
    data, found = path.read_bytes(), clips(path)
    at = ParquetFile(path).metadata.row_group(0).column(0).dictionary_page_offset
    path.write_bytes(data[:at] + bytes(300) + data[at + 300 :])
    for row in (1, 2, 1):
        with pytest.raises(UnsuitableClip, match=f"row {row} cannot be read"):
            check_clip(found[row - 1], ClipLimits())
    assert check_clip(found[4], ClipLimits()).duration == 1.0


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_not_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as Parquet"):
        read(tmp_path)


@pytest.mark.parametrize("columns", [{"audio": ["a.wav"]}, {"text": ["Hi."]}, {"words": ["Hi."], "audio": ["a.wav"]}])
def test_table_without_audio_or_text(tmp_path: Path, columns: dict[str, list[str]]) -> None:
    write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has no audio and text columns; expected one of file_name"):
        read(tmp_path / "a.parquet")


def test_memory_is_bounded_by_a_row_group(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    sounds = [{"bytes": noise.bytes(200_000), "path": None} for _ in range(60)]
    path = table(tmp_path / "set.parquet", sounds, rows_of_a_group=6)
    size, most = path.stat().st_size, 0
    before = pa.total_allocated_bytes()
    del sounds
    for row in range(1, 61):
        assert open_table(path).audio(row) is not None
        most = max(most, pa.total_allocated_bytes() - before)
    assert size > 10_000_000 and most < size / 2


def test_fingerprint_includes_the_row(tmp_path: Path) -> None:
    one, two = clips(table(tmp_path / "a.parquet", [{"bytes": flac(), "path": None}] * 2, text=["Same."] * 2))
    assert clip_fingerprint(one) != clip_fingerprint(two) and clip_fingerprint(one) == clip_fingerprint(
        clips(tmp_path / "a.parquet")[0]
    )


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "data" / "a.parquet", [{"bytes": flac(), "path": None}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for source in (path, tmp_path):
        with pytest.raises(InputError, match=r'is Parquet, which needs pyarrow; pip install "csm-cli\[parquet\]"'):
            read(source)


def test_check_and_prepare(csm: Callable[..., Result], tmp_path: Path, tiny_checkpoint: Path) -> None:
    sounds = [{"bytes": flac(hertz=100 + 9 * number), "path": None} for number in range(6)]
    path = table(tmp_path / "my set" / "train.parquet", [*sounds, {"bytes": b"?", "path": "x.wav"}])
    checked = csm("data", "check", tmp_path / "my set", "--json").json
    assert checked["usable"]["clips"] == 6 and [clip["place"] for clip in checked["dropped_clips"]] == [f"{path}:7"]
    prepare = ("data", "prepare", tmp_path / "my set", "-o", tmp_path / "out", "--model", tiny_checkpoint, "--json")
    made = csm(*prepare, "--held-out", "0").json
    assert (made["examples"], made["dropped"]["unreadable"]["clips"]) == (6, 1)
