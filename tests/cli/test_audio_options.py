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
