"""From conversations to tracks: what `say`, `converse` and `batch` have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from csm_cli.cli.console import log_line, set_up
from csm_cli.cli.options import OutputOptions, SynthesisFlags, is_int8
from csm_cli.errors import GenerationFailed
from csm_cli.generation.events import AudioChunk, ConversationFailed, FrameProgress, Utterance
from csm_cli.settings import options, read_settings
from csm_cli.types import Conversation, GenerationOptions, RetryPolicy, Turn

if TYPE_CHECKING:
    import torch

    from csm_cli.audio.mix import Track
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.cli.progress import ProgressMeter
    from csm_cli.generation.synthesizer import Synthesizer
    from csm_cli.generation.verification import Recognizer


@dataclass(frozen=True, eq=False)
class FinishedConversation:
    """A conversation whose turns have all come out, in order."""

    conversation: Conversation
    utterances: tuple[Utterance, ...]
    track: Track


@dataclass(frozen=True)
class SynthesisJob:
    """What is to be spoken, `slots` conversations at a time, by whom, and how it is told."""

    conversations: Sequence[Conversation]
    flags: GenerationOptions
    speech: SynthesisFlags
    output_options: OutputOptions
    slots: int = 1
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    recognizer: Recognizer | None = None


def make_job(
    conversations: Iterable[Conversation], speech: SynthesisFlags, output_options: OutputOptions, slots: int = 1
) -> SynthesisJob:
    """A job; options from the environment and from configuration files come below each script's own.

    Raises:
        UsageError: an impossible value, in a flag, in the environment or in a configuration file, or a recognizer that
            is not installed.
    """
    speech.check_names()
    talks = list(with_settings(conversations))
    return SynthesisJob(talks, speech.flags(), speech, output_options, slots, speech.retry_policy, speech.recognizer())


def with_settings(conversations: Iterable[Conversation]) -> Iterator[Conversation]:
    """Conversations with the options of the environment and of configuration files below each script's own.

    Raises:
        ConfigInvalid, UsageError: an unusable file, or an impossible value.
    """
    base = options(read_settings())
    return (replace(each, defaults=each.defaults.over(base)) for each in conversations)


def find_checkpoint(job: SynthesisJob) -> Checkpoint:
    """Opens the checkpoint; its weights are not read yet."""
    set_up(job.output_options)
    if not job.output_options.quiet:
        log_line(f"loading {job.speech.model or 'the bundled voice'} ...")
    from csm_cli.checkpoint import open_checkpoint

    speech = job.speech
    pick_device_and_dtype(speech)  # before gigabytes are fetched
    return open_checkpoint(speech.model, speech.revision, speech.adapter, offline=speech.offline)


def pick_device_and_dtype(speech: SynthesisFlags) -> tuple[torch.device, torch.dtype]:
    """Where and in what the model computes.

    Raises:
        UsageError: no such name. DeviceMissing: not on this machine.
    """
    from csm_cli.device import pick_device, pick_dtype

    device = pick_device(speech.device)
    return device, pick_dtype(speech.dtype, device)


def open_synthesizer(job: SynthesisJob, checkpoint: Checkpoint | None = None) -> Synthesizer:
    """Loads the model. This is where torch is imported."""
    rounded = is_int8(job.speech.quantize)
    found = checkpoint or find_checkpoint(job)
    from csm_cli.generation.synthesizer import Synthesizer

    synth = Synthesizer(found, *pick_device_and_dtype(job.speech), job.slots, job.speech.compile)
    if rounded:
        from csm_cli.models.csm.quantization import quantize

        quantize(synth.engine.model)
    return synth


def speak(
    synth: Synthesizer, job: SynthesisJob, meter: ProgressMeter, talks: Iterable[Conversation] | None = None
) -> Iterator[AudioChunk | Utterance | FinishedConversation | ConversationFailed]:
    """Yield utterances, and each conversation when its last turn is finished or when it failed.

    talks: replaces the job's own conversations; read lazily as slots become free. With a streaming retry policy, each
    utterance follows its audio chunks. `meter` sees every event. A failed conversation yields nothing more.
    """
    said: dict[int, list[Utterance]] = {}
    for event in synth.speak(talks or job.conversations, job.flags, job.retry_policy, job.recognizer):
        meter.see(event)
        if isinstance(event, AudioChunk):
            yield event
        if isinstance(event, FrameProgress | AudioChunk):
            continue
        talk = event.conversation
        utterances = said.setdefault(id(talk), [])
        if not _any_bad(utterances):
            yield _outcome(event, len(utterances) + 1)
        if isinstance(event, Utterance):
            utterances.append(event)
        given_up = isinstance(event, ConversationFailed) or (job.retry_policy.trim and _any_bad(utterances))
        if given_up or len(utterances) == len(talk.turns):
            del said[id(talk)]  # another conversation may get its place in memory
            if not given_up and not _any_bad(utterances):
                yield _spoken(talk, utterances)


def _outcome(event: Utterance | ConversationFailed, number: int) -> Utterance | ConversationFailed:
    """A turn without a good take is a failure."""
    if isinstance(event, Utterance) and event.fault:
        return ConversationFailed(event.conversation, _bad(event, number))
    return event


def _any_bad(utterances: Sequence[Utterance]) -> bool:
    return any(each.fault for each in utterances)


def speaker_label(turn: Turn) -> str:
    """Whose voice a turn is in, as stems and subtitles name it."""
    return turn.name or str(turn.speaker)


def turn_title(turn: Turn, number: int) -> str:
    """A turn as a message names it."""
    text = " ".join(turn.text.split())
    return f'turn {number} ({turn.name or turn.speaker}: "{text[:40]}{"..." if len(text) > 40 else ""}")'


def _bad(utterance: Utterance, number: int) -> GenerationFailed:
    tries = ", ".join(f"{take.fault} with seed {take.seed}" for take in utterance.takes if take.fault)
    kept = "" if utterance.stop == "empty" else ", or --no-trim to have it as it is"
    return GenerationFailed(f"{turn_title(utterance.turn, number)} {tries}; try another --seed, more --retries{kept}")


def _spoken(conversation: Conversation, utterances: Sequence[Utterance]) -> FinishedConversation:
    from csm_cli.audio.mix import TrackClip, mix

    parts = [
        TrackClip(each.audio.samples, each.turn.gap, each.turn.gain, speaker_label(each.turn)) for each in utterances
    ]
    track = mix(parts, utterances[0].audio.rate, conversation.tail, conversation.loudness)
    return FinishedConversation(conversation, tuple(utterances), track)
