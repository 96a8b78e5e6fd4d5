"""What a dialogue would be, before it is spoken: `csm converse -n`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from csm_cli.cli.console import emit, emit_json
from csm_cli.cli.speaking import Job
from csm_cli.types import Turn


def print_plan(job: Job) -> None:
    talk = job.conversations[0]
    if job.telling.json:
        emit_json({"context": records(talk.context), "turns": records(talk.turns)})
        return
    for turn in talk.context:
        emit(f"  context  {_described(turn)}")
    for number, turn in enumerate(talk.turns, 1):
        emit(f"{number:>9}  {_described(turn)}")


def records(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as a script's JSON would have them."""
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
