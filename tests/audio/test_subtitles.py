from __future__ import annotations

import json

import pytest

from csm_cli.audio.subtitles import Cue, srt, to_json, vtt
from csm_cli.types import TimedWord

CUES = [
    Cue(3661.0, 3662.5, "ben", "A <b> & so\n\non --> there"),
    Cue(0.0, 1.9996, "ana", "Hello."),
]


def test_subrip() -> None:
    assert srt(CUES) == (
        "1\n00:00:00,000 --> 00:00:02,000\nana: Hello.\n"
        "\n2\n01:01:01,000 --> 01:01:02,500\nben: A <b> & so on -> there\n"
    )


def test_webvtt_escapes_markup() -> None:
    assert vtt(CUES) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n<v ana>Hello.\n"
        "\n01:01:01.000 --> 01:01:02.500\n<v ben>A &lt;b&gt; &amp; so on --&gt; there\n"
    )


def test_json_keeps_the_text_as_written() -> None:
    assert json.loads(to_json(CUES))[1] == {"start": 3661.0, "end": 3662.5, "speaker": "ben", "text": CUES[0].text}


def test_no_cues() -> None:
    assert (srt([]), vtt([]), to_json([])) == ("", "WEBVTT\n", "[]\n")


@pytest.mark.parametrize("arrow", ["-->", "--->", "---->", "--" * 20 + ">", "-->-->", "- -->"])
def test_no_text_looks_like_the_times_of_a_cue(arrow: str) -> None:
    text = srt([Cue(0, 1, f"ana{arrow}", f"a {arrow} b")])
    assert text.count("-->") == 1
    assert vtt([Cue(0, 1, f"ana{arrow}", f"a {arrow} b")]).count("-->") == 1


WORDS = (TimedWord("Well,", 1.0, 1.2), TimedWord("R&D", 1.2, 1.2, recognized=False), TimedWord("well!", 1.6, 1.9))
TIMED = Cue(1.0, 2.0, "ana", "Well,  R&D\nwell!", WORDS)


def test_subrip_has_a_cue_for_each_word() -> None:
    assert srt([TIMED]) == (
        "1\n00:00:01,000 --> 00:00:01,200\nWell,\n"
        "\n2\n00:00:01,200 --> 00:00:01,210\nR&D\n"
        "\n3\n00:00:01,600 --> 00:00:01,900\nwell!\n"
    )


def test_webvtt_has_timestamps_before_words() -> None:
    assert vtt([TIMED]) == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n<v ana>Well, <00:00:01.200>R&amp;D <00:00:01.600>well!\n"
    )


def test_webvtt_timestamps_rise_and_lie_inside_their_cue() -> None:
    words = tuple(TimedWord(name, at, at + 0.1) for name, at in (("a", 0.5), ("b", 1.5), ("c", 1.5), ("d", 2.0)))
    assert "<v ana>a <00:00:01.500>b c d\n" in vtt([Cue(1.0, 2.0, "ana", "a b c d", words)])


def test_json_says_which_words_were_heard() -> None:
    (record,) = json.loads(to_json([TIMED]))
    assert record["words"][1] == {"text": "R&D", "start": 1.2, "end": 1.2, "recognized": False}
