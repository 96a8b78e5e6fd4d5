"""csm voices: add, list, show, play and remove saved voices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.console import configure_logging, emit, emit_json, emit_path, log_line, warn
from csm_cli.cli.options import OutputOptions, voice_names
from csm_cli.cli.say import read_text
from csm_cli.errors import AudioUnreadable, InputError, UsageError
from csm_cli.report import format_count
from csm_cli.settings import setting
from csm_cli.voices.store import (
    SavedVoice,
    VoiceInfo,
    add_voice,
    cached_codes,
    check_name,
    find_voice,
    list_voices,
    remove_voice,
)

if TYPE_CHECKING:
    from csm_cli.voices.published import PublishedVoice

Name = Annotated[str, typer.Argument(metavar="NAME", help="A saved voice.", autocompletion=voice_names)]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Saved voices.", autocompletion=voice_names)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_RATE = 24000  # Hz, of saved clips
voices = typer.Typer(name="voices", help="Saved voices: pull, add, list, show, play, rm.", no_args_is_help=True)


@dataclass(frozen=True)
class AddOptions:
    """The part of the recording to save, its transcript, licence and source, and how it is saved."""

    text: Annotated[str | None, typer.Option("--text", metavar="TEXT", help="Transcript of the clip.")] = None
    text_file: Annotated[
        str | None,
        typer.Option("--text-file", metavar="FILE", help="File with the transcript (default: CLIP with suffix .txt)."),
    ] = None
    transcribe: Annotated[
        bool,
        typer.Option("--transcribe", help="Recognize the words, where there is no text; needs csm-cli\\[verify]."),
    ] = False
    verify_model: Annotated[str, setting("verify_model", help="faster-whisper model of --transcribe.")] = "base.en"
    license: Annotated[
        str, typer.Option("--license", metavar="TEXT", help="Licence of the clip, or who consented to its use.")
    ] = ""
    source: Annotated[str, typer.Option("--source", metavar="TEXT", help="Where the clip is from.")] = ""
    start: Annotated[float | None, typer.Option("--start", metavar="SEC", help="Start of the voice in CLIP.")] = None
    end: Annotated[float | None, typer.Option("--end", metavar="SEC", help="End of the voice in CLIP.")] = None
    model: Annotated[str | None, setting("model", help="Model whose codec encodes the clip.")] = None
    replace: Annotated[bool, typer.Option("--replace", help="Replace a voice of this name.")] = False
    offline: Annotated[bool, setting("offline")] = False

    def voice_info(self, clip: Path, quiet: bool) -> VoiceInfo:
        """What is known about the voice; with --transcribe, its text is recognized and printed where there is none.

        Raises:
            UsageError: the transcript is given twice or missing, or no recognizer is installed.
            InputError: it is unusable, or no words are recognized. AudioUnreadable: there is no such clip.
        """
        from csm_cli.script.source import text_problem
        from csm_cli.script.spoken_text import clean_text

        if self.text is not None and self.text_file is not None:
            raise UsageError("--text and --text-file both given; keep one")
        if self.transcribe and (self.text is not None or self.text_file is not None):
            flag = "--text" if self.text_file is None else "--text-file"
            raise UsageError(f"--transcribe and {flag} both given; keep one")
        default = clip.with_suffix(".txt")
        file = self.text_file or (str(default) if default.is_file() else None)
        if not clip.exists():
            raise AudioUnreadable(f"{clip}: No such file; name a recording")
        if self.text is not None or file is not None:
            text = " ".join((self.text if self.text is not None else read_text(str(file))).split())
        elif self.transcribe:
            from csm_cli.generation.verification import WhisperRecognizer, transcribe_clip

            text = transcribe_clip(WhisperRecognizer(self.verify_model), clip, self.start, self.end)
            if not quiet:
                log_line(f'{clip}: "{text}"')
        else:
            hint = f"add --text or --transcribe, or write it to {default.name} beside it"
            raise UsageError(f"the clip's transcript is missing; {hint}")
        if not any(char.isalnum() for char in text):
            raise InputError("the clip's text is empty; write what the clip says")
        if problem := next(filter(None, map(text_problem, (text, self.license, self.source))), ""):
            raise InputError(f"{clip}: {problem}")
        return VoiceInfo(clean_text(text), self.license, self.source)


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, - and _.")],
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A recording of 5 to 15 s by one speaker.")],
    *,
    options: AddOptions,
    output_options: OutputOptions,
) -> None:
    """Save a recording as a voice: trimmed, at the model's sample rate, encoded once."""
    configure_logging(output_options)
    check_name(name, options.replace)
    info = options.voice_info(clip, output_options.quiet)
    import torch

    from csm_cli.audio.io import read_audio
    from csm_cli.checkpoint import open_checkpoint
    from csm_cli.models.mimi import Codec
    from csm_cli.voices.clip import prepare_clip

    checkpoint = open_checkpoint(options.model, offline=options.offline)
    codec = Codec.load(checkpoint.codec_config, checkpoint.codec_weights, "cpu", checkpoint.config.codebooks)
    recording = read_audio(clip, codec.rate, options.start, options.end)
    try:
        speech, warnings = prepare_clip(recording, info.text)
    except AudioUnreadable as error:
        raise AudioUnreadable(f"{clip}: {error}") from error
    for warning in warnings:
        warn(f"{clip}: {warning}")
    if not info.license:
        warn(f"{clip}: no --license; note the terms, or whose consent, under which this voice may be used")
    voice = add_voice(name, speech, info, options.replace)
    samples = torch.from_numpy(read_audio(voice.audio, codec.rate).samples)  # as saved: rounded to 16 bits
    sizes = codec.codebooks, checkpoint.config.vocab
    cached_codes(voice.audio, codec.fingerprint, sizes, lambda: codec.encode(samples).numpy())
    if output_options.json:
        emit_json(_record(voice))
        return
    emit_path(voice.audio)
    if not output_options.quiet:
        log_line(f"voice {name} saved, {speech.duration:.1f} s; use it with: csm say -v {name} ...")


