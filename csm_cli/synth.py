"""From conversations to utterances: context is encoded, turns are spoken in order, many conversations at a time."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csm_cli.audio import Audio, read_audio
from csm_cli.checkpoint import Checkpoint
from csm_cli.codec import Codec
from csm_cli.dialogue import Dialogue, Given, Window
from csm_cli.engine import Engine, Frame, Request, Sampling, decode
from csm_cli.errors import CsmError, GenerationFailed
from csm_cli.model import CsmModel
from csm_cli.prompt import Prompter
from csm_cli.takes import CHUNK_SECONDS, STREAMED_SECONDS, Take, Tape, best
from csm_cli.types import Care, Conversation, Options, Recording, Turn
from csm_cli.voices import kept_codes

log = logging.getLogger(__name__)

_BROKEN = "the model produced numbers that are not finite; try --dtype float32 or bfloat16"
RECORDINGS_KEPT = 256  # so that a long batch, each line with its own context, does not grow


@dataclass(frozen=True)
class Utterance:
    """One turn as it came out.

    codes: int64 [T, K]; stop: "eos" (the model ended it), "cap" (cut at the longest duration), "silence" or "repeat"
    (fell silent, or stuck to one sound, and was ended there), "empty" (it said nothing) or "recorded" (the script
    brought the audio). fault: what is wrong with it, "" for nothing. takes: all there were, this is the best of them.
    seconds: time from the first prefill to the last sample.
    """

    conversation: Conversation
    turn: Turn
    codes: Tensor
    audio: Audio
    stop: str
    seed: int = 0
    seconds: float = 0.0
    fault: str = ""
    takes: tuple[Take, ...] = ()


@dataclass(frozen=True)
class Tick:
    """A frame of a turn was decoded: `frames` so far, of at most `limit`."""

    conversation: Conversation
    turn: Turn
    frames: int
    limit: int


@dataclass(frozen=True, eq=False)
class Sound:
    """More of a turn's sound, float32 [N], where it was asked for as it is decoded; its `Utterance` follows."""

    conversation: Conversation
    turn: Turn
    samples: NDArray[np.float32]


@dataclass(frozen=True)
class Failure:
    """A conversation that cannot go on: its turns so far came out, the rest will not."""

    conversation: Conversation
    error: CsmError


Event = Tick | Sound | Utterance | Failure


class Synthesizer:
    """A checkpoint made ready to speak on one device, `slots` conversations at a time."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, slots: int = 1) -> None:
        self.checkpoint = checkpoint
        self.prompter = Prompter(checkpoint.tokenizer_file, checkpoint.config)
        self.engine = Engine(CsmModel(checkpoint.config, checkpoint.weights, device, dtype), slots)
        self.device = device
        self._heard: dict[Recording, Tensor] = {}

    @cached_property
    def codec(self) -> Codec:
        checkpoint, codebooks = self.checkpoint, self.checkpoint.config.codebooks
        return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, self.device, codebooks)

    def speak(self, conversations: Iterable[Conversation], flags: Options, care: Care | None = None) -> Iterator[Event]:
        """Speaks every turn of every conversation; utterances of one conversation come in order.

        Options count in this order: the turn's, `flags`, the script's defaults, the checkpoint's. Without `care`, takes
        are as the model makes them. With it, a conversation ends with the first turn that has no good take.
        """
        return _Session(self, flags, care or Care()).run(conversations)

    def listen(self, recording: Recording) -> Audio:
        """A recording at the codec's rate.

        Raises:
            AudioUnreadable: missing, not audio, or nothing in it.
        """
        return read_audio(recording.path, self.codec.rate, recording.start, recording.end)

    def codes(self, recording: Recording) -> Tensor:
        """A recording's codes [T, K], each file encoded once; the last hundreds are kept. Raises as `listen` does."""
        codes = self._heard.pop(recording, None)
        if codes is None:
            codes = self._voice_codes(recording) if recording.voice else self._encoded(recording)
        self._heard[recording] = codes
        if len(self._heard) > RECORDINGS_KEPT:
            del self._heard[next(iter(self._heard))]
        return codes

    def _voice_codes(self, recording: Recording) -> Tensor:
        def encode() -> NDArray[np.int64]:
            log.warning("voice %s: encoded for this codec, once", recording.voice)
            codes: NDArray[np.int64] = self._encoded(recording).numpy()
            return codes

        return torch.from_numpy(kept_codes(recording.path, self.codec.mark, encode))

    def _encoded(self, recording: Recording) -> Tensor:
        samples = torch.from_numpy(self.listen(recording).samples)
        return self.codec.encode(samples.to(self.device)).cpu()

    def hear(self, turn: Turn) -> Tensor:
        """The prompt rows [S, K + 1] of a turn that has a recording."""
        assert turn.recording is not None
        return self.prompter.turn_rows(turn.speaker, turn.text, self.codes(turn.recording))


