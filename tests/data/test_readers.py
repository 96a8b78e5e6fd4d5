"""Datasets in all formats: detected, read under unique ids, invalid rows reported with their line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.audio import write_tone

from csm_cli.data.columns import ColumnChoice
from csm_cli.data.dataset import DatasetChunk, DroppedClip, SpeakerNumbers, TrainingClip, TrainingConversation
from csm_cli.data.discovery import DatasetFile, find_datasets
from csm_cli.data.readers import RowReader, read_datasets, split_chunks
from csm_cli.errors import InputError
from csm_cli.types import Recording


def rows(path: Path, text: str, *columns: str) -> list[TrainingConversation | DroppedClip]:
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    format = "list" if "|" in text else "table" if path.suffix in (".csv", ".tsv") else "lines"
    return list(RowReader(SpeakerNumbers(), ColumnChoice(*columns)).read(DatasetFile("", path, format)))


def only(items: list[TrainingConversation | DroppedClip]) -> TrainingConversation:
    (item,) = items
    assert isinstance(item, TrainingConversation)
    return item


def test_audiofolder_row(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    conversation = only(rows(path, '{"file_name": "a/b.wav", "text": " Hé! ", "speaker_id": 3, "mood": "calm"}\n'))
    (clip,) = conversation.clips
    assert (conversation.id, clip.speaker, clip.text, clip.trained, clip.place) == ("a/b", 3, "Hé!", True, f"{path}:1")
    assert clip.recording == Recording(tmp_path / "a/b.wav")


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_table_with_named_columns(tmp_path: Path, suffix: str) -> None:
    text = "\ufefffile_name,transcription,speaker\r\na.wav,One.,ana\r\nb.wav,Two\t,ben\r\nc.wav,Three,ana\r\n"
    found = rows(tmp_path / f"m.{suffix}", text.replace("\t", "").replace(",", "," if suffix == "csv" else "\t"))
    clips = [conversation.clips[0] for conversation in found if isinstance(conversation, TrainingConversation)]
    assert [(clip.text, clip.speaker) for clip in clips] == [("One.", 0), ("Two", 1), ("Three", 0)]


def test_quoted_cell_with_commas_and_lines(tmp_path: Path) -> None:
    conversation = only(rows(tmp_path / "m.csv", 'file_name,text\na.wav,"Yes, ""so"" it\nis."\n'))
    assert conversation.clips[0].text == 'Yes, "so" it\nis.'


@pytest.mark.parametrize(
    ("fields", "part", "duration", "name"),
    [
        ({"duration": 2.5}, (None, None), 2.5, "a"),
        ({"duration": 2.5, "offset": 1}, (1.0, 3.5), None, "a.wav@1"),
        ({"offset": 1.25}, (1.25, None), None, "a.wav@1.25"),
        ({"duration": 2.5, "offset": None}, (None, None), 2.5, "a"),
    ],
)
def test_nemo_row(
    tmp_path: Path, fields: dict[str, float], part: tuple[float, float], duration: float, name: str
) -> None:
    conversation = only(rows(tmp_path / "m.json", json.dumps({"audio_filepath": "a.wav", "text": "Hi", **fields})))
    assert (conversation.id, conversation.clips[0].duration) == (name, duration)
    assert conversation.clips[0].recording == Recording(tmp_path / "a.wav", *part)


def test_audio_paths_may_be_absolute_or_objects(tmp_path: Path) -> None:
    found = rows(tmp_path / "m.jsonl", '{"audio": {"path": "/x/a.wav", "bytes": null}, "text": "Hi", "id": 7}')
    assert only(found).clips[0].recording == Recording(Path("/x/a.wav")) and only(found).id == "7"


def test_text_column(tmp_path: Path) -> None:
    text = '{"file_name": "a.wav", "text": "raw", "normalized": "spelled out"}'
    assert only(rows(tmp_path / "m.jsonl", text, "normalized")).clips[0].text == "spelled out"


@pytest.mark.parametrize(
    ("line", "words"), [("LJ-1|10 dogs|ten dogs", "ten dogs"), ("LJ-1|Dogs.|", "Dogs."), ("LJ-1|a", "a")]
)
def test_ljspeech_row(tmp_path: Path, line: str, words: str) -> None:
    conversation = only(rows(tmp_path / "metadata.csv", line + "\n"))
    assert (conversation.id, conversation.clips[0].text) == ("LJ-1", words)
    assert conversation.clips[0].recording == Recording(tmp_path / "wavs" / "LJ-1.wav")


def test_ljspeech_with_flac(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "a.flac").touch()
    assert only(rows(tmp_path / "metadata.csv", 'a|"Quotes" stay|\n')).clips[0].recording == Recording(
        tmp_path / "wavs" / "a.flac"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "is not a JSON object"),
        ("[1]", "is not a JSON object"),
        ("[" * 100_000, "is not a JSON object"),
        ('{"file_name": 3, "text": "Hi"}', "audio is 3"),
        ('{"file_name": "a.wav", "text": ["Hi"]}', "text is ['Hi']"),
        ('{"file_name": "a.wav", "text": "\\u0000"}', "control character U+0000"),
        ('{"file_name": "a\\u0000.wav", "text": "Hi"}', "control character U+0000"),
        ('{"file_name": "a.wav", "text": "H\udce9"}', "is not UTF-8"),
        ('{"file_name": "a.wav", "text": "Hi", "duration": "long"}', "duration is 'long'"),
        ('{"file_name": "a.wav", "text": "Hi", "offset": -1}', "offset is -1"),
        ('{"file_name": "a.wav", "text": "Hi", "sampling_rate": "high"}', "sampling rate is 'high'"),
    ],
)
def test_invalid_row_is_reported_and_the_next_is_read(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "m.jsonl"
    broken, good = rows(path, f'\n{line}\n{{"file_name": "a.wav", "text": "Hi"}}\n')
    assert isinstance(broken, DroppedClip) and isinstance(good, TrainingConversation)
    assert (broken.place, broken.reason) == (f"{path}:2", "invalid row") and message in broken.detail


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,text\na.wav,Hi,Ho\n", "has 3 cells, the header 2"),
        ("file_name,text\na.wav," + "x" * 200_000 + "\n", "field larger"),
        ("|b\n", "names no audio file in column 1"),
    ],
)
def test_invalid_table_row(tmp_path: Path, text: str, message: str) -> None:
    (broken,) = rows(tmp_path / "metadata.csv", text)
    assert isinstance(broken, DroppedClip) and message in broken.detail and broken.reason == "invalid row"


def test_missing_fields_are_left_to_the_checks(tmp_path: Path) -> None:
    clip = only(rows(tmp_path / "m.jsonl", "{}")).clips[0]
    assert (clip.text, clip.recording, clip.speaker) == ("", None, 0)


@pytest.mark.parametrize("text", ["", "name,text\n", "file_name,words\n"])
def test_header_without_required_columns(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="names no audio and text columns; expected one of file_name"):
        rows(tmp_path / "m.csv", text)


def test_missing_rows_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        list(RowReader(SpeakerNumbers()).read(DatasetFile("", tmp_path / "none.jsonl", "lines")))


ROW = '{"file_name": "a.wav", "text": "Hi"}\n'
NEMO = '{"audio_filepath": "a.wav", "text": "Hi", "duration": 1}\n'
DIALOGUE = '{"turns": [{"speaker": 0, "audio": "a.wav", "text": "Hi"}]}\n'
TURN = '{"speaker": 0, "audio": "a.wav", "text": "Hi"}\n'


def read(*sources: Path, format: str = "auto") -> Sequence[TrainingConversation | DroppedClip]:
    return list(read_datasets(find_datasets(sources, format), RowReader(SpeakerNumbers())))


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
def test_folder_formats(tmp_path: Path, name: str, text: str, ids: list[str]) -> None:
    write(tmp_path / "set" / name, text)
    assert [item.id for item in read(tmp_path / "set")] == ids


@pytest.mark.parametrize(
    ("name", "text", "format", "ids"),
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
def test_file_formats(tmp_path: Path, name: str, text: str, format: str, ids: list[str]) -> None:
    items = read(write(tmp_path / name, text), format=format)
    assert [item.id for item in items] == ids
    assert all(isinstance(item, TrainingConversation) for item in items), items


def test_script_context_and_turns(tmp_path: Path) -> None:
    text = """
    speakers: {ana: {id: 4}, ben: {id: 2}}
    context: [{speaker: ben, audio: a.wav, text: Before., start: 0.1, end: 0.4}]
    turns: [{speaker: ana, audio: a.wav, text: One.}, {ben: Not recorded.}]
    """
    path = write(tmp_path / "talk.yaml", text)
    (conversation,) = read(path)
    assert conversation == TrainingConversation(
        "talk",
        (
            TrainingClip(2, "Before.", Recording(tmp_path / "a.wav", 0.1, 0.4), f"{path} context 1", trained=False),
            TrainingClip(4, "One.", Recording(tmp_path / "a.wav"), f"{path} turn 1"),
            TrainingClip(2, "Not recorded.", None, f"{path} turn 2"),
        ),
    )


def test_invalid_manifest_line_is_dropped_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "talks.jsonl", DIALOGUE + DIALOGUE.replace("a.wav", "none.wav") + "{\n" + DIALOGUE)
    one, missing, syntax, two = read(path)
    assert isinstance(one, TrainingConversation) and isinstance(two, TrainingConversation) and two.id == "talks/0004"
    assert isinstance(missing, DroppedClip) and missing.place.startswith(f"{path}:2:") and "none.wav" in missing.detail
    assert isinstance(syntax, DroppedClip) and syntax.place.startswith(f"{path}:3:")


def test_invalid_script_is_dropped_with_its_first_error(tmp_path: Path) -> None:
    path = write(tmp_path / "talk.yaml", "turns: [{speaker: 0, txt: Hi}, {speaker: 0, txt: Ho}]")
    (drop,) = read(path)
    assert (
        isinstance(drop, DroppedClip)
        and drop.place.startswith(f"{path}:1:")
        and "turns[0]" in drop.detail
        and "more, run csm check for all" in drop.detail
    )


def test_ids_are_unique_across_datasets(tmp_path: Path) -> None:
    one = write(tmp_path / "x" / "set" / "metadata.jsonl", ROW + ROW)
    other = write(tmp_path / "y" / "set" / "metadata.jsonl", ROW)
    first, again, second = read(one.parent, other)
    assert (first.id, again.id, second.id) == ("set/a", "set/a", "set-2/a")
    assert isinstance(again, DroppedClip) and (again.reason, again.place) == ("duplicate id", f"{one}:2")


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no dataset; expected metadata\.jsonl"):
        read(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "none.json")


def test_chunks_have_similar_numbers_of_clips() -> None:
    clip = TrainingClip(0, "Hi", None, "")
    items = [TrainingConversation("", (clip,) * count) for count in (1, 2, 1, 9, 1, 3, 1)]
    sizes = [
        [len(item.clips) for item in chunk if isinstance(item, TrainingConversation)]
        for chunk in split_chunks(iter(items), 4)
    ]
    assert sizes == [[1, 2, 1], [9], [1, 3], [1]]
    assert list(split_chunks(iter(list[DatasetChunk]()), 4)) == []
