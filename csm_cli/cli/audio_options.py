"""Options of a track's sound, which `say`, `converse` and `batch` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from csm_cli.audio.formats import FILE_FORMATS, AudioEncoding
from csm_cli.cli.options import OutputFile

_PANEL = "Sound files"


def _option(*flags: str, text: str, metavar: str | None = None, panel: str | None = _PANEL) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=panel)


@dataclass(frozen=True)
class AudioOptions:
    """How the samples become files."""

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
