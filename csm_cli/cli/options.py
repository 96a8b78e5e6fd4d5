"""Option classes: commands take few parameters, and each field of an option class becomes an option.

A field is `name: Annotated[type, setting("name")] = default`, or has a `typer.Option` of its own. An option without a
`rich_help_panel` is shown by `-h`; those with one only by `--help-all`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from csm_cli.audio.formats import FILE_FORMATS
from csm_cli.errors import CsmError, UsageError
from csm_cli.settings import GENERATION, Configuration, Setting, read_configuration, setting, validate
from csm_cli.storage.paths import expand_path
from csm_cli.storage.remote import is_url, local_name
from csm_cli.types import DEFAULT_CHUNK_CHARS, DEFAULT_LANGUAGE, GenerationOptions, RetryPolicy

if TYPE_CHECKING:
    from csm_cli.generation.verification import WhisperRecognizer
    from csm_cli.script.manifest import ManifestColumns
    from csm_cli.script.resolve import ManifestHeader


@dataclass(frozen=True)
class SynthesisFlags:
    """Which model speaks, where and how.

    Run options are what the command line, else the environment, else a configuration file sets; generation options are
    those of the command line alone, since a script comes between. configuration: what the command has read.
    """

    model: Annotated[str | None, setting("model")] = None
    adapter: Annotated[str | None, setting("adapter")] = None
    revision: Annotated[str | None, setting("revision")] = None
    device: Annotated[str, setting("device")] = "auto"
    dtype: Annotated[str, setting("dtype")] = "auto"
    quantize: Annotated[str, setting("quantize")] = "none"
    compile: Annotated[bool, setting("compile")] = False
    offline: Annotated[bool, setting("offline")] = False
    temperature: Annotated[float | None, setting("temperature")] = None
    top_k: Annotated[int | None, setting("top_k")] = None
    depth_temperature: Annotated[float | None, setting("depth_temperature")] = None
    depth_top_k: Annotated[int | None, setting("depth_top_k")] = None
    seed: Annotated[int | None, setting("seed")] = None
    max_duration: Annotated[float | None, setting("max_duration")] = None
    retries: Annotated[int, setting("retries")] = 2
    takes: Annotated[int, setting("takes")] = 1
    split: Annotated[int, setting("split")] = DEFAULT_CHUNK_CHARS
    language: Annotated[str, setting("language")] = DEFAULT_LANGUAGE
    normalize: Annotated[bool, setting("normalize")] = False
    verify: Annotated[bool, setting("verify")] = False
    verify_model: Annotated[str, setting("verify_model")] = "base.en"
    no_trim: Annotated[
        bool,
        typer.Option(
            "--no-trim",
            help="Keep the model's raw output: no early stop, trimming, splitting or retries.",
            rich_help_panel="Generation",
        ),
    ] = False
    lexicon: Annotated[
        Path | None,
        typer.Option(
            "--lexicon",
            metavar="FILE",
            help="YAML, CSV or TSV with words and how each is spelled for the model.",
            rich_help_panel="Text",
        ),
    ] = None
    configuration: Configuration = field(default_factory=Configuration)

    @cached_property
    def lexicon_entries(self) -> dict[str, str]:
        """The entries of --lexicon. Raises ScriptInvalid as `read_lexicon`."""
        from csm_cli.script.lexicon import read_lexicon

        return read_lexicon(self.lexicon.expanduser()) if self.lexicon else {}

    @property
    def flags(self) -> GenerationOptions:
        """The generation options of the command line, which override all others."""
        return GenerationOptions(**{name: getattr(self, name) for name in GENERATION})

    @property
    def retry_policy(self) -> RetryPolicy:
        """Raises UsageError where --takes or --verify is combined with --no-trim."""
        self._refuse_choice("--no-trim, which keeps the first take", self.no_trim)
        return RetryPolicy() if self.no_trim else RetryPolicy(True, self.retries, self.takes, self.split)

    @property
    def streaming_policy(self) -> RetryPolicy:
        """One take, as it is made. Raises UsageError where --takes or --verify is combined with streaming."""
        self._refuse_choice("a stream, which plays the first take", True)
        return RetryPolicy(stream=True)

    def _refuse_choice(self, other: str, single: bool) -> None:
        if single and (self.takes > 1 or self.verify):
            flag = "--takes" if self.takes > 1 else "--verify"
            raise UsageError(f"{flag} chooses among takes and cannot be combined with {other}")

    def recognizer(self) -> WhisperRecognizer | None:
        """The recognizer of --verify.

        Raises:
            UsageError: it is not installed.
        """
        return self.whisper if self.verify else None

    @cached_property
    def whisper(self) -> WhisperRecognizer:
        """The recognizer of --verify-model. Raises UsageError: it is not installed, or does not know the language."""
        from csm_cli.generation.verification import WhisperRecognizer

        return WhisperRecognizer(self.verify_model, self.language)


_COLUMNS = "Columns of a manifest"


@dataclass(frozen=True)
class ManifestOptions:
    """What the columns of a manifest mean, and whose voice each name is."""

    text_column: Annotated[
        str | None,
        typer.Option("--text-column", metavar="NAME", help="Column with the words.", rich_help_panel=_COLUMNS),
    ] = None
    speaker_column: Annotated[
        str | None,
        typer.Option("--speaker-column", metavar="NAME", help="Column with the speaker.", rich_help_panel=_COLUMNS),
    ] = None
    id_column: Annotated[
        str | None,
        typer.Option("--id-column", metavar="NAME", help="Column with the id of each row.", rich_help_panel=_COLUMNS),
    ] = None
    voice_map: Annotated[
        str | None,
        typer.Option(
            "--voice-map",
            metavar="FILE",
            help="YAML or JSON with the voice of each speaker, as in ana: ash.",
            rich_help_panel=_COLUMNS,
        ),
    ] = None

    @property
    def columns(self) -> ManifestColumns:
        from csm_cli.script import ManifestColumns

        return ManifestColumns(self.text_column, self.speaker_column, self.id_column)

    def read_header(self) -> ManifestHeader | None:
        """The speakers of --voice-map; None without one. Raises ScriptInvalid as `read_voice_map`."""
        from csm_cli.script import read_voice_map

        return None if self.voice_map is None else read_voice_map(Path(self.voice_map).expanduser())


@dataclass(frozen=True)
class OutputOptions:
    """What a command prints."""

    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print paths only; no progress or notes.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.", rich_help_panel="Output")] = False


@dataclass(frozen=True)
class OutputFile:
    """Where the result goes."""

    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help=f"The file: {', '.join(FILE_FORMATS)} by its suffix; - pipes a WAV.",
        ),
    ] = None
    no_clobber: Annotated[
        bool, typer.Option("--no-clobber", help="Refuse to replace an existing file.", rich_help_panel="Output")
    ] = False

    @property
    def name(self) -> str:
        """The output as named on the command line.

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
            UsageError: none was named, `~user` of an unknown user, or a URL, which only batches write to.
        """
        if is_url(name := local_name(self.name)):
            raise UsageError(f"-o {name}: only csm batch and csm merge write to URLs; name a file")
        return None if name == "-" else expand_path(name)

    @property
    def file(self) -> Path | None:
        """The output file; None for a pipe, and where no output was named."""
        return self.path if self.output else None


def voice_names(incomplete: str) -> list[str]:
    """Completes the names of saved voices in the shell."""
    from csm_cli.voices.store import list_voices

    try:
        return [voice.name for voice in list_voices() if voice.name.startswith(incomplete)]
    except CsmError:  # a shell's prompt is no place for an error
        return []


def flag_name(name: str) -> str:
    """`--top-k` for top_k."""
    return "--" + name.replace("_", "-")


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as Typer should see it: each field of its dataclass parameters is an option of its own.

    Settings are validated. Those that a script cannot set are taken from the environment and the configuration files
    where they are not on the command line; a field of type `Configuration` gets all that was read there.
    """
    parameters = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: each.annotation for name, each in parameters.items() if is_dataclass(each.annotation)
    }
    options = [each.replace(kind=_KEYWORD) for name, each in parameters.items() if name not in groups]
    options += [option for group in groups.values() for option in _parameters(group)]
    settings = {each.name: found for each in options if (found := _setting(each))}
    configurations = [each.name for each in options if each.annotation is Configuration]

    def run(**given: Any) -> None:
        if settings:
            given = _resolve(settings, given, configurations)
        built = {}
        for name, group in groups.items():
            present = [each.name for each in fields(group) if each.name in given]
            built[name] = group(**{each: given.pop(each) for each in present})
        command(**given, **built)

    shown = [_as_option(each, settings.get(each.name)) for each in options if each.name not in configurations]
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(each.name, _KEYWORD, default=each.default, annotation=hints[each.name])
        for each in fields(group)
    ]


