"""csm say: one utterance, or several tagged turns as one track."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csm_cli.cli.audio_options import AudioOptions
from csm_cli.cli.console import configure_logging, log_line, warn
from csm_cli.cli.conversation_run import RunRequest, check_outputs, run_conversation
from csm_cli.cli.live_audio import PlaybackOptions
from csm_cli.cli.options import OutputFile, OutputOptions, SynthesisFlags, voice_names
from csm_cli.cli.output_files import OutputFiles
from csm_cli.cli.synthesis import make_job
from csm_cli.errors import InputError, UsageError
from csm_cli.types import Conversation, Turn

if TYPE_CHECKING:
    from csm_cli.generation.incremental import RedoRequest
    from csm_cli.generation.verification import Recognizer

_LONG_TEXT_CHARS = 4000  # of a turn: about four minutes, which nobody minds to generate again
_PARAGRAPH_CHARS = 1000
_PARAGRAPH_GAP = 0.4  # seconds between paragraphs


def say(
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="The text; '[0]Hi. [1]Hello!' makes two turns. - is standard input."),
    ] = None,
    file: Annotated[str | None, typer.Option("-f", "--file", metavar="FILE", help="Read the text from a file.")] = None,
    speaker: Annotated[
        int, typer.Option("-s", "--speaker", metavar="N", min=0, max=999, help="Speaker of text without tags.")
    ] = 0,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", metavar="[n]FILE=TEXT", help="An earlier turn, oldest first; repeatable."),
    ] = None,
    voice: Annotated[
        str | None,
        typer.Option(
            "-v",
            "--voice",
            metavar="NAME|FILE[=TEXT]",
            help="A saved voice, or a recording with its transcript in a .txt file beside it.",
            autocompletion=voice_names,
        ),
    ] = None,
    transcribe: Annotated[
        bool,
        typer.Option(
            "--transcribe",
            help="Recognize the words of clips without text, given as [n]FILE or -v FILE; needs csm-cli\\[verify].",
            rich_help_panel="Generation",
        ),
    ] = False,
    *,
    speech: SynthesisFlags,
    output: OutputFile,
    audio: AudioOptions,
    live: PlaybackOptions,
    output_options: OutputOptions,
) -> None:
    """Speak a text: TEXT, -f FILE or standard input.

    With - and --stream, each sentence is spoken as it arrives.
    A long text, such as a book, is spoken by paragraphs;
    the same command goes on where a stopped run ended.

    Examples:
      csm say 'Hello there.' -v ash -o hello.wav
      csm say '[0]Who is there? [1]Only me.' --temperature 0.7 --play
    """
    from_stdin = _is_standard_input(text, file)
    if not from_stdin:
        text = _require_text(read_text(file) if file else text)
    turns = _context_turns(context, voice, speaker, transcribe)
    inputs = [Path(file).expanduser()] if file and not from_stdin else []
    inputs += _recordings(turns, voice)
    files = audio.of_files(OutputFiles(output.file), output)
    audio.check_word_times(speech, output_options.json)
    recognizer = _clip_recognizer(speech) if transcribe else None
    as_it_arrives = from_stdin and live.stream  # which needs no listener: it can go to a file
    live = check_outputs(output, replace(live, stream=live.stream and not from_stdin), output_options, files, inputs)
    if as_it_arrives:
        from csm_cli.cli.say_stream import speak_standard_input

        turns = _transcribed(turns, recognizer, output_options)
        job = make_job([Conversation((), turns)], speech, output_options, word_times=audio.word_times)
        speak_standard_input(RunRequest(job, files, output, live), turns, speaker)
        return
    if from_stdin:  # read last: nobody should type a text for an output that is refused
        text = _require_text(read_text("-"))
    spoken, redo = _spoken_turns(str(text), speaker, file, speech.language)
    conversation = Conversation(spoken, _transcribed(turns, recognizer, output_options))
    job = make_job([audio.adjusted(conversation)], speech, output_options, word_times=audio.word_times)
    run_conversation(RunRequest(job, files, output, live, redo))


def _is_standard_input(text: str | None, file: str | None) -> bool:
    """Whether the text comes from standard input. Raises UsageError: there is none, or two."""
    if text is not None and file is not None:
        raise UsageError("a text and -f both given; keep one")
    if text is None and file is None and sys.stdin.isatty():
        raise UsageError("no text to say; give it as an argument, with -f FILE or on standard input")
    return file == "-" or (file is None and text in (None, "-"))


def _context_turns(
    context: Sequence[str] | None, voice: str | None, speaker: int, transcribe: bool
) -> tuple[Turn, ...]:
    """The context of --voice and --context; without its words where they are to be transcribed."""
    from csm_cli.script import parse_context, parse_voice

    turns = [parse_voice(voice, speaker, not transcribe)] if voice else []
    return (*turns, *(parse_context(each, not transcribe) for each in context or ()))


def _recordings(turns: Sequence[Turn], voice: str | None) -> Iterator[Path]:
    """The files that the context is read from."""
    from csm_cli.script import recording_path

    if recording := recording_path(voice or ""):
        yield recording.with_suffix(".txt")
    yield from (turn.recording.path for turn in turns if turn.recording)


def _spoken_turns(
    text: str, speaker: int, file: str | None, language: str
) -> tuple[tuple[Turn, ...], RedoRequest | None]:
    """The turns of a text, and for a long one the request that lets a stopped run go on."""
    from csm_cli.script import parse_say
    from csm_cli.script.dialogue_text import detect_dialogue
    from csm_cli.script.limits import MAX_TEXT_FILE_BYTES

    if file and detect_dialogue(text):
        warn(f"{file} looks like a dialogue, and its names will be spoken; csm converse {file} gives each a voice")
    turns = parse_say(text, speaker, file or "<text>", MAX_TEXT_FILE_BYTES)
    if all(len(turn.text) <= _LONG_TEXT_CHARS for turn in turns):
        return turns, None
    from csm_cli.generation.incremental import RedoRequest

    return _paragraphs(turns, language), RedoRequest()


def _paragraphs(turns: Sequence[Turn], language: str) -> tuple[Turn, ...]:
    """Long turns as one for each paragraph, with a pause between them; long paragraphs by their sentences."""
    from csm_cli.generation.chunking import split_text
    from csm_cli.script.spoken_text import is_speakable

    result: list[Turn] = []
    for turn in turns:
        for part in split_text(turn.text, _PARAGRAPH_CHARS, language):
            if is_speakable(part):
                result.append(replace(turn, text=part, gap=_PARAGRAPH_GAP if result else 0.0))
            elif result and part.strip():  # a pause that is a paragraph of its own
                result[-1] = replace(result[-1], text=f"{result[-1].text} {part}")
    return tuple(result)


def _clip_recognizer(speech: SynthesisFlags) -> Recognizer:
    """Of clips in any language. Raises UsageError: it is not installed."""
    from csm_cli.generation.verification import WhisperRecognizer

    return WhisperRecognizer(speech.verify_model)


def _transcribed(
    turns: Sequence[Turn], recognizer: Recognizer | None, output_options: OutputOptions
) -> tuple[Turn, ...]:
    """Context turns with the words of their clips, where they have no text."""
    from csm_cli.generation.verification import transcribe_clip

    transcribed = []
    for turn in turns:
        if recognizer and turn.recording and not turn.text:
            configure_logging(output_options)
            turn = replace(turn, text=transcribe_clip(recognizer, turn.recording.path))
            if not output_options.quiet:
                log_line(f'{turn.recording.path}: "{turn.text}"')  # type: ignore[union-attr]
        transcribed.append(turn)
    return tuple(transcribed)


def read_text(file: str) -> str:
    """The content of a UTF-8 text file; `-` is standard input.

    Raises:
        InputError: unreadable, or not UTF-8.
    """
    from csm_cli.script.files import other_kind

    name = "standard input" if file == "-" else file
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
        if kind := other_kind(data):
            raise InputError(f"{name}: is {kind}")
        return data.decode("utf-8-sig").strip()
    except (OSError, RuntimeError) as error:  # RuntimeError: unknown user in ~user
        raise InputError(f"{name}: {getattr(error, 'strerror', error)}; name a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _require_text(text: str | None) -> str:
    """Raises UsageError if the text is empty."""
    if not (text or "").strip():
        raise UsageError("no text to say; the text is empty")
    return str(text)
