"""Synthesis of conversations: the job that `say`, `converse` and `batch` share, and what comes out of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from csm_cli.audio.formats import DEFAULT_ENCODING, AudioEncoding
from csm_cli.cli.console import configure_logging, log_line
from csm_cli.cli.options import OutputOptions, SynthesisFlags
from csm_cli.cli.progress import ProgressMeter
from csm_cli.cli.summary import faulty_turn_error
from csm_cli.cli.voice_notes import note_unknown_voices
from csm_cli.errors import CsmError, failure_of
from csm_cli.generation.events import (
    AudioChunk,
    ConversationFailed,
    Event,
    FrameProgress,
    Utterance,
    mix_utterances,
)
from csm_cli.types import Conversation, GenerationOptions, RetryPolicy

if TYPE_CHECKING:
    import torch

    from csm_cli.audio.mix import Track
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.generation.synthesizer import Synthesizer
    from csm_cli.generation.verification import Recognizer


@dataclass(frozen=True, eq=False)
class FinishedConversation:
    """A conversation whose turns are all finished: its utterances in order and their mix."""

    conversation: Conversation
    utterances: tuple[Utterance, ...]
    track: Track


@dataclass(frozen=True)
class SynthesisJob:
    """Conversations to synthesize, `slots` at a time, and all options for it. Ids are unique within a job.

    encoding: of the files of a batch. word_times: are written.
    """

    conversations: Sequence[Conversation]
    flags: GenerationOptions
    speech: SynthesisFlags
    output_options: OutputOptions
    slots: int = 1
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    recognizer: Recognizer | None = None
    encoding: AudioEncoding = DEFAULT_ENCODING
    word_times: bool = False


def make_job(
    conversations: Iterable[Conversation],
    speech: SynthesisFlags,
    output_options: OutputOptions,
    slots: int = 1,
    word_times: bool = False,
) -> SynthesisJob:
    """A job; options of the environment and of configuration files come below each script's own.

    Raises:
        UsageError: an impossible value of a flag, a variable or a file, or a recognizer that is not installed.
    """
    conversations = list(with_settings(conversations, speech))
    policy, flags = speech.retry_policy, speech.flags
    recognizer = speech.recognizer()
    return SynthesisJob(conversations, flags, speech, output_options, slots, policy, recognizer, word_times=word_times)


def with_settings(conversations: Iterable[Conversation], speech: SynthesisFlags) -> Iterator[Conversation]:
    """Conversations with the options of the environment and of configuration files below each script's own.

    Raises:
        UsageError: the rules of --normalize are not installed. ScriptInvalid: as `read_lexicon`.
    """
    base = speech.configuration.generation
    if speech.normalize:
        from csm_cli.generation.normalization import check_normalizer

        check_normalizer(speech.language)
    entries = speech.lexicon_entries
    from csm_cli.script.lexicon import merge_lexicons

    return (
        replace(
            each,
            defaults=each.defaults.over(base),
            language=speech.language,
            normalize=speech.normalize,
            lexicon=merge_lexicons(each.lexicon, entries) if entries else each.lexicon,
        )
        for each in conversations
    )


def find_checkpoint(job: SynthesisJob) -> Checkpoint:
    """Opens the checkpoint, which may download it; its weights are not read yet."""
    configure_logging(job.output_options)
    speech = job.speech
    if not job.output_options.quiet and speech.model and not os.path.exists(speech.model):  # noqa: PTH110, any string
        log_line(f"opening {speech.model} ...")
    from csm_cli.checkpoint import open_checkpoint

    pick_device_and_dtype(speech)  # before gigabytes are downloaded
    return open_checkpoint(speech.model, speech.revision, speech.adapter, offline=speech.offline)


def pick_device_and_dtype(speech: SynthesisFlags) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of the model.

    Raises:
        UsageError: unknown name. DeviceMissing: not on this machine.
    """
    from csm_cli.device import pick_device, pick_dtype

    device = pick_device(speech.device)
    return device, pick_dtype(speech.dtype, device)


def open_synthesizer(job: SynthesisJob, checkpoint: Checkpoint | None = None) -> Synthesizer:
    """Loads the model, and Whisper where takes are verified or words timed. Raises ModelError as both do."""
    checkpoint = checkpoint or find_checkpoint(job)
    if not job.output_options.quiet:
        log_line(f"loading {job.speech.model or 'the bundled voice'} ...")
    from csm_cli.generation.synthesizer import Synthesizer

    speech = job.speech
    if speech.verify or job.word_times:
        speech.whisper.load()  # what is wrong with it is said before anything is generated
    device, dtype = pick_device_and_dtype(speech)
    synth = Synthesizer(checkpoint, device, dtype, job.slots, speech.compile, int8=speech.quantize == "int8")
    _ = synth.codec  # loaded here, so that it does not count as time of synthesis
    return synth


def speak(
    synth: Synthesizer, job: SynthesisJob, meter: ProgressMeter, conversations: Iterable[Conversation] | None = None
) -> Iterator[AudioChunk | Utterance | FinishedConversation | ConversationFailed]:
    """Synthesizes conversations; yields as `collect_turns` does.

    conversations: replaces the job's own; read lazily as slots become free.
    """
    conversations = conversations or job.conversations
    if not job.output_options.quiet:
        conversations = note_unknown_voices(conversations, synth.checkpoint)
    events = synth.speak(conversations, job.flags, job.retry_policy, job.recognizer)
    return collect_turns(meter.watch(events))


def collect_turns(
    events: Iterable[Event],
) -> Iterator[AudioChunk | Utterance | FinishedConversation | ConversationFailed]:
    """Yields audio chunks and utterances, and each conversation when its last turn is finished or when it failed.

    A turn without a good take is a failure. A failed conversation yields nothing more.
    """
    unfinished: dict[str, list[Utterance]] = {}
    failed: set[str] = set()
    for event in events:
        conversation = event.conversation
        if isinstance(event, FrameProgress) or conversation.id in failed:
            continue
        if isinstance(event, AudioChunk):
            yield event
            continue
        utterances = unfinished.setdefault(conversation.id, [])
        if isinstance(event, ConversationFailed) or event.fault:
            failed.add(conversation.id)
            del unfinished[conversation.id]
            if isinstance(event, Utterance):
                event = ConversationFailed(conversation, faulty_turn_error(event), event.takes)
            yield event
            continue
        utterances.append(event)
        yield event
        if len(utterances) == len(conversation.turns):
            del unfinished[conversation.id]
            try:
                track = mix_utterances(utterances, conversation.tail, conversation.loudness)
            except BaseException as problem:
                yield ConversationFailed(conversation, failure_of(problem))
            else:
                yield FinishedConversation(conversation, tuple(utterances), track)


def with_word_times(finished: FinishedConversation, recognizer: Recognizer) -> FinishedConversation:
    """With the times of all words. Raises ModelError as the recognizer."""
    from csm_cli.generation.word_times import time_words

    return replace(finished, utterances=time_words(finished.utterances, recognizer))


def mix_events(events: Iterable[Event]) -> FinishedConversation:
    """The only conversation of some events. Raises the error of one that failed."""
    for event in collect_turns(events):
        if isinstance(event, ConversationFailed):
            raise event.error
        if isinstance(event, FinishedConversation):
            return event
    raise CsmError("the events end before the last turn; report it")