def _setting(option: inspect.Parameter) -> Setting | None:
    return next((each for each in getattr(option.annotation, "__metadata__", ()) if isinstance(each, Setting)), None)


def _as_option(option: inspect.Parameter, found: Setting | None) -> inspect.Parameter:
    """A setting as an option, or as the argument it declares; without a default, so that unset flags are told apart."""
    if found is None:
        return option
    flag, switch = flag_name(found.name), found.type is bool
    own = [each for each in option.annotation.__metadata__ if isinstance(each, ArgumentInfo | OptionInfo)]
    declared = (
        own[0]
        if own
        else typer.Option(
            f"{flag}/--no-{flag[2:]}" if switch else flag,
            metavar=found.metavar,
            help=found.help.replace("[", "\\["),
            rich_help_panel=found.panel,
        )
    )
    return option.replace(default=None, annotation=Annotated[(bool if switch else str) | None, declared])


def _resolve(settings: Mapping[str, Setting], given: dict[str, Any], configurations: Sequence[str]) -> dict[str, Any]:
    """The values of a command's parameters; one that nothing sets is left out and has its own default."""
    typed = {name: given.pop(name) for name in settings}
    flags = validate({name: text for name, text in typed.items() if text is not None}, flag_name)
    configuration = read_configuration(flags)
    names = settings.keys() - set(GENERATION)
    configured = {name: each.value for name, each in configuration.merged.items() if name in names}
    return given | configured | flags | dict.fromkeys(configurations, configuration)
