"""What a run is told to have done: JSON records, lines and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from csm_cli.cli.speaking import Spoken, title

if TYPE_CHECKING:
    from csm_cli.cli.progress import Meter
    from csm_cli.synth import Synthesizer, Utterance
    from csm_cli.takes import Take

_STOPS = {
    "eos": "ended by the model",
    "cap": "cut at the longest duration",
    "silence": "ended where it fell silent",
    "repeat": "ended where it got stuck",
    "recorded": "recorded",
    "empty": "empty",
}


def record(spoken: Spoken, output: str | None, synth: Synthesizer) -> dict[str, Any]:
    """A conversation's JSON object. `stop`: the least welcome of the turns'; `rtf`: compute time per time of audio."""
    made = _made(spoken.utterances)
    seconds = sum(each.audio.duration for each in made)
    checkpoint = synth.checkpoint
    return {
        "id": spoken.conversation.id or None,
        "status": "ok",
        "output": output,
        "duration_s": round(spoken.track.audio.duration, 3),
        "rtf": round(sum(each.seconds for each in made) / seconds, 4) if seconds else None,
        "stop": _stop(spoken.utterances),
        "seed": made[0].seed if made else None,
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "device": str(synth.device),
        "warnings": cut(spoken),
        "turns": [_turn(spoken, index) for index in range(len(spoken.utterances))],
    }


def cut(spoken: Spoken) -> list[str]:
    """A warning for each turn that did not end by itself."""
    return [
        f"{title(each.turn, number)} was cut after {each.audio.duration:.1f} s, before it had ended; "
        f"give it a larger --max-duration or another --seed than {each.seed}"
        for number, each in enumerate(spoken.utterances, 1)
        if each.stop == "cap"
    ]


def told(utterance: Utterance) -> str:
    """One turn, as it came out."""
    how = f"{utterance.audio.duration:.2f} s, {_STOPS[utterance.stop]}"
    if utterance.stop != "recorded":
        tries = f" at try {len(utterance.takes)}" if len(utterance.takes) > 1 else ""
        how += f"{tries}, seed {utterance.seed}, RTF {utterance.seconds / utterance.audio.duration:.2f}"
    return f"{utterance.turn.name or utterance.turn.speaker}: {' '.join(utterance.turn.text.split())}  [{how}]"


def total(meter: Meter, synth: Synthesizer) -> str:
    """What all of a run came to."""
    stops = ", ".join(f"{count} {_STOPS[stop]}" for stop, count in meter.stops.items()) or "none"
    return (
        f"{meter.audio_seconds:.1f} s of speech in {meter.seconds:.1f} s (RTF {meter.rtf:.2f}); "
        f"turns: {stops}; {synth.checkpoint.name} on {synth.device}"
    )


def _made(utterances: Sequence[Utterance]) -> list[Utterance]:
    return [each for each in utterances if each.stop != "recorded"]


def _stop(utterances: Sequence[Utterance]) -> str:
    stops = {each.stop for each in utterances}
    return next(stop for stop in ("cap", "silence", "eos", "recorded") if stop in stops)


def _turn(spoken: Spoken, index: int) -> dict[str, Any]:
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
        "takes": [_take(take, utterance.audio.rate) for take in utterance.takes],
    }


def _take(take: Take, rate: int) -> dict[str, Any]:
    seconds = round(len(take.samples) / rate, 3)
    return {"seed": take.seed, "stop": take.stop, "duration_s": seconds, "fault": take.fault or None}
