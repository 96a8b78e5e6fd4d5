"""How far a run has come: frames, seconds of audio, real-time factor, time left."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from csm_cli.generation.events import Event, FrameProgress, Utterance
from csm_cli.types import Conversation, Turn

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

# People say about so many characters a second; only for the time left.
_CHARACTERS_PER_SECOND = 14.0
_NARROWEST, _WIDEST = 8, 30  # columns of the bar


class ProgressMeter:
    """Counts the frames and stops of a run; the rest is known from them.

    frame_rate: frames per second of audio. characters: to be spoken in all, besides those of `conversations`.
    """

    def __init__(
        self, conversations: Iterable[Conversation], frame_rate: float, characters: Callable[[], int] = int
    ) -> None:
        self.frames = 0
        self.turn: Turn | None = None
        self.stops: Counter[str] = Counter()
        self._frame_rate = frame_rate
        self._characters = characters
        self._expected = sum(self._guess(turn) for each in conversations for turn in each.turns)
        self._open: dict[int, int] = {}
        self._began = time.perf_counter()

    def see(self, event: Event) -> None:
        key = id(event.conversation)
        if isinstance(event, FrameProgress):
            self.turn = event.turn
            self.frames += event.frames - self._open.get(key, 0)
            self._open[key] = event.frames
        elif isinstance(event, Utterance):
            kept = event.turn.recording and event.turn.recording.codes_path
            self.stops["kept" if kept else event.stop] += 1
            if event.stop == "recorded":
                return
            self.frames += len(event.codes) - self._open.pop(key, 0)
            self._expected += len(event.codes) - self._guess(event.turn)

    def _guess(self, turn: Turn) -> float:
        return 0.0 if turn.recording else self._frames(len(turn.text))

    def _frames(self, characters: int) -> float:
        return characters / _CHARACTERS_PER_SECOND * self._frame_rate

    @property
    def expected(self) -> float:
        """Frames in all, as far as can be told from the texts that are still to be spoken."""
        return max(self._expected + self._frames(self._characters()), self.frames)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    @property
    def audio_seconds(self) -> float:
        return self.frames / self._frame_rate

    @property
    def rtf(self) -> float:
        """Compute time per time of audio; lower is faster."""
        return self.seconds / self.audio_seconds if self.frames else 0.0

    def __str__(self) -> str:
        left = (self.expected - self.frames) / self._frame_rate * self.rtf
        return f"{self.frames} frames  {self.audio_seconds:.1f} s  RTF {self.rtf:.2f}  {_clock(left)} left"


@contextmanager
def show_progress(meter: ProgressMeter, quiet: bool) -> Iterator[None]:
    """Draws `meter` as a bar while it counts, where somebody looks at a terminal."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live

    screen = Console(stderr=True, soft_wrap=True)  # lines printed above the bar stay whole, for who copies a path
    with Live(_Bar(meter), console=screen, transient=True, redirect_stdout=sys.stdout.isatty()):
        yield


class _Bar:
    def __init__(self, meter: ProgressMeter) -> None:
        self._meter = meter

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One line: the bar has what the numbers leave of it, and goes where that is too little."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        meter = self._meter
        speaker = f"  {meter.turn.name}" if meter.turn and meter.turn.name else ""
        numbers = Text(f"{meter}{speaker}", no_wrap=True, overflow="ellipsis")
        room = min(_WIDEST, options.max_width - numbers.cell_len - 1)
        row = Table.grid(padding=(0, 1))
        bar = [ProgressBar(max(meter.expected, 1), meter.frames, width=room)] if room >= _NARROWEST else []
        row.add_row(*bar, numbers)
        yield row


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
