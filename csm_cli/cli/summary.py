"""What a run is told to have done: JSON records, lines and warnings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli import __version__
from csm_cli.cli.synthesis import FinishedConversation, SynthesisJob, turn_title
from csm_cli.generation.events import Utterance

if TYPE_CHECKING:
    from csm_cli.audio.io import Tags
    from csm_cli.audio.mix import TrackSpan
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.cli.progress import ProgressMeter
    from csm_cli.generation.events import Segment
    from csm_cli.generation.synthesizer import Synthesizer

_SHOWN = 160  # characters of a text
_STOPS = {
    "eos": "ended by the model",
    "cap": "cut at the longest duration",
    "silence": "ended where it fell silent",
    "repeat": "ended where it got stuck",
    "recorded": "recorded",
    "kept": "kept from before",
    "empty": "empty",
}


def record(spoken: FinishedConversation, output: str | None, synth: Synthesizer) -> dict[str, Any]:
    """A conversation's JSON object.

    `stop`: the least welcome of the turns'; `rtf`: compute time per time of audio; `evicted`: turns that left the
    model's window, by their numbers.
    """
    made = [each for each in _made(spoken.utterances) if not each.cached]
    seconds = sum(each.audio.duration for each in made)
    checkpoint = synth.checkpoint
    return {
        "id": spoken.conversation.id or None,
        "status": "ok",
        "output": output,
        "duration_s": round(spoken.track.audio.duration, 3),
        "rtf": round(sum(each.seconds for each in made) / seconds, 4) if seconds else None,
        "stop": _stop(spoken.utterances),
        "seed": next((each.seed for each in _made(spoken.utterances)), None),
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "device": str(synth.device),
        "warnings": cut_warnings(spoken),
        "window": _window(spoken.utterances, synth),
        "turns": [_turn(spoken, index) for index in range(len(spoken.utterances))],
    }


def tags(utterances: Sequence[Utterance], checkpoint: Checkpoint, name: str = "") -> Tags:
    """What a sound file says of itself: that it is synthetic, by which model and which seeds. `name`: its title."""
    from csm_cli.audio.io import Tags

    made = _made(utterances)
    # where a local checkpoint lies is nobody else's business
    model = f"{checkpoint.name} at {checkpoint.revision}" if checkpoint.revision else Path(checkpoint.name).name
    recorded = f"; {len(utterances) - len(made)} of {len(utterances)} turns are recordings"
    comment = f"synthetic speech; model: {model}; seed: {format_ranges([each.seed for each in made])}"
    if len(made) < len(utterances):
        comment = comment + recorded if made else "recordings; no speech in this file was synthesized"
    return Tags(f"csm-cli {__version__}", comment, name)


def format_ranges(numbers: Sequence[int]) -> str:
    """Numbers in their order, those that follow one another as 1-8."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, run)) for run in found)


def cut_warnings(spoken: FinishedConversation) -> list[str]:
    """What each turn was warned about, and that it did not end by itself."""
    warnings = []
    for number, each in enumerate(spoken.utterances, 1):
        warnings += [f"{turn_title(each.turn, number)}: {warning}" for warning in each.warnings]
        if each.stop == "cap":
            warnings.append(
                f"{turn_title(each.turn, number)} was cut after {each.audio.duration:.1f} s, before it had ended; "
                f"give it a larger --max-duration or another --seed than {each.seed}"
            )
    return warnings


def describe_utterance(utterance: Utterance) -> str:
    """One turn, as it came out."""
    how = f"{utterance.audio.duration:.2f} s, {_STOPS['kept' if utterance.cached else utterance.stop]}"
    how += f" in {len(utterance.segments)} parts" if len(utterance.segments) > 1 else ""
    if utterance.cached:
        how += f", seed {utterance.seed}"
    elif utterance.stop != "recorded":
        tries = f", {len(utterance.takes)} takes" if len(utterance.takes) > max(1, len(utterance.segments)) else ""
        how += f"{tries}, seed {utterance.seed}, RTF {utterance.seconds / utterance.audio.duration:.2f}"
    return f"{utterance.turn.name or utterance.turn.speaker}: {_shown(utterance.turn.text)}  [{how}]"


