"""Text from standard input that is spoken while it arrives."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.run import Result, allow_sigint

from csm_cli.cli import main
from csm_cli.cli.say_stream import StandardInput

Csm = Callable[..., Result]
FRAME = 1920
RUN = "import sys; from csm_cli.cli import main; sys.exit(main())"


@pytest.fixture
def say(csm: Csm, tiny_checkpoint: Path) -> Csm:
    options = ("--max-duration", "0.4", "--seed", "7", "--temperature", "1", "--no-trim")
    return lambda *arguments: csm("say", "-", "--stream", "--model", tiny_checkpoint, *options, *arguments)


@contextmanager
def arriving(monkeypatch: pytest.MonkeyPatch, *pieces: bytes | float | threading.Event) -> Iterator[None]:
    """Standard input to which these pieces are written; a number is a pause in seconds, an event is waited for."""
    read, write = os.pipe()

    def write_all() -> None:
        with os.fdopen(write, "wb", buffering=0) as pipe:
            for piece in pieces:
                if isinstance(piece, float):
                    time.sleep(piece)
                elif isinstance(piece, threading.Event):
                    assert piece.wait(30)
                else:
                    pipe.write(piece)

    with os.fdopen(read, encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        thread = threading.Thread(target=write_all)
        thread.start()
        yield
        thread.join()


def texts(result: Result) -> list[str]:
    assert result.code == 0, result.err
    return [turn["text"] for turn in result.json["turns"]]


def running(tiny_checkpoint: Path, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    command = ["say", "-", "--stream", "--model", str(tiny_checkpoint), "--no-trim", *arguments]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", RUN, *command], bufsize=0, **(pipes | options))


def test_sentences_are_those_of_the_text_however_it_arrives(
    say: Csm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = "Gr\u00fc\u00dfe \U0001f44b. How are you?\n\nFine".encode()
    with arriving(monkeypatch, whole):
        once = say("-o", tmp_path / "a.wav", "--json")
    with arriving(monkeypatch, *(bytes([byte]) for byte in whole)):
        assert texts(say("-o", tmp_path / "b.wav", "--json")) == texts(once)
    assert texts(once) == ["Gr\u00fc\u00dfe \U0001f44b.", "How are you?", "Fine"]
    assert [turn["seed"] for turn in once.json["turns"]] == [7, 8, 9]
    assert [turn["number"] for turn in once.json["turns"]] == [1, 2, 3]
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_each_sentence_continues_the_ones_before(
    say: Csm, csm: Csm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    with arriving(monkeypatch, b"Hello there. How are you? Fine."):
        assert say("-o", tmp_path / "a.wav").code == 0
    turns = "".join(f"  - {{speaker: 0, text: {each}}}\n" for each in ("Hello there.", "How are you?", "Fine."))
    script = f"defaults: {{seed: 7, temperature: 1, max_duration: 0.4, gap: 0.2}}\nturns:\n{turns}"
    (tmp_path / "a.yaml").write_text(script)
    run = csm("converse", tmp_path / "a.yaml", "-o", tmp_path / "b.wav", "--model", tiny_checkpoint, "--no-trim")
    assert run.code == 0, run.err
    streamed, written = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("a.wav", "b.wav"))
    np.testing.assert_array_equal(streamed, written)


def test_what_is_played_is_what_is_written(
    say: Csm, monkeypatch: pytest.MonkeyPatch, played_audio: SimpleNamespace, tmp_path: Path
) -> None:
    with arriving(monkeypatch, b"[1]One. Two. [0]Three."):
        result = say("--play", "-o", tmp_path / "a.wav", "--json")
    assert [turn["speaker"] for turn in result.json["turns"]] == ["1", "1", "0"]
    assert sum(map(len, played_audio.chunks)) == soundfile.info(tmp_path / "a.wav").frames


def test_without_a_file_the_summary_is_the_same(
    say: Csm, monkeypatch: pytest.MonkeyPatch, played_audio: SimpleNamespace
) -> None:
    with arriving(monkeypatch, b"One. Two."):
        result = say("--json")
    assert result.json["duration_s"] == pytest.approx(1.0) and len(played_audio.chunks) > 2
    assert result.json["turns"][1]["takes"][0]["duration_s"] == 0.4


def test_a_sentence_is_played_before_the_text_ends(
    say: Csm, monkeypatch: pytest.MonkeyPatch, played_audio: SimpleNamespace
) -> None:
    with arriving(monkeypatch, b"Hello there. How are ", played_audio.begun, b"you?"):
        assert texts(say("--json")) == ["Hello there.", "How are you?"]


@pytest.mark.slow
def test_a_sentence_is_piped_before_the_text_ends(tiny_checkpoint: Path) -> None:
    with running(tiny_checkpoint, "--max-duration", "0.4", "-o", "-", "--format", "pcm", "-q") as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"Hello there. How are ")
        first = b""
        while len(first) < 2 * 5 * FRAME:
            first += process.stdout.read(2 * 5 * FRAME - len(first))
        process.stdout.close()  # as `head` does; that is quiet
        process.stdin.write(b"you?")
        process.stdin.close()
        assert process.wait() == 1 and process.stderr.read() == b""


def test_a_line_that_nothing_follows_is_spoken(say: Csm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with arriving(monkeypatch, b"Build finished\n", 0.8, b"and tests\n", b"passed\n"):
        assert texts(say("-o", tmp_path / "a.wav", "--json")) == ["Build finished", "and tests\npassed"]


def test_a_text_without_an_end_of_a_sentence_is_spoken_in_pieces(
    say: Csm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with arriving(monkeypatch, *[b"and so on, "] * 40):
        found = texts(say("-o", tmp_path / "a.wav", "--json"))
    assert len(found) > 3 and max(map(len, found)) <= 160 and " ".join(found) == ("and so on, " * 40).strip()


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"", 2, "empty"),
        (b" \n\n ", 2, "empty"),
        (b"---\n\n***", 2, "empty"),
        (b"Hello. \xff", 3, "byte 7"),
        ("Hello. \u00e9".encode()[:-1], 3, "byte 7"),
        (b"%PDF-1.4", 3, "PDF"),
        (b"A bell: \x07.", 3, "U+0007"),
    ],
)
def test_what_cannot_be_spoken_is_an_error(
    say: Csm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes, code: int, message: str
) -> None:
    with arriving(monkeypatch, data):
        result = say("-o", tmp_path / "a.wav")
    assert result.code == code and message in result.err and not (tmp_path / "a.wav").exists()


def test_what_was_spoken_before_a_failure_is_written(say: Csm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with arriving(monkeypatch, b"One. Two.\n\n\xff"):
        result = say("-o", tmp_path / "a.wav")
    assert result.code == 3 and "byte 11" in result.err and "is written" in result.err
    assert soundfile.info(tmp_path / "a.wav").frames == 10 * FRAME + round(0.2 * 24000)


def test_an_interrupt_between_sentences_writes_what_was_spoken(
    say: Csm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read = StandardInput.read

    def interrupted(source: StandardInput, wait: float | None = None) -> str | None:
        text = read(source, wait)
        if text == "":
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr(StandardInput, "read", interrupted)
    with arriving(monkeypatch, b"Hello there.\n\nHow are "):
        assert say("-o", tmp_path / "a.wav").code == 130
    assert soundfile.info(tmp_path / "a.wav").frames == 5 * FRAME


@pytest.mark.slow
def test_an_interrupt_writes_what_was_spoken(tiny_checkpoint: Path, tmp_path: Path) -> None:
    track = tmp_path / "a.wav"
    with running(tiny_checkpoint, "--max-duration", "0.4", "-o", str(track), preexec_fn=allow_sigint) as process:
        assert process.stdin and process.stderr
        process.stdin.write(b"Hello there. How are ")
        while b"Hello there." not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130 and b"interrupted" in process.stderr.read()
    assert soundfile.info(track).frames == 5 * FRAME


def test_options_that_choose_among_takes_are_refused(say: Csm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with arriving(monkeypatch, b"Hello."):
        result = say("--takes", "2", "-o", tmp_path / "a.wav")
    assert result.code == 2 and "--takes" in result.err


def test_a_wav_can_be_piped_too(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tiny_checkpoint: Path
) -> None:
    with arriving(monkeypatch, b"Hello."):
        run = ["say", "-", "--stream", "--model", str(tiny_checkpoint), "--max-duration", "0.4", "--no-trim"]
        assert main([*run, "-o", "-", "-q"]) == 0
    assert soundfile.info(io.BytesIO(capfdbinary.readouterr().out)).frames == 5 * FRAME
