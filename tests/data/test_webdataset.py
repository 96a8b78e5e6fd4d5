"""WebDataset tar files and shards of csm batch as training data: every sample counted, saved codes used as they are."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.run import Result
from helpers.tiny import Shape, random_csm, save_checkpoint

from csm_cli.audio.io import read_audio
from csm_cli.data.checks import ClipLimits, check_clip
from csm_cli.data.columns import ColumnChoice
from csm_cli.data.dataset import DroppedClip, SpeakerNumbers, TrainingClip, TrainingConversation
from csm_cli.data.discovery import find_datasets
from csm_cli.data.readers import RowReader, read_datasets
from csm_cli.data.store import Example, open_store
from csm_cli.errors import InputError

Csm = Callable[..., Result]


def sound(seconds: float = 0.5, seed: int = 0, form: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16000)), 16000, format=form)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(source: Path, **choice: str) -> tuple[dict[str, TrainingConversation], list[DroppedClip], dict[str, int]]:
    speakers, columns = SpeakerNumbers(), ColumnChoice(**choice)
    items = list(read_datasets(find_datasets([source], choice=columns), RowReader(speakers, columns)))
    found = {item.id: item for item in items if isinstance(item, TrainingConversation)}
    return found, [item for item in items if isinstance(item, DroppedClip)], speakers.names


def test_samples_of_others_have_text_in_a_file_or_in_json(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        {
            "set/one.wav": sound(form="WAV"),
            "set/one.txt": b"One clip.\n",
            "set/two.v1.flac": sound(seed=1),
            "set/two.json": json.dumps(
                {"transcript": "Two clips.", "speaker": "ana", "path": "/else/where.wav"}
            ).encode(),
            "set/none.txt": b"No audio.",
            "set/bad.flac": b"",
            "set/bad.json": b"{",
            "README": b"no sample",
        },
    )
    found, dropped, names = read(path)
    clips = {name: item.clips[0] for name, item in found.items()}
    assert {name: clip.text for name, clip in clips.items()} == {
        "a/set/one": "One clip.",
        "a/set/two": "Two clips.",
        "a/set/none": "No audio.",
    }
    assert [each.reason for each in dropped] == ["invalid row"] and names == {"ana": 0}
    for name, content in (("a/set/one", sound(form="WAV")), ("a/set/two", sound(seed=1))):
        (tmp_path / "x").write_bytes(content)
        samples = check_clip(clips[name], ClipLimits()).samples
        assert np.array_equal(samples, read_audio(tmp_path / "x", 16000).samples)
    assert clips["a/set/none"].recording is None


def test_chosen_columns_of_json_are_used(tmp_path: Path) -> None:
    content = {"a.flac": sound(), "a.json": b'{"words": "Chosen.", "who": "bo", "text": "Not this."}'}
    found, _, names = read(write_tar(tmp_path / "a.tar", content), text="words", speaker="who")
    assert [item.clips[0].text for item in found.values()] == ["Chosen."] and names == {"bo": 0}


@pytest.mark.parametrize("damage", ["compressed", "cut", "text"])
def test_a_tar_that_cannot_be_read_is_refused_or_its_samples_are_dropped(tmp_path: Path, damage: str) -> None:
    members = {"a.flac": sound(), "a.txt": b"Words."}
    path = write_tar(tmp_path / "a.tar", members, "w:gz" if damage == "compressed" else "w")
    if damage == "text":
        path.write_text("no tar" * 1000)
    if damage != "cut":
        with pytest.raises(InputError, match="cannot be read as a tar file"):
            read(path)
        return
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot be read as a tar file"):
        read(path)


def examples(folder: Path) -> dict[str, Example]:
    return {each.id.rpartition("/")[2]: each for held in (False, True) for each in open_store(folder, held)}


def generate(csm: Csm, checkpoint: Path, folder: Path, name: str) -> Path:
    rows: list[dict[str, Any]] = [{"id": f"l{n}", "speaker": f"s{n % 2}", "text": f"Line {n}."} for n in range(3)]
    turns = [{"speaker": "s0", "text": "Hello there."}, {"speaker": "s1", "text": "Good day."}]
    rows.append({"id": "both", "turns": turns})
    folder.mkdir()
    (folder / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--model", checkpoint, "--max-duration", "0.4", "--no-trim", "--save-codes", "--shard-size", 3)
    result = csm("batch", folder / "lines.jsonl", "-o", folder / "out" / name, *flags)
    assert result.code == 0, result.err
    return folder / "out"


@pytest.mark.parametrize("name", ["{shard}.tar", "{shard}.parquet"])
def test_shards_of_csm_batch_keep_their_codes(csm: Csm, tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    out = generate(csm, tiny_checkpoint, tmp_path / "made", name)
    prepare = ("data", "prepare", out, "--max-silence", 30, "--device", "cpu", "--json", "-o")
    same = csm(*prepare, tmp_path / "same", "--model", tiny_checkpoint)
    assert same.code == 0, same.err
    assert same.json["usable"]["clips"] == same.json["saved_codes_used"] == 5, same.err
    assert same.json["speaker_names"] == {"s0": 0, "s1": 1}
    found = examples(tmp_path / "same")
    assert [turn.text for turn in found["both"].turns] == ["Hello there.", "Good day."]
    assert [turn.speaker for turn in found["both"].turns] == [0, 1]
    plain = generate(csm, tiny_checkpoint, tmp_path / "plain", "{id}.wav")
    for item, example in found.items():
        codes = np.load(plain / f"{item}.codes.npy")
        assert np.array_equal(np.concatenate([turn.codes.numpy() for turn in example.turns]), codes), item
        assert [len(turn.codes) for turn in example.turns] == [5] * len(example.turns)
    again = csm(*prepare, tmp_path / "same", "--model", tiny_checkpoint)
    assert again.json["saved_codes_used"] == 5, "also where the run resumes"


def test_codes_of_another_codec_are_made_again(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = generate(csm, tiny_checkpoint, tmp_path / "made", "{shard}.tar")
    other = tmp_path / "other"
    save_checkpoint(random_csm(Shape(), seed=5), other)
    prepare = ("data", "prepare", out, "--max-silence", 30, "--device", "cpu", "--json", "-o", tmp_path / "store")
    result = csm(*prepare, "--model", other)
    assert result.code == 0, result.err
    assert result.json["usable"]["clips"] == 5 and result.json["saved_codes_used"] == 0


def test_a_clip_of_a_dialogue_is_its_part_of_the_audio(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = generate(csm, tiny_checkpoint, tmp_path / "made", "{shard}.tar")
    found, dropped, _ = read(out)
    assert not dropped
    clips: tuple[TrainingClip, ...] = next(item for name, item in found.items() if name.endswith("both")).clips
    spans = [(clip.recording.start, clip.recording.end) for clip in clips if clip.recording]
    assert len(spans) == 2 and spans[0][1] <= spans[1][0] and [clip.frames for clip in clips] == [(0, 5), (5, 10)]
    assert all(check_clip(clip, ClipLimits(max_silence=30)).duration == pytest.approx(0.4, 0.1) for clip in clips)
