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

from csm_cli.audio.io import Audio, read_audio
from csm_cli.checkpoint import Checkpoint
from csm_cli.engine import Engine, Frame, Request, SamplingParams, decode_loop
from csm_cli.errors import CsmError, GenerationFailed
from csm_cli.generation.concatenate import SpokenChunk, concatenate
from csm_cli.generation.context_window import WindowLimits
from csm_cli.generation.conversation import ConversationState, ResolvedDefaults, TurnState
from csm_cli.generation.events import AudioChunk, ConversationFailed, Event, FrameProgress, Utterance
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.generation.take import Take, TakeBuilder, worst_stop
from csm_cli.generation.verification import Recognizer, apply_transcription
from csm_cli.models.csm import CsmModel
from csm_cli.models.mimi import ChunkDecoder, Codec
from csm_cli.types import Conversation, GenerationOptions, Recording, RetryPolicy, Turn
from csm_cli.voices import cached_codes

log = logging.getLogger(__name__)

_BROKEN = "the model produced numbers that are not finite; try --dtype float32 or bfloat16"
RECORDINGS_KEPT = 256  # so that a long batch, each line with its own context, does not grow


class Synthesizer:
    """A checkpoint made ready to speak on one device, `slots` conversations at a time; `compile` as for the engine."""

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, slots: int = 1, compile: bool = False
    ) -> None:
        self.checkpoint = checkpoint
        self.prompt_builder = PromptBuilder(checkpoint.tokenizer_file, checkpoint.config)
        self.engine = Engine(CsmModel(checkpoint.config, checkpoint.weights, device, dtype), slots, compile)
        self.device = device
        self._heard: dict[Recording, Tensor] = {}

    @cached_property
    def codec(self) -> Codec:
        checkpoint, codebooks = self.checkpoint, self.checkpoint.config.codebooks
        return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, self.device, codebooks)

    def speak(
        self,
        conversations: Iterable[Conversation],
        flags: GenerationOptions,
        retry_policy: RetryPolicy | None = None,
        recognizer: Recognizer | None = None,
    ) -> Iterator[Event]:
        """Speaks every turn of every conversation; utterances of one conversation come in order.

        Option precedence: `flags`, the turn's, the script's defaults, the checkpoint's. Without `retry_policy`, takes
        are as the model makes them. With it, a conversation ends with the first turn that has no good take.
        recognizer: listens to every take, which is bad if it says other words than its text.
        """
        return _Session(self, flags, retry_policy or RetryPolicy(), recognizer).run(conversations)

    def read_recording(self, recording: Recording) -> Audio:
        """A recording at the codec's rate.

        Raises:
            AudioUnreadable: missing, not audio, or nothing in it.
        """
        return read_audio(recording.path, self.codec.rate, recording.start, recording.end)

    def recording_codes(self, recording: Recording) -> Tensor:
        """A recording's codes [T, K], each file encoded once; the last hundreds are kept. Raises as `listen` does."""
        if recording.codes_path:
            return torch.from_numpy(np.load(recording.codes_path, allow_pickle=False).astype(np.int64))
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

        return torch.from_numpy(cached_codes(recording.path, self.codec.mark, encode))

    def _encoded(self, recording: Recording) -> Tensor:
        samples = torch.from_numpy(self.read_recording(recording).samples)
        return self.codec.encode(samples.to(self.device)).cpu()

    def parts(self, turn: Turn) -> Iterator[tuple[str, Tensor]]:
        """A recorded turn's parts, each with its prompt rows [S, K + 1]."""
        assert turn.recording is not None
        codes = self.recording_codes(turn.recording)
        first = 0
        for text, frames in turn.recording.chunks or ((turn.text, len(codes)),):
            yield text, self.prompt_builder.turn_tokens(turn.speaker, text, codes[first : first + frames])
            first += frames

    def hear(self, turn: Turn) -> Tensor:
        """The prompt rows [S, K + 1] of a turn that has a recording."""
        assert turn.recording is not None
        return self.prompt_builder.turn_tokens(turn.speaker, turn.text, self.recording_codes(turn.recording))


@dataclass(frozen=True)
class _Ended:
    """A take whose last frame has come, and why it was the last."""

    dialogue: ConversationState
    tape: TakeBuilder
    stop: str
    sampling: SamplingParams


