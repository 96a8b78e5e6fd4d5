"""From conversations to tracks: what `say`, `converse` and `batch` have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from csm_cli.cli.console import note, set_up
from csm_cli.cli.options import Speech, Telling, is_int8
from csm_cli.errors import GenerationFailed
from csm_cli.settings import options, read_settings
from csm_cli.types import Care, Conversation, Options, Turn

if TYPE_CHECKING:
    import torch

    from csm_cli.checkpoint import Checkpoint
    from csm_cli.cli.progress import Meter
    from csm_cli.synth import Failure, Sound, Synthesizer, Utterance
    from csm_cli.track import Track


@dataclass(frozen=True, eq=False)
class Spoken:
    """A conversation whose turns have all come out, in order."""

    conversation: Conversation
    utterances: tuple[Utterance, ...]
    track: Track


@dataclass(frozen=True)
class Job:
    """What is to be spoken, `slots` conversations at a time, by whom, and how it is told.

    streamed: its sound is wanted as it is decoded.
    """

    conversations: Sequence[Conversation]
    flags: Options
    speech: Speech
    telling: Telling
    slots: int = 1
    streamed: bool = False


def plan(conversations: Sequence[Conversation], speech: Speech, telling: Telling, slots: int = 1) -> Job:
    """A job; options from the environment and from configuration files come below each script's own.

    Raises:
        UsageError: an impossible value, in a flag, in the environment or in a configuration file.
    """
    flags, over, base = speech.flags(), speech.overrides(), options(read_settings())
    if not telling.quiet:
        tell_unheard(conversations, flags, over)
    based = [_between(each, over, base) for each in conversations]
    return Job(based, flags, speech, telling, slots)


def _between(talk: Conversation, over: Options, base: Options) -> Conversation:
    """The conversation with `over` over its turns' options, and its defaults over `base`."""
    turns = talk.turns
    if over != Options():
        turns = tuple(replace(turn, options=over.over(turn.options)) for turn in turns)
    return replace(talk, turns=turns, defaults=talk.defaults.over(base))


def tell_unheard(conversations: Sequence[Conversation], flags: Options, over: Options) -> None:
    """Says once which flags do not count for turns that have a value of their own."""
    turns = [turn for each in conversations for turn in each.turns]
    for name, given in asdict(flags).items():
        if given is None or getattr(over, name) is not None:
            continue
        count = sum(getattr(turn.options, name) not in (None, given) for turn in turns)
        if count:
            flag = f"--{name.replace('_', '-')}"
            whose = "turn that has its" if count == 1 else "turns that have their"
            note(f"{flag} does not count for {count} {whose} own {name}; --override {name}=... does")


def find_checkpoint(job: Job) -> Checkpoint:
    """Opens the checkpoint; its weights are not read yet."""
    set_up(job.telling)
    if not job.telling.quiet:
        note(f"loading {job.speech.model or 'the bundled voice'} ...")
    from csm_cli.checkpoint import open_checkpoint

    _place(job.speech)  # before gigabytes are fetched
    return open_checkpoint(job.speech.model, job.speech.revision, job.speech.offline)


def _place(speech: Speech) -> tuple[torch.device, torch.dtype]:
    """Where and in what the model computes.

    Raises:
        UsageError: no such name. DeviceMissing: not on this machine.
    """
    from csm_cli.device import pick_device, pick_dtype

    device = pick_device(speech.device)
    return device, pick_dtype(speech.dtype, device)


def open_synthesizer(job: Job, checkpoint: Checkpoint | None = None) -> Synthesizer:
    """Loads the model. This is where torch is imported."""
    rounded = is_int8(job.speech.quantize)
    found = checkpoint or find_checkpoint(job)
    from csm_cli.synth import Synthesizer

    synth = Synthesizer(found, *_place(job.speech), job.slots)
    if rounded:
        from csm_cli.model.int8 import quantize

        quantize(synth.engine.model)
    return synth


def speak(synth: Synthesizer, job: Job, meter: Meter) -> Iterator[Sound | Utterance | Spoken | Failure]:
    """Utterances; each conversation when its last turn has come out, or what kept it from that.

    Before each utterance of a streamed job comes its sound, and no take is tried again.

    `meter` sees every event. After its Failure, nothing more is heard of a conversation.
    """
    from csm_cli.synth import Failure, Sound, Utterance

    care = Care(stream=True) if job.streamed else job.speech.care
    said: dict[int, list[Utterance]] = {id(each): [] for each in job.conversations}
    for event in synth.speak(job.conversations, job.flags, care):
        meter.see(event)
        if isinstance(event, Sound):
            yield event
        utterances = said.get(id(event.conversation))
        if utterances is None:
            continue
        if isinstance(event, Utterance):
            utterances.append(event)
            if event.fault:
                event = Failure(event.conversation, _bad(event, len(utterances)))
            else:
                yield event
        over = len(utterances) == len(event.conversation.turns)
        if isinstance(event, Failure) or over:
            del said[id(event.conversation)]
            yield event if isinstance(event, Failure) else _spoken(event.conversation, utterances)


def title(turn: Turn, number: int) -> str:
    """A turn as a message names it."""
    text = " ".join(turn.text.split())
    return f'turn {number} ({turn.name or turn.speaker}: "{text[:40]}{"..." if len(text) > 40 else ""}")'


def _bad(utterance: Utterance, number: int) -> GenerationFailed:
    tries = ", ".join(f"{take.fault} with seed {take.seed}" for take in utterance.takes)
    kept = "" if utterance.stop == "empty" else ", or --no-trim to have it as it is"
    return GenerationFailed(f"{title(utterance.turn, number)} {tries}; try another --seed, more --retries{kept}")


def _spoken(conversation: Conversation, utterances: Sequence[Utterance]) -> Spoken:
    from csm_cli.track import Part, place

    parts = [Part(each.audio.samples, each.turn.gap, each.turn.gain) for each in utterances]
    return Spoken(conversation, tuple(utterances), place(parts, utterances[0].audio.rate, conversation.tail))
