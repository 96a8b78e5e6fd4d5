"""Progress of a run: frames, seconds of audio, real-time factor, time left."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from csm_cli.generation.events import ConversationFailed, Event, FrameProgress, Utterance
from csm_cli.report import format_clock
from csm_cli.types import Conversation, Turn

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from csm_cli.batch.executor import Executor
    from csm_cli.batch.results import ItemResult

_CHARS_PER_SECOND = 14.0  # of speech; estimates how far an unfinished turn has come
_MIN_COLUMNS, _MAX_COLUMNS = 8, 30  # of the bar


class SpeechMeter(ABC):
    """Frames generated so far. frame_rate: frames per second of audio."""

    def __init__(self, frame_rate: float) -> None:
        self.frames = 0
        self._frame_rate = frame_rate

    @property
    @abstractmethod
    def seconds(self) -> float:
        """Of computation."""

    @property
    def audio_seconds(self) -> float:
        return self.frames / self._frame_rate

    @property
    def rtf(self) -> float:
        """Computation time per second of audio generated in this run; lower is faster. 0 before the first frame."""
        return self.seconds / self.audio_seconds if self.frames else 0.0


class ProgressMeter(SpeechMeter):
    """Counts what a run generates. Recorded and reused turns count for nothing but `stops`.

    conversations: the job, if all of it is known; `total_chars` returns the characters of other conversations, finished
    or not. frame_rate: frames per second of audio. items: files of a batch, 0 for a single conversation.
    """

    def __init__(
        self,
        conversations: Iterable[Conversation],
        frame_rate: float,
        total_chars: Callable[[], int] = int,
        items: int = 0,
    ) -> None:
        super().__init__(frame_rate)
        self._seconds = 0.0
        self.items, self.finished_items = items, 0
        self.stops: Counter[str] = Counter()
        self.label = ""  # the turn or the items under way
        self._known_chars = sum(map(_chars, (turn for each in conversations for turn in each.turns)))
        self._total_chars = total_chars
        self._finished_chars = 0
        self._open: dict[str, tuple[int, Turn]] = {}  # frames so far of each conversation's unfinished turn
        self._turns: Counter[str] = Counter()  # finished turns of each unfinished conversation

    def watch(self, events: Iterable[Event]) -> Iterator[Event]:
        """Passes events through; only the time spent waiting for them counts as computation."""
        iterator = iter(events)
        while True:
            started = time.perf_counter()
            event = next(iterator, None)
            self._seconds += time.perf_counter() - started
            if event is None:
                return
            self.update(event)
            yield event

    def update(self, event: Event) -> None:
        conversation, key = event.conversation, event.conversation.id
        if isinstance(event, FrameProgress):
            self.frames += event.frames - self._open.get(key, (0, event.turn))[0]
            self._open[key] = event.frames, event.turn
            if not self.items:
                self.label = f"turn {event.number}/{len(conversation.turns)} {event.turn.name}".rstrip()
        elif isinstance(event, Utterance):
            self.stops["cached" if event.cached or _is_cached(event.turn) else event.stop] += 1
            self._turns[key] += 1
            if event.stop != "recorded":
                self.frames += len(event.codes) - self._open.pop(key, (0, event.turn))[0]
            self._finished_chars += _chars(event.turn)
        if isinstance(event, ConversationFailed) or (isinstance(event, Utterance) and event.fault):
            self._open.pop(key, None)
            self._finished_chars += sum(map(_chars, conversation.turns[self._turns[key] :]))
            self._turns[key] = len(conversation.turns)
        if self._turns[key] >= len(conversation.turns):
            del self._turns[key]
            self.finished_items += 1

    @property
    def seconds(self) -> float:
        return self._seconds

    @property
    def total_chars(self) -> int:
        """Characters of all turns to generate, including the finished ones."""
        return max(self._known_chars + self._total_chars(), self._finished_chars, 1)

    @property
    def done_chars(self) -> float:
        """Characters generated so far; of unfinished turns, about as many as their frames."""
        unfinished = (
            min(len(turn.text), frames / self._frame_rate * _CHARS_PER_SECOND) for frames, turn in self._open.values()
        )
        return min(self._finished_chars + sum(unfinished), self.total_chars)

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far, by the characters left; None before the first frame."""
        done = self.done_chars
        return self.seconds / done * (self.total_chars - done) if done else None

    def __str__(self) -> str:
        items = f"{self.finished_items} of {self.items}  " if self.items else ""
        left = self.seconds_left
        time_left = "" if left is None else f"  {format_clock(left)} left"
        return f"{items}{self.frames} frames  {self.audio_seconds:.1f} s  RTF {self.rtf:.2f}{time_left}"


class WorkerMeter(SpeechMeter):
    """Counts what the workers of a batch finish.

    total_chars, items: of the batch.
    """

    def __init__(self, frame_rate: float, total_chars: int, items: int, executor: Executor) -> None:
        super().__init__(frame_rate)
        self.items, self.finished_items = items, 0
        self.stops: Counter[str] = Counter()
        self.total_chars, self.done_chars = max(total_chars, 1), 0
        self._executor = executor

    def watch(self, results: Iterable[ItemResult]) -> Iterator[ItemResult]:
        """Passes results through."""
        for result in results:
            self.frames += result.frames
            self.stops.update(result.stops)
            self.done_chars += result.chars
            self.finished_items += 1
            yield result

    @property
    def label(self) -> str:
        ready, workers = self._executor.ready, self._executor.workers
        return f"{ready} of {workers} workers" if ready < workers else f"{workers} workers"

    @property
    def seconds(self) -> float:
        """Since the first worker was ready."""
        since = self._executor.ready_since
        return time.perf_counter() - since if since else 0.0

    def __str__(self) -> str:
        seconds, done = self.seconds, self.done_chars
        rate = f"  {self.audio_seconds / seconds:.1f} s of audio per second" if seconds and self.frames else ""
        left = f"  {format_clock(seconds / done * (self.total_chars - done))} left" if done else ""
        return f"{self.finished_items} of {self.items}{rate}{left}"


Meter = ProgressMeter | WorkerMeter


def _chars(turn: Turn) -> int:
    return 0 if turn.recording else len(turn.text)


def _is_cached(turn: Turn) -> bool:
    return bool(turn.recording and turn.recording.codes_path)


@contextmanager
def show_progress(meter: Meter, quiet: bool) -> Iterator[None]:
    """Shows `meter` as a bar while the block runs, if standard error is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, soft_wrap=True)  # lines printed above the bar stay whole, so paths can be copied
    with Live(_Bar(meter), console=console, transient=True, redirect_stdout=sys.stdout.isatty()):
        yield


class _Bar:
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One line; the bar takes the columns that the numbers leave and is omitted if they are too few."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        meter = self._meter
        label = f"  {meter.label}" if meter.label else ""
        numbers = Text(f"{meter}{label}", no_wrap=True, overflow="ellipsis")
        width = min(_MAX_COLUMNS, options.max_width - numbers.cell_len - 1)
        row = Table.grid(padding=(0, 1))
        bar = [ProgressBar(meter.total_chars, meter.done_chars, width=width)] if width >= _MIN_COLUMNS else []
        row.add_row(*bar, numbers)
        yield row
