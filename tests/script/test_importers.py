"""Dialogues in other formats become scripts; invalid ones are rejected with their line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.audio import write_tone
from helpers.run import Result

from csm_cli.audio.subtitles import Cue, srt, vtt
from csm_cli.errors import ScriptInvalid
from csm_cli.script import read_script
from csm_cli.script.importers import convert

Csm = Callable[..., Result]

DIA = "[S1] Dia is an open weights model.\n[S2] Wow. (laughs) [S1] Try it\n  now: #1. [S2]"
VIBEVOICE = "Speaker 1: Hello and welcome.\nIt is late.\n\nspeaker  2: 12:30:45\nSpeaker 1: no"
HIGGS = "[SPEAKER1] I can't do this.\n[SPEAKER0] {Why} not?"
SRT = """1
00:00:01,500 --> 00:00:03,000
ANA: I went to
the shop

2
00:00:03,100 --> 00:00:04,000 X1:1
ANA: <i>yesterday.</i>

3
00:00:03,800 --> 00:00:05,000
BEN: - {\\an8}Really?
"""
VTT = """WEBVTT - a title

NOTE nobody hears this

intro
00:01.000 --> 00:02.000 align:start
<v.loud Ana B>Tom &amp; Ben</v> <00:01.500>are here.

1:00:00.000 --> 1:00:01.250
<v ben>Yes.
"""


def turns(text: str, tmp_path: Path, source_format: str | None = None) -> list[tuple[str, int, str, float]]:
    """Name, speaker id, text and gap of each turn of the converted script."""
    (tmp_path / "in.txt").write_text(text, encoding="utf-8")
    (tmp_path / "out.yaml").write_text(yaml.safe_dump(convert(str(tmp_path / "in.txt"), source_format, tmp_path)))
    conversation = read_script(tmp_path / "out.yaml")
    return [(turn.name, turn.speaker, turn.text, round(turn.gap, 3)) for turn in conversation.turns]


def test_dia(tmp_path: Path) -> None:
    assert turns(DIA, tmp_path) == [
        ("S1", 0, "Dia is an open weights model.", 0.0),
        ("S2", 1, "Wow. (laughs)", 0.0),
        ("S1", 0, "Try it now: #1.", 0.0),
    ]


def test_vibevoice(tmp_path: Path) -> None:
    assert turns(VIBEVOICE, tmp_path) == [
        ("Speaker 1", 0, "Hello and welcome. It is late.", 0.0),
        ("speaker 2", 1, "12:30:45", 0.0),
        ("Speaker 1", 0, "no", 0.0),
    ]


def test_higgs_tags(tmp_path: Path) -> None:
    assert turns(HIGGS, tmp_path) == [("SPEAKER1", 1, "I can't do this.", 0.0), ("SPEAKER0", 0, "{Why} not?", 0.0)]


def test_higgs_messages(tmp_path: Path) -> None:
    write_tone(tmp_path / "clips" / "a.wav")
    audio = {"type": "audio", "audio_url": "clips/a.wav"}
    messages = [
        {"role": "system", "content": "Generate audio.<|scene_desc_start|>SPEAKER0: soft<|scene_desc_end|>"},
        {"role": "user", "content": "[SPEAKER0] Heard before."},
        {"role": "assistant", "content": audio},
        {"role": "user", "content": [{"type": "text", "text": f"<|x_start|>Go.<|x_end|>{HIGGS}"}]},
    ]
    (tmp_path / "in.json").write_text(json.dumps({"messages": messages}))
    (tmp_path / "o").mkdir()
    data = convert(str(tmp_path / "in.json"), None, tmp_path / "o")
    assert data["context"] == [{"speaker": "SPEAKER0", "audio": "../clips/a.wav", "text": "Heard before."}]
    assert data["turns"] == [{"SPEAKER1": "I can't do this."}, {"SPEAKER0": "{Why} not?"}]


def test_subrip_times_become_offsets_and_the_cues_of_a_sentence_one_turn(tmp_path: Path) -> None:
    assert turns(SRT, tmp_path) == [
        ("ANA", 0, "I went to the shop yesterday.", 1.5),
        ("BEN", 1, "Really?", -0.2),
    ]


def test_webvtt_voices(tmp_path: Path) -> None:
    assert turns(VTT, tmp_path) == [("Ana B", 0, "Tom & Ben are here.", 1.0), ("ben", 1, "Yes.", 3598.0)]


@pytest.mark.parametrize("write", [srt, vtt])
def test_written_subtitles_convert_back(tmp_path: Path, write: Callable[[list[Cue]], str]) -> None:
    cues = [Cue(0.0, 1.0, "ana", "Hi."), Cue(1.5, 2.0, "ben", "A <b> & c."), Cue(1.8, 3.0, "ana", "No.")]
    text = write(cues) if write is vtt else write(cues).replace("<b>", "b")
    converted = [(name, text.replace("<b>", "b"), gap) for name, _, text, gap in turns(text, tmp_path)]
    assert converted == [("ana", "Hi.", 0.0), ("ben", "A b & c.", 0.5), ("ana", "No.", -0.2)]


def test_subtitles_without_names_have_one_speaker(tmp_path: Path) -> None:
    text = "00:00:00,000 --> 00:00:01,000\nNote: this.\n\n00:00:01,000 --> 00:00:02,000\nGood."
    assert [(name, text) for name, _, text, _ in turns(text, tmp_path)] == [
        ("speaker 0", "Note: this."),
        ("speaker 0", "Good."),
    ]


@pytest.mark.parametrize(
    ("text", "source_format", "location", "message"),
    [
        ("Once upon a time.", None, ":1:1", "no known format"),
        ("", None, ":1:1", "no known format"),
        ("Hello [S1] there", "dia", ":1:1", "expected a turn such as '[S1] Hello.'"),
        ("[S1] Hi.\n[S2]\n[S1] Yes.", None, ":2:1", "expected text after S2"),
        ("Speaker 1: a", "higgs", ":1:1", "[SPEAKER0] Hello."),
        ('{"messages": [}', None, ":1:1", "is not JSON"),
        ('{"turns": []}', None, ":1:1", "Higgs messages"),
        ("WEBVTT\n\n", None, ":1:1", "no cues"),
        ("00:00:02,000 --> 00:00:01,000\nHi", None, ":1:1", "ends before it begins"),
        ("00:00:02,000 --> 00:00:03,000\n\n", None, ":1:1", "expected text below"),
    ],
)
def test_invalid_input_is_rejected_with_its_line(
    tmp_path: Path, text: str, source_format: str | None, location: str, message: str
) -> None:
    (tmp_path / "in.txt").write_text(text)
    with pytest.raises(ScriptInvalid) as caught:
        convert(str(tmp_path / "in.txt"), source_format)
    diagnostic = caught.value.diagnostics[0]
    assert diagnostic.location.endswith(location) and message in diagnostic.message


@pytest.mark.parametrize("text", [DIA, VIBEVOICE, HIGGS, SRT, VTT])
def test_the_result_passes_check(csm: Csm, tmp_path: Path, text: str) -> None:
    (tmp_path / "in").write_text(text, encoding="utf-8")
    result = csm("script", "convert", tmp_path / "in", "-o", tmp_path / "new" / "out.yaml")
    assert result.code == 0 and result.out == f"{tmp_path / 'new' / 'out.yaml'}\n"
    assert f"csm converse {tmp_path / 'new' / 'out.yaml'} -o out.wav" in result.err
    assert csm("check", tmp_path / "new" / "out.yaml").code == 0
    assert csm("script", "convert", tmp_path / "in").out == (tmp_path / "new" / "out.yaml").read_text(encoding="utf-8")


def test_a_single_turn_is_reported_in_the_singular(csm: Csm, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("[S1] Hello there.")
    assert csm("script", "convert", tmp_path / "in", "-o", tmp_path / "out.yaml").err.startswith("1 turn, ")


def test_convert_rejects_unusable_paths(csm: Csm, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(DIA)
    assert csm("script", "convert", tmp_path / "in", "-o", tmp_path).code == 2
    assert csm("script", "convert", tmp_path / "in", "-o", tmp_path / "in", "--no-clobber").code == 2
    itself = csm("script", "convert", tmp_path / "in", "-o", tmp_path / "new" / ".." / "in")
    assert itself.code == 2 and "would be replaced" in itself.err and (tmp_path / "in").read_text() == DIA
    assert csm("script", "convert", tmp_path / "none").code == 3
    assert csm("script", "convert", tmp_path / "in", "--from", "word").code == 2
    assert csm("script", "convert", tmp_path / "in", "--from", "srt").code == 3
