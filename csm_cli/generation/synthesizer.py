"""Synthesis: encodes the context of conversations and generates their turns in order, many conversations at a time."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csm_cli.audio.clip_checks import clip_warnings, require_sound
from csm_cli.audio.codes import read_codes
from csm_cli.audio.io import Audio, read_audio
from csm_cli.checkpoint import Checkpoint
from csm_cli.engine import Engine, Frame, Request, SamplingParams, decode_loop
from csm_cli.engine.memory_estimate import memory_shortage
from csm_cli.errors import AudioUnreadable, GenerationFailed, UsageError, failure_of
from csm_cli.generation.context_window import WindowLimits
from csm_cli.generation.conversation import ConversationState, ResolvedDefaults, TurnState
from csm_cli.generation.events import AudioChunk, ConversationFailed, Event, FrameProgress, Utterance
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.generation.stream_joiner import StreamJoiner
from csm_cli.generation.take import TakeBuilder, concatenate, worst_stop
from csm_cli.generation.verification import Recognizer, apply_transcription
from csm_cli.models.csm.model import CsmModel
from csm_cli.models.mimi import ChunkDecoder, Codec
from csm_cli.types import Conversation, GenerationOptions, Recording, RetryPolicy, Turn
from csm_cli.voices.store import cached_codes

log = logging.getLogger(__name__)

MAX_CACHED_RECORDINGS = 256  # bounds memory in a long batch whose items have their own context


class Synthesizer:
    """A checkpoint loaded on one device; generates up to `slots` conversations at a time.

    One run at a time. What prepares conversations (`new_state`, `recording_codes`, `encode`) may be called on other
    threads meanwhile. compile: as for `Engine`. int8: with 8-bit weights.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        slots: int = 1,
        compile: bool = False,
        int8: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.prompt_builder = PromptBuilder(checkpoint.tokenizer_file, checkpoint.config)
        if shortage := memory_shortage(checkpoint.config, device, dtype):
            log.warning("%s", shortage)
        model = CsmModel(checkpoint.config, checkpoint.weights, device, dtype)
        if int8:
            model.quantize()
        self.engine = Engine(model, slots, compile)
        self.device = device
        self.running = False  # whether a run uses the engine
        self._codes: dict[Recording, Tensor] = {}  # most recently used last
        self._codes_lock = Lock()

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
        """Generates every turn of every conversation; the utterances of one conversation come in order.

        conversations: read as slots become free; their ids are unique. Options: `flags`, then the turn's, the script's
        defaults, the checkpoint's. retry_policy: without one, takes are neither trimmed nor judged; with `trim`, a
        conversation ends at its first turn without a usable take. recognizer: transcribes every take; one that does not
        match its text is unusable.

        Raises:
            UsageError: another run is not finished; its generator was neither exhausted nor closed.
        """
        defaults = ResolvedDefaults(flags, self.checkpoint.defaults, retry_policy or RetryPolicy())
        waiting = iter(conversations)

        def next_job() -> SynthesisItem | None:
            conversation = next(waiting, None)
            if conversation is None:
                return None
            return SynthesisItem(conversation, partial(self.new_state, conversation, defaults))

        return SynthesisRun(self, recognizer).events(next_job)

    def new_state(self, conversation: Conversation, defaults: ResolvedDefaults) -> ConversationState:
        """The state of a conversation, before its context is encoded."""
        limits = WindowLimits(self.engine.max_seq_len, self.codec.frame_rate, self.checkpoint.soft_limit)
        return ConversationState(conversation, defaults, limits)

    def encode(self, audio: Audio) -> Tensor:
        """The codes [T, K] of audio at the codec's rate."""
        return self.codec.encode(torch.from_numpy(audio.samples).to(self.device)).cpu()

    def read_recording(self, recording: Recording) -> Audio:
        """A recording at the codec's rate.

        Raises:
            AudioUnreadable: missing, not audio, or empty.
        """
        return read_audio(recording.path, self.codec.rate, recording.start, recording.end)

    def recording_codes(self, recording: Recording, is_turn: bool = False) -> Tensor:
        """A recording's codes [T, K]; the last hundreds are cached. is_turn: of the track, where it may be silent.

        Raises:
            AudioUnreadable: as `read_recording`; or it is silent.
        """
        sizes = self.codec.codebooks, self.checkpoint.config.vocab
        if recording.codes_path:
            try:
                return torch.from_numpy(read_codes(recording.codes_path, *sizes))
            except (OSError, ValueError) as problem:
                raise AudioUnreadable(f"{recording.codes_path}: {problem}; remove it and run again") from problem

        def encode() -> NDArray[np.int64]:
            if recording.voice:
                log.warning("encoding the voice %s for this codec, once", recording.voice)
            audio = self.read_recording(recording)
            if not is_turn:
                require_sound(audio, recording.path)
            for warning in clip_warnings(audio).values():
                log.warning("%s: %s", recording.path, warning)
            encoded: NDArray[np.int64] = self.encode(audio).numpy()
            return encoded

        with self._codes_lock:
            codes = self._codes.get(recording)
        if codes is None:
            cached = (
                encode() if not recording.voice else cached_codes(recording.path, self.codec.fingerprint, sizes, encode)
            )
            codes = torch.from_numpy(cached)
        with self._codes_lock:
            self._codes.pop(recording, None)
            self._codes[recording] = codes
            if len(self._codes) > MAX_CACHED_RECORDINGS:
                del self._codes[next(iter(self._codes))]
        return codes

    def recording_segments(self, turn: Turn) -> Iterator[tuple[str, Tensor]]:
        """The segments of a turn that has a recording: each one's text, and its prompt tokens [S, K + 1]."""
        assert turn.recording is not None
        codes = self.recording_codes(turn.recording, is_turn=True)
        first = 0
        for text, frames in turn.recording.chunks or ((turn.text, len(codes)),):
            yield text, self.prompt_builder.turn_tokens(turn.speaker, text, codes[first : first + frames])
            first += frames

    def recorded_turn_tokens(self, turn: Turn) -> Tensor:
        """The prompt tokens [S, K + 1] of a whole turn that has a recording."""
        assert turn.recording is not None
        return self.prompt_builder.turn_tokens(turn.speaker, turn.text, self.recording_codes(turn.recording))


