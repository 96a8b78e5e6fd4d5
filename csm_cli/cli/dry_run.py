"""What a dialogue would be, before it is spoken: `csm converse -n`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from csm_cli.cli.console import emit, emit_json, set_up
from csm_cli.cli.summary import format_ranges, window_summary
from csm_cli.cli.synthesis import SynthesisJob
from csm_cli.types import Turn

if TYPE_CHECKING:
    from csm_cli.generation.context_window import TurnEstimate


def print_dry_run(job: SynthesisJob) -> None:
    """Turns, tokens, estimated length and window; of the model, only its config and tokenizer are read.

    Raises:
        ModelError: no such model.
    """
    set_up(job.output_options)
    from csm_cli.checkpoint import read_checkpoint_config
    from csm_cli.generation.context_window import WindowLimits, estimate_turns, track_seconds
    from csm_cli.generation.prompt import PromptBuilder

    talk = job.conversations[0]
    model = read_checkpoint_config(job.speech.model, job.speech.revision, job.speech.offline)
    positions = model.config.backbone.positions
    prompt_builder = PromptBuilder(model.tokenizer_file, model.config)
    limits = WindowLimits(positions, soft_limit=model.soft_limit)
    context, turns = estimate_turns(talk, prompt_builder, limits, job.flags, job.retry_policy.chunk_chars)
    seconds = track_seconds(talk, turns)
    use = {
        "peak": max(cost.peak_positions for cost in turns),
        "positions": positions,
        "soft_limit": model.soft_limit or positions,
        "evicted": len({turn for cost in turns for turn in cost.evicted}),
    }
    if job.output_options.json:
        both = ((talk.context, context), (talk.turns, turns))
        heard, spoken = (
            [mine | _budget(cost) for mine, cost in zip(records(each), of, strict=True)] for each, of in both
        )
        total = {
            "model": model.name,
            "window": use["positions"],
            "soft_limit": use["soft_limit"],
            "window_peak": use["peak"],
            "estimated_s": round(seconds, 1),
        }
        emit_json({**total, "context": heard, "turns": spoken})
        return
    for turn, cost in zip(talk.context, context, strict=True):
        emit(f"  context  {_described(turn, cost, 0)}")
    for number, (turn, cost) in enumerate(zip(talk.turns, turns, strict=True), 1):
        emit(f"{number:>9}  {_described(turn, cost, number)}")
    emit(f"about {_clock(seconds)} in {len(turns)} turns; {window_summary(use)}")


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


def _budget(cost: TurnEstimate) -> dict[str, Any]:
    return {
        "tokens": cost.tokens,
        "parts": cost.chunks,
        "estimated_s": round(cost.seconds, 2),
        "positions": cost.positions,
        "window": cost.peak_positions,
        "evicted": list(cost.evicted),
    }


def _described(turn: Turn, cost: TurnEstimate, number: int) -> str:
    name = f"{turn.name} " if turn.name != str(turn.speaker) else ""
    long = f"{cost.seconds:.1f} s, {turn.recording.path}" if turn.recording else f"about {cost.seconds:.1f} s"
    left = _forgotten(cost.evicted, number)
    long += f" in {cost.chunks} parts" if cost.chunks > 1 else ""
    text = " ".join(turn.text.split())
    return f"{name}[{turn.speaker}]  {text}  [{long}; {cost.tokens} tokens, window {cost.peak_positions}{left}]"


def _forgotten(turns: Sequence[int], number: int) -> str:
    """Which turns leave the window for turn `number`: its own first parts too, where it is long."""
    others = [turn for turn in turns if turn != number]
    told = f", turn{'s' if len(others) > 1 else ''} {format_ranges(others)} evicted" if others else ""
    return told + (", its first parts evicted" if number in turns else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
