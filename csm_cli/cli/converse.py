"""csm converse: a script as one track."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from csm_cli.batch import file_name
from csm_cli.cli.console import emit, emit_json
from csm_cli.cli.live import Live
from csm_cli.cli.options import Output, Speech, Telling
from csm_cli.cli.single import check_outputs, speak_one
from csm_cli.cli.speaking import plan
from csm_cli.types import Conversation, Turn


def converse(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="YAML, JSON or JSONL; - is standard input.")],
    turns_dir: Annotated[
        Path | None, typer.Option("--turns-dir", metavar="DIR", help="Also write each turn, as DIR/001-ana.wav.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Print what would be spoken; nothing is loaded or written.")
    ] = False,
    *,
    speech: Speech,
    output: Output,
    live: Live,
    telling: Telling,
) -> None:
    """Speak a dialogue as one track."""
    from csm_cli.script import read_script

    conversation = read_script(script)
    turn_files = _turn_files(conversation, turns_dir) if turns_dir else []
    if output.output or not dry_run:
        live = check_outputs(output, telling, turn_files, live)
    job = plan([conversation], speech, telling)
    if dry_run:
        _print_plan(conversation, telling.json)
    else:
        speak_one(job, output, turn_files, live)


def _turn_files(conversation: Conversation, folder: Path) -> list[Path]:
    return [folder / f"{number:03d}-{file_name(turn)}.wav" for number, turn in enumerate(conversation.turns, 1)]


def _print_plan(conversation: Conversation, as_json: bool) -> None:
    if as_json:
        emit_json({"context": _records(conversation.context), "turns": _records(conversation.turns)})
        return
    for turn in conversation.context:
        emit(f"  context  {_described(turn)}")
    for number, turn in enumerate(conversation.turns, 1):
        emit(f"{number:>9}  {_described(turn)}")


def _records(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [
        {
            "id": turn.id or None,
            "speaker": turn.name or str(turn.speaker),
            "text": turn.text,
            "audio": str(turn.recording.path) if turn.recording else None,
            "gap": turn.gap,
            "gain": turn.gain,
            "options": {name: value for name, value in asdict(turn.options).items() if value is not None},
        }
        for turn in turns
    ]


def _described(turn: Turn) -> str:
    name = f"{turn.name} " if turn.name != str(turn.speaker) else ""
    recorded = f"  [{turn.recording.path}]" if turn.recording else ""
    return f"{name}[{turn.speaker}]  {' '.join(turn.text.split())}{recorded}"
