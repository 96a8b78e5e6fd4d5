"""Rows of datasets: audiofolder's, NeMo's and LJSpeech's to clips, and broken ones told by their line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csm_cli.data.clips import DroppedClip, SpeakerNumbers, TrainingConversation
from csm_cli.data.rows import RowReader, read_ljspeech, read_rows
from csm_cli.errors import InputError
from csm_cli.types import Recording


def rows(path: Path, text: str, *words: str) -> list[TrainingConversation | DroppedClip]:
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    reading = RowReader(SpeakerNumbers(), words) if words else RowReader(SpeakerNumbers())
    return list((read_ljspeech if "|" in text else read_rows)(path, reading))


def only(found: list[TrainingConversation | DroppedClip]) -> TrainingConversation:
    (talk,) = found
    assert isinstance(talk, TrainingConversation)
    return talk


def test_a_row_of_audiofolder(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    talk = only(rows(path, '{"file_name": "a/b.wav", "text": " Hé! ", "speaker_id": 3, "mood": "calm"}\n'))
    (clip,) = talk.clips
    assert (talk.id, clip.speaker, clip.text, clip.learned, clip.place) == ("a/b", 3, "Hé!", True, f"{path}:1")
    assert clip.recording == Recording(tmp_path / "a/b.wav")


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_with_named_columns(tmp_path: Path, suffix: str) -> None:
    text = "\ufefffile_name,transcription,speaker\r\na.wav,One.,ana\r\nb.wav,Two\t,ben\r\nc.wav,Three,ana\r\n"
    found = rows(tmp_path / f"m.{suffix}", text.replace("\t", "").replace(",", "," if suffix == "csv" else "\t"))
    clips = [talk.clips[0] for talk in found if isinstance(talk, TrainingConversation)]
    assert [(clip.text, clip.speaker) for clip in clips] == [("One.", 0), ("Two", 1), ("Three", 0)]


def test_a_quoted_cell_may_hold_commas_and_lines(tmp_path: Path) -> None:
    talk = only(rows(tmp_path / "m.csv", 'file_name,text\na.wav,"Yes, ""so"" it\nis."\n'))
    assert talk.clips[0].text == 'Yes, "so" it\nis.'


@pytest.mark.parametrize(
    ("fields", "part", "duration", "name"),
    [
        ({"duration": 2.5}, (None, None), 2.5, "a"),
        ({"duration": 2.5, "offset": 1}, (1.0, 3.5), None, "a.wav@1"),
        ({"offset": 1.25}, (1.25, None), None, "a.wav@1.25"),
        ({"duration": 2.5, "offset": None}, (None, None), 2.5, "a"),
    ],
)
def test_a_row_of_nemo(
    tmp_path: Path, fields: dict[str, float], part: tuple[float, float], duration: float, name: str
) -> None:
    talk = only(rows(tmp_path / "m.json", json.dumps({"audio_filepath": "a.wav", "text": "Hi", **fields})))
    assert (talk.id, talk.clips[0].duration) == (name, duration)
    assert talk.clips[0].recording == Recording(tmp_path / "a.wav", *part)


def test_paths_may_be_absolute_or_objects(tmp_path: Path) -> None:
    found = rows(tmp_path / "m.jsonl", '{"audio": {"path": "/x/a.wav", "bytes": null}, "text": "Hi", "id": 7}')
    assert only(found).clips[0].recording == Recording(Path("/x/a.wav")) and only(found).id == "7"


def test_another_column_of_words(tmp_path: Path) -> None:
    text = '{"file_name": "a.wav", "text": "raw", "normalized": "spelled out"}'
    assert only(rows(tmp_path / "m.jsonl", text, "normalized")).clips[0].text == "spelled out"


@pytest.mark.parametrize(
    ("line", "words"), [("LJ-1|10 dogs|ten dogs", "ten dogs"), ("LJ-1|Dogs.|", "Dogs."), ("LJ-1|a", "a")]
)
def test_a_row_of_ljspeech(tmp_path: Path, line: str, words: str) -> None:
    talk = only(rows(tmp_path / "metadata.csv", line + "\n"))
    assert (talk.id, talk.clips[0].text) == ("LJ-1", words)
    assert talk.clips[0].recording == Recording(tmp_path / "wavs" / "LJ-1.wav")


def test_flac_beside_ljspeech(tmp_path: Path) -> None:
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
        ('{"file_name": 3, "text": "Hi"}', "its sound is 3"),
        ('{"file_name": "a.wav", "text": ["Hi"]}', "its words are ['Hi']"),
        ('{"file_name": "a.wav", "text": "\\u0000"}', "control character U+0000"),
        ('{"file_name": "a\\u0000.wav", "text": "Hi"}', "control character U+0000"),
        ('{"file_name": "a.wav", "text": "H\udce9"}', "is not UTF-8"),
        ('{"file_name": "a.wav", "text": "Hi", "duration": "long"}', "duration is 'long'"),
        ('{"file_name": "a.wav", "text": "Hi", "offset": -1}', "offset is -1"),
        ('{"file_name": "a.wav", "text": "Hi", "sampling_rate": "high"}', "its rate is 'high'"),
    ],
)
def test_a_broken_row_is_told_and_the_next_is_read(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "m.jsonl"
    broken, good = rows(path, f'\n{line}\n{{"file_name": "a.wav", "text": "Hi"}}\n')
    assert isinstance(broken, DroppedClip) and isinstance(good, TrainingConversation)
    assert (broken.place, broken.reason) == (f"{path}:2", "broken row") and message in broken.detail


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,text\na.wav,Hi,Ho\n", "has 3 cells, the header 2"),
        ("file_name,text\na.wav," + "x" * 200_000 + "\n", "field larger"),
        ("a|b|c|d\n", "has 4 parts between bars"),
        ("|b\n", "has no id before the first bar"),
    ],
)
def test_a_broken_row_of_a_table(tmp_path: Path, text: str, message: str) -> None:
    (broken,) = rows(tmp_path / "metadata.csv", text)
    assert isinstance(broken, DroppedClip) and message in broken.detail and broken.reason == "broken row"


def test_what_a_row_leaves_out_is_for_the_examination(tmp_path: Path) -> None:
    clip = only(rows(tmp_path / "m.jsonl", "{}")).clips[0]
    assert (clip.text, clip.recording, clip.speaker) == ("", None, 0)


@pytest.mark.parametrize("text", ["", "name,text\n", "file_name,words\n"])
def test_a_header_without_the_columns(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="names no columns of sound and words; expected one of file_name"):
        rows(tmp_path / "m.csv", text)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        list(read_rows(tmp_path / "none.jsonl", RowReader(SpeakerNumbers())))


def test_a_number_that_also_stands_for_a_name_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    speakers = SpeakerNumbers()
    assert [speakers.number(label) for label in ("1", "ana", "0", "1", "0")] == [1, 0, 0, 1, 0]
    assert [record.message.split(" is ")[0] for record in caplog.records] == ["0"]


def test_numbers_for_speakers() -> None:
    speakers = SpeakerNumbers(unnamed=5)
    labels = ["1", "ana", None, "ben", "ana", "12345678901", "7"]
    assert [speakers.number(label) for label in labels] == [1, 0, 5, 2, 0, 3, 7]
    assert speakers.names == {"ana": 0, "ben": 2, "12345678901": 3}