@dataclass(frozen=True)
class _EndedTake:
    """A take that gets no more frames."""

    state: ConversationState
    builder: TakeBuilder
    stop: str
    sampling: SamplingParams


@dataclass(frozen=True, eq=False)
class SynthesisItem:
    """A conversation to synthesize. make_state: its state; called when a slot is free."""

    conversation: Conversation
    make_state: Callable[[], ConversationState]


class SynthesisRun:
    """One use of a synthesizer's engine: the takes in progress, and the events to yield before the next frame.

    Conversations join and leave between frames. isolate_stops: an exception that would end the program, such as an
    interrupt, fails the conversation in which it was raised, as all others do; for a thread that serves many.
    """

    def __init__(self, synth: Synthesizer, recognizer: Recognizer | None = None, isolate_stops: bool = False) -> None:
        self._synth, self._recognizer, self._isolate_stops = synth, recognizer, isolate_stops
        self._chunk_decoder = ChunkDecoder(synth.codec, rows=len(synth.engine.slots))
        self._active: dict[Request, tuple[ConversationState, TakeBuilder]] = {}
        self._ended: list[_EndedTake] = []
        self._ready: deque[ConversationState] = deque()  # need another take
        self._events: deque[Event] = deque()

    def cancel(self, conversation_id: str) -> None:
        """Ends a conversation of this run, between two events; its slot is free. No event of it follows."""
        for request, (state, builder) in list(self._active.items()):
            if state.conversation.id == conversation_id:
                self._synth.engine.cancel(request)
                builder.discard()
                del self._active[request]
        self._ready = deque(state for state in self._ready if state.conversation.id != conversation_id)
        self._events = deque(event for event in self._events if event.conversation.id != conversation_id)

    def events(self, next_item: Callable[[], SynthesisItem | None]) -> Iterator[Event]:
        """Synthesizes until nothing is left to do and `next_item` returns None; can be called again then.

        next_item: called whenever a slot is free; None means "not now".
        """
        if self._synth.running:
            raise UsageError("the model is in use by another run; finish it, or close its generator, before the next")
        self._synth.running = True
        loop = decode_loop(
            self._synth.engine, lambda: self._next_request(next_item), self._chunk_decoder.flush, self._reject
        )
        try:
            for frames in loop:
                for frame in frames:
                    if frame.request in self._active:
                        self._isolated(frame.request, partial(self._add_frame, frame))
                # Takes that ended come first: a client's next request can arrive while the others are decoded.
                self._finish_takes()
                while self._events:
                    yield self._events.popleft()
                for request in [each for each, (_, builder) in self._active.items() if builder.due]:
                    if request in self._active:
                        self._isolated(request, self._stream_due)
                self._finish_takes()
                while self._events:
                    yield self._events.popleft()
            while self._events:
                yield self._events.popleft()
        finally:  # the caller may stop early: the slots are free for the next call
            loop.close()
            for request in self._active:
                self._synth.engine.cancel(request)
            self._synth.running = False

    def _next_request(self, next_item: Callable[[], SynthesisItem | None]) -> Request | None:
        """The request for the next take: of a conversation in progress, else the first of a new one."""
        while True:
            state = self._ready.popleft() if self._ready else None
            item = None if state else next_item()
            if item is None and state is None:
                return None
            conversation = state.conversation if state else item.conversation  # type: ignore[union-attr]
            try:
                state = state or item.make_state()  # type: ignore[union-attr]
                request = self._request(state)
                if request:
                    self._active[request] = state, TakeBuilder(self._chunk_decoder, state.take_spec())
                    return request
            except BaseException as problem:
                self._fail(conversation, problem)

    def _reject(self, request: Request, problem: BaseException) -> None:
        state, _ = self._active.pop(request)
        self._fail(state.conversation, problem)

    def _fail(self, conversation: Conversation, problem: BaseException) -> None:
        """Ends one conversation for any exception, so that the others go on; an interrupt is raised again."""
        error = failure_of(problem, self._isolate_stops)
        self._events.append(ConversationFailed(conversation, error))

    def _request(self, state: ConversationState) -> Request | None:
        """The request for the next turn without a recording; emits the recorded turns before it. None at the end."""
        synth, conversation = self._synth, state.conversation
        state.add_context(synth.recorded_turn_tokens)
        while current := state.current:
            turn = current.turn
            if not turn.recording:
                return state.request(synth.prompt_builder.turn_tokens(turn.speaker, state.chunk_text))
            audio, codes = synth.read_recording(turn.recording), synth.recording_codes(turn.recording, is_turn=True)
            if state.retry_policy.stream:
                self._events.append(AudioChunk(conversation, turn, audio.samples, current.number))
            self._events.append(Utterance(conversation, turn, codes, audio, "recorded", number=current.number))
            state.add_recorded(synth.recording_segments(turn))
        return None

    def _isolated(self, request: Request, work: Callable[[Request], None]) -> None:
        """Calls `work` for a request in progress; an exception ends its conversation only."""
        state, _ = self._active[request]
        try:
            work(request)
        except BaseException as problem:
            if active := self._active.pop(request, None):
                self._synth.engine.cancel(request)
                active[1].discard()
            self._fail(state.conversation, problem)

    def _add_frame(self, frame: Frame, request: Request) -> None:
        state, builder = self._active[request]
        current, stop = state.require_current(), frame.stop
        if stop == "broken":
            del self._active[request]
            error = GenerationFailed("the model produced NaN or infinity; try --dtype float32 or bfloat16")
            self._events.append(ConversationFailed(state.conversation, error))
            return
        if stop != "eos":
            early_stop = builder.add_frame(frame.codes)
            stop = stop or early_stop
            self._stream(state, builder)
        if stop:
            self._end_take(request, stop)
            return
        before = sum(len(take.codes) for take in current.chosen)
        frames, limit = before + len(builder), before + request.sampling.max_frames
        self._events.append(FrameProgress(state.conversation, current.turn, frames, limit, current.number))

    def _stream_due(self, request: Request) -> None:
        """Emits the samples that a stream needs now, and ends its take if they show that it should."""
        state, builder = self._active[request]
        stop = builder.analyse()
        self._stream(state, builder)
        if stop:
            self._end_take(request, stop)

    def _end_take(self, request: Request, stop: str) -> None:
        """Ends a take: its slot is free, and its last frames are submitted."""
        state, builder = self._active.pop(request)
        current = state.require_current()
        self._synth.engine.cancel(request)
        current.peak_positions = max(current.peak_positions, len(request.prompt) + len(builder))
        builder.finish_frames()
        self._ended.append(_EndedTake(state, builder, stop, request.sampling))

    def _finish_takes(self) -> None:
        """Finishes the takes that ended."""
        if self._ended:
            self._chunk_decoder.flush()  # of all ended takes, before waiting for any
        for ended in self._ended:
            try:
                self._finish_take(ended)
            except BaseException as problem:
                self._fail(ended.state.conversation, problem)
        self._ended.clear()

    def _finish_take(self, ended: _EndedTake) -> None:
        """Judges a take that ended; then another take, the next chunk or the next turn can follow."""
        state, current = ended.state, ended.state.require_current()
        take = ended.builder.finish(ended.stop)
        if self._recognizer and not take.fault:
            transcript = self._recognizer.transcribe(Audio(take.samples, self._synth.codec.rate))
            texts, language = (current.chunk or "", state.chunk_text), state.conversation.language
            take = apply_transcription(take, transcript, texts, language)
        current.add_take(take)
        self._stream(state, ended.builder)
        greedy = not (ended.sampling.temperature or ended.sampling.depth_temperature)  # all takes would be the same
        usable, policy = any(not each.fault for each in current.takes), state.retry_policy
        wanted = 1 if policy.stream else policy.takes
        enough = wanted if usable else wanted + policy.max_retries
        streamed = current.joiner is not None and current.joiner.audible
        if not greedy and not streamed and len(current.takes) < enough:
            if current.joiner:
                current.joiner.start_take()
            self._ready.append(state)
            return
        best = state.best_take()
        failed = bool(best.fault) and policy.trim and not policy.stream
        if current.joiner:
            last = len(current.chosen) + 1 == len(current.chunks)
            length = len(best.samples)
            rest = current.joiner.end_take(current.chunk or "", len(best.codes), length, last)
            self._emit(state, rest)
            current.joiner.start_take()
        tokens = self._synth.prompt_builder.turn_tokens(current.turn.speaker, state.chunk_text, best.codes)
        state.accept_take(best, tokens)
        if failed or current.chunk is None:
            self._events.append(self._utterance(state.conversation, current))
            state.finish_turn()
        if not failed:
            self._ready.append(state)

    def _stream(self, state: ConversationState, builder: TakeBuilder) -> None:
        """Emits new samples, if the retry policy asks for a stream."""
        policy, current = state.retry_policy, state.require_current()
        if not policy.stream:
            return
        samples = builder.new_samples()
        if policy.trim or len(current.chunks) > 1 or current.pauses.first or any(current.pauses.after):
            current.joiner = current.joiner or StreamJoiner(self._synth.codec.rate, current.pauses)
            samples = current.joiner.push(samples)
        self._emit(state, samples)

    def _emit(self, state: ConversationState, samples: NDArray[np.float32]) -> None:
        if len(samples):
            current = state.require_current()
            self._events.append(AudioChunk(state.conversation, current.turn, samples, current.number))

    def _utterance(self, conversation: Conversation, current: TurnState) -> Utterance:
        takes, rate = current.chosen, self._synth.codec.rate
        if current.joiner:
            samples, segments = current.joiner.samples, tuple(current.joiner.segments)
        else:
            samples, segments = concatenate(current.chunks[: len(takes)], takes, rate, current.pauses)
        return Utterance(
            conversation=conversation,
            turn=current.turn,
            codes=torch.cat([take.codes for take in takes]),
            audio=Audio(samples, rate),
            stop=worst_stop(take.stop for take in takes),
            # later chunks use the seeds after the first, so the first take's repeats a turn of several chunks
            seed=takes[0].seed if len(current.chunks) == 1 else current.all_takes[0].seed,
            seconds=time.perf_counter() - current.started,
            fault=next((take.fault for take in takes if take.fault), ""),
            takes=tuple(current.all_takes),
            chosen=tuple(map(current.all_takes.index, takes)),
            segments=segments,
            peak_positions=current.peak_positions,
            evicted=tuple(current.evicted),
            warnings=tuple(current.warnings),
            number=current.number,
        )
