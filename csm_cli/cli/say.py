"""csm say: one utterance, or several tagged turns as one track."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from csm_cli.cli.conversation_run import RunRequest, check_outputs, run_conversation
from csm_cli.cli.live_audio import PlaybackOptions
from csm_cli.cli.options import OutputFile, OutputOptions, SynthesisFlags, voice_names
from csm_cli.cli.output_files import OutputFiles
from csm_cli.cli.synthesis import make_job
from csm_cli.errors import InputError, ModelNotFound, UsageError
from csm_cli.types import Conversation, Turn


def say(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="What to say; '[0]Hi. [1]Hello!' are two turns. - is stdin.")
    ] = None,
    file: Annotated[str | None, typer.Option("-f", "--file", metavar="FILE", help="Read the text from a file.")] = None,
    speaker: Annotated[
        int, typer.Option("-s", "--speaker", metavar="N", min=0, max=999, help="Who speaks text without tags.")
    ] = 0,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", metavar="[n]FILE=TEXT", help="A turn heard before, oldest first; repeatable."),
    ] = None,
    voice: Annotated[
        str | None,
        typer.Option(
            "-v",
            "--voice",
            metavar="NAME|FILE[=TEXT]",
            help="A saved voice, or a recording with its words in a .txt beside it.",
            autocompletion=voice_names,
        ),
    ] = None,
    *,
    speech: SynthesisFlags,
    output: OutputFile,
    live: PlaybackOptions,
    output_options: OutputOptions,
) -> None:
    """Speak a text: TEXT, -f FILE or standard input."""
    from csm_cli.script import parse_context, parse_say

    source = _source(text, file)
    words = "" if source == "-" else _filled(read_words(source) if source else text)
    heard = [_voice(voice, speaker)] if voice else []
    heard += [parse_context(each) for each in context or ()]
    files = OutputFiles(output.file, kind=live.format)
    live = check_outputs(output, live, output_options, files, _read(source, voice, heard))
    turns = parse_say(words or _filled(read_words("-")), speaker)  # nobody types for an output that cannot be
    job = make_job([Conversation(turns, tuple(heard))], speech, output_options)
    run_conversation(RunRequest(job, files, output, live))


def _source(text: str | None, file: str | None) -> str | None:
    """The file of the text, `-` for standard input; None where the text is given itself.

    Raises:
        UsageError: two texts, or none.
    """
    if text is not None and file is not None:
        raise UsageError("a text and -f both given; keep one")
    if text is None and file is None and sys.stdin.isatty():
        raise UsageError("no text to say; give it as an argument, with -f FILE or on standard input")
    return "-" if text in ("-", None) and file is None else file


def _filled(text: str | None) -> str:
    """Raises UsageError where there is nothing to say."""
    if not (text or "").strip():
        raise UsageError("no text to say; what was given is empty")
    return str(text)


def _read(source: str | None, voice: str | None, heard: Iterable[Turn]) -> Iterator[Path]:
    """The files a run goes by, which it must not replace."""
    if source not in (None, "-"):
        yield Path(source).expanduser()
    if recording := _recording(voice or ""):
        yield recording.with_suffix(".txt")
    yield from (turn.recording.path for turn in heard if turn.recording)


def read_words(file: str) -> str:
    """A UTF-8 text; `-` is standard input."""
    name = "standard input" if file == "-" else file
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
        return raw.decode("utf-8-sig").strip()
    except (OSError, RuntimeError) as error:  # RuntimeError: the home of nobody
        raise InputError(f"{name}: {getattr(error, 'strerror', error)}; name a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _voice(flag: str, speaker: int) -> Turn:
    """The past turn by which `speaker` gets a saved voice, or that of a recording.

    Raises:
        ModelNotFound: no such file, or no words to it.
        VoiceNotFound: no file, and no voice of that name.
    """
    from csm_cli.script import parse_context
    from csm_cli.voices import find_voice, is_name

    path = _recording(flag)
    if path is None and "=" in flag:
        return parse_context(f"[{speaker}]{flag}")
    if path is None and is_name(flag):
        return find_voice(flag).turn(speaker, str(speaker))
    if path is None:
        raise ModelNotFound(f"no voice {flag!r}; name a recording, with its words in a .txt beside it or as FILE=TEXT")
    words = path.with_suffix(".txt")
    if not words.exists():
        raise ModelNotFound(f"{path}: its words are missing; write them to {words.name} beside it or give FILE=TEXT")
    return parse_context(f"[{speaker}]{path}={read_words(str(words))}")


def _recording(flag: str) -> Path | None:
    """The file that a voice is named by, whose words are beside it."""
    with suppress(OSError, RuntimeError):  # a name longer than any file's; the home of nobody
        path = Path(flag).expanduser()
        return path if path.is_file() else None
    return None
