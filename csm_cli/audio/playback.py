"""Sound to this machine's own device, by sounddevice (PortAudio), the extra "play"."""

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

_BLOCK_SECONDS = 0.1  # played at a time, so that an interrupt is soon heard
_INSTEAD = "write a file with -o instead"


class AudioPlayer:
    """An open sound device, mono; it plays on its own thread, so that the next sound can be made meanwhile."""

    def __init__(self, stream: Any, rate: int) -> None:
        self._stream = stream
        self._block = round(_BLOCK_SECONDS * rate)
        self._waiting: SimpleQueue[NDArray[np.float32] | None] = SimpleQueue()
        self._failure: Exception | None = None
        self._over = False
        self._thread = Thread(target=self._play, daemon=True)
        self._thread.start()

    def write(self, samples: NDArray[np.float32]) -> None:
        """Plays samples [N] after those before; returns at once."""
        self._waiting.put(samples)

    def finish(self) -> None:
        """Returns when all is played; raises what kept it from that."""
        self._waiting.put(None)
        self._thread.join()
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """Plays no more than the block in hand."""
        self._over = True
        self._waiting.put(None)
        self._thread.join()

    def _play(self) -> None:
        try:
            while (samples := self._waiting.get()) is not None:
                for start in range(0, len(samples), self._block):
                    if self._over:
                        return
                    self._stream.write(samples[start : start + self._block, None])
        except Exception as problem:  # told by `finish`, on the thread that waits
            self._failure = problem


@contextmanager
def open_player(rate: int) -> Iterator[AudioPlayer]:
    """The default device at `rate`; leaving waits until all is heard, a failure or an interrupt stops it.

    Raises:
        SoundDeviceMissing: no device, nothing to reach it by, or it went away.
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
    """What the default output device is called.

    Raises:
        SoundDeviceMissing: as `open_player`.
    """
    sounddevice = _sounddevice()
    try:
        return str(sounddevice.query_devices(kind="output")["name"])
    except sounddevice.PortAudioError as problem:
        raise _missing(problem) from problem


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as problem:
        raise SoundDeviceMissing(f"playing needs sounddevice: pip install 'csm-cli[play]', or {_INSTEAD}") from problem
    except OSError as problem:
        raise SoundDeviceMissing(f"playing needs PortAudio: apt install libportaudio2, or {_INSTEAD}") from problem
    return sounddevice


def _missing(problem: Exception) -> SoundDeviceMissing:
    reason = (str(problem).splitlines() or ["unknown"])[0]
    return SoundDeviceMissing(f"no sound device to play on ({reason}); {_INSTEAD}")
