"""From conversations to utterances: context is encoded, turns are spoken in order, many conversations at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from csm_cli.audio import Audio, read_audio
from csm_cli.checkpoint import Checkpoint
from csm_cli.codec import Codec
from csm_cli.dialogue import Dialogue, Window
from csm_cli.engine import Engine, Frame, Request, decode
from csm_cli.errors import CsmError
from csm_cli.model import CsmModel
from csm_cli.prompt import Prompter
from csm_cli.types import Conversation, Options, Recording, Turn


RECORDINGS_KEPT = 256  # so that a long batch, each line with its own context, does not grow


@dataclass(frozen=True)
class Utterance:
    """One turn as it came out.

    codes: int64 [T, K]; stop: "eos" (the model ended it), "cap" (cut at the longest duration), "empty" (it said
    nothing) or "recorded" (the script brought the audio). seconds: time from its prefill to its last sample.
    """

    conversation: Conversation
    turn: Turn
    codes: Tensor
    audio: Audio
    stop: str
    seed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Tick:
    """A frame of a turn was decoded: `frames` so far, of at most `limit`."""

    conversation: Conversation
    turn: Turn
    frames: int
    limit: int


@dataclass(frozen=True)
class Failure:
    """A conversation that cannot go on: its turns so far came out, the rest will not."""

    conversation: Conversation
    error: CsmError


Event = Tick | Utterance | Failure


class Synthesizer:
    """A checkpoint made ready to speak on one device, `slots` conversations at a time."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, slots: int = 1) -> None:
        self.checkpoint = checkpoint
        self.prompter = Prompter(checkpoint.tokenizer_file, checkpoint.config)
        self.engine = Engine(CsmModel(checkpoint.config, checkpoint.weights, device, dtype), slots)
        self.device = device
        self._heard: dict[Recording, tuple[Audio, Tensor]] = {}

    @cached_property
    def codec(self) -> Codec:
        checkpoint, codebooks = self.checkpoint, self.checkpoint.config.codebooks
        return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, self.device, codebooks)

    def speak(self, conversations: Iterable[Conversation], flags: Options) -> Iterator[Event]:
        """Speaks every turn of every conversation; utterances of one conversation come in order.

        Options count in this order: the turn's, `flags`, the script's defaults, the checkpoint's.
        """
        return _Session(self, flags).run(conversations)

    def listen(self, recording: Recording) -> tuple[Audio, Tensor]:
        """A recording's audio and codes [T, K], each file encoded once (the last few hundred are kept).

        Raises:
            AudioUnreadable: missing, not audio, or nothing in it.
        """
        if recording not in self._heard:
            audio = read_audio(recording.path, self.codec.rate, recording.start, recording.end)
            codes = self.codec.encode(torch.from_numpy(audio.samples).to(self.device)).cpu()
            if len(self._heard) >= RECORDINGS_KEPT:
                del self._heard[next(iter(self._heard))]
            self._heard[recording] = audio, codes
        return self._heard[recording]

    def hear(self, turn: Turn) -> Tensor:
        """The prompt rows [S, K + 1] of a turn that has a recording."""
        assert turn.recording is not None
        return self.prompter.turn_rows(turn.speaker, turn.text, self.listen(turn.recording)[1])


class _Session:
    """One call of `speak`: the dialogues under way, and what is to be told before the next frame."""

    def __init__(self, synth: Synthesizer, flags: Options) -> None:
        self._synth, self._flags = synth, flags
        self._window = Window(synth.engine.positions, synth.codec.frame_rate)
        self._active: dict[Request, Dialogue] = {}
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
        base = self._flags.over(conversation.defaults).over(self._synth.checkpoint.defaults)
        return Dialogue(conversation, base, self._window)

    def _next(self, waiting: Iterator[Dialogue]) -> Request | None:
        """The next turn of a dialogue that has just ended one, else the first of a new dialogue."""
        while dialogue := self._ready.popleft() if self._ready else next(waiting, None):
            try:
                request = self._request(dialogue)
            except CsmError as error:
                self._events.append(Failure(dialogue.conversation, error))
                continue
            if request:
                self._active[request] = dialogue
                return request
        return None

    def _request(self, dialogue: Dialogue) -> Request | None:
        """The request for the next turn without a recording; turns that have one pass on the way."""
        synth = self._synth
        dialogue.begin(synth.hear)
        while turn := dialogue.turn:
            if not turn.recording:
                return dialogue.request(synth.prompter.turn_rows(turn.speaker, turn.text, None))
            audio, codes = synth.listen(turn.recording)
            self._events.append(Utterance(dialogue.conversation, turn, codes, audio, "recorded"))
            dialogue.hear(synth.hear(turn))
        return None

    def _advance(self, frame: Frame) -> None:
        dialogue = self._active[frame.request]
        turn = dialogue.turn
        assert turn is not None
        frames = dialogue.collect(frame)
        if not frame.stop:
            limit = frame.request.sampling.max_frames
            self._events.append(Tick(dialogue.conversation, turn, frames, limit))
            return
        del self._active[frame.request]
        self._events.append(self._utterance(dialogue, turn, frame))
        dialogue.hear(self._synth.prompter.turn_rows(turn.speaker, turn.text, dialogue.codes))
        self._ready.append(dialogue)

    def _utterance(self, dialogue: Dialogue, turn: Turn, frame: Frame) -> Utterance:
        codec, codes = self._synth.codec, dialogue.codes
        samples = codec.decode(codes.to(self._synth.device)).cpu().numpy() if len(codes) else np.zeros(0, np.float32)
        return Utterance(
            conversation=dialogue.conversation,
            turn=turn,
            codes=codes,
            audio=Audio(samples, codec.rate),
            stop=frame.stop or "" if len(codes) else "empty",
            seed=frame.request.sampling.seed,
            seconds=time.perf_counter() - dialogue.started,
        )