@voices.command(name="list")
def list_(json: Json = False) -> None:
    """List all saved voices."""
    records = [_record(voice) for voice in list_voices()]
    if json:
        emit_json(records)
        return
    width = max((len(record["name"]) for record in records), default=0)
    for record in records:
        terms = "bundled" if record["bundled"] else record["license"] or "no licence"
        words = shorten(record["text"], 60, placeholder=" ...")
        emit(f"{record['name']:<{width}}  {record['seconds']:5.1f} s  {terms[:24]:<24}  {words}")


@voices.command()
def show(name: Name, json: Json = False) -> None:
    """Show one voice: transcript, licence, source and file."""
    record = _record(find_voice(name))
    if json:
        emit_json(record)
        return
    for key, value in record.items():
        emit(f"{key:<10} {value}")


@voices.command()
def play(name: Name) -> None:
    """Play a voice's clip."""
    from csm_cli.audio.io import probe, read_audio
    from csm_cli.audio.playback import open_player

    voice = find_voice(name)
    rate = probe(voice.audio).rate
    with open_player(rate) as player:
        player.write(read_audio(voice.audio, rate).samples)


@voices.command()
def rm(names: Names) -> None:
    """Remove saved voices."""
    for name in names:
        find_voice(name)  # nothing is removed if one name is misspelled
    for name in names:
        remove_voice(name)
        log_line(f"voice {name} removed")


voices.command()(add)


@dataclass(frozen=True)
class PullOptions:
    """Which clips are saved, and whose words are recognized."""

    transcribe: Annotated[
        bool,
        typer.Option("--transcribe", help="Recognize the words of clips without text; needs csm-cli\\[verify]."),
    ] = False
    verify_model: Annotated[str, setting("verify_model", help="faster-whisper model of --transcribe.")] = "base.en"
    revision: Annotated[str | None, setting("revision")] = None
    replace: Annotated[bool, typer.Option("--replace", help="Replace voices of these names.")] = False
    offline: Annotated[bool, setting("offline")] = False


def pull(
    repository: Annotated[
        str, typer.Argument(metavar="REPOSITORY", help="A Hugging Face id with clips in prompts/.")
    ] = "sesame/csm-1b",
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Only these voices.")] = None,
    *,
    options: PullOptions,
    output_options: OutputOptions,
) -> None:
    """Save the voices that a checkpoint's repository publishes.

    Examples:
      csm voices pull
      csm voices pull sesame/csm-1b conversational_a read_speech_b
    """
    from csm_cli.checkpoint.find import HubRepository, find_source
    from csm_cli.voices.published import find_published

    configure_logging(output_options)
    source = find_source(repository, options.revision, options.offline)
    if not isinstance(source, HubRepository):
        raise UsageError(f"{repository} is a folder here; csm voices add NAME CLIP saves a clip of it")
    saved = []
    known = {voice.name for voice in list_voices()}
    for published in find_published(source, names or ()):
        if published.name in known and not options.replace:
            if not output_options.quiet:
                log_line(f"voice {published.name} is there already; --replace pulls it again")
            continue
        saved.append(_save_published(published, options))
        if not output_options.json:
            emit_path(saved[-1].audio)
    if output_options.json:
        emit_json([_record(voice) for voice in saved])
    elif saved and not output_options.quiet:
        log_line(f"{format_count(len(saved), 'voice')} saved; use one with: csm say -v {saved[0].name} ...")


def _save_published(published: PublishedVoice, options: PullOptions) -> SavedVoice:
    """Raises UsageError: the words of the clip are unknown. AudioUnreadable: it cannot be used."""
    from csm_cli.audio.io import read_audio
    from csm_cli.script.spoken_text import clean_text
    from csm_cli.voices.clip import prepare_clip

    text = published.text
    if not text and not options.transcribe:
        raise UsageError(f"the words of {published.source} are not known; add --transcribe to recognize them")
    if not text:
        from csm_cli.generation.verification import WhisperRecognizer, transcribe_clip

        text = transcribe_clip(WhisperRecognizer(options.verify_model), published.path)
    try:
        speech, warnings = prepare_clip(read_audio(published.path, _RATE), text)
    except AudioUnreadable as error:
        raise AudioUnreadable(f"{published.source}: {error}") from error
    for warning in warnings:
        warn(f"{published.name}: {warning}")
    terms = f"as of {published.source.split()[2]}"
    info = VoiceInfo(clean_text(text), terms, f"https://huggingface.co: {published.source}")
    return add_voice(published.name, speech, info, options.replace)


voices.command()(pull)


def _record(voice: SavedVoice) -> dict[str, Any]:
    from csm_cli.audio.io import probe

    return {
        "name": voice.name,
        "seconds": round(probe(voice.audio).duration, 2),
        "text": voice.info.text,
        "license": voice.info.license,
        "source": voice.info.source,
        "audio": str(voice.audio),
        "bundled": voice.bundled,
    }
