"""What a run reports: JSON records, lines and warnings, and how numbers are written in them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli.errors import GenerationFailed
from csm_cli.generation.events import ModelIdentity, Segment, Utterance
from csm_cli.report import format_count
from csm_cli.types import Conversation, Turn

if TYPE_CHECKING:
    from csm_cli.audio.io import Audio
    from csm_cli.audio.mix import TrackSpan
    from csm_cli.cli.progress import Meter
    from csm_cli.cli.synthesis import FinishedConversation, SynthesisJob
    from csm_cli.generation.synthesizer import Synthesizer
    from csm_cli.generation.turn_cache import CachedTurn

SIDECAR_SCHEMA = 2
_MAX_TEXT_CHARS = 160  # of a turn's text in a line
_STOP_TEXTS = {
    "eos": "complete",
    "cap": "stopped: reached the maximum duration",
    "silence": "stopped: fell silent",
    "repeat": "stopped: repeated one sound",
    "recorded": "recorded",
    "cached": "reused from an earlier run",
    "empty": "empty",
}


def stop_text(stop: str) -> str:
    """A stop reason as lines show it."""
    return _STOP_TEXTS.get(stop, stop)


def turn_title(turn: Turn, number: int) -> str:
    """A turn as messages name it."""
    text = " ".join(turn.text.split())
    return f'turn {number} ({turn.label}: "{text[:40]}{"..." if len(text) > 40 else ""}")'


def conversation_record(
    finished: FinishedConversation,
    output: str | None,
    model: ModelIdentity,
    device: str | None,
    cached: Mapping[int, CachedTurn] | None = None,
) -> dict[str, Any]:
    """The JSON object of a conversation. device: None if nothing was generated; cached: its turns in the turn cache."""
    from csm_cli.generation.incremental import list_takes, take_records
    from csm_cli.generation.turn_cache import cache_folder

    utterances, folder = finished.utterances, cache_folder(Path(output)) if output and cached else None
    synthetic = [each for each in utterances if each.stop != "recorded"]
    generated = [each for each in synthetic if not each.cached]
    seconds = sum(each.audio.duration for each in generated)
    stops = {each.stop for each in utterances}
    turns = []
    loudness = _loudness_record(finished)
    for utterance, span in zip(utterances, finished.track.spans, strict=True):
        own = (cached or {}).get(utterance.number)
        takes = own.takes if own else list_takes(utterance)
        audio = finished.track.turn(utterance.number - 1)
        is_whole = len(utterances) == 1 and len(audio.samples) == len(finished.track.audio.samples)
        level = loudness["lufs"] if is_whole else measured_loudness(audio)
        facts = {"lufs": level, "takes": take_records(takes, folder)}
        turns.append(_turn_record(utterance, span) | facts)
    dropped = {turn for each in utterances for turn in each.evicted if turn != each.number}
    return {
        "id": finished.conversation.id or None,
        "status": "ok",
        "output": output,
        "duration_s": round(finished.track.audio.duration, 3),
        "loudness": loudness,
        "rtf": round(sum(each.seconds for each in generated) / seconds, 4) if seconds else None,
        "stop": next(stop for stop in ("cap", "silence", "repeat", "eos", "empty", "recorded") if stop in stops),
        "seed": synthetic[0].seed if synthetic else None,
        "model": model.name,
        "revision": model.revision,
        "device": device,
        "warnings": turn_warnings(finished),
        "context_window": {
            "peak": max(each.peak_positions for each in utterances),
            "positions": model.positions,
            "soft_limit": model.soft_limit or model.positions,
            "dropped_turns": len(dropped),
        },
        "turns": turns,
    }


def _turn_record(utterance: Utterance, span: TrackSpan) -> dict[str, Any]:
    turn = utterance.turn
    return {
        "number": utterance.number,
        "id": turn.id or None,
        "speaker": turn.label,
        "voice": voice_name(turn, utterance.conversation),
        "text": turn.text,
        **spelled_record(turn, utterance.conversation),
        "start_s": round(span.start, 3),
        "end_s": round(span.end, 3),
        "speed": turn.speed,
        "frames": len(utterance.codes),
        "stop": utterance.stop,
        "seed": utterance.seed if utterance.stop != "recorded" else None,
        "reused": utterance.cached,
        "dropped_turns": list(utterance.evicted),
        "segments": [
            {
                "text": segment.text,
                "start_s": round(span.start + segment.start, 3),
                "end_s": round(span.start + segment.end, 3),
                **_words_record(segment, span),
            }
            for segment in utterance.track_segments
        ],
    }


def _words_record(segment: Segment, span: TrackSpan) -> dict[str, Any]:
    words = [
        {"text": each.text, "start_s": round(each.start, 3), "end_s": round(each.end, 3), "recognized": each.recognized}
        for each in segment.moved(span.start).words
    ]
    return {"words": words} if words else {}


def voice_name(turn: Turn, conversation: Conversation) -> str | None:
    """The saved voice, or the file name of the clip, that a turn's speaker has; None without one."""
    if turn.recording:
        return None
    clips = (each.recording for each in conversation.context if each.speaker == turn.speaker and each.recording)
    clip = next(clips, None)
    return (clip.voice or clip.path.name) if clip else None


