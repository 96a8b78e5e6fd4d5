"""csm voices: saved voices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.console import emit, emit_json, emit_path, log_line, set_up, warn
from csm_cli.cli.expand import expand_dataclass
from csm_cli.cli.options import ResultOptions, voice_names
from csm_cli.cli.say import read_text
from csm_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from csm_cli.models.mimi import Codec
    from csm_cli.voices import PreparedClip, SavedVoice, VoiceText

Name = Annotated[str, typer.Argument(metavar="NAME", help="A saved voice.", autocompletion=voice_names)]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Saved voices.", autocompletion=voice_names)]
Json = Annotated[bool, typer.Option("--json", help="The same as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]

voices = typer.Typer(name="voices", help="Saved voices: speech, its words and where it is from.", no_args_is_help=True)


@dataclass(frozen=True)
class VoiceOptions:
    """What is said of a clip."""

    text: Annotated[str | None, typer.Option("--text", metavar="TEXT", help="What the clip says.")] = None
    text_file: Annotated[
        str | None, typer.Option("--text-file", metavar="FILE", help="The same from a file; else CLIP's .txt.")
    ] = None
    license: Annotated[str, typer.Option("--license", metavar="TEXT", help="Its licence, or who consented.")] = ""
    source: Annotated[str, typer.Option("--source", metavar="TEXT", help="Where it is from.")] = ""
    start: Annotated[float | None, typer.Option("--start", metavar="SEC", help="Where in CLIP it begins.")] = None
    end: Annotated[float | None, typer.Option("--end", metavar="SEC", help="Where it ends.")] = None

    def words(self, clip: Path) -> VoiceText:
        """Raises UsageError where the clip's words are given twice or nowhere; InputError where they cannot be said."""
        from csm_cli.script.source import text_problem
        from csm_cli.voices import VoiceText

        if self.text is not None and self.text_file is not None:
            raise UsageError("--text and --text-file both given; keep one")
        beside = clip.with_suffix(".txt")
        file = self.text_file or (str(beside) if beside.is_file() else None)
        if self.text is None and file is None:
            raise UsageError(f"the clip's words are missing; add --text, or write them to {beside.name} beside it")
        text = " ".join((self.text if self.text is not None else read_text(str(file))).split())
        if not any(char.isalnum() for char in text):
            raise InputError("the clip's text is empty; write what the clip says")
        if trouble := next(filter(None, map(text_problem, (text, self.license, self.source))), ""):
            raise InputError(f"{clip}: {trouble}")
        return VoiceText(text, self.license, self.source)


@dataclass(frozen=True)
class Codes:
    """Whose codec the voice is encoded with."""

    model: Annotated[
        str | None, typer.Option("--model", metavar="ID|PATH", envvar="CSM_MODEL", help="Encode it for this model.")
    ] = None
    replace: Annotated[bool, typer.Option("--replace", help="Replace a voice of this name.")] = False
    offline: Annotated[bool, typer.Option("--offline", envvar="CSM_OFFLINE", help="Use what is cached only.")] = False


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, - and _.")],
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A recording of 5 to 15 s by one speaker.")],
    *,
    given: VoiceOptions,
    codes: Codes,
    output_options: ResultOptions,
) -> None:
    """Save a recording as a voice: trimmed, at the model's rate, encoded once."""
    from csm_cli.voices import add_voice, check_name

    set_up(output_options)
    check_name(name, codes.replace)
    words = given.words(clip)
    codec = _codec(codes)
    made = _clip(clip, given, words, codec)
    for warning in made.warnings:
        warn(f"{clip}: {warning}")
    if not given.license:
        warn(f"{clip}: no --license; note under which terms, or with whose consent, this voice may be used")
    voice = add_voice(name, made.audio, words, codes.replace)
    _encode(voice, codec)
    if output_options.json:
        emit_json(_record(voice))
        return
    emit_path(voice.audio)
    if not output_options.quiet:
        log_line(f"voice {name} saved, {made.audio.duration:.1f} s; speak with it: csm say -v {name} ...")


def _codec(codes: Codes) -> Codec:
    from csm_cli.checkpoint import open_checkpoint
    from csm_cli.models.mimi import Codec

    checkpoint = open_checkpoint(codes.model, offline=codes.offline)
    return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, "cpu", checkpoint.config.codebooks)


def _clip(path: Path, given: VoiceOptions, words: VoiceText, codec: Codec) -> PreparedClip:
    from csm_cli.audio.io import read_audio
    from csm_cli.errors import AudioUnreadable
    from csm_cli.voices import prepare_clip

    audio = read_audio(path, codec.rate, given.start, given.end)
    try:
        return prepare_clip(audio, words.text)
    except AudioUnreadable as problem:
        raise AudioUnreadable(f"{path}: {problem}") from problem


def _encode(voice: SavedVoice, codec: Codec) -> None:
    """Keeps the codes of what was saved, rounding to 16 bits included."""
    import torch

    from csm_cli.audio.io import read_audio
    from csm_cli.voices import cached_codes

    samples = torch.from_numpy(read_audio(voice.audio, codec.rate).samples)
    cached_codes(voice.audio, codec.mark, lambda: codec.encode(samples).numpy())


@voices.command(name="list")
def list_(json: Json = False, debug: Debug = False) -> None:
    """All saved voices."""
    from csm_cli.voices import list_voices

    found = list_voices()
    if json:
        emit_json([_record(voice) for voice in found])
        return
    width = max((len(voice.name) for voice in found), default=0)
    for voice in found:
        kind = "bundled" if voice.bundled else voice.words.license or "no licence"
        emit(f"{voice.name:<{width}}  {_seconds(voice):5.1f} s  {kind[:24]:<24}  {voice.words.text[:60]}")


@voices.command()
def show(name: Name, json: Json = False, debug: Debug = False) -> None:
    """One voice: its words, licence, source and file."""
    from csm_cli.voices import find_voice

    record = _record(find_voice(name))
    if json:
        emit_json(record)
        return
    for key, value in record.items():
        emit(f"{key:<10} {value}")


@voices.command()
def play(name: Name, debug: Debug = False) -> None:
    """Play a voice's clip."""
    from csm_cli.audio.io import probe, read_audio
    from csm_cli.audio.playback import open_player
    from csm_cli.voices import find_voice

    voice = find_voice(name)
    rate = probe(voice.audio).rate
    with open_player(rate) as player:
        player.write(read_audio(voice.audio, rate).samples)


@voices.command()
def rm(names: Names, debug: Debug = False) -> None:
    """Remove saved voices."""
    from csm_cli.voices import find_voice, remove_voice

    for name in names:
        find_voice(name)  # none is removed where one is misspelled
    for name in names:
        remove_voice(name)
        log_line(f"voice {name} removed")


voices.command()(expand_dataclass(add))


def _seconds(voice: SavedVoice) -> float:
    from csm_cli.audio.io import probe

    return probe(voice.audio).duration


def _record(voice: SavedVoice) -> dict[str, Any]:
    return {
        "name": voice.name,
        "seconds": round(_seconds(voice), 2),
        "text": voice.words.text,
        "license": voice.words.license,
        "source": voice.words.source,
        "audio": str(voice.audio),
        "bundled": voice.bundled,
    }
