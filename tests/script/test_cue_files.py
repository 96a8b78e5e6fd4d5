"""Formats of subtitles and transcripts: each event, line and segment is a cue, or left out for a reason."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_cli.errors import CsmError, ScriptInvalid
from csm_cli.script.cue_files import CUE_FORMATS, detect_cues, read_cue_file
from csm_cli.script.cues import read_cues
from csm_cli.script.importers import convert

ASS = """\ufeff[Script Info]
Title: x

[V4+ Styles]
Format: Name, Fontname
Style: Default,Arial

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:02.50,Default,ANA,0,0,0,,{\\i1}Good{\\i0} morning,\\Nall.
Dialogue: 1,0:00:01.00,0:00:02.50,Default,ANA,0,0,0,,Good morning,\\Nall.
Comment: 0,0:00:01.00,0:00:02.50,Default,ANA,0,0,0,,a note
Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,BEN: Hello.
Dialogue: 0,0:00:05.00,0:00:06.00,Default,,0,0,0,,{\\p1}m 0 0 l 1 1{\\p0}
"""
SBV = "0:00:01.000,0:00:02.500\nANA: Good morning,[br]all.\n\n0:00:03.000,0:00:04.000\nBEN: Hello.\n"
LRC = "[ar:Somebody]\n[00:01.00]ANA: Good morning, all.\n[00:02.50]\n[00:03.00]BEN: Hello.\n[00:04.00]\n"
PRINTED = "[00:00:01.000 --> 00:00:02.500]  ANA: Good morning, all.\n[00:03.000 --> 00:04.000]  BEN: Hello.\n"
WHISPERX = {
    "segments": [
        {"start": 1.0, "end": 2.5, "text": " Good morning, all.", "speaker": "ANA"},
        {"start": 3.0, "end": 4.0, "text": " Hello.", "speaker": "BEN"},
    ]
}
WHISPER_CPP = {
    "transcription": [
        {"offsets": {"from": 1000, "to": 2500}, "text": " ANA: Good morning, all."},
        {"offsets": {"from": 3000, "to": 4000}, "text": " BEN: Hello."},
    ]
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("a.ass", ASS), ("a.txt", ASS), ("a.sbv", SBV), ("a", SBV), ("a.lrc", LRC), ("a.txt", PRINTED)),
        *((("a.json"), json.dumps(WHISPERX)), ("a.json", json.dumps(WHISPER_CPP)), ("a.srt", PRINTED)),
        ("a.json", json.dumps(WHISPERX["segments"])),
        ("a.json", json.dumps(WHISPERX["segments"], indent=1)),
        ("a.sbv", SBV.replace("\n", "\r\n")),
    ],
)
def test_every_format_has_the_same_turns(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    data = convert(str(tmp_path / name))
    turns = [
        (each["speaker"], each["text"]) if "text" in each else next(iter(each.items())) for each in data["turns"][1:]
    ]
    assert turns == [("ANA", "Good morning, all."), ("BEN", "Hello.")]
    assert data["turns"][0] == {"pause": 1.0} and data["turns"][2]["offset"] == 0.5


def test_what_is_no_speech_is_counted() -> None:
    found = read_cues("a.ass", ASS, "ass")
    assert found.found == 5 and len(found.turns) == 2
    assert [(each.line, each.reason) for each in found.left_out] == [
        (11, "a second layer of the same text"),
        (12, "a comment"),
        (14, "a drawing"),
    ]
    assert [each.line for each in read_cues("a.lrc", LRC, "lrc").left_out] == [1, 3, 5]


@pytest.mark.parametrize(
    ("cue_format", "text", "line"),
    [
        ("ass", ASS.replace("0:00:03.00", "soon"), 10),
        ("sbv", "Hello.\n" + SBV, 1),
        ("lrc", "\nHello.\n" + LRC, 2),
        ("sbv", "0:00:02.000,0:00:01.000\nHi.\n", 1),
        ("json", '{"segments": [{"start": 1, "text": "Hi."}]}', 1),
        ("json", '{"segments": [{"start": 1, "end": 2, "text": null}]}', 1),
        ("json", "{", 1),
    ],
)
def test_a_damaged_file_is_refused_at_its_line(cue_format: str, text: str, line: int) -> None:
    with pytest.raises(ScriptInvalid) as caught:
        read_cue_file("a", text, cue_format)
    assert caught.value.diagnostics[0].line == line


def test_two_speakers_in_one_cue_are_two_turns() -> None:
    text = (
        "1\n00:00:01,000 --> 00:00:03,000\nANA: Hi you.\nBEN: Hi you.\n\n2\n00:00:04,000 --> 00:00:05,000\nANA: Oh.\n"
    )
    turns = [(turn.speaker, turn.text, turn.start, turn.end) for turn in read_cues("a", text, "srt").turns]
    assert turns == [("ANA", "Hi you.", 1.0, 2.0), ("BEN", "Hi you.", 2.0, 3.0), ("ANA", "Oh.", 4.0, 5.0)]


SEEDS = {"ass": ASS, "sbv": SBV, "lrc": LRC, "srt": PRINTED, "json": json.dumps(WHISPERX, indent=1)}


@settings(derandomize=True, max_examples=300)
@given(st.sampled_from(sorted(SEEDS)), st.lists(st.tuples(st.sampled_from("dxsg"), st.integers(0, 400)), max_size=5))
def test_damaged_files_are_accounted_for(cue_format: str, damage: list[tuple[str, int]]) -> None:
    """Lines dropped, doubled, swapped and garbled: each cue is in a turn, repeated or left out, and no word is new."""
    lines = SEEDS[cue_format].split("\n")
    for kind, at in damage:
        index = at % len(lines)
        if kind == "d":
            del lines[index]
        elif kind == "x":
            lines.insert(index, lines[index])
        elif kind == "s":
            lines[index], lines[0] = lines[0], lines[index]
        else:
            lines[index] = lines[index][: at % 17] + "é" + lines[index][at % 17 + 1 :]
        lines = lines or [""]
    text = "\n".join(lines)
    logging.disable(logging.WARNING)
    try:
        found = read_cues("a", text, cue_format)
    except CsmError:
        return
    finally:
        logging.disable(logging.NOTSET)
    in_turns = {turn.line for turn in found.turns}
    assert len(in_turns) + len(found.left_out) <= found.found
    for turn in found.turns:
        assert all(word in text for word in turn.text.split())


def test_formats_are_told_by_content() -> None:
    assert [detect_cues(text) for text in (ASS, SBV, LRC, PRINTED, "WEBVTT\n", "Hi.")] == [
        *("ass", "sbv", "lrc", "srt", "vtt"), None
    ]  # fmt: skip
    assert set(SEEDS) < set(CUE_FORMATS)