def measured_loudness(audio: Audio) -> float | None:
    """In LUFS; None for silence."""
    from csm_cli.audio.loudness import loudness

    level = loudness(audio.samples, audio.rate)
    return round(level, 2) if math.isfinite(level) else None


def _loudness_record(finished: FinishedConversation) -> dict[str, float | None]:
    from csm_cli.audio.loudness import true_peak

    audio, target = finished.track.audio, finished.conversation.loudness
    peak = -math.inf if target is None else true_peak(audio.samples)  # 5 ms per second of audio
    return {
        "target_lufs": target,
        "lufs": measured_loudness(audio),
        "true_peak_dbtp": round(peak, 2) if math.isfinite(peak) else None,
    }


def spelled_record(turn: Turn, conversation: Conversation | None) -> dict[str, str]:
    """`spelled`: the text as the model reads it, where the lexicon or the normalization change it."""
    if conversation is None or turn.recording:
        return {}
    from csm_cli.generation.chunking import spell  # reads scripts, which start-up has no time for

    spelled = spell(turn.text, conversation)
    return {"spelled": spelled} if spelled != turn.text else {}


def turn_warnings(finished: FinishedConversation) -> list[str]:
    """The warnings of each turn, and which turns were cut."""
    warnings = []
    for each in finished.utterances:
        title = turn_title(each.turn, each.number)
        warnings += [f"{title}: {warning}" for warning in each.warnings]
        if each.stop == "cap":
            warnings.append(
                f"{title} reached the maximum duration of {each.audio.duration:.1f} s before "
                f"it ended; raise --max-duration or try another --seed than {each.seed}"
            )
    return warnings


def faulty_turn_error(utterance: Utterance) -> GenerationFailed:
    """The error of a turn without a good take."""
    attempts = ", ".join(f"{take.fault} with seed {take.seed}" for take in utterance.takes if take.fault)
    keep = "" if utterance.stop == "empty" else ", or --no-trim to accept it as it is"
    return GenerationFailed(
        f"{turn_title(utterance.turn, utterance.number)} {attempts}; try another --seed, more --retries{keep}"
    )


def describe_utterance(utterance: Utterance, batched: bool = False) -> str:
    """One line on a finished turn, such as `3/8 ben: Really?  [1.20 s, complete, seed 7, RTF 0.50]`.

    batched: decoded together with other items, whose time cannot be told apart; the line has no RTF then.
    """
    details = [f"{utterance.audio.duration:.2f} s"]
    details.append(_STOP_TEXTS["cached" if utterance.cached else utterance.stop])
    if len(utterance.segments) > 1:
        details.append(f"{len(utterance.segments)} chunks")
    if len(utterance.takes) > max(1, len(utterance.segments)):
        details.append(f"{len(utterance.takes)} takes")
    if utterance.stop != "recorded":
        details.append(f"seed {utterance.seed}")
    if utterance.stop != "recorded" and not utterance.cached and not batched:
        details.append(f"RTF {utterance.seconds / utterance.audio.duration:.2f}")
    text = " ".join(utterance.turn.text.split())
    if len(text) > _MAX_TEXT_CHARS:
        text = f"{text[: _MAX_TEXT_CHARS - 4].rstrip()} ..."
    total = len(utterance.conversation.turns)
    number = f"{utterance.number}/{total} " if total > 1 else ""
    label = utterance.turn.label
    speaker = f"[{label}]" if label.isdecimal() else label
    return f"{number}{speaker}: {text}  [{', '.join(details)}]"


def summarize(meter: Meter, model: str, device: object) -> str:
    """One line on all that a run generated."""
    stops = ", ".join(f"{count} {_STOP_TEXTS[stop]}" for stop, count in meter.stops.items()) or "none"
    if not meter.frames:
        return f"nothing was generated; turns: {stops}"
    return (
        f"generated {meter.audio_seconds:.1f} s of audio in {meter.seconds:.1f} s (RTF {meter.rtf:.2f}); "
        f"turns: {stops}; {model} on {device}"
    )


def context_summary(window: Mapping[str, int]) -> str:
    """How full the context window was, or is expected to be; `window` as in the JSON record."""
    limited = window["soft_limit"] < window["positions"]
    limit = f"{window['soft_limit']} (this voice's limit)" if limited else str(window["positions"])
    text = f"context: up to {window['peak']} of {limit} positions"
    dropped = window["dropped_turns"]
    return f"{text}; {format_count(dropped, 'turn')} dropped from the context" if dropped else text


def contention_hint(job: SynthesisJob, synth: Synthesizer) -> str:
    """A hint if threads had to share the processor with other programs, else empty."""
    import torch

    # neither says anything about other programs: compiling takes time, and passive threads wait by sleeping
    waiting = job.speech.compile or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    if waiting or synth.device.type != "cpu" or torch.get_num_threads() == 1 or not synth.engine.contention.detected:
        return ""
    return "other programs kept the processor busy; one thread is faster then: OMP_NUM_THREADS=1 csm ..."
