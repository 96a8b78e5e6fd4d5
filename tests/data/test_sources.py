"""Datasets told apart by what lies there, and read under ids that no two share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import write_tone

from csm_cli.data.clips import DatasetEntry, DroppedClip, SpeakerNumbers, TrainingClip, TrainingConversation
from csm_cli.data.rows import RowReader
from csm_cli.data.sources import find_datasets, read_datasets, read_entries
from csm_cli.errors import InputError
from csm_cli.types import Recording

ROW = '{"file_name": "a.wav", "text": "Hi"}\n'
NEMO = '{"audio_filepath": "a.wav", "text": "Hi", "duration": 1}\n'
DIALOGUE = '{"turns": [{"speaker": 0, "audio": "a.wav", "text": "Hi"}]}\n'
TURN = '{"speaker": 0, "audio": "a.wav", "text": "Hi"}\n'


def found(*sources: Path, form: str = "auto") -> Sequence[TrainingConversation | DroppedClip]:
    return list(read_datasets(find_datasets(sources, form), RowReader(SpeakerNumbers())))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if not (path.parent / "a.wav").exists():
        write_tone(path.parent / "a.wav")
    return path


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("metadata.jsonl", ROW, ["set/a"]),
        ("metadata.csv", "file_name,text\na.wav,Hi\n", ["set/a"]),
        ("metadata.csv", "a|Hi|Hi\nb|Ho\n", ["set/a", "set/b"]),
        ("train/metadata.jsonl", ROW, ["set/train/a"]),
    ],
)
def test_folders(tmp_path: Path, name: str, text: str, ids: list[str]) -> None:
    write(tmp_path / "set" / name, text)
    assert [item.id for item in found(tmp_path / "set")] == ids


@pytest.mark.parametrize(
    ("name", "text", "form", "ids"),
    [
        ("manifest.json", NEMO + NEMO.replace("a.wav", "b.wav"), "auto", ["manifest/a", "manifest/b"]),
        ("manifest.jsonl", TURN, "nemo", ["manifest/a"]),
        ("talks.jsonl", DIALOGUE + DIALOGUE, "auto", ["talks/0001", "talks/0002"]),
        ("talks.jsonl", '{"csm": 1, "title": "A"}\n' + DIALOGUE, "auto", ["talks/0002"]),
        ("talk.jsonl", TURN + TURN, "auto", ["talk"]),
        ("talk.jsonl", NEMO.replace(', "duration": 1', ', "speaker": 0'), "conversation", ["talk"]),
        ("talk.yaml", "turns: [{speaker: 0, audio: a.wav, text: Hi}]", "auto", ["talk"]),
        ("talk.json", '{"turns":\n [{"speaker": 0, "audio": "a.wav", "text": "Hi"}]}', "auto", ["talk"]),
        ("wide.csv", "file_name,text\na.wav,Hi\n", "auto", ["wide/a"]),
    ],
)
def test_files(tmp_path: Path, name: str, text: str, form: str, ids: list[str]) -> None:
    items = found(write(tmp_path / name, text), form=form)
    assert [item.id for item in items] == ids
    assert all(isinstance(item, TrainingConversation) for item in items), items


def test_a_script_gives_its_context_and_its_turns(tmp_path: Path) -> None:
    text = """
    speakers: {ana: {id: 4}, ben: {id: 2}}
    context: [{speaker: ben, audio: a.wav, text: Before., start: 0.1, end: 0.4}]
    turns: [{speaker: ana, audio: a.wav, text: One.}, {ben: Not recorded.}]
    """
    path = write(tmp_path / "talk.yaml", text)
    (talk,) = found(path)
    assert talk == TrainingConversation(
        "talk",
        (
            TrainingClip(2, "Before.", Recording(tmp_path / "a.wav", 0.1, 0.4), f"{path} context 1", learned=False),
            TrainingClip(4, "One.", Recording(tmp_path / "a.wav"), f"{path} turn 1"),
            TrainingClip(2, "Not recorded.", None, f"{path} turn 2"),
        ),
    )


def test_a_broken_line_of_dialogues_costs_only_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "talks.jsonl", DIALOGUE + DIALOGUE.replace("a.wav", "none.wav") + "{\n" + DIALOGUE)
    one, missing, syntax, two = found(path)
    assert isinstance(one, TrainingConversation) and isinstance(two, TrainingConversation) and two.id == "talks/0004"
    assert isinstance(missing, DroppedClip) and missing.place.startswith(f"{path}:2:") and "none.wav" in missing.detail
    assert isinstance(syntax, DroppedClip) and syntax.place.startswith(f"{path}:3:")


def test_a_broken_script_is_told_of_once(tmp_path: Path) -> None:
    path = write(tmp_path / "talk.yaml", "turns: [{speaker: 0, txt: Hi}, {speaker: 0, txt: Ho}]")
    (drop,) = found(path)
    assert (
        isinstance(drop, DroppedClip)
        and drop.place.startswith(f"{path}:1:")
        and "turns[0]" in drop.detail
        and "more, which csm check tells" in drop.detail
    )


def test_ids_are_of_one_dataset_each(tmp_path: Path) -> None:
    one = write(tmp_path / "x" / "set" / "metadata.jsonl", ROW + ROW)
    other = write(tmp_path / "y" / "set" / "metadata.jsonl", ROW)
    first, again, second = found(one.parent, other)
    assert (first.id, again.id, second.id) == ("set/a", "set/a", "set-2/a")
    assert isinstance(again, DroppedClip) and (again.reason, again.place) == ("duplicate id", f"{one}:2")


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no dataset; expected metadata\.jsonl"):
        found(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        found(tmp_path / "none.json")


def test_pieces_are_of_a_like_number_of_clips() -> None:
    clip = TrainingClip(0, "Hi", None, "")
    items = [TrainingConversation("", (clip,) * count) for count in (1, 2, 1, 9, 1, 3, 1)]
    sizes = [
        [len(item.clips) for item in piece if isinstance(item, TrainingConversation)]
        for piece in read_entries(iter(items), 4)
    ]
    assert sizes == [[1, 2, 1], [9], [1, 3], [1]]
    assert list(read_entries(iter(list[DatasetEntry]()), 4)) == []
