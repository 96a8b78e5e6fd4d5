"""Training data as people have it: lists, tables, spans, pairs, transcripts; the right words, every row counted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from helpers.audio import write_tone
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_cli.data.columns import ColumnChoice
from csm_cli.data.dataset import DroppedClip, SpeakerNumbers, TrainingClip
from csm_cli.data.discovery import find_datasets
from csm_cli.data.readers import RowReader, read_datasets
from csm_cli.errors import InputError


def read(source: Path, **choice: str) -> tuple[list[TrainingClip], list[DroppedClip], dict[str, int]]:
    speakers = SpeakerNumbers()
    columns = ColumnChoice(**choice)
    items = list(read_datasets(find_datasets([source], choice=columns), RowReader(speakers, columns)))
    clips = [clip for item in items if not isinstance(item, DroppedClip) for clip in item.clips]
    return clips, [item for item in items if isinstance(item, DroppedClip)], speakers.names


def words(source: Path, **choice: str) -> list[str]:
    clips, dropped, _ = read(source, **choice)
    assert not dropped, dropped
    return [clip.text for clip in clips]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


DOG = "The old dog sleeps."


@pytest.mark.parametrize(
    ("lines", "text", "names"),
    [
        (f"audio.wav|{DOG}|anna", DOG, ["anna"]),
        (f"anna|audio.wav|{DOG}", DOG, ["anna"]),
        (f"{DOG}|audio.wav", DOG, []),
        (f"x|{DOG}|31", DOG, []),
        (f"x|{DOG}|ðə oʊld dɒɡ sliːps", DOG, []),
        (f"x|{DOG}|DH AH0 OW1 L D D AO1 G", DOG, []),
        (f"x|{DOG}|sleepy", DOG, []),
        ("x|The 2 dogs sleep.|The two dogs sleep.", "The two dogs sleep.", []),
        (f"wavs/x.wav|7|{DOG}", DOG, []),
        (f"wavs/x.wav|anna|EN|{DOG}", DOG, ["anna"]),
        (f"x.wav\t{DOG}", DOG, []),
        (f'x.wav,"{DOG[:-1]}, well."', f"{DOG[:-1]}, well.", []),
    ],
    ids=str,
)
def test_a_list_without_column_names(lines: str, text: str, names: list[str], tmp_path: Path) -> None:
    suffix = "csv" if "|" in lines else "txt"
    clips, dropped, found = read(write(tmp_path / f"metadata.{suffix}", lines + "\n"))
    assert not dropped and [clip.text for clip in clips] == [text] and list(found) == names
    assert "|7|" not in lines or clips[0].speaker == 7


@pytest.mark.parametrize("line", ["x.wav|Yes|anna", f"x.wav|{DOG}|A quick fox runs.", "a|b|c|d"])
def test_an_unclear_column_is_asked_for(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", line + "\n")
    with pytest.raises(InputError, match="--text-column"):
        read(path)
    assert words(path, text="2") == [line.split("|")[1]]
    with pytest.raises(InputError, match="number from 1 to"):
        read(path, text="9")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "take,words,who\na.wav,Hi.,ana\n"),
        ("m.tsv", "take\twords\twho\na.wav\tHi.\tana\n"),
        ("m.jsonl", '{"take": "a.wav", "words": "Hi.", "who": "ana"}\n'),
        ("m.json", '[{"take": "a.wav", "words": "Hi.", "who": "ana"}]'),
    ],
)
def test_columns_of_other_names(name: str, text: str, tmp_path: Path) -> None:
    clips, dropped, names = read(write(tmp_path / name, text), audio="take", text="Words", speaker="who")
    assert [clip.text for clip in clips] == ["Hi."] and not dropped and names == {"ana": 0}


def test_a_chosen_text_column_is_used_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "metadata.csv", "x|The 2 dogs sleep.|The two dogs sleep.\n")
    assert words(path) == ["The two dogs sleep."]
    assert words(path, text="2") == ["The 2 dogs sleep."]


def test_files_are_found_by_id_in_folders_with_any_suffix(tmp_path: Path) -> None:
    (tmp_path / "wav").mkdir()
    write_tone(tmp_path / "wav" / "1.wav")
    for line in ("1.wav|Hi there.", "1|Hi there.", "Hi there.|1", "wav\\1.wav|Hi there."):
        (clip,), _, _ = read(write(tmp_path / "metadata.csv", line))
        assert clip.recording and clip.recording.path == tmp_path / "wav" / "1.wav", line


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "path,text,start,end,mood\nlong.wav,One.,0,1.5,calm\nlong.wav,Two.,1.5,3,calm\n"),
        ("m.csv", "Path;Text;Start_ms;End_ms;;\nlong.wav;One.;0;1500;;\nlong.wav;Two.;1500;3000;;\n"),
        ("m.csv", "sep=;\npath;text;start;end\nlong.wav;One.;0;1.5\nlong.wav;Two.;1.5;3\n"),
        ("m.tsv", "file\tsentence\toffset\tduration\nlong.wav\tOne.\t0\t1.5\nlong.wav\tTwo.\t1.5\t1.5\n"),
        ("m.json", '[{"path": "long.wav", "text": "One.", "start": 0, "end": 1.5},\n'
                   ' {"path": "long.wav", "text": "Two.", "start": 1.5, "end": 3}]'),
        ("long.json", '{"text": "", "segments": [{"start": 0, "end": 1.5, "text": " One.", "words": []},'
                      ' {"start": 1.5, "end": 3, "text": " Two."}]}'),
        ("long.json", '{"transcription": [{"offsets": {"from": 0, "to": 1500}, "text": " One."},'
                      ' {"offsets": {"from": 1500, "to": 3000}, "text": " Two."}]}'),
        ("long.tsv", "start\tend\ttext\n0\t1500\tOne.\n1500\t3000\tTwo.\n"),
    ],
)  # fmt: skip
def test_spans_are_cut_out_of_one_recording(name: str, text: str, tmp_path: Path) -> None:
    write_tone(tmp_path / "long.wav", seconds=3.0)
    clips, dropped, _ = read(write(tmp_path / name, text))
    found = [(c.text, c.recording.path.name, c.recording.start, c.recording.end) for c in clips if c.recording]
    assert not dropped and found == [("One.", "long.wav", 0, 1.5), ("Two.", "long.wav", 1.5, 3)]


def test_a_transcript_has_its_speakers_and_needs_its_recording(tmp_path: Path) -> None:
    segments = [{"start": n, "end": n + 1, "text": "Hi.", "speaker": f"SPEAKER_0{n % 2}"} for n in range(3)]
    path = write(
        tmp_path / "talk.json", json.dumps({"segments": [*segments, {"start": 5, "text": "No end", "end": 4}]})
    )
    with pytest.raises(InputError, match=r"talk\.wav"):
        read(path)
    write_tone(tmp_path / "talk.wav", seconds=3.0)
    clips, dropped, names = read(path)
    assert [clip.speaker for clip in clips] == [0, 1, 0] and list(names) == ["SPEAKER_00", "SPEAKER_01"]
    assert [drop.place for drop in dropped] == [f"{path}:segment 4"]


def test_unused_columns_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(write(tmp_path / "m.csv", "path,text,mood,take\na.wav,Hi.,calm,3\n"))
    assert "mood, take" in caplog.text


def test_tsv_reads_a_quote_as_a_character(tmp_path: Path) -> None:
    text = 'path\tsentence\na.mp3\t"Never closed\nb.mp3\t"He said ""yes"""\nc.mp3\tLast\n'
    assert words(write(tmp_path / "m.tsv", text)) == ['"Never closed', 'He said "yes"', "Last"]


