"""Takes: attempts at generating a chunk of text. When a take ends early, what is trimmed, and whether it is usable."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csm_cli.generation.chunking import SpeechPauses
from csm_cli.generation.events import Segment
from csm_cli.models.mimi import ChunkDecoder, PendingChunk

Samples = NDArray[np.float32]

# Frames decoded at a time: few at first for low latency, then enough for full speed. Files and streams use the same
# sizes, since sums over other sizes are rounded differently: one 16-bit step in a few samples.
FIRST_DECODE_SECONDS, MAX_DECODE_SECONDS = 0.32, 0.96
SILENCE_SECONDS = 2.0  # of silence end a take
FINAL_PAUSE_SECONDS = 0.24  # of that silence are kept
REPEAT_SECONDS = 0.96  # of one repeated frame end a take
# A frame is silent below either RMS level: of full scale (-54 dBFS), or of the loudest frame so far (-40 dB).
SILENCE_LEVEL, RELATIVE_SILENCE_LEVEL = 2e-3, 1e-2
MAX_LETTERS_PER_SECOND = 30.0  # letters and digits; a faster take has skipped some of its text
_STOPS_BEST_FIRST = ("eos", "silence", "cap", "repeat", "empty")

# Between the last sound of a segment and the first of the next.
SENTENCE_PAUSE_SECONDS, CLAUSE_PAUSE_SECONDS = 0.35, 0.15
FADE_SECONDS = 0.02
LEVEL_SECONDS = 0.01  # length of the pieces whose level is measured
_SENTENCE_ENDS = frozenset(".!?…。！？")  # noqa: RUF001
_CLOSING_MARKS = "\"')]}»”’ "  # noqa: RUF001


@dataclass(frozen=True)
class Transcription:
    """A recognizer's text of a take. error_rate: wrong, missing and added words per word of the expected text.

    longest_error_run: most wrong words in a row.
    """

    text: str
    error_rate: float
    longest_error_run: int


@dataclass(frozen=True, eq=False)
class Take:
    """codes: int64 [T, K]; samples: float32 [T * frame_samples]; fault: why it is unusable, "" if it is not.

    stop: "eos", "cap", "silence", "repeat", or "empty" if nothing is left of it. chunk_number: of its turn, from 1.
    transcription: None without a recognizer.
    """

    codes: Tensor
    samples: Samples
    stop: str
    seed: int
    fault: str
    chunk_number: int = 1
    transcription: Transcription | None = None


@dataclass(frozen=True)
class TakeSpec:
    """How a take is made. capped: the user set the maximum duration, so reaching it is no fault.

    trim: end it early where it goes wrong, trim it and look for faults. chunk_number: of its turn, from 1. stream: its
    samples are needed as soon as they are decoded.
    """

    text: str
    seed: int
    capped: bool = False
    trim: bool = False
    chunk_number: int = 1
    stream: bool = False


class TakeBuilder:
    """Collects the frames of one take and decodes them in chunks.

    With an asynchronous `ChunkDecoder`, a chunk is analysed when the next one is submitted. If it shows that the take
    should have ended there, the frames generated since are dropped: the take is the same as with a synchronous decoder.
    """

    def __init__(self, chunk_decoder: ChunkDecoder, spec: TakeSpec) -> None:
        self._chunk_decoder, self._codec, self._spec = chunk_decoder, chunk_decoder.codec, spec
        self._stream = chunk_decoder.codec.decoder()
        self.frames: list[Tensor] = []
        self._submitted = 0  # frames passed to the decoder
        self._next_submit = chunk_frames(0, self._codec.frame_rate)  # submit at so many frames
        self._pending: deque[PendingChunk] = deque()  # submitted, not yet analysed
        self._samples: list[Samples] = []
        self._returned = 0  # chunks of samples returned by `new_samples`
        self._levels: list[float] = []  # RMS of each analysed frame
        self._repeats = 0  # equal frames at the end, 1 if the last differs from the one before
        self._max_repeats = self._frame_count(REPEAT_SECONDS)
        self._early_stop: str | None = None  # the reason, if frames were dropped

    def __len__(self) -> int:
        return len(self.frames)

    def add_frame(self, codes: Tensor) -> str | None:
        """Adds a frame [K]; returns a stop reason if the take should end here, or where it was last analysed.

        What is `due` afterwards must be analysed before the next frame.
        """
        repeated = bool(self.frames) and torch.equal(codes, self.frames[-1])
        self._repeats = self._repeats + 1 if repeated else 1
        self.frames.append(codes)
        stuck = self._repeats >= self._max_repeats
        if not stuck and len(self.frames) < self._next_submit:
            return None
        if stuck or self._spec.stream or not self._chunk_decoder.deferred:
            self._submit()
            return None if self.due else self.analyse()
        reason = self.analyse()
        if not reason:
            self._submit()
        return reason

    @property
    def due(self) -> bool:
        """Whether a stream needs samples now, which are decoded with those of other streams."""
        return self._spec.stream and self._chunk_decoder.deferred and bool(self._pending)

    def new_samples(self) -> Samples:
        """The samples [N] analysed since the last call."""
        new, self._returned = self._samples[self._returned :], len(self._samples)
        return np.concatenate((np.zeros(0, np.float32), *new))

    def analyse(self) -> str | None:
        """Analyses submitted chunks in order, up to one after which the take should have ended; returns the reason."""
        while self._pending:
            chunk = self._pending.popleft()
            samples = chunk.samples()
            self._samples.append(samples)
            frames = samples.reshape(len(chunk.codes), -1)  # [T, frame_samples]
            self._levels += np.sqrt(np.square(frames).mean(axis=1)).tolist()
            if chunk.is_last or not self._spec.trim:
                continue
            analysed, silent = len(self._levels), self._final_silence(self._levels)
            stuck = self._repeats >= self._max_repeats and analysed == len(self.frames) and not silent
            if not stuck and silent < self._frame_count(SILENCE_SECONDS):
                continue
            reason = "repeat" if stuck else "silence"
            if analysed < len(self.frames):
                self._early_stop = reason
                self.discard()
                self._submitted = analysed
                del self.frames[analysed:]
            return reason
        return None

    def finish_frames(self) -> None:
        """Submits the last frames, so that they can be decoded together with those of other takes."""
        if self._submitted < len(self.frames):
            self._submit(last=True)

    def discard(self) -> None:
        """Drops what was submitted and is not analysed yet."""
        self._pending.clear()
        self._chunk_decoder.discard(self._stream)

    def finish(self, stop: str) -> Take:
        """The take, ended by `stop` unless analysis shows that it ended before."""
        self.finish_frames()
        reason = self.analyse()
        stop = self._early_stop or (reason if reason and stop == "eos" else stop)
        length = self._trimmed_length(stop) if self._spec.trim else len(self)
        codes = (
            torch.stack(self.frames[:length]) if length else torch.empty(0, self._codec.codebooks, dtype=torch.int64)
        )
        samples = np.concatenate((np.zeros(0, np.float32), *self._samples))[: length * self._codec.frame_samples]
        fault, spec = self._fault(stop, length), self._spec
        return Take(codes, samples, stop if length else "empty", spec.seed, fault, spec.chunk_number)

    def _submit(self, last: bool = False) -> None:
        codes = torch.stack(self.frames[self._submitted :])
        self._pending.append(self._chunk_decoder.submit(self._stream, codes, last))
        self._submitted = len(self.frames)
        self._next_submit = self._submitted + chunk_frames(self._submitted, self._codec.frame_rate)

    def _trimmed_length(self, stop: str) -> int:
        """Frames to keep: the first of those repeated, a short pause of a final silence, none of a silent take."""
        if stop == "repeat":
            return len(self) - self._repeats + 1
        if stop == "cap" and self._spec.capped:
            return len(self)
        silent = self._final_silence(self._levels)
        if silent == len(self):
            return 0
        return len(self) - max(0, silent - self._frame_count(FINAL_PAUSE_SECONDS)) if stop == "silence" else len(self)

    def _fault(self, stop: str, length: int) -> str:
        frame_rate = self._codec.frame_rate
        if not length:
            return "came out silent" if self.frames else "came out empty"
        if not self._spec.trim or (stop == "cap" and self._spec.capped):
            return ""
        if stop == "cap":
            return f"had not ended after {length / frame_rate:.1f} s"
        if stop == "repeat":
            return f"got stuck on one sound after {length / frame_rate:.1f} s"
        speech_seconds = (length - self._final_silence(self._levels[:length])) / frame_rate
        letters = sum(char.isalnum() for char in self._spec.text)
        too_short = speech_seconds < letters / MAX_LETTERS_PER_SECOND
        return f"broke off after {speech_seconds:.1f} s" if too_short else ""

    def _final_silence(self, levels: Sequence[float]) -> int:
        """How many frames at the end are silent."""
        bound = max(SILENCE_LEVEL, RELATIVE_SILENCE_LEVEL * max(self._levels, default=0.0))
        return next((count for count, level in enumerate(reversed(levels)) if level > bound), len(levels))

    def _frame_count(self, seconds: float) -> int:
        return max(1, round(seconds * self._codec.frame_rate))


def chunk_frames(decoded: int, frame_rate: float) -> int:
    """Frames of the next chunk to decode, after `decoded` of a take: as many again, within bounds."""
    first, most = (max(1, round(seconds * frame_rate)) for seconds in (FIRST_DECODE_SECONDS, MAX_DECODE_SECONDS))
    return min(max(decoded, first), most)


def worst_stop(stops: Iterable[str]) -> str:
    return max(stops, key=_STOPS_BEST_FIRST.index)


def best_take(takes: Sequence[Take], expected_frames: float | None = None) -> Take:
    """The usable take with the best stop reason, then the fewest wrong words, then the most likely length.

    If none is usable, the best of the others. expected_frames: None for the median length of the usable takes.
    """
    expected = expected_frames or float(np.median([len(take.codes) for take in takes if not take.fault] or [1]))

    def penalty(take: Take) -> tuple[bool, int, float, float]:
        error_rate = take.transcription.error_rate if take.transcription else 0.0
        length_error = abs(math.log(max(1, len(take.codes)) / max(1, expected)))
        return bool(take.fault), _STOPS_BEST_FIRST.index(take.stop), error_rate, length_error

    return min(takes, key=penalty)


NO_PAUSES = SpeechPauses()


def concatenate(
    texts: Sequence[str], takes: Sequence[Take], rate: int, pauses: SpeechPauses = NO_PAUSES
) -> tuple[Samples, tuple[Segment, ...]]:
    """The audio of a turn [N], from one take for each chunk of its text, and the segments in it.

    A single take is not changed. At joints, silence is trimmed, the edges fade over 20 ms, and the pause that the text
    asks for follows, or a natural one.
    """
    samples = np.zeros(0, np.float32)
    segments: list[Segment] = []
    for text, take in zip(texts, takes, strict=True):
        if segments:
            samples = np.pad(
                samples, (0, joint_samples(pauses.after_chunk(len(segments) - 1), segments[-1].text, rate))
            )
        elif pauses.first:
            samples = np.zeros(joint_samples(pauses.first, "", rate), np.float32)
        start = len(samples) / rate
        is_joint = bool(segments) or pauses.first > 0
        sound = _trim_edges(take.samples, rate, start=is_joint, end=len(segments) + 1 < len(takes))
        samples = np.concatenate((samples, sound))
        segments.append(Segment(text, start, len(samples) / rate, len(take.codes)))
    return np.pad(samples, (0, round(pauses.last * rate))), tuple(segments)


def joint_samples(pause: float | None, text: str, rate: int) -> int:
    """Samples of silence before the next segment; both fades are part of the pause. text: of the segment before."""
    return round(max(0.0, (joint_pause(text) if pause is None else pause) - 2 * FADE_SECONDS) * rate)


def joint_pause(text: str) -> float:
    """Seconds of silence after a segment with this text."""
    sentence_ends = text.rstrip(_CLOSING_MARKS)[-1:] in _SENTENCE_ENDS
    return SENTENCE_PAUSE_SECONDS if sentence_ends else CLAUSE_PAUSE_SECONDS


def rms_levels(samples: Samples, step: int) -> Samples:
    """The RMS of each whole piece of `step` samples."""
    whole = len(samples) // step
    levels: Samples = np.sqrt(np.square(samples[: whole * step]).reshape(whole, step).mean(axis=1))
    return levels


def _trim_edges(samples: Samples, rate: int, start: bool, end: bool) -> Samples:
    """Trims silence at the start and the end, as asked for, up to a faded margin; only if some sample is not silent."""
    step, fade = round(LEVEL_SECONDS * rate), round(FADE_SECONDS * rate)
    levels = rms_levels(samples, step)
    loud = np.flatnonzero(levels > max(SILENCE_LEVEL, RELATIVE_SILENCE_LEVEL * levels.max(initial=0.0)))
    first, last = (int(loud[0]) * step, int(loud[-1] + 1) * step) if len(loud) else (0, len(samples))
    first = max(0, first - fade) if start else 0
    last = min(len(samples), last + fade) if end else len(samples)
    trimmed = samples[first:last].copy()
    ramp = np.sin(np.linspace(0, np.pi / 2, min(fade, len(trimmed)), dtype=np.float32))
    if start:
        trimmed[: len(ramp)] *= ramp
    if end:
        trimmed[len(trimmed) - len(ramp) :] *= ramp[::-1]
    return trimmed
