"""Playing and streaming: the samples, their order, and refused combinations."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from helpers.run import Result
from numpy.typing import NDArray

from csm_cli.cli import live_audio as live
from csm_cli.cli import main

Csm = Callable[..., Result]
FRAME = 1920
RUN = "import sys; from csm_cli.cli import main; sys.exit(main())"


@pytest.fixture
def say(csm: Csm, tiny_checkpoint: Path) -> Csm:
    return lambda *arguments: csm(
        "say",
        "Hi",
        "--seed",
        "7",
        "--temperature",
        "1",
        "--model",
        tiny_checkpoint,
        "--max-duration",
        "0.8",
        *arguments,
    )


def integers(samples: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(np.asarray(samples) * 32768).astype(int)


def same(streamed: list[NDArray[np.float32]], path: Path) -> bool:
    """Whether a file holds what was streamed; it is turned down where that is louder than full scale."""
    sound = np.concatenate(streamed)
    written = integers(soundfile.read(path)[0])
    quieter = sound * np.float32(1 / max(1.0, float(np.abs(sound).max())))
    return np.array_equal(np.clip(integers(quieter), -32768, 32767), written)


def test_written_audio_is_played_too(say: Csm, played_audio: SimpleNamespace, tmp_path: Path) -> None:
    assert say("--play", "-o", tmp_path / "a.wav").code == 0
    assert played_audio.rate == 24000 and same(played_audio.chunks, tmp_path / "a.wav")


def test_without_an_output_it_is_played(say: Csm, played_audio: SimpleNamespace, tmp_path: Path) -> None:
    result = say()
    assert result.code == 0 and not result.out and "0.8 s played" in result.err
    assert sum(map(len, played_audio.chunks)) == 10 * FRAME and say("--json").json["output"] is None


def test_a_stream_is_played_while_it_is_decoded(say: Csm, played_audio: SimpleNamespace, tmp_path: Path) -> None:
    result = say("--stream", "--play", "-o", tmp_path / "a.wav")
    assert result.code == 0 and "without retries, trimming" in result.err
    assert "first audio after" in result.err
    assert same(played_audio.chunks, tmp_path / "a.wav")


def test_a_streamed_take_is_that_of_no_trim(say: Csm, played_audio: SimpleNamespace, tmp_path: Path) -> None:
    say("--stream", "--play", "-o", tmp_path / "a.wav")
    say("--no-trim", "-o", tmp_path / "b.wav")
    streamed, whole = (integers(soundfile.read(tmp_path / name)[0]) for name in ("a.wav", "b.wav"))
    assert np.abs(np.subtract(streamed, whole)).max() <= 1


SCRIPT = """
speakers: {{a: {{id: 0, gain: -6}}, b: {{id: 1}}}}
defaults: {{gap: 0.25}}
turns:
  - {{a: Hello}}
  - {{speaker: b, text: Hi, audio: {tone}}}
  - {{speaker: b, text: Ho, offset: {offset}}}
  - {{pause: 0.5}}
"""


@pytest.fixture
def converse(csm: Csm, tiny_checkpoint: Path, tone: Path, tmp_path: Path) -> Csm:
    def call(offset: float, *flags: object) -> Result:
        (tmp_path / "a.yaml").write_text(SCRIPT.format(tone=tone, offset=offset))
        run = ("converse", tmp_path / "a.yaml", "--model", tiny_checkpoint, "--max-duration", "0.4", "--seed", "3")
        return csm(*run, *flags)

    return call


def test_a_stream_of_a_dialogue_is_its_track(converse: Csm, played_audio: SimpleNamespace, tmp_path: Path) -> None:
    assert converse(0.1, "--stream", "--play", "-o", tmp_path / "a.wav").code == 0
    assert same(played_audio.chunks, tmp_path / "a.wav")


def test_overlapping_turns_cannot_be_streamed(converse: Csm, played_audio: SimpleNamespace) -> None:
    result = converse(-0.1, "--stream", "--play")
    assert result.code == 2 and "turn 3 overlaps" in result.err and not played_audio.chunks


def test_a_stream_waits_for_no_loudness(converse: Csm, played_audio: SimpleNamespace) -> None:
    result = converse(0.1, "--stream", "--loudness", "-19")
    assert result.code == 2 and "--loudness" in result.err and not played_audio.chunks
    assert len(result.err.splitlines()) == 1


def test_a_stream_plays_reused_turns(converse: Csm, played_audio: SimpleNamespace, tmp_path: Path) -> None:
    run = (0.1, "--stream", "--play", "-o", tmp_path / "a.wav")
    converse(*run)
    played_audio.chunks.clear()
    assert "all turns are reused" in converse(*run).err and same(played_audio.chunks, tmp_path / "a.wav")


def test_a_format_holds_for_stems_and_not_for_turns(converse: Csm, tmp_path: Path) -> None:
    beside = ("--stems", "--turns-dir", tmp_path / "turns")
    assert converse(0.1, "-o", tmp_path / "a.out", "--format", "flac", *beside).code == 0
    for name, form in {"a.out": "FLAC", "a.a.out": "FLAC", "turns/001-a.wav": "WAV"}.items():
        assert soundfile.info(tmp_path / name).format == form


def test_raw_samples_are_piped_as_they_are_decoded(
    tiny_checkpoint: Path, played_audio: SimpleNamespace, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = ["say", "Hi", "--model", str(tiny_checkpoint), "--max-duration", "0.8", "--play"]
    assert main([*run, "-o", "-", "--format", "pcm"]) == 0
    piped = np.frombuffer(capfdbinary.readouterr().out, "<i2")
    assert np.array_equal(piped, np.clip(integers(np.concatenate(played_audio.chunks)), -32768, 32767))


def test_a_stream_and_a_file_hold_the_same_samples(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The bundled voice, for as long as its chunks grow."""
    run = ["say", "The old house by the river was empty all winter, and the garden too.", "--seed", "3", "-q"]
    assert main([*run, "-o", "-", "--format", "pcm"]) == 0
    piped = np.frombuffer(capfdbinary.readouterr().out, "<i2")
    assert main([*run, "--no-trim", "-o", str(tmp_path / "a.wav")]) == 0
    written = soundfile.read(tmp_path / "a.wav", dtype="int16")[0]
    assert len(piped) > 28 * FRAME and np.array_equal(piped, written)