def test_a_quote_left_open_spoils_its_own_row_only(tmp_path: Path) -> None:
    text = 'path,text\na.wav,"Never closed\nb.wav,"Second, row"\nc.wav,Last "one" here\nd.wav,"Two\nlines"\n'
    path = write(tmp_path / "m.csv", text)
    clips, dropped, _ = read(path)
    assert [clip.text for clip in clips] == ["Second, row", 'Last "one" here', "Two\nlines"]
    assert [drop.place for drop in dropped] == [f"{path}:2"]


def test_a_row_that_spans_lines_and_has_other_cells_is_one_line_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", 'path,text\n0.wav,"\n",1.wav,"alpha, so"\n2.wav,Last\n')
    clips, dropped, _ = read(path)
    assert [clip.text for clip in clips] == ["Last"] and [drop.place for drop in dropped] == [f"{path}:2", f"{path}:3"]


def test_common_voice_folder(tmp_path: Path) -> None:
    row = "client_id\tpath\tsentence\tup_votes\nabc\tone.mp3\tHi there.\t2\n"
    for name in ("train.tsv", "validated.tsv", "dev.tsv"):
        write(tmp_path / name, row)
    write(tmp_path / "clips" / "one.mp3", "")
    (clip,), dropped, names = read(tmp_path)
    assert (
        clip.recording and clip.recording.path == tmp_path / "clips" / "one.mp3" and not dropped and names == {"abc": 0}
    )


