"""csm config: what is set, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from csm_cli.cli.console import emit, emit_json
from csm_cli.cli.expand import expand_dataclass
from csm_cli.cli.options import SynthesisFlags
from csm_cli.errors import ModelOffline
from csm_cli.settings import ALL_KEYS, MODEL_KEYS, PROJECT_FILE, json_schema, read_settings
from csm_cli.storage.paths import user_config_file
from csm_cli.types import Conversation

config = typer.Typer(name="config", help="Values, and where they come from.", no_args_is_help=True)
Layer = Mapping[str, tuple[Any, str]]
_UNSET = {
    "seed": "drawn for each run",
    "max_duration": "auto",
    "depth_temperature": "as temperature",
    "depth_top_k": "as top_k",
}


@dataclass(frozen=True)
class Asked:
    """How it is told."""

    json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False


def show(
    context: typer.Context,
    script: Annotated[
        str | None, typer.Option("--script", metavar="SCRIPT", help="With a script's defaults among them.")
    ] = None,
    *,
    speech: SynthesisFlags,
    asked: Asked,
) -> None:
    """Every value that a command with these flags would speak with, and what set it."""
    layers = _layers(context, speech, _read(script), f"{script}: defaults")
    found = {name: next(layer[name] for layer in layers if name in layer) for name in ALL_KEYS}
    if asked.json:
        emit_json({name: {"value": value, "source": source} for name, (value, source) in found.items()})
        return
    for name, (value, source) in found.items():
        emit(f"{name:<18} {_shown(name, value):<24} {source}")


@config.command()
def path(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False) -> None:
    """The files that are read, the higher one first, and whether there is one."""
    for file in (PROJECT_FILE.absolute(), user_config_file()):
        emit(f"{file}{'' if file.is_file() else '  (none)'}")


@config.command()
def schema(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False) -> None:
    """The JSON Schema of csm.toml and config.toml, for editors."""
    emit_json(json_schema())


config.command()(expand_dataclass(show))


def _shown(name: str, value: Any) -> str:
    if value is None:
        return _UNSET.get(name, "")
    if name == "max_duration" and not value:
        return "auto"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _layers(context: typer.Context, speech: SynthesisFlags, talk: Conversation, script: str) -> list[Layer]:
    """From the highest, but for the turns' own values, to what is built in."""
    given: dict[str, Any] = {name: getattr(speech, name) for name in MODEL_KEYS if _typed(context, name)}
    settings: dict[str, tuple[Any, str]] = {name: (each.value, each.source) for name, each in read_settings().items()}
    model, revision = (given.get(name) or settings.get(name, (None, ""))[0] for name in ("model", "revision"))
    return [
        _layer(asdict(speech.flags()) | given, "flag"),
        _layer(asdict(talk.defaults), script),
        settings,
        _published(model, revision),
        {name: (getattr(SynthesisFlags, name), "built in") for name in MODEL_KEYS}
        | {"model": ("bundled voice", "built in")},
        dict.fromkeys(ALL_KEYS, (None, "built in")),
    ]


def _layer(values: Mapping[str, Any], source: str) -> Layer:
    return {name: (value, source) for name, value in values.items() if value is not None}


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _read(script: str | None) -> Conversation:
    from csm_cli.script import read_script

    return read_script(script) if script else Conversation(())


def _published(model: str | None, revision: str | None) -> Layer:
    """What the checkpoint was published with, where its files are on this machine."""
    from csm_cli.checkpoint.find import find_source
    from csm_cli.checkpoint.load import generation_defaults

    source = find_source(model, revision, offline=True)
    try:
        return _layer(asdict(generation_defaults(source)), source.name)
    except ModelOffline:
        unknown = f"{model} (not fetched yet)"
        return dict.fromkeys(("temperature", "top_k"), ("?", unknown))
