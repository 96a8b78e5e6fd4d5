"""csm say: one utterance, or several tagged turns as one track."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from csm_cli.cli.files import Files
from csm_cli.cli.live import Live
from csm_cli.cli.options import Output, Speech, Telling, voice_names
from csm_cli.cli.single import Order, check_outputs, speak_one
from csm_cli.cli.speaking import plan
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
    speech: Speech,
    output: Output,
    live: Live,
    telling: Telling,
) -> None:
    """Speak a text: TEXT, -f FILE or standard input."""
    from csm_cli.script import parse_context, parse_say

    files = Files(output.file, kind=live.format)
    live = check_outputs(output, live, telling, files)
    turns = parse_say(_text(text, file), speaker)
    heard = [_voice(voice, speaker)] if voice else []
    heard += [parse_context(each) for each in context or ()]
    job = plan([Conversation(turns, tuple(heard))], speech, telling)
    speak_one(Order(job, files, output, live))


def _text(text: str | None, file: str | None) -> str:
    """The text from wherever it is given.

    Raises:
        UsageError: two texts, or none.
        InputError: a file that cannot be read.
    """
    if text is not None and file is not None:
        raise UsageError("a text and -f both given; keep one")
    if "-" in (text, file) or (text is None and file is None):
        file = "-"
        if text is None and sys.stdin.isatty():
            raise UsageError("no text to say; give it as an argument, with -f FILE or on standard input")
    found = text if file is None else read_words(file)
    if not (found or "").strip():
        raise UsageError("no text to say; what was given is empty")
    return str(found)


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

    path = Path(flag)
    found = False
    with suppress(OSError, RuntimeError):  # a name longer than any file's; the home of nobody
        path = path.expanduser()
        found = path.is_file()
    if not found and "=" in flag:
        return parse_context(f"[{speaker}]{flag}")
    if not found and is_name(flag):
        return find_voice(flag).turn(speaker, str(speaker))
    if not found:
        raise ModelNotFound(f"no voice {flag!r}; name a recording, with its words in a .txt beside it or as FILE=TEXT")
    words = path.with_suffix(".txt")
    if not words.exists():
        raise ModelNotFound(f"{path}: its words are missing; write them to {words.name} beside it or give FILE=TEXT")
    return parse_context(f"[{speaker}]{path}={read_words(str(words))}")
