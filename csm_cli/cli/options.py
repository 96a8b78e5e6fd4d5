"""The options that commands share, and what their values may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.errors import CsmError, UsageError
from csm_cli.generation.chunking import DEFAULT_CHUNK_CHARS
from csm_cli.settings import GENERATION_KEYS, parse
from csm_cli.storage.paths import expand_path
from csm_cli.types import GenerationOptions, RetryPolicy

if TYPE_CHECKING:
    from csm_cli.generation.verification import WhisperRecognizer

Text = str | None


def _model(flag: str, metavar: Text, text: str) -> Any:
    variable = "CSM_" + flag.removeprefix("--").upper()
    return typer.Option(flag, metavar=metavar, envvar=variable, help=text, rich_help_panel="Model")


def _generation(flag: str, metavar: Text, text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel="Generation")


def _output(*flags: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel="Output")


@dataclass(frozen=True)
class SynthesisFlags:
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
        bool, _model("--compile", None, "Frames through torch.compile: faster, after half a minute or more at first.")
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
        bool,
        _generation(
            "--verify/--no-verify", None, "Try again where a recognizer hears other words; needs csm-cli\\[verify]."
        ),
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
    offline: Annotated[
        bool,
        typer.Option("--offline", envvar="CSM_OFFLINE", help="Use what is cached only.", rich_help_panel="Model"),
    ] = False

    def check_names(self) -> None:
        """Raises UsageError where the device, the dtype or the quantization is none there is."""
        from csm_cli.device import check_names

        check_names(self.device, self.dtype)
        is_int8(self.quantize)

    @property
    def retry_policy(self) -> RetryPolicy:
        """How takes are looked after.

        Raises:
            UsageError: an impossible --split, or flags that contradict each other.
        """
        most = _characters(self.split)
        if self.no_trim and (self.takes > 1 or self.verify):
            flag = "--takes" if self.takes > 1 else "--verify"
            raise UsageError(f"{flag} chooses among takes and --no-trim has none judged; keep one")
        return RetryPolicy() if self.no_trim else RetryPolicy(True, self.retries, self.takes, most)

    @property
    def streaming_policy(self) -> RetryPolicy:
        """How takes are looked after that are heard as they are made: not at all.

        Raises:
            UsageError: somebody asked for a choice among takes.
        """
        if self.takes > 1 or self.verify:
            flag = "--takes" if self.takes > 1 else "--verify"
            raise UsageError(f"{flag} chooses among takes and a stream cannot be taken back; keep one")
        return RetryPolicy(stream=True)

    def recognizer(self) -> WhisperRecognizer | None:
        """Who listens to the takes, if somebody is to.

        Raises:
            UsageError: it is not installed.
        """
        if not self.verify:
            return None
        from csm_cli.generation.verification import WhisperRecognizer

        return WhisperRecognizer(self.verify_model)

    def flags(self) -> GenerationOptions:
        """The generation options, which override those of scripts, files and the environment.

        Raises:
            UsageError: an impossible value.
        """
        texts = {name: getattr(self, name) for name in GENERATION_KEYS}
        values: dict[str, Any] = {
            name: parse(name, text, "--" + name.replace("_", "-")) for name, text in texts.items() if text is not None
        }
        return GenerationOptions(**values)


@dataclass(frozen=True)
class OutputOptions:
    """What is told of a run, and how."""

    json: Annotated[bool, _output("--json", text="What was spoken, as JSON on standard output.")] = False
    quiet: Annotated[bool, _output("-q", "--quiet", text="Only output paths, on standard output.")] = False
    verbose: Annotated[bool, _output("--verbose", text="Tell more on the way.")] = False
    debug: Annotated[bool, _output("--debug", text="Show the traceback of a failure.")] = False


@dataclass(frozen=True)
class ResultOptions(OutputOptions):
    """What is told of a run in which nobody speaks."""

    json: Annotated[bool, _output("--json", text="What came of it, as JSON on standard output.")] = False
    quiet: Annotated[bool, _output("-q", "--quiet", text="Only the path of what was written, on standard output.")] = (
        False
    )


@dataclass(frozen=True)
class OutputFile:
    """Where the result goes."""

    output: Annotated[
        Text,
        _output(
            "-o", "--output", metavar="FILE", text="WAV or FLAC by the suffix; - is a WAV on a pipe, not for batch."
        ),
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
        return None if self.name == "-" else expand_path(self.name)

    @property
    def file(self) -> Path | None:
        """The output file; None for a pipe, and where no output was named."""
        return self.path if self.output else None


def is_int8(quantize: str) -> bool:
    """Whether `--quantize` asks for 8 bits.

    Raises:
        UsageError: it asks for something else.
    """
    if quantize not in ("none", "int8"):
        raise UsageError(f"--quantize takes none or int8, not {quantize!r}")
    return quantize == "int8"


def voice_names(incomplete: str) -> list[str]:
    """Saved voices whose names begin so, for the shell."""
    from csm_cli.voices import list_voices

    try:
        return [voice.name for voice in list_voices() if voice.name.startswith(incomplete)]
    except CsmError:  # a shell's prompt is no place to complain
        return []


def _characters(split: str) -> int:
    """Characters of a part; 0 for none."""
    parse("split", split, "--split")
    return {"auto": DEFAULT_CHUNK_CHARS, "off": 0}[split] if split in ("auto", "off") else int(split)
