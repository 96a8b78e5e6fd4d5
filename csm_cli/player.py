"""Sound to this machine's own device, by sounddevice (PortAudio), the extra "play"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from csm_cli.errors import SoundDeviceMissing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_INSTEAD = "write a file with -o instead"


class Player:
    """An open sound device; mono."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, samples: NDArray[np.float32]) -> None:
        """Plays samples [N] after those before; returns when there is room for more."""
        self._stream.write(samples[:, None])


@contextmanager
def open_player(rate: int) -> Iterator[Player]:
    """The default device at `rate`; leaving waits until all is heard.

    Raises:
        SoundDeviceMissing: no device, or nothing to reach it by.
    """
    sounddevice = _sounddevice()
    try:
        stream = sounddevice.OutputStream(samplerate=rate, channels=1, dtype="float32")
    except sounddevice.PortAudioError as problem:
        raise _missing(problem) from problem
    with stream:
        yield Player(stream)


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
