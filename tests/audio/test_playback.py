"""Playback: in order, on its own thread, stopped by an interrupt."""

from __future__ import annotations

from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

from csm_cli.audio.playback import device_name, open_player
from csm_cli.errors import SoundDeviceMissing


def test_all_samples_are_played_in_order(played_audio: SimpleNamespace) -> None:
    ramp = np.arange(30000, dtype=np.float32)
    with open_player(24000) as player:
        for block in np.split(ramp, (100, 9000)):
            player.write(block)
    assert np.array_equal(np.concatenate(played_audio.chunks), ramp) and played_audio.rate == 24000


def test_an_interrupt_stops_playback(played_audio: SimpleNamespace) -> None:
    played_audio.gate = Event()

    def interrupted() -> None:
        with open_player(24000) as player:
            player.write(np.zeros(24000 * 60, np.float32))
            played_audio.begun.wait()
            played_audio.gate.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sum(map(len, played_audio.chunks)) < 24000 * 60


def test_writing_does_not_wait_for_playback(played_audio: SimpleNamespace) -> None:
    played_audio.gate = Event()
    with open_player(24000) as player:
        player.write(np.zeros(2400, np.float32))
        player.write(np.ones(2400, np.float32))
        assert not played_audio.chunks
        played_audio.gate.set()
    assert len(played_audio.chunks) == 2


def test_a_device_that_disappears_is_an_error(played_audio: SimpleNamespace) -> None:
    played_audio.missing_on_write = True
    with (
        pytest.raises(SoundDeviceMissing, match=r"no sound device to play on \(unplugged\)"),
        open_player(24000) as player,
    ):
        player.write(np.zeros(2400, np.float32))


def test_the_device_has_a_name(played_audio: SimpleNamespace) -> None:
    assert device_name() == "a fake output"
    played_audio.missing = True
    with pytest.raises(SoundDeviceMissing, match="Error querying device"):
        device_name()
