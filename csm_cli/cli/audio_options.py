"""Options of a track's sound, which `say`, `converse` and `batch` share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from csm_cli.audio.formats import FILE_FORMATS, AudioEncoding
from csm_cli.batch.items import BatchItem
from csm_cli.cli.options import OutputFile, SynthesisFlags
from csm_cli.cli.output_files import OutputFiles
from csm_cli.errors import UsageError
from csm_cli.types import Conversation

_PANEL = "Sound files"
_SUBTITLES = ("srt", "vtt", "json")
MIN_LUFS, MAX_LUFS = -70.0, -5.0  # as in scripts
MIN_SPEED, MAX_SPEED = 0.8, 1.25  # as in scripts


def _option(*flags: str, text: str, metavar: str | None = None, panel: str | None = _PANEL) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=panel)


@dataclass(frozen=True)
class AudioOptions:
    """How turns are mixed, and how the samples become files."""

    speed: Annotated[
        float | None,
        _option("--speed", metavar="X", text="Pace of all turns, 0.8 to 1.25, at the same pitch.", panel=None),
    ] = None
    loudness: Annotated[
        float | None,
        _option("--loudness", metavar="LUFS", text="By EBU R128, such as -19; true peak below -1 dBTP.", panel=None),
    ] = None
    gain: Annotated[float | None, _option("--gain", metavar="DB", text="Decibels added to all turns, -60 to 60.")] = (
        None
    )
    subs: Annotated[
        str | None,
        _option("--subs", metavar="FORMATS", text="Write subtitles: srt, vtt, json; several with commas.", panel=None),
    ] = None
    word_times: Annotated[
        bool,
        _option("--word-times", text="Times of words in subtitles and metadata; needs csm-cli\\[verify]."),
    ] = False
    format: Annotated[
        str | None,
        _option(
            "--format",
            metavar="|".join((*FILE_FORMATS, "pcm")),
            text="Audio format, by default from the suffix; -o - with pcm streams raw 16-bit little-endian samples.",
        ),
    ] = None
    rate: Annotated[
        int | None, _option("--rate", metavar="HZ", text="Sample rate, such as 48000; unset: the model's, 24000.")
    ] = None
    stereo: Annotated[bool, _option("--stereo", text="Two channels, both the same.")] = False
    bits: Annotated[
        str | None,
        _option("--bits", metavar="16|24|float", text="Bit depth of wav, and of flac up to 24; unset: 16."),
    ] = None
    quality: Annotated[
        float | None,
        _option("--quality", metavar="Q", text="Of mp3, ogg, opus, m4a: 0 (smallest) to 10 (best); unset: 7."),
    ] = None

    def for_output(self, output: OutputFile) -> AudioEncoding:
        """How the samples become a file; on standard output a WAV, unless --format says otherwise.

        Raises:
            UsageError: an impossible value, or values that exclude each other.
        """
        name = self.format or ("wav" if output.output == "-" else None)
        return AudioEncoding(name, self.bits, self.rate, self.stereo, self.quality)

    def adjusted(self, conversation: Conversation) -> Conversation:
        """The conversation with the loudness, gain and speed of the flags, which override those of a script.

        Raises:
            UsageError: an impossible value, or --gain where the loudness is set.
        """
        for flag, value, (least, most), unit in (
            ("--loudness", self.loudness, (MIN_LUFS, MAX_LUFS), "LUFS from "),
            ("--gain", self.gain, (-60.0, 60.0), "decibels from "),
            ("--speed", self.speed, (MIN_SPEED, MAX_SPEED), ""),
        ):
            if value is not None and not least <= value <= most:
                raise UsageError(f"{flag} takes {unit}{least:g} to {most:g}, not {value:g}")
        loudness = conversation.loudness if self.loudness is None else self.loudness
        if self.gain is not None and loudness is not None:
            raise UsageError(f"--gain changes nothing at a set loudness ({loudness:g} LUFS); keep one of the two")
        turns = tuple(
            replace(
                turn,
                gain=turn.gain + (self.gain or 0.0),
                speed=turn.speed if self.speed is None or turn.recording else self.speed,
            )
            for turn in conversation.turns
        )
        return replace(conversation, turns=turns, loudness=loudness)

    def subtitles(self, track: Path | None) -> dict[str, Path]:
        """The files of `--subs srt,vtt` beside a track.

        Raises:
            UsageError: unknown format, or a track that is no file.
        """
        if self.subs is None:
            return {}
        names = list(dict.fromkeys(name.strip() for name in self.subs.split(",")))
        if unknown := [name for name in names if name not in _SUBTITLES]:
            raise UsageError(f"--subs takes {', '.join(_SUBTITLES)}, or several with commas, not {unknown[0]!r}")
        if track is None:
            raise UsageError("--subs writes files beside the track; name it with -o out.wav")
        return {name: track.with_suffix(f".{name}") for name in names}

    def check_word_times(self, speech: SynthesisFlags, in_metadata: bool) -> None:
        """Raises UsageError where --word-times has no file to be written to, or the recognizer is not installed."""
        if self.word_times:
            if not in_metadata and self.subs is None:
                raise UsageError("--word-times are part of subtitles and metadata; add --subs vtt or --json")
            _ = speech.whisper

    def of_files(self, files: OutputFiles, output: OutputFile) -> OutputFiles:
        """The files of a track with what the flags say of them. Raises UsageError as `subtitles`, `for_output`."""
        return replace(
            files,
            subtitles=self.subtitles(output.file),
            encoding=self.for_output(output),
            word_times=self.word_times,
        )

    def of_item(self, item: BatchItem) -> BatchItem:
        """An item of a batch with what the flags say of its mix and its files. Raises UsageError as `adjusted`."""
        return replace(item, conversation=self.adjusted(item.conversation), subtitles=self.subtitles(item.path))

    def delivery(self, output: OutputFile) -> dict[str, Any]:
        """What is set, by name: for the fingerprints of a batch, so that the defaults change none of them."""
        mixed = {"loudness": self.loudness, "gain": self.gain, "speed": self.speed}
        values = self.for_output(output).set_values() | {
            name: value for name, value in mixed.items() if value is not None
        }
        return values | ({"word_times": True} if self.word_times else {})