def test_each_chunk_is_flushed_as_it_comes(monkeypatch: pytest.MonkeyPatch, csm: Csm, tiny_checkpoint: Path) -> None:
    pieces: list[int] = []
    monkeypatch.setattr(live, "emit_bytes", lambda data: pieces.append(len(data)))
    csm("say", "Hi", "--model", tiny_checkpoint, "--max-duration", "0.8", "-o", "-", "--format", "pcm")
    assert pieces == [2 * 4 * FRAME, 2 * 4 * FRAME, 2 * 2 * FRAME]


def test_a_pipe_that_closes_early_is_quiet(tiny_checkpoint: Path) -> None:
    run = ["say", "Hi", "--model", str(tiny_checkpoint), "--max-duration", "8", "-o", "-", "--format", "pcm", "-q"]
    with subprocess.Popen([sys.executable, "-c", RUN, *run], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr and len(process.stdout.read(1000)) == 1000
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


def test_a_format_counts_over_the_suffix(
    tmp_path: Path, tiny_checkpoint: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = ["say", "Hi", "--model", str(tiny_checkpoint), "--max-duration", "0.4", "--format", "flac", "-q", "-o"]
    assert main([*run, "-"]) == 0
    assert soundfile.info(io.BytesIO(capfdbinary.readouterr().out)).format == "FLAC"
    assert main([*run, str(tmp_path / "a.out")]) == 0 and soundfile.info(tmp_path / "a.out").format == "FLAC"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "mp4", "-o", "a.wav"], "--format takes wav, flac, mp3"),
        (["--format", "pcm", "-o", "-", "--rate", "48000"], "ask for --format wav"),
        (["--bits", "24", "-o", "-", "--format", "mp3"], "leave out --bits"),
        (["--bits", "24", "-o", "a.mp3"], "leave out --bits"),
        (["--bits", "float", "-o", "a.flac"], "it takes 16 or 24"),
        (["--bits", "12", "-o", "a.wav"], "--bits takes"),
        (["--quality", "3", "-o", "a.flac"], "leave out --quality"),
        (["--quality", "11", "-o", "a.mp3"], "--quality takes"),
        (["--rate", "44100", "-o", "a.opus"], "it takes 8000"),
        (["--rate", "4", "-o", "a.wav"], "--rate takes"),
        (["--stream", "-o", "a.wav"], "add --play, or -o - --format pcm"),
        (["--stream", "-o", "-"], "add --play, or -o - --format pcm"),
        (["--format", "pcm", "-o", "-", "--json"], "both write to standard output"),
        (["--stream", "--takes", "2"], "--takes"),
    ],
)
def test_contradicting_options_are_refused(
    say: Csm, played_audio: SimpleNamespace, flags: list[str], message: str
) -> None:
    result = say(*flags)
    assert result.code == 2 and message in result.err and "loading" not in result.err and not played_audio.chunks


@pytest.mark.parametrize("flags", [[], ["--play", "-o", "a.wav"], ["--stream"]])
@pytest.mark.parametrize("reason", ["device", "portaudio", "package"])
def test_without_a_playback_device_the_error_has_a_remedy(
    say: Csm,
    played_audio: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flags: list[str],
    reason: str,
) -> None:
    played_audio.missing = reason == "device"
    if reason == "package":
        monkeypatch.setitem(sys.modules, "sounddevice", None)
    elif reason == "portaudio":
        monkeypatch.delitem(sys.modules, "sounddevice")
        (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
        monkeypatch.syspath_prepend(tmp_path)
    result = say(*flags)
    hint = {"device": "no sound device", "portaudio": "libportaudio2", "package": "csm-cli[play]"}[reason]
    assert result.code == 2 and hint in result.err and "-o" in result.err and "loading" not in result.err
    assert ("no output named" in result.err) == (not flags)