class _Session:
    """One call of `speak`: the takes under way, and what is to be told before the next frame."""

    def __init__(
        self, synth: Synthesizer, flags: GenerationOptions, retry_policy: RetryPolicy, recognizer: Recognizer | None
    ) -> None:
        self._synth, self._flags, self._care, self._recognizer = synth, flags, retry_policy, recognizer
        self._window = WindowLimits(synth.engine.positions, synth.codec.frame_rate, synth.checkpoint.soft_limit)
        self._deck = ChunkDecoder(synth.codec, rows=len(synth.engine.slots))
        self._active: dict[Request, tuple[ConversationState, TakeBuilder]] = {}
        self._ended: list[_Ended] = []
        self._ready: deque[ConversationState] = deque()
        self._events: deque[Event] = deque()

    def run(self, conversations: Iterable[Conversation]) -> Iterator[Event]:
        waiting = map(self._open, conversations)
        for frames in decode_loop(self._synth.engine, lambda: self._next(waiting), self._deck.start):
            for frame in frames:
                if frame.request in self._active:
                    self._advance(frame)
            self._judge_ended()
            while self._events:
                yield self._events.popleft()
        yield from self._events

    def _open(self, conversation: Conversation) -> ConversationState:
        given = ResolvedDefaults(self._flags, self._synth.checkpoint.defaults, self._care)
        return ConversationState(conversation, given, self._window)

    def _next(self, waiting: Iterator[ConversationState]) -> Request | None:
        """The next take of a dialogue that has just ended one, else the first of a new dialogue."""
        while dialogue := self._ready.popleft() if self._ready else next(waiting, None):
            try:
                request = self._request(dialogue)
            except CsmError as error:
                self._events.append(ConversationFailed(dialogue.conversation, error))
                continue
            if request:
                self._active[request] = dialogue, TakeBuilder(self._deck, dialogue.brief())
                return request
        return None

    def _request(self, dialogue: ConversationState) -> Request | None:
        """The request for the next turn without a recording; turns that have one pass on the way."""
        synth = self._synth
        dialogue.begin(synth.hear)
        while hand := dialogue.hand:
            turn = hand.turn
            if not turn.recording:
                return dialogue.request(synth.prompt_builder.turn_tokens(turn.speaker, dialogue.words, None))
            audio, codes = synth.read_recording(turn.recording), synth.recording_codes(turn.recording)
            if self._care.stream:
                self._events.append(AudioChunk(dialogue.conversation, turn, audio.samples))
            self._events.append(Utterance(dialogue.conversation, turn, codes, audio, "recorded"))
            dialogue.skip(synth.parts(turn))
        return None

    def _advance(self, frame: Frame) -> None:
        dialogue, tape = self._active[frame.request]
        stop = frame.stop
        if stop == "broken":
            del self._active[frame.request]
            self._events.append(ConversationFailed(dialogue.conversation, GenerationFailed(_BROKEN)))
            return
        if stop != "eos":
            early = tape.add_frame(frame.codes)
            stop = stop or early
            self._stream(dialogue, tape)
        hand = _in_hand(dialogue)
        if not stop:
            before, limit = sum(len(said.take.codes) for said in hand.said), frame.request.sampling.max_frames
            self._events.append(FrameProgress(dialogue.conversation, hand.turn, before + len(tape), before + limit))
            return
        self._synth.engine.cancel(frame.request)
        del self._active[frame.request]
        hand.positions = max(hand.positions, len(frame.request.rows) + len(tape))
        tape.finish_frames()
        self._ended.append(_Ended(dialogue, tape, stop, frame.request.sampling))

    def _judge_ended(self) -> None:
        if self._ended:
            self._deck.start()  # all that is left of them, before any is waited for
        for ended in self._ended:
            self._judge(ended)
        self._ended.clear()

    def _judge(self, ended: _Ended) -> None:
        """A take has ended: it is heard to its end, and its dialogue goes on, with another one where it is no good."""
        dialogue, tape = ended.dialogue, ended.tape
        hand = _in_hand(dialogue)
        hand.takes.append(self._verified(tape.finish(ended.stop), dialogue))
        self._stream(dialogue, tape)
        if self._settled(hand, ended.sampling):
            self._settle(dialogue)
        else:
            self._ready.append(dialogue)

    def _stream(self, dialogue: ConversationState, tape: TakeBuilder) -> None:
        """Tells of what was decoded since the last time, where somebody wants to hear it at once."""
        if self._care.stream and len(samples := tape.new_samples()):
            self._events.append(AudioChunk(dialogue.conversation, _in_hand(dialogue).turn, samples))

    def _verified(self, take: Take, dialogue: ConversationState) -> Take:
        """`take` as the recognizer hears it, if there is one and nothing else is wrong with it already."""
        if self._recognizer is None or take.fault:
            return take
        heard = self._recognizer.transcribe(Audio(take.samples, self._synth.codec.rate))
        return apply_transcription(take, heard, (_in_hand(dialogue).part or "", dialogue.words))

    def _settled(self, hand: TurnState, sampling: SamplingParams) -> bool:
        """Whether no other take is worth it: enough are made and one is good, all were tried, or all would be equal."""
        greedy = not (sampling.temperature or sampling.depth_temperature)
        count, retry_policy = len(hand.takes), self._care
        good = any(not take.fault for take in hand.takes)
        return greedy or count >= (retry_policy.takes if good else retry_policy.takes + retry_policy.max_retries)

    def _settle(self, dialogue: ConversationState) -> None:
        """The part in hand has its best take; the conversation goes on unless that is too bad to."""
        hand, take = _in_hand(dialogue), dialogue.best()
        said = SpokenChunk(hand.part or "", take)
        bad = bool(take.fault) and self._care.trim
        rows = self._synth.prompt_builder.turn_tokens(hand.turn.speaker, dialogue.words, take.codes)
        dialogue.keep(said, rows)
        if bad or hand.part is None:
            self._events.append(self._utterance(dialogue.conversation, hand))
            dialogue.close()
        if not bad:
            self._ready.append(dialogue)

    def _utterance(self, conversation: Conversation, hand: TurnState) -> Utterance:
        kept, rate = [said.take for said in hand.said], self._synth.codec.rate
        samples, pieces = concatenate(hand.said, rate)
        return Utterance(
            conversation=conversation,
            turn=hand.turn,
            codes=torch.cat([take.codes for take in kept]),
            audio=Audio(samples, rate),
            stop=worst_stop(take.stop for take in kept),
            seed=kept[0].seed if len(hand.parts) == 1 else hand.tried[0].seed,
            seconds=time.perf_counter() - hand.started,
            fault=kept[-1].fault,
            takes=tuple(hand.tried),
            segments=pieces,
            peak_positions=hand.positions,
            evicted=tuple(hand.evicted),
            warnings=tuple(hand.warnings),
        )


def _in_hand(dialogue: ConversationState) -> TurnState:
    assert dialogue.hand is not None
    return dialogue.hand
