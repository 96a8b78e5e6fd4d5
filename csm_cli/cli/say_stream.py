"""`csm say - --stream`: text from standard input is spoken while it arrives, sentence by sentence."""

from __future__ import annotations

import codecs
import io
import secrets
import select
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from csm_cli.cli.console import emit_json, emit_path, log_line, warn
from csm_cli.cli.conversation_run import RunRequest, finished_record, summary_parts, write_finished
from csm_cli.cli.live_audio import LiveStream, open_stream
from csm_cli.cli.progress import ProgressMeter
from csm_cli.cli.summary import contention_hint, describe_utterance, faulty_turn_error, turn_warnings
from csm_cli.cli.synthesis import FinishedConversation, find_checkpoint, open_synthesizer, with_word_times
from csm_cli.cli.voice_notes import note_unknown_voices
from csm_cli.errors import GenerationFailed, InputError, UsageError
from csm_cli.generation.events import AudioChunk, ConversationFailed, Event, Utterance, mix_utterances
from csm_cli.types import Conversation, RetryPolicy, Turn

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.generation.history import PastTurn
    from csm_cli.generation.synthesizer import SynthesisRun, Synthesizer

MAX_PAST_SENTENCES = 64  # that are prompted again; more do not fit into the context window
_SENTENCE_GAP = 0.2  # seconds between sentences, which end with about 0.13 s of silence
_LINE_SECONDS = 0.3  # after which a line that nothing follows is complete
_READ_BYTES = 1 << 16


class TextSource(Protocol):
    def read(self, wait: float | None = None) -> str | None:
        """The next text, "" at the end; None if nothing came for `wait` seconds."""
        ...


