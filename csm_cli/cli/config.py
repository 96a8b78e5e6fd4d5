"""csm config: the settings and what set them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from csm_cli.cli.console import emit, emit_json
from csm_cli.cli.options import SynthesisFlags
from csm_cli.errors import ModelOffline
from csm_cli.settings import GENERATION, PROJECT_FILE, SETTINGS, ResolvedSetting
from csm_cli.storage.paths import user_config_file
from csm_cli.types import FOLLOWS, Conversation

config = typer.Typer(name="config", help="Show settings and what set them.", no_args_is_help=True)
Level = Mapping[str, ResolvedSetting]
_UNSET = {"seed": "drawn for each run", "max_duration": "auto", "model": "bundled voice"}


@config.command()
def show(
    context: typer.Context,
    script: Annotated[
        str | None, typer.Option("--script", metavar="SCRIPT", help="Include the defaults of this script.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    speech: SynthesisFlags,
) -> None:
    """Show each setting, with these flags, and what set it."""
    levels = _levels(context, speech, script)
    found = {name: _find(levels, name) for name in SETTINGS}
    if json:
        emit_json({name: {"value": _shown(name, each.value), "source": each.source} for name, each in found.items()})
        return
    for name, each in found.items():
        value = _shown(name, each.value)
        text = _UNSET.get(name, "") if value is None else str(value)
        emit(f"{name:<18} {text.lower() if isinstance(value, bool) else text:<24} {each.source}")


@config.command()
def path() -> None:
    """Show the configuration files, the one that overrides first."""
    for file in (PROJECT_FILE.absolute(), user_config_file()):
        emit(f"{file}{'' if file.is_file() else '  (none)'}")


@config.command()
def schema() -> None:
    """Print the JSON Schema of csm.toml and config.toml, for editors."""
    from csm_cli.settings.model import json_schema

    emit_json(json_schema())


def _find(levels: list[Level], name: str) -> ResolvedSetting:
    """A setting by the highest level that has it, or has what it follows."""
    followed = FOLLOWS.get(name, name)
    level = next(level for level in levels if name in level or followed in level)
    return level.get(name) or ResolvedSetting(f"as {followed}", level[followed].source)


def _shown(name: str, value: Any) -> Any:
    """A value as it is written in a file: `auto` and `off` in words."""
    words = {number: word for word, number in SETTINGS[name].keywords.items()}
    return words.get(value, value)


def _levels(context: typer.Context, speech: SynthesisFlags, script: str | None) -> list[Level]:
    """All levels but the turns' own, the highest first."""
    from csm_cli.script import read_script

    values = {name: getattr(speech, name) for name in SETTINGS}
    typed = {name: value for name, value in values.items() if _is_typed(context, name)}
    defaults = (read_script(script) if script else Conversation(())).defaults
    return [
        _level(typed, "flag"),
        _level(asdict(defaults), f"{script}: defaults"),
        *speech.configuration.levels,
        _published(speech.model, speech.revision),
        _level({name: getattr(SynthesisFlags, name) for name in SETTINGS if name not in GENERATION}, "built in"),
        {name: ResolvedSetting(None, "built in") for name in SETTINGS},
    ]


def _level(values: Mapping[str, Any], source: str) -> Level:
    return {name: ResolvedSetting(value, source) for name, value in values.items() if value is not None}


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _published(model: str | None, revision: str | None) -> Level:
    """The checkpoint's own values, if its files are on this machine."""
    from csm_cli.checkpoint.find import find_source
    from csm_cli.checkpoint.load import generation_defaults

    source = find_source(model, revision, offline=True)
    try:
        return _level(asdict(generation_defaults(source)), source.name)
    except ModelOffline:
        unknown = f"{model} (not downloaded yet)"
        return _level(dict.fromkeys(("temperature", "top_k"), "?"), unknown)