def test_pairs_of_a_recording_and_a_text(tmp_path: Path) -> None:
    for name in ("a", "b/c", "d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tone(tmp_path / f"{name}.wav")
    write(tmp_path / "a.txt", "\ufeffOne\ntwo.\n")
    write(tmp_path / "b" / "c.lab", "Three.")
    write(tmp_path / "e.txt", "Nothing.")
    clips, dropped, _ = read(tmp_path)
    assert [clip.text for clip in clips] == ["One two.", "Three."]
    assert sorted(drop.reason for drop in dropped) == ["no audio", "no text"]


def test_conversations_of_a_json_array(tmp_path: Path) -> None:
    rows = [
        [{"audio_path": "a.wav", "text": "Hi.", "speaker": 0}, {"audio_path": "b.wav", "text": "Ho.", "speaker": 1}]
    ]
    (one, two), dropped, _ = read(write(tmp_path / "data.json", json.dumps(rows)))
    assert [(one.text, one.speaker), (two.text, two.speaker)] == [("Hi.", 0), ("Ho.", 1)] and not dropped


def test_utf_16_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("path;text\r\na.wav;Größe\r\n", encoding="utf-16")
    assert words(path) == ["Größe"]


def test_a_folder_of_several_tables_asks_which(tmp_path: Path) -> None:
    for name in ("x.csv", "y.csv"):
        write(tmp_path / name, "path,text\na.wav,Hi.\n")
    with pytest.raises(InputError, match=r"x\.csv, y\.csv"):
        read(tmp_path)


# Accounting: whatever is dropped, doubled, shuffled or garbled, each row is kept or left out, and no word is new.

WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]
FORMS: dict[str, tuple[str, str, str]] = {
    "csv": ("m.csv", "path,text,speaker\n", "{n}.wav,{text},ana\n"),
    "quoted csv": ("m.csv", "path,text\n", '{n}.wav,"{text}, so"\n'),
    "tsv": ("m.tsv", "path\tsentence\n", "{n}.wav\t{text}\n"),
    "list": ("metadata.csv", "", "{n}|{text}|{text}\n"),
    "lines": ("metadata.jsonl", "", '{{"file_name": "{n}.wav", "text": "{text}"}}\n'),
}
CHANGES = st.lists(
    st.tuples(st.sampled_from(["drop", "double", "swap", "garble", "cut"]), st.integers(0, 9), st.integers(0, 60)),
    max_size=6,
)
JUNK = ['"', ",", "|", "\t", "\x00", "{", "\\", "\udce9", "\x85", "-->", "é"]


def changed(rows: list[str], changes: list[tuple[str, int, int]]) -> list[str]:
    rows = list(rows)
    for change, index, place in changes:
        if not rows:
            break
        index %= len(rows)
        if change == "drop":
            del rows[index]
        elif change == "double":
            rows.insert(index, rows[index])
        elif change == "swap":
            rows[0], rows[index] = rows[index], rows[0]
        else:
            row = rows[index].rstrip("\n")
            start = place % (len(row) + 1)
            rows[index] = row[:start] + (JUNK[place % len(JUNK)] + row[start:] if change == "garble" else "") + "\n"
    return rows


def account(form: str, rows: list[str], changes: list[tuple[str, int, int]], folder: Path) -> None:
    name, header, row = FORMS[form]
    lines = [row.format(n=n, text=" ".join(each)) for n, each in enumerate(rows)]
    lines = changed(lines, changes)
    path = folder / name
    path.write_bytes((header + "".join(lines)).encode("utf-8", "surrogateescape"))
    logging.disable()  # xdist cannot send captured names that are not UTF-8
    try:
        clips, dropped, _ = read(path)
    except InputError:
        return  # refused as a whole
    finally:
        logging.disable(logging.NOTSET)
    text = header + "".join(lines)
    places = [int(item.place.rpartition(":")[2]) for item in (*clips, *dropped)]
    full = {number for number, line in enumerate(text.split("\n"), 1) if line.strip(" \t\r\x1c\x1d\x1e\x85,|")}
    lost = full - set(places) - ({1} if header else set())
    inside = {
        place + each for place, clip in zip(places, clips, strict=False) for each in range(clip.text.count("\n") + 1)
    }
    assert lost <= inside, (lost, lines)
    assert len(places) == len(set(places)), "a row counted twice"
    for clip in clips:
        bare, words = text.replace('"', ""), clip.text.replace('"', "")
        for escape, char in (("\\r", "\r"), ("\\n", "\n"), ("\\t", "\t"), ("\\/", "/")) if form == "lines" else ():
            bare = bare.replace(escape, char)
        assert words in bare, clip.text


FORM = st.sampled_from(sorted(FORMS))
ROWS: Any = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), min_size=1, max_size=10)


@given(form=FORM, rows=ROWS, changes=CHANGES)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_row_is_accounted_for(
    form: str, rows: list[list[str]], changes: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    account(form, rows, changes, tmp_path_factory.mktemp("rows"))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_row_of_a_thousand_files_is_accounted_for(form: str, tmp_path: Path) -> None:
    @given(rows=ROWS, changes=CHANGES)
    @settings(max_examples=1000, deadline=None, derandomize=True)
    def check(rows: list[list[str]], changes: list[tuple[str, int, int]]) -> None:
        account(form, rows, changes, tmp_path)  # type: ignore[arg-type]

    check()
