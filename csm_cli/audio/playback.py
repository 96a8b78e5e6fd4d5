"""Playback on the default sound device, by sounddevice (PortAudio), the extra "play"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from csm_cli.errors import SoundDeviceMissing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK_SECONDS = 0.1  # written at a time, so that an interrupt is quick


class AudioPlayer:
    """An open sound device, mono. Plays on its own thread."""

    def __init__(self, stream: Any, rate: int) -> None:
        self._stream = stream
        self._block = round(_BLOCK_SECONDS * rate)
        self._queue: SimpleQueue[NDArray[np.float32] | None] = SimpleQueue()
        self._error: Exception | None = None
        self._stopped = False
        self._thread = Thread(target=self._play, daemon=True)
        self._thread.start()

    def write(self, samples: NDArray[np.float32]) -> None:
        """Queues samples [N]; returns at once."""
        self._queue.put(samples)

    def finish(self) -> None:
        """Waits until everything is played; raises the error that prevented it."""
        self._queue.put(None)
        self._thread.join()
        if self._error:
            raise self._error

    def stop(self) -> None:
        """Stops after the current block."""
        self._stopped = True
        self._queue.put(None)
        self._thread.join()

    def _play(self) -> None:
        try:
            while (samples := self._queue.get()) is not None:
                for start in range(0, len(samples), self._block):
                    if self._stopped:
                        return
                    self._stream.write(samples[start : start + self._block, None])
        except Exception as problem:  # raised by `finish`, on the thread that waits
            self._error = problem


@contextmanager
def open_player(rate: int) -> Iterator[AudioPlayer]:
    """The default device at `rate` Hz. Leaving the context waits for the end; an error or an interrupt stops playback.

    Raises:
        SoundDeviceMissing: no device or library, or the device disappeared.
    """
    sounddevice = _sounddevice()
    try:
        with sounddevice.OutputStream(samplerate=rate, channels=1, dtype="float32") as stream:
            player = AudioPlayer(stream, rate)
            try:
                yield player
                player.finish()
            except BaseException:
                player.stop()
                raise
    except sounddevice.PortAudioError as problem:
        raise _missing(problem) from problem


def device_name() -> str:
    """The name of the default output device.

    Raises:
        SoundDeviceMissing: as `open_player`.
    """
    sounddevice = _sounddevice()
    try:
        return str(sounddevice.query_devices(kind="output")["name"])
    except sounddevice.PortAudioError as problem:
        raise _missing(problem) from problem


def _sounddevice() -> Any:
    hint = "or write a file with -o instead"
    try:
        import sounddevice
    except ImportError as problem:
        raise SoundDeviceMissing(f"playing needs sounddevice: pip install 'csm-cli[play]', {hint}") from problem
    except OSError as problem:
        raise SoundDeviceMissing(f"playing needs PortAudio: apt install libportaudio2, {hint}") from problem
    return sounddevice


def _missing(problem: Exception) -> SoundDeviceMissing:
    reason = (str(problem).splitlines() or ["unknown"])[0]
    return SoundDeviceMissing(f"no sound device to play on ({reason}); write a file with -o instead")
