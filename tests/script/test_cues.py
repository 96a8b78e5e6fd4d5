"""Subtitles as people have them: no cue is lost, none is invented, and every label is a speaker or reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_cli.audio.subtitles import Cue, srt, vtt
from csm_cli.errors import ScriptInvalid
from csm_cli.script.cues import CueFile, read_cues


def read(text: str) -> CueFile:
    return read_cues("a.srt", text, "srt")


def spoken(text: str) -> list[tuple[str, str]]:
    return [(turn.speaker, turn.text) for turn in read(text).turns]


def cue(number: int, text: str, times: str = "") -> str:
    times = times or f"00:00:{number:02},000 --> 00:00:{number:02},900"
    return f"{number}\n{times}\n{text}\n\n"


@pytest.mark.parametrize(
    ("times", "start", "end"),
    [
        ("00:00:01,5 --> 00:00:02,75", 1.5, 2.75),
        ("0:00:01.500-->0:00:02.750", 1.5, 2.75),
        ("00:01,500 --> 00:02,750 X1:0 X2:9", 1.5, 2.75),
        ("00:00:1 --> 00:00:2", 1.0, 2.0),
        ("01:00:00,000 --> 01:00:00,000", 3600.0, 3600.0),
    ],
)
def test_times(times: str, start: float, end: float) -> None:
    (turn,) = read(f"1\n{times}\nHi.\n").turns
    assert (turn.start, turn.end, turn.text) == (start, end, "Hi.")


@pytest.mark.parametrize("line", ["00:00:01,000 --> soon", "Look --> there", "00:00:61:00 --> 1"])
def test_a_line_with_an_arrow_is_a_time_line_or_an_error(line: str) -> None:
    with pytest.raises(ScriptInvalid) as caught:
        read(f"{cue(1, 'Hi.')}{line}\nText.\n")
    assert caught.value.diagnostics[0].line == 5


def test_a_blank_line_inside_a_cue_and_none_between_cues() -> None:
    text = (
        cue(1, "One.\n\nStill one.") + "2\n00:00:02,000 --> 00:00:03,000\nTwo.\n3\n00:00:03,000 --> 00:00:04,000\n42.\n"
    )
    assert [words for _, words in spoken(text)] == ["One. Still one.", "Two.", "42."]


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_line_ends(end: str) -> None:
    assert len(spoken((cue(1, "One.") + cue(2, "Two.")).replace("\n", end))) == 2


@pytest.mark.parametrize(
    ("one", "two", "names"),
    [
        ("[SPEAKER_00]: Good morning.", "[SPEAKER_01]: Hello.", ["SPEAKER_00", "SPEAKER_01"]),
        ("(speaker 0) Good morning.", "(speaker 1) Hello.", ["speaker 0", "speaker 1"]),
        (">> ANA: Good morning.", ">> BEN: Hello.", ["ANA", "BEN"]),
        ("ANA: Good morning.", "Hello.", ["ANA", "ANA"]),
        ("Good morning.", "BEN: Hello.", ["speaker 0", "BEN"]),
        ("0: Good morning.", "1: Hello.", ["0", "1"]),
        ("2nd host: Good morning.", "ana: Hello.", ["2nd host", "ana"]),
    ],
)
def test_labels(one: str, two: str, names: list[str]) -> None:
    found = spoken(cue(1, one) + cue(2, two))
    assert found == [(names[0], "Good morning."), (names[1], "Hello.")]


def test_a_possible_label_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert spoken(cue(1, "Note: this.") + cue(2, "Good.")) == [("speaker 0", "Note: this."), ("speaker 0", "Good.")]
    assert "may be speakers: Note" in caplog.text


def test_two_lines_with_dashes_are_two_speakers() -> None:
    assert spoken(cue(1, "- Are you in?\n- Yes.")) == [("speaker 0", "Are you in?"), ("speaker 1", "Yes.")]


def test_sounds_and_empty_cues_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    found = read(cue(1, "(music)") + cue(2, "") + cue(3, "[DOOR OPENS]") + cue(4, "♪") + cue(5, "Hi (laughs) there."))
    assert [turn.text for turn in found.turns] == ["Hi (laughs) there."]
    assert found.found == 5 and [(each.line, each.reason) for each in found.left_out] == [
        (2, "a sound"),
        (6, "no text"),
        (10, "a sound"),
        (14, "a sound"),
    ]
    assert "of 5 cues 4 left out" in caplog.text


def test_captions_that_roll_up_are_spoken_once() -> None:
    text = (
        "WEBVTT\nKind: captions\n\n00:00:00.000 --> 00:00:02.000 align:start\n \nso<00:00:01.000><c> hello</c>\n\n"
        "00:00:02.000 --> 00:00:02.010\nso hello\n \n\n00:00:02.010 --> 00:00:04.000\nso hello\nthere<c> again</c>\n\n"
        "00:00:04.000 --> 00:00:04.010\nthere again\n \n\n"
    )
    found = read(text)
    assert [turn.text for turn in found.turns] == ["so hello there again"]
    assert (found.found, found.repeated, found.left_out) == (4, 2, [])


def test_a_repeated_word_of_ordinary_subtitles_stays() -> None:
    assert len(spoken(cue(1, "Yes.") + cue(2, "Yes.") + cue(3, "No.") + cue(4, "Well."))) == 4


def test_notes_and_styles_of_webvtt_are_not_spoken() -> None:
    text = "WEBVTT\n\nSTYLE\n::cue { }\n\n00:01.000 --> 00:02.000\nHi.\n\n"
    text += "NOTE a --> b\nhidden\n\nlast\n00:03.000 --> 00:04.000\nHo.\n"
    assert [words for _, words in spoken(text)] == ["Hi.", "Ho."]


WORD = st.sampled_from(["alpha", "bravo", "charlie", "delta"])
SPEAKER = st.sampled_from(["0", "1", "ana", "2nd host", "Ben B"])
CUES = st.lists(st.tuples(SPEAKER, st.lists(WORD, min_size=1, max_size=4)), min_size=1, max_size=8)


@pytest.mark.parametrize("write", [srt, vtt])
@given(rows=CUES)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_our_own_subtitles_come_back(write: object, rows: list[tuple[str, list[str]]]) -> None:
    cues = [Cue(float(n), n + 0.9, name, " ".join(words) + ".") for n, (name, words) in enumerate(rows)]
    assert spoken(write(cues)) == [(each.speaker, each.text) for each in cues]  # type: ignore[operator]


CHANGE = st.tuples(
    st.sampled_from(["drop", "double", "swap", "join", "garble"]), st.integers(0, 40), st.integers(0, 40)
)


def account(rows: list[tuple[str, list[str]]], changes: list[tuple[str, int, int]]) -> None:
    lines = "".join(cue(n + 1, " ".join(words)) for n, (_, words) in enumerate(rows)).split("\n")
    for change, index, place in changes:
        if not lines:
            break
        index %= len(lines)
        if change == "drop":
            del lines[index]
        elif change == "double":
            lines.insert(index, lines[index])
        elif change == "swap":
            lines[index], lines[place % len(lines)] = lines[place % len(lines)], lines[index]
        elif change == "join":
            other = lines[place % len(lines)] if place % len(lines) != index else ""
            lines[index] += f" {other}" if other else ""
        else:
            lines[index] = lines[index][: place % 20] + "<é>:[(" + lines[index][place % 20 :]
    text = "\n".join(lines)
    try:
        found = read(text)
    except ScriptInvalid:
        return  # refused with its line
    in_turns = {turn.line for turn in found.turns}
    assert found.found == sum("-->" in line for line in text.split("\n"))
    assert len(in_turns) + len(found.left_out) <= found.found
    assert not in_turns & {each.line for each in found.left_out}
    said = " ".join(f"{turn.speaker} {turn.text}" for turn in found.turns)
    joined = " ".join(text.split())
    assert all(word in joined or word in ("speaker", "0", "1") for word in said.split())
    first = next(number for number, line in enumerate(lines) if "-->" in line)
    for line in lines[first:]:
        for word in ("alpha", "bravo", "charlie", "delta"):
            assert "-->" in line or word not in line.split() or word in said or found.repeated, (word, text)


@given(rows=CUES, changes=st.lists(CHANGE, max_size=5))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_cue_is_accounted_for(rows: list[tuple[str, list[str]]], changes: list[tuple[str, int, int]]) -> None:
    account(rows, changes)


@pytest.mark.slow
@given(rows=CUES, changes=st.lists(CHANGE, max_size=6))
@settings(max_examples=1000, deadline=None, derandomize=True)
def test_every_cue_of_a_thousand_files_is_accounted_for(
    rows: list[tuple[str, list[str]]], changes: list[tuple[str, int, int]]
) -> None:
    account(rows, changes)


def test_the_first_line_of_text_before_a_cue_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read("Episode one\n\n" + cue(1, "Hi."))
    assert "Episode one" in caplog.text


def test_written_pauses_stay_in_their_cues() -> None:
    text = (
        "1\n00:00:01,000 --> 00:00:04,000\nANA: Hello. [pause 0.5] There.\n\n"
        "2\n00:00:05,000 --> 00:00:07,000\n[pause 0.5]\nSo it is.\n\n"
        "3\n00:00:08,000 --> 00:00:10,000\n[pause 1.0] BEN: Well.\n\n"
        "4\n00:00:11,000 --> 00:00:12,000\n[pause 1.0]\n\n"
        "5\n00:00:13,000 --> 00:00:14,000\n[pause 0.2]\nBEN: Bye.\n[pause 0.7]\n"
    )
    found = read_cues("a.srt", text, "srt")
    assert [(turn.speaker, turn.text) for turn in found.turns] == [
        ("ANA", "Hello. [pause 0.5] There."),
        ("ANA", "[pause 0.5] So it is."),
        ("BEN", "[pause 1.0] Well."),
        ("BEN", "[pause 0.2] Bye. [pause 0.7]"),
    ]
    assert [(each.line, each.reason) for each in found.left_out] == [(15, "a pause")]
