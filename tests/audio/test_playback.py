"""Playback: in order, on its own thread, stopped by an interrupt."""

from __future__ import annotations

from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

from csm_cli.audio.playback import device_name, open_player
from csm_cli.errors import SoundDeviceMissing


def test_all_samples_are_played_in_order(heard: SimpleNamespace) -> None:
    ramp = np.arange(30000, dtype=np.float32)
    with open_player(24000) as player:
        for block in np.split(ramp, (100, 9000)):
            player.write(block)
    assert np.array_equal(np.concatenate(heard.chunks), ramp) and heard.rate == 24000


def test_an_interrupt_stops_playback(heard: SimpleNamespace) -> None:
    heard.gate = Event()

    def interrupted() -> None:
        with open_player(24000) as player:
            player.write(np.zeros(24000 * 60, np.float32))
            heard.begun.wait()
            heard.gate.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sum(map(len, heard.chunks)) < 24000 * 60


def test_writing_does_not_wait_for_playback(heard: SimpleNamespace) -> None:
    heard.gate = Event()
    with open_player(24000) as player:
        player.write(np.zeros(2400, np.float32))
        player.write(np.ones(2400, np.float32))
        assert not heard.chunks
        heard.gate.set()
    assert len(heard.chunks) == 2


def test_a_device_that_disappears_is_an_error(heard: SimpleNamespace) -> None:
    heard.missing_on_write = True
    with (
        pytest.raises(SoundDeviceMissing, match=r"no sound device to play on \(unplugged\)"),
        open_player(24000) as player,
    ):
        player.write(np.zeros(2400, np.float32))


def test_the_device_has_a_name(heard: SimpleNamespace) -> None:
    assert device_name() == "a fake output"
    heard.missing = True
    with pytest.raises(SoundDeviceMissing, match="Error querying device"):
        device_name()