class StandardInput:
    """Text from standard input as it arrives: bytes are decoded across the pieces in which they come."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes = 0  # read so far
        self._ended = False
        self._problem: InputError | None = None  # after the text that was returned
        try:
            self._descriptor: int | None = sys.stdin.fileno()
        except (OSError, io.UnsupportedOperation):  # it is no file of the system
            self._descriptor = None

    def read(self, wait: float | None = None) -> str | None:
        """As `TextSource.read`. Waits without a limit where the system cannot tell whether something came.

        Raises:
            InputError: it is not UTF-8 text.
        """
        text = ""
        while not text and not self._ended:
            if self._problem:
                raise self._problem
            if wait is not None and not self._has_input(wait):
                return None
            text = self._decode(self._read())
        return text

    def _has_input(self, wait: float) -> bool:
        if self._descriptor is None:
            return True
        try:
            return bool(select.select([self._descriptor], [], [], wait)[0])
        except OSError:  # Windows can wait for sockets only
            return True

    def _read(self) -> bytes:
        import os

        try:
            if self._descriptor is None:
                return sys.stdin.buffer.read(_READ_BYTES)
            return os.read(self._descriptor, _READ_BYTES)
        except OSError as error:
            raise InputError(f"standard input: {error.strerror}; name a text file with -f") from error

    def _decode(self, data: bytes) -> str:
        from csm_cli.script.files import other_kind

        if not self._bytes and (kind := other_kind(data)):
            raise InputError(f"standard input: is {kind}")
        held = len(self._decoder.getstate()[0])
        self._ended = not data
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            offset = self._bytes - held + error.start
            self._problem = InputError(f"standard input: is not UTF-8 text (byte {offset}); send it as UTF-8")
            self._ended = False
            text = error.object[: error.start].decode()
        self._bytes += len(data)
        return text


@dataclass
class SentenceTurns:
    """The sentences of a text as turns. speaker: of text without a tag; a text that begins with one has tags."""

    source: TextSource
    speaker: int
    language: str
    chunk_chars: int
    _tagged: bool | None = None

    def __iter__(self) -> Iterator[Turn]:
        """Reads when the next sentence is asked for. Raises InputError: it cannot be spoken."""
        from csm_cli.generation.text_stream import SentenceStream

        stream = SentenceStream(self.language, self.chunk_chars)
        while True:
            text = self.source.read(_LINE_SECONDS if stream.pending.endswith("\n") else None)
            sentences = stream.push(text) if text else stream.finish()
            for sentence in sentences:
                yield from self._turns(sentence)
            if text == "":
                return

    def _turns(self, sentence: str) -> Iterator[Turn]:
        from csm_cli.script.inline import has_tags, split_tags
        from csm_cli.script.source import text_problem
        from csm_cli.script.spoken_text import clean_text, is_speakable

        if self._tagged is None:
            self._tagged = has_tags(sentence)
        if self._tagged and not has_tags(sentence):
            sentence = f"[{self.speaker}]{sentence}"
        for part in split_tags(sentence, self.speaker):
            self.speaker = part.speaker
            text = clean_text(part.text).strip()
            if problem := text_problem(text):
                raise InputError(f"standard input: {problem} (in {text[:40]!r})")
            if is_speakable(text):
                yield Turn(part.speaker, text, str(part.speaker))


@dataclass(eq=False)
class SpokenSentences:
    """Speaks turns one after another, each with the ones before in its context.

    context: turns before them. keep_samples: False where no file is written, so that memory does not grow with the
    speech. seed: of the first turn; each later turn has the next.
    """

    synth: Synthesizer
    request: RunRequest
    context: Sequence[Turn]
    policy: RetryPolicy
    keep_samples: bool
    utterances: list[Utterance] = field(default_factory=list)
    failed: list[Utterance] = field(default_factory=list)

    def __post_init__(self) -> None:
        from csm_cli.generation.synthesizer import SynthesisRun

        seed = self.request.job.flags.over(self._base.defaults).seed
        self._seed = secrets.randbelow(2**31) if seed is None else seed
        self._past: list[PastTurn] = []
        self._run: SynthesisRun = SynthesisRun(self.synth)
        self._tokens = [self.synth.recorded_turn_tokens(turn) for turn in self.context]

    @property
    def _base(self) -> Conversation:
        """Without turns: defaults, language and normalization."""
        return self.request.job.conversations[0]

    def conversation(self, turn: Turn) -> Conversation:
        """A sentence alone, as notes and progress show it."""
        return replace(self._base, turns=(turn,), id=f"sentence {self._number}")

    @property
    def _number(self) -> int:
        return len(self.utterances) + len(self.failed) + 1

    def events(self, alone: Conversation) -> Iterator[Event]:
        """The events of the next turn. Raises CsmError: it failed."""
        from csm_cli.generation.conversation import ResolvedDefaults
        from csm_cli.generation.history import PastTurn, resumed_state
        from csm_cli.generation.synthesizer import SynthesisItem

        flags = self.request.job.flags
        options = replace(flags.over(alone.defaults), seed=(self._seed + self._number - 1) % 2**63)
        turn = replace(alone.turns[0], options=options, gap=_SENTENCE_GAP if self._number > 1 else 0.0)
        past = tuple(self._past)
        whole = replace(alone, turns=(*(each.turn for each in past), turn))
        defaults = ResolvedDefaults(replace(flags, seed=None), self.synth.checkpoint.defaults, self.policy)
        items = [SynthesisItem(whole, lambda: resumed_state(self.synth, whole, defaults, self._tokens, past))]
        shown = replace(alone, turns=(turn,))
        for event in self._run.events(lambda: items.pop() if items else None):
            if isinstance(event, ConversationFailed):
                raise event.error
            if isinstance(event, Utterance):
                evicted = tuple(self._number - 1 - len(past) + number for number in event.evicted)
                event = replace(event, conversation=shown, number=self._number, evicted=evicted)
                if event.fault:
                    self.failed.append(event)
                else:
                    self._past = [*past, PastTurn.of(event)][-MAX_PAST_SENTENCES:]
                    self.utterances.append(event if self.keep_samples else _without_samples(event))
                yield event
            else:
                yield replace(event, conversation=shown, number=1)

    def finished(self) -> FinishedConversation:
        """All sentences that were spoken, as one track."""
        turns = tuple(each.turn for each in self.utterances)
        conversation = replace(self._base, turns=turns, context=tuple(self.context))
        utterances = tuple(replace(each, conversation=conversation) for each in self.utterances)
        return FinishedConversation(conversation, utterances, mix_utterances(utterances))


def _without_samples(utterance: Utterance) -> Utterance:
    """The utterance with silence of the same length, which takes no memory."""
    import numpy as np

    from csm_cli.audio.io import Audio

    silence = np.broadcast_to(np.float32(0), utterance.audio.samples.shape)
    takes = tuple(replace(take, samples=np.broadcast_to(np.float32(0), take.samples.shape)) for take in utterance.takes)
    return replace(utterance, audio=Audio(silence, utterance.audio.rate), takes=takes)


def speak_standard_input(request: RunRequest, context: Sequence[Turn], speaker: int) -> None:
    """Speaks the text of standard input while it arrives, and writes the files at its end.

    What was spoken is written after an interrupt or a failure too. request: its conversation has no turns.

    Raises:
        UsageError: there is no text. InputError: it cannot be read or spoken.
        GenerationFailed: some sentences have no usable take; the others were spoken.
    """
    job, speech, quiet = request.job, request.job.speech, request.job.output_options.quiet
    streaming = speech.streaming_policy  # which refuses --takes and --verify
    policy = replace(streaming, trim=not speech.no_trim, max_retries=0 if speech.no_trim else speech.retries)
    checkpoint = find_checkpoint(job)
    synth = open_synthesizer(job, checkpoint)
    piped = request.output.output == "-" and request.files.encoding.name == "pcm"
    keep_samples = request.files.track is not None or (request.output.output == "-" and not piped)
    keep_samples = keep_samples or request.files.word_times
    spoken = SpokenSentences(synth, request, context, policy, keep_samples)
    turns = iter(SentenceTurns(StandardInput(), speaker, speech.language, speech.split))
    meter = ProgressMeter([], synth.codec.frame_rate)
    request = replace(request, live=replace(request.live, stream=request.live.play or piped))
    try:
        _speak_all(request, spoken, turns, meter, piped)
    except BaseException as end:
        if spoken.utterances and keep_samples and not isinstance(end, BrokenPipeError):
            _publish(request, spoken, checkpoint, meter)
            if not quiet:
                log_line(f"what was spoken until then ({len(spoken.utterances)} sentences) is written")
        raise
    if not spoken.utterances and not spoken.failed:
        raise UsageError("no text to say; standard input is empty")
    if spoken.utterances:
        _publish(request, spoken, checkpoint, meter)
    if not quiet and (hint := contention_hint(job, synth)):
        log_line(hint)
    if spoken.failed:
        first = faulty_turn_error(spoken.failed[0])
        raise GenerationFailed(
            f"{len(spoken.failed)} of {len(spoken.failed) + len(spoken.utterances)} sentences: {first}"
        )


def _speak_all(
    request: RunRequest, spoken: SpokenSentences, turns: Iterator[Turn], meter: ProgressMeter, piped: bool
) -> None:
    """Speaks each turn as it arrives; plays or pipes its audio."""
    quiet, rate = request.job.output_options.quiet, spoken.synth.codec.rate
    if not quiet:
        log_line(f"speaking each sentence of standard input as it arrives, at {rate} Hz")
    output = request.output if piped else replace(request.output, output=None)
    conversations: Iterator[Conversation] = (spoken.conversation(turn) for turn in turns)
    if not quiet:
        conversations = note_unknown_voices(conversations, spoken.synth.checkpoint)
    with open_stream(request.live, output, rate) as sinks:  # without a bar, which would disturb who types the text
        stream = LiveStream(request.job.conversations[0], rate, sinks)
        for conversation in conversations:
            for event in meter.watch(spoken.events(conversation)):
                if isinstance(event, AudioChunk):
                    stream.add(event)
                elif isinstance(event, Utterance) and event.fault:
                    warn(str(faulty_turn_error(event)))
                elif isinstance(event, Utterance) and not quiet:
                    log_line(describe_utterance(event))


def _publish(request: RunRequest, spoken: SpokenSentences, checkpoint: Checkpoint, meter: ProgressMeter) -> None:
    """Writes the files, and reports as for a text that was known from the start."""
    finished, files = spoken.finished(), request.files
    if files.word_times:
        finished = with_word_times(finished, request.job.speech.whisper)
    request = replace(request, job=replace(request.job, conversations=[finished.conversation]))
    result = finished_record(finished, files, checkpoint, {}, str(spoken.synth.device))
    if spoken.keep_samples:
        write_finished(finished, request, checkpoint, result)
    if request.job.output_options.json:
        emit_json(result)
    elif files.track:
        emit_path(files.track)
    for warning in turn_warnings(finished):
        warn(warning)
    if not request.job.output_options.quiet:
        log_line("; ".join(summary_parts(request, result, meter)))
