"""Audio that is played, or piped while the rest of it is decoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from csm_cli.audio.formats import AudioEncoding, check_stream_encoding
from csm_cli.cli.console import emit_bytes
from csm_cli.cli.options import OutputFile
from csm_cli.errors import SoundDeviceMissing, UsageError
from csm_cli.generation.events import AudioChunk
from csm_cli.types import Conversation, Turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from csm_cli.audio.tempo import TempoChanger

    Sink = Callable[[NDArray[np.float32]], None]


@dataclass(frozen=True)
class PlaybackOptions:
    """Whether the audio is played or streamed."""

    play: Annotated[bool, typer.Option("--play", help="Play the audio (the default without -o).")] = False
    stream: Annotated[
        bool, typer.Option("--stream", help="Play or pipe while decoding: no retries, trimming or splitting.")
    ] = False

    def resolve(self, output: OutputFile, encoding: AudioEncoding) -> PlaybackOptions:
        """The options with their defaults for this output: without one, the audio is played.

        Raises:
            UsageError: a stream without a listener, or of another rate than the model's.
            SoundDeviceMissing: no device to play on.
        """
        raw = output.output == "-" and encoding.name == "pcm"
        play = self.play or not output.output
        if self.stream and not (play or raw):
            raise UsageError("--stream needs a listener: add --play, or -o - --format pcm")
        if play:
            from csm_cli.audio.playback import device_name

            try:
                device_name()
            except SoundDeviceMissing as error:
                if output.output or self.play or self.stream:
                    raise
                raise SoundDeviceMissing(f"no output named: add -o out.wav, or -o - for a pipe ({error})") from error
        if self.stream or raw:
            check_stream_encoding(encoding)
        return replace(self, play=play, stream=self.stream or raw)


class LiveStream:
    """Writes a conversation's audio to `sinks` as it is decoded: turns in order, with their gaps, gains and speeds.

    first: seconds until the first audio, None before.
    """

    def __init__(self, conversation: Conversation, rate: int, sinks: Sequence[Sink]) -> None:
        self.first: float | None = None
        self._opened = time.perf_counter()
        self._conversation, self._rate, self._sinks = conversation, rate, sinks
        self._current: Turn | None = None
        self._tempo: TempoChanger

    def add(self, chunk: AudioChunk) -> None:
        from csm_cli.audio.mix import apply_gain
        from csm_cli.audio.tempo import TempoChanger

        if self.first is None:
            self.first = time.perf_counter() - self._opened
        if chunk.turn is not self._current:
            self._finish_turn()
            self._current, self._tempo = chunk.turn, TempoChanger(self._rate, chunk.turn.speed)
            self._write_silence(chunk.turn.gap)
        self._write(apply_gain(self._tempo.push(chunk.samples), chunk.turn.gain))

    def _finish_turn(self) -> None:
        from csm_cli.audio.mix import apply_gain

        if self._current:
            self._write(apply_gain(self._tempo.finish(), self._current.gain))

    def end(self) -> None:
        self._finish_turn()
        self._write_silence(self._conversation.tail)

    def _write_silence(self, seconds: float) -> None:
        import numpy as np

        self._write(np.zeros(round(seconds * self._rate), np.float32))

    def _write(self, samples: NDArray[np.float32]) -> None:
        if len(samples):
            for sink in self._sinks:
                sink(samples)


def check_stream(conversation: Conversation) -> None:
    """Raises UsageError if audio that was already heard would have to be changed later."""
    if conversation.loudness is not None:
        raise UsageError("--loudness needs the whole track, so it cannot be streamed; leave out one of the two")
    for number, turn in enumerate(conversation.turns, 1):
        if turn.gap < 0:
            raise UsageError(f"turn {number} overlaps the turn before it, so it cannot be streamed; leave out --stream")


@contextmanager
def open_stream(live: PlaybackOptions, output: OutputFile, rate: int) -> Iterator[Sequence[Sink]]:
    """The sinks of a stream: standard output, the sound device, or both."""
    from csm_cli.audio.io import encode_pcm
    from csm_cli.audio.playback import open_player

    with ExitStack() as stack:
        sinks: list[Sink] = []
        if output.output == "-":
            sinks.append(lambda samples: emit_bytes(encode_pcm(samples)))
        if live.play:
            sinks.append(stack.enter_context(open_player(rate)).write)
        yield sinks