class _Session:
    """One call of `speak`: the takes under way, and what is to be told before the next frame."""

    def __init__(self, synth: Synthesizer, flags: Options, care: Care) -> None:
        self._synth, self._flags, self._care = synth, flags, care
        self._window = Window(synth.engine.positions, synth.codec.frame_rate)
        self._active: dict[Request, tuple[Dialogue, Tape]] = {}
        self._ready: deque[Dialogue] = deque()
        self._events: deque[Event] = deque()

    def run(self, conversations: Iterable[Conversation]) -> Iterator[Event]:
        waiting = map(self._open, conversations)
        for frame in decode(self._synth.engine, lambda: self._next(waiting)):
            self._advance(frame)
            while self._events:
                yield self._events.popleft()
        yield from self._events

    def _open(self, conversation: Conversation) -> Dialogue:
        given = Given(self._flags.over(conversation.defaults), self._synth.checkpoint.defaults)
        return Dialogue(conversation, given, self._window)

    def _next(self, waiting: Iterator[Dialogue]) -> Request | None:
        """The next take of a dialogue that has just ended one, else the first of a new dialogue."""
        while dialogue := self._ready.popleft() if self._ready else next(waiting, None):
            try:
                request = self._request(dialogue)
            except CsmError as error:
                self._events.append(Failure(dialogue.conversation, error))
                continue
            if request:
                chunk = STREAMED_SECONDS if self._care.stream else CHUNK_SECONDS
                self._active[request] = dialogue, Tape(self._synth.codec, dialogue.brief(self._care.trim), chunk)
                return request
        return None

    def _request(self, dialogue: Dialogue) -> Request | None:
        """The request for the next turn without a recording; turns that have one pass on the way."""
        synth = self._synth
        dialogue.begin(synth.hear)
        while turn := dialogue.turn:
            if not turn.recording:
                return dialogue.request(synth.prompter.turn_rows(turn.speaker, turn.text, None))
            audio, codes = synth.listen(turn.recording), synth.codes(turn.recording)
            if self._care.stream:
                self._events.append(Sound(dialogue.conversation, turn, audio.samples))
            self._events.append(Utterance(dialogue.conversation, turn, codes, audio, "recorded"))
            dialogue.hear(synth.hear(turn))
        return None

    def _advance(self, frame: Frame) -> None:
        dialogue, tape = self._active[frame.request]
        stop = frame.stop
        if stop == "broken":
            del self._active[frame.request]
            self._events.append(Failure(dialogue.conversation, GenerationFailed(_BROKEN)))
            return
        if stop != "eos":
            early = tape.add(frame.codes)
            stop = stop or early
            self._stream(dialogue, tape)
        if not stop:
            limit = frame.request.sampling.max_frames
            self._events.append(Tick(dialogue.conversation, _turn(dialogue), len(tape), limit))
            return
        self._synth.engine.cancel(frame.request)
        del self._active[frame.request]
        dialogue.takes.append(tape.end(stop))
        self._stream(dialogue, tape)
        if self._settled(dialogue, frame.request.sampling):
            self._settle(dialogue)
        else:
            self._ready.append(dialogue)

    def _stream(self, dialogue: Dialogue, tape: Tape) -> None:
        """Tells of what was decoded since the last time, where somebody wants to hear it at once."""
        if self._care.stream and len(samples := tape.fresh()):
            self._events.append(Sound(dialogue.conversation, _turn(dialogue), samples))

    def _settled(self, dialogue: Dialogue, sampling: Sampling) -> bool:
        """Whether no other take is worth it: this one is good, all were tried, or all would be the same."""
        greedy = not (sampling.temperature or sampling.depth_temperature)
        return not dialogue.takes[-1].fault or greedy or len(dialogue.takes) > self._care.retries

    def _settle(self, dialogue: Dialogue) -> None:
        """Tells the turn in hand by its best take; the conversation goes on unless that is too bad to."""
        turn, take = _turn(dialogue), best(dialogue.takes)
        self._events.append(
            Utterance(
                conversation=dialogue.conversation,
                turn=turn,
                codes=take.codes,
                audio=Audio(take.samples, self._synth.codec.rate),
                stop=take.stop,
                seed=take.seed,
                seconds=time.perf_counter() - dialogue.started,
                fault=take.fault,
                takes=tuple(dialogue.takes),
            )
        )
        if not (take.fault and self._care.trim):
            dialogue.hear(self._synth.prompter.turn_rows(turn.speaker, turn.text, take.codes))
            self._ready.append(dialogue)


def _turn(dialogue: Dialogue) -> Turn:
    turn = dialogue.turn
    assert turn is not None
    return turn
