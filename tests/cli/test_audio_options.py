"""Formats, rates, bit depths and loudness of `say`, `converse` and `batch`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.run import Result

from csm_cli.audio.formats import FILE_FORMATS
from csm_cli.audio.io import read_audio
from csm_cli.cli import main

Csm = Callable[..., Result]


@pytest.fixture
def say(csm: Csm, tiny_checkpoint: Path) -> Csm:
    return lambda *arguments: csm("say", "Hi.", "--model", tiny_checkpoint, "--max-duration", "0.4", *arguments)


@pytest.fixture
def batch(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> Csm:
    lines = [{"id": name, "speaker": 0, "text": f"{name} says hi.", "max_duration": 0.4} for name in ("a", "b")]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return lambda *arguments: csm("batch", tmp_path / "lines.jsonl", "--model", tiny_checkpoint, "-q", *arguments)


@pytest.fixture
def converse(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> Csm:
    script = "defaults: {max_duration: 0.4, gap: 0.2}\nturns: [{a: One.}, {b: Two.}]\n"
    (tmp_path / "s.yaml").write_text(script, encoding="utf-8")
    return lambda *arguments: csm("converse", tmp_path / "s.yaml", "--model", tiny_checkpoint, *arguments)


@pytest.mark.parametrize("name", FILE_FORMATS)
def test_every_format_goes_to_a_file_and_through_a_pipe(
    name: str, tmp_path: Path, tiny_checkpoint: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = ["say", "Hi.", "--model", str(tiny_checkpoint), "--max-duration", "0.4", "-q", "--seed", "1", "-o"]
    assert main([*run, "-", "--format", name]) == 0
    (tmp_path / "piped").write_bytes(capfdbinary.readouterr().out)
    assert main([*run, str(tmp_path / f"a.{name}")]) == 0
    piped, written = (read_audio(tmp_path / each, 24000) for each in ("piped", f"a.{name}"))
    assert piped.duration == pytest.approx(0.4, abs=0.1) and np.array_equal(piped.samples, written.samples)


def test_rate_channels_and_bits(say: Csm, tmp_path: Path) -> None:
    assert say("-o", tmp_path / "a.wav", "--rate", "48000", "--stereo", "--bits", "24").code == 0
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (48000, 2, "PCM_24", 19200)


def test_formats_of_a_track_share_its_turn_cache(
    converse: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = ("--stems", "--turns-dir", tmp_path / "turns", "--rate", "48000")
    first = converse("-o", tmp_path / "o.wav", "--json", "--seed", "3").json
    monkeypatch.setattr("csm_cli.generation.synthesizer.CsmModel", None)  # nothing is spoken again
    for name in FILE_FORMATS:
        again = converse("-o", tmp_path / f"o.{name}", "--json", "--seed", "3", *beside).json
        assert [turn["seed"] for turn in again["turns"]] == [turn["seed"] for turn in first["turns"]]
        assert all(turn["reused"] for turn in again["turns"])
        for path in (tmp_path / f"o.{name}", tmp_path / f"o.a.{name}"):
            assert read_audio(path, 24000).duration == pytest.approx(first["duration_s"], abs=0.1)
    info = soundfile.info(tmp_path / "turns" / "001-a.wav")
    assert (info.format, info.samplerate) == ("WAV", 48000)


def test_a_pick_of_a_take_keeps_the_encoding(converse: Csm, csm: Csm, tmp_path: Path) -> None:
    track = tmp_path / "o.wav"
    options = ("--takes", "2", "--keep-takes", "--temperature", "1")
    assert converse("-o", track, "--rate", "48000", "--bits", "24", *options).code == 0
    before = soundfile.info(track)
    assert csm("takes", track, "--pick", "1=1").code == 0 and csm("takes", track, "--pick", "1=2").code == 0
    after = soundfile.info(track)
    assert (after.samplerate, after.subtype) == (before.samplerate, before.subtype) == (48000, "PCM_24")


@pytest.mark.parametrize("name", FILE_FORMATS)
def test_a_batch_writes_every_format_and_resumes(batch: Csm, tmp_path: Path, name: str) -> None:
    pattern = ("-o", tmp_path / "out" / f"{{id}}.{name}")
    assert batch(*pattern).code == 0
    assert read_audio(tmp_path / "out" / f"a.{name}", 24000).duration == pytest.approx(0.4, abs=0.1)
    assert batch(*pattern).out == ""
    assert len(batch(*pattern, "--stereo").out.splitlines()) == 2  # another file is asked for


def test_an_impossible_batch_is_refused_before_a_model_is_loaded(batch: Csm, tmp_path: Path) -> None:
    for flags, hint in ((("-o", "{id}.mp3", "--bits", "24"), "--bits"), (("-o", "{id}.aac"), ".m4a")):
        result = batch(*flags)
        assert result.code in (2, 3) and hint in result.err and len(result.err.splitlines()) == 1


def test_a_pipe_without_a_format_is_a_wav(tiny_checkpoint: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    run = ["say", "Hi.", "--model", str(tiny_checkpoint), "--max-duration", "0.4", "-q", "-o", "-", "--bits", "float"]
    assert main(run) == 0
    info = soundfile.info(io.BytesIO(capfdbinary.readouterr().out))
    assert (info.format, info.subtype) == ("WAV", "FLOAT")


@pytest.mark.parametrize("command", ["say", "converse", "batch"])
def test_loudness_speed_and_subtitles_hold_for_every_command(
    request: pytest.FixtureRequest, tmp_path: Path, command: str
) -> None:
    run: Csm = request.getfixturevalue(command)
    output = tmp_path / ("{id}.flac" if command == "batch" else "a.flac")
    assert run("-o", output, "--loudness", "-20", "--speed", "0.8", "--subs", "srt,vtt,json", "--seed", "1").code == 0
    samples, rate = soundfile.read(tmp_path / "a.flac")
    import pyloudnorm

    assert pyloudnorm.Meter(rate).integrated_loudness(samples) == pytest.approx(-20, abs=0.6)
    cues = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    ends = [0.5] if command != "converse" else [0.5, 1.2]  # 0.4 s at 0.8, and a gap of 0.2 s
    assert [cue["end"] for cue in cues] == pytest.approx(ends, abs=0.01)
    assert len(samples) / rate == pytest.approx(ends[-1], abs=0.001)
    assert (tmp_path / "a.srt").exists() and (tmp_path / "a.vtt").exists()


def test_another_speed_or_gain_speaks_nothing_again(
    converse: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert converse("-o", tmp_path / "o.wav", "--seed", "3").code == 0
    plain = soundfile.read(tmp_path / "o.wav")[0]
    monkeypatch.setattr("csm_cli.generation.synthesizer.CsmModel", None)
    levels = []
    for flags in (("--speed", "1.25"), ("--gain", "-34"), ("--gain", "-40"), ("--loudness", "-30")):
        again = converse("-o", tmp_path / "o.wav", "--json", "--seed", "3", *flags).json
        assert all(turn["reused"] for turn in again["turns"])
        if flags[0] == "--speed":
            assert again["duration_s"] == pytest.approx(0.8 / 1.25 + 0.2, abs=0.001)
            assert again["turns"][1]["segments"][0]["start_s"] == pytest.approx(again["turns"][1]["start_s"])
        if flags[0] == "--gain":
            levels.append(np.sqrt(np.square(soundfile.read(tmp_path / "o.wav")[0]).mean()))
    assert 20 * np.log10(levels[0] / levels[1]) == pytest.approx(6, abs=0.05)
    assert converse("-o", tmp_path / "o.wav", "--seed", "3").code == 0
    assert np.array_equal(soundfile.read(tmp_path / "o.wav")[0], plain)


def test_a_speaker_and_a_turn_have_a_pace(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "defaults: {max_duration: 0.4}\nspeakers: {a: {speed: 0.8}, b: {}}\n"
        "turns: [{a: One.}, {speaker: a, text: Two., speed: 1.25}, {b: Three.}]\n",
        encoding="utf-8",
    )
    turns = csm("converse", tmp_path / "s.yaml", "--model", tiny_checkpoint, "-o", tmp_path / "o.wav", "--json").json
    lengths = [turn["end_s"] - turn["start_s"] for turn in turns["turns"]]
    assert lengths == pytest.approx([0.5, 0.32, 0.4], abs=0.002)


def test_a_batch_with_another_loudness_keeps_its_seeds(batch: Csm, tmp_path: Path) -> None:
    seeds = []
    for flags in ((), ("--loudness", "-20"), ("--loudness", "-20", "--subs", "srt")):
        result = batch("-o", tmp_path / "{id}.wav", *flags)
        assert len(result.out.splitlines()) == 2
        records = map(json.loads, (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()[-2:])
        seeds.append(sorted(record["seed"] for record in records))
    assert seeds[0] == seeds[1] == seeds[2] and (tmp_path / "a.srt").exists()
    assert batch("-o", tmp_path / "{id}.wav", "--loudness", "-20", "--subs", "srt").out == ""


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--speed", "2"], "0.8 to 1.25"),
        (["--gain", "90"], "-60 to 60"),
        (["--gain", "3", "--loudness", "-19"], "keep one"),
        (["--subs", "doc"], "--subs takes srt"),
        (["--loudness", "nan"], "-70 to -5"),
    ],
)
@pytest.mark.parametrize("command", ["say", "converse", "batch"])
def test_impossible_levels_are_one_line(
    request: pytest.FixtureRequest, tmp_path: Path, command: str, flags: list[str], hint: str
) -> None:
    result = request.getfixturevalue(command)("-o", tmp_path / "{id}.wav", *flags)
    assert result.code == 2 and hint in result.err and len(result.err.splitlines()) == 1


def test_a_stream_has_the_pace_of_the_file(tiny_checkpoint: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    run = ["say", "Hi.", "--model", str(tiny_checkpoint), "--max-duration", "0.8", "-q", "--seed", "1", "-o", "-"]
    assert main([*run, "--format", "pcm", "--speed", "0.8"]) == 0
    assert len(capfdbinary.readouterr().out) / 2 / 24000 == pytest.approx(1.0, abs=0.05)
