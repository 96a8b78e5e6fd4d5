"""The options that commands share, and what their values may be."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.errors import UsageError
from csm_cli.types import Care, Options
from csm_cli.wording import EASY, SHORTEST_PART

if TYPE_CHECKING:
    from csm_cli.verify import Whisper

Text = str | None


def _model(flag: str, metavar: Text, text: str) -> Any:
    variable = "CSM_" + flag.removeprefix("--").upper()
    return typer.Option(flag, metavar=metavar, envvar=variable, help=text, rich_help_panel="Model")


def _generation(flag: str, metavar: Text, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel="Generation")


def _output(*flags: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel="Output")


@dataclass(frozen=True)
class Speech:
    """Which checkpoint speaks, where and how. Generation values stay as written until `flags` reads them."""

    model: Annotated[
        Text, _model("--model", "ID|PATH", "Hugging Face id, directory or weights file; the bundled voice if none.")
    ] = None
    adapter: Annotated[Text, _model("--adapter", "ID|PATH", "A LoRA adapter, merged into the model.")] = None
    revision: Annotated[Text, _model("--revision", "REV", "Commit, branch or tag of a Hugging Face id.")] = None
    device: Annotated[str, _model("--device", "NAME", "auto, cpu, cuda, cuda:N or mps.")] = "auto"
    dtype: Annotated[str, _model("--dtype", "NAME", "auto, float32, bfloat16 or float16.")] = "auto"
    quantize: Annotated[str, _model("--quantize", "none|int8", "int8: layers in 8 bits, CPU or CUDA; for csm-1b.")] = (
        "none"
    )
    compile: Annotated[
        bool, _model("--compile", None, "Frames through torch.compile: faster, after minutes at first.")
    ] = False
    temperature: Annotated[Text, _generation("--temperature", "X", "How freely codes are drawn; 0 is greedy.")] = None
    top_k: Annotated[Text, _generation("--top-k", "N", "Draw from the N likeliest codes; 0 keeps all.")] = None
    depth_temperature: Annotated[
        Text, _generation("--depth-temperature", "X", "The depth decoder's; follows --temperature.")
    ] = None
    depth_top_k: Annotated[Text, _generation("--depth-top-k", "N", "The depth decoder's; follows --top-k.")] = None
    seed: Annotated[Text, _generation("--seed", "N", "Repeats a take; drawn and reported if not given.")] = None
    max_duration: Annotated[
        Text, _generation("--max-duration", "auto|SEC", "Longest duration of a turn; auto goes by its text.")
    ] = None

    retries: Annotated[
        int,
        typer.Option(
            "--retries",
            metavar="N",
            min=0,
            max=100,
            envvar="CSM_RETRIES",
            help="More takes, each with the next seed, where one is bad.",
            rich_help_panel="Generation",
        ),
    ] = 2
    takes: Annotated[
        int,
        typer.Option(
            "--takes",
            metavar="N",
            min=1,
            max=100,
            envvar="CSM_TAKES",
            help="Make N takes of each turn, each with the next seed, and keep the best.",
            rich_help_panel="Generation",
        ),
    ] = 1
    split: Annotated[
        str, _generation("--split", "auto|off|N", "Speak longer texts in parts of whole sentences, of N characters.")
    ] = "auto"
    verify: Annotated[
        bool, _generation("--verify", None, "Try again where a recognizer hears other words; needs csm-cli[verify].")
    ] = False
    verify_model: Annotated[
        str,
        typer.Option(
            "--verify-model",
            metavar="NAME",
            envvar="CSM_VERIFY_MODEL",
            help="faster-whisper's model: a size or a folder.",
            rich_help_panel="Generation",
        ),
    ] = "base.en"
    no_trim: Annotated[
        bool, _generation("--no-trim", None, "As the model makes it: no early end, trimming, splitting or retry.")
    ] = False

    @property
    def care(self) -> Care:
        """How takes are looked after.

        Raises:
            UsageError: an impossible --split, or flags that contradict each other.
        """
        most = _split(self.split)
        if self.no_trim and (self.takes > 1 or self.verify):
            flag = "--takes" if self.takes > 1 else "--verify"
            raise UsageError(f"{flag} chooses among takes and --no-trim has none judged; keep one")
        return Care() if self.no_trim else Care(True, self.retries, self.takes, most)

    def recognizer(self) -> Whisper | None:
        """Who listens to the takes, if somebody is to.

        Raises:
            UsageError: it is not installed.
        """
        if not self.verify:
            return None
        from csm_cli.verify import Whisper

        return Whisper(self.verify_model)

    def flags(self) -> Options:
        """The generation options as given.

        Raises:
            UsageError: an impossible value.
        """
        return _options({name: getattr(self, name) for name in _READERS}, _flag)


@dataclass(frozen=True)
class Telling:
    """What is told of a run, and how."""

    json: Annotated[bool, _output("--json", text="What was spoken, as JSON on standard output.")] = False
    quiet: Annotated[bool, _output("-q", "--quiet", text="Only output paths, on standard output.")] = False
    verbose: Annotated[bool, _output("--verbose", text="Tell more on the way.")] = False
    debug: Annotated[bool, _output("--debug", text="Show the traceback of a failure.")] = False


@dataclass(frozen=True)
class Output:
    """Where the result goes."""

    output: Annotated[
        Text, _output("-o", "--output", metavar="FILE", text="WAV or FLAC by the suffix; - is a WAV on a pipe.")
    ] = None
    no_clobber: Annotated[bool, _output("--no-clobber", text="Refuse to replace an existing file.")] = False

    @property
    def name(self) -> str:
        """The output as it was named.

        Raises:
            UsageError: none was.
        """
        if not self.output:
            raise UsageError("no output named; add -o out.wav, or -o - for a WAV on a pipe")
        return self.output

    @property
    def path(self) -> Path | None:
        """The output file; None for a pipe.

        Raises:
            UsageError: none was named, or one in the home of nobody.
        """
        from csm_cli.audio import home

        return None if self.name == "-" else home(self.name)


def is_int8(quantize: str) -> bool:
    """Whether `--quantize` asks for 8 bits.

    Raises:
        UsageError: it asks for something else.
    """
    if quantize not in ("none", "int8"):
        raise UsageError(f"--quantize takes none or int8, not {quantize!r}")
    return quantize == "int8"


def _split(text: str) -> int:
    """Characters of a part; 0 for none."""
    if text in ("auto", "off"):
        return EASY if text == "auto" else 0
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < SHORTEST_PART:
        raise UsageError(f"--split takes auto, off or characters from {SHORTEST_PART} on, not {text!r}")
    return int(text)


def environment() -> Options:
    """Generation options from CSM_TEMPERATURE, CSM_TOP_K and so on; an empty variable counts as unset.

    Raises:
        UsageError: an impossible value.
    """
    return _options({name: os.environ.get(_variable(name)) or None for name in _READERS}, _variable)


def _options(written: Mapping[str, Text], label: Callable[[str], str]) -> Options:
    values: dict[str, Any] = {
        name: _value(name, text, label(name)) for name, text in written.items() if text is not None
    }
    return Options(**values)


def _value(name: str, text: str, label: str) -> float:
    read, expected = _READERS[name]
    try:
        return read(text)
    except ValueError:
        raise UsageError(f"{label} takes {expected}, not {text!r}") from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return "CSM_" + name.upper()


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value


def _whole(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise ValueError(text)
    return value


def _duration(text: str) -> float:
    """Seconds; 0 for `auto`, as in `Options`."""
    if text == "auto":
        return 0.0
    value = _number(text)
    if not 0 < value <= 3600:
        raise ValueError(text)
    return value


_Reader = Callable[[str], float]
_TEMPERATURE: tuple[_Reader, str] = (_number, "a number >= 0")
_TOP_K: tuple[_Reader, str] = (_whole, "a whole number >= 0")
_READERS: dict[str, tuple[_Reader, str]] = {
    "temperature": _TEMPERATURE,
    "top_k": _TOP_K,
    "depth_temperature": _TEMPERATURE,
    "depth_top_k": _TOP_K,
    "seed": (_whole, "a whole number from 0 to 2**63 - 1"),
    "max_duration": (_duration, "auto or seconds > 0, at most 3600"),
}
