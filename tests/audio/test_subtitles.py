from __future__ import annotations

import json

import pytest

from csm_cli.audio.subtitles import Cue, srt, to_json, vtt

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
