"""Sound that is played, or piped while the rest of it is decoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from csm_cli.cli.console import emit_bytes
from csm_cli.cli.options import OutputFile
from csm_cli.errors import SoundDeviceMissing, UsageError
from csm_cli.generation.events import AudioChunk
from csm_cli.types import Conversation, Turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Write = Callable[[NDArray[np.float32]], None]

FORMATS = ("wav", "flac", "pcm")


@dataclass(frozen=True)
class PlaybackOptions:
    """What else becomes of the sound."""

    play: Annotated[bool, typer.Option("--play", help="Play it, as it is without -o.", rich_help_panel="Output")] = (
        False
    )
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Play or pipe it as it is decoded: no retries, trimming or parts.",
            rich_help_panel="Output",
        ),
    ] = False
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="|".join(FORMATS),
            help="By the suffix if not given; -o - with pcm is raw 16-bit little-endian, as it is decoded.",
            rich_help_panel="Output",
        ),
    ] = None

    def settled(self, output: OutputFile) -> PlaybackOptions:
        """What is meant, with this output: without any, it is played.

        Raises:
            UsageError: a format there is not, or a stream to nowhere.
            SoundDeviceMissing: nothing to play on.
        """
        if self.format not in (None, *FORMATS):
            raise UsageError(f"--format takes {', '.join(FORMATS)}, not {self.format!r}")
        raw = output.output == "-" and self.format == "pcm"
        play = self.play or not output.output
        if self.stream and not (play or raw):
            raise UsageError("--stream goes where it is heard: add --play, or -o - --format pcm")
        if play:
            _check_device(unasked=not (output.output or self.play or self.stream))
        return replace(self, play=play, stream=self.stream or raw)


class LiveStream:
    """A conversation's sound in the order of its turns, with their gaps and gains, as it comes.

    first: seconds until the first of it, None before that.
    """

    def __init__(self, conversation: Conversation, rate: int, writes: Sequence[Write]) -> None:
        self.first: float | None = None
        self._opened = time.perf_counter()
        self._conversation, self._rate, self._writes = conversation, rate, writes
        self._begun: Turn | None = None

    def add(self, sound: AudioChunk) -> None:
        from csm_cli.audio.mix import apply_gain

        if self.first is None:
            self.first = time.perf_counter() - self._opened
        if sound.turn is not self._begun:
            self._begun = sound.turn
            self._silence(sound.turn.gap)
        self._write(apply_gain(sound.samples, sound.turn.gain))

    def end(self) -> None:
        self._silence(self._conversation.tail)

    def _silence(self, seconds: float) -> None:
        import numpy as np

        self._write(np.zeros(round(seconds * self._rate), np.float32))

    def _write(self, samples: NDArray[np.float32]) -> None:
        if len(samples):
            for write in self._writes:
                write(samples)


def check_stream(conversation: Conversation) -> None:
    """Raises UsageError where what a listener has heard would have to be changed: turns overlap, or it is levelled."""
    if conversation.loudness is not None:
        raise UsageError("--loudness goes by the whole track, which no stream can wait for; leave out one of the two")
    for number, turn in enumerate(conversation.turns, 1):
        if turn.gap < 0:
            raise UsageError(
                f"turn {number} begins before the one before it ends, which no stream can; leave out --stream"
            )


@contextmanager
def open_stream(live: PlaybackOptions, output: OutputFile, rate: int) -> Iterator[Sequence[Write]]:
    """Where a stream goes."""
    from csm_cli.audio.io import encode_pcm
    from csm_cli.audio.playback import open_player

    with ExitStack() as stack:
        writes: list[Write] = []
        if output.output == "-":
            writes.append(lambda samples: emit_bytes(encode_pcm(samples)))
        if live.play:
            writes.append(stack.enter_context(open_player(rate)).write)
        yield writes


def _check_device(unasked: bool) -> None:
    """Raises SoundDeviceMissing; `unasked`: it would play only since no output is named."""
    from csm_cli.audio.playback import device_name

    try:
        device_name()
    except SoundDeviceMissing as problem:
        if not unasked:
            raise
        raise SoundDeviceMissing(f"no output named: add -o out.wav, or -o - for a pipe ({problem})") from problem