def _shown(text: str) -> str:
    """As much of a text as fits a line or two."""
    plain = " ".join(text.split())
    return plain if len(plain) <= _SHOWN else f"{plain[: _SHOWN - 4].rstrip()} ..."


def summarize(meter: ProgressMeter, synth: Synthesizer) -> str:
    """What all of a run came to."""
    stops = ", ".join(f"{count} {_STOPS[stop]}" for stop, count in meter.stops.items()) or "none"
    return (
        f"{meter.audio_seconds:.1f} s of speech in {meter.seconds:.1f} s (RTF {meter.rtf:.2f}); "
        f"turns: {stops}; {synth.checkpoint.name} on {synth.device}"
    )


def contention_hint(job: SynthesisJob, synth: Synthesizer) -> str:
    """A hint, where several threads shared the processor with other programs; else nothing."""
    import torch

    # neither says what others do: a compiler is waited for, and threads that are told to sleep wait that way
    waits = job.speech.compile or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    if waits or synth.device.type != "cpu" or torch.get_num_threads() == 1 or not synth.engine.pace.crowded:
        return ""
    return (
        "other programs kept the processor busy, and threads waited for one another; "
        "one thread is faster then: OMP_NUM_THREADS=1 csm ..."
    )


def _window(utterances: Sequence[Utterance], synth: Synthesizer) -> dict[str, int]:
    """The most positions of the model's window in use, of how many, and how many turns left it.

    easy: beyond so many positions turns leave it.
    """
    positions = synth.checkpoint.config.backbone.positions
    return {
        "peak": max(each.peak_positions for each in utterances),
        "positions": positions,
        "soft_limit": synth.checkpoint.soft_limit or positions,
        "evicted": len({turn for number, each in enumerate(utterances, 1) for turn in each.evicted if turn != number}),
    }


def window_summary(use: Mapping[str, int]) -> str:
    """How full the model's window was, or will be; `use` as JSON has it."""
    peak = f"window: peak {use['peak']} of {use['positions']} positions"
    if not use["evicted"]:
        return peak
    short = use["soft_limit"] < use["positions"]
    why = "this voice speaks best after a short past" if short else "the conversation is longer than the window"
    return f"{peak}; {why}, so each turn hears only the latest before it"


def _made(utterances: Sequence[Utterance]) -> list[Utterance]:
    return [each for each in utterances if each.stop != "recorded"]


def _stop(utterances: Sequence[Utterance]) -> str:
    stops = {each.stop for each in utterances}
    return next(stop for stop in ("cap", "silence", "eos", "recorded") if stop in stops)


def _turn(spoken: FinishedConversation, index: int) -> dict[str, Any]:
    from csm_cli.generation.incremental import take_record as told_take

    utterance, span = spoken.utterances[index], spoken.track.spans[index]
    turn = utterance.turn
    made = utterance.stop != "recorded"
    return {
        "id": turn.id or None,
        "speaker": turn.name or str(turn.speaker),
        "text": turn.text,
        "start_s": round(span.start, 3),
        "end_s": round(span.end, 3),
        "frames": len(utterance.codes),
        "stop": utterance.stop,
        "seed": utterance.seed if made else None,
        "kept": utterance.cached,
        "evicted": list(utterance.evicted),
        "parts": [_part(piece, span) for piece in utterance.segments],
        "takes": [told_take(take, utterance.audio.rate) for take in utterance.takes],
    }


def _part(piece: Segment, span: TrackSpan) -> dict[str, Any]:
    """Its times on the track."""
    return {
        "text": piece.text,
        "start_s": round(span.start + piece.start, 3),
        "end_s": round(span.start + piece.end, 3),
    }
