"""Acoustic distance: independent of tempo and loudness, not of the words."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from csm_cli.recipe.corpus import RATE
from csm_cli.recipe.measure import acoustic_features, dtw_distance, retrieval


def melody(notes: list[float], seconds: float = 0.2) -> NDArray[np.float32]:
    """Harmonic tones one after another, float32 [N]."""
    time = np.arange(int(RATE * seconds)) / RATE
    tones = [sum(np.sin(2 * np.pi * note * k * time) / k for k in range(1, 12)) for note in notes]
    return (0.1 * np.concatenate(tones)).astype(np.float32)


TUNES = [[200.0, 450.0, 900.0], [900.0, 200.0, 450.0], [450.0, 450.0, 1500.0]]


def test_slower_quieter_take_is_nearest_to_its_own_text() -> None:
    takes = [melody(tune, 0.3) * np.float32(0.3) for tune in TUNES]
    assert retrieval(takes, [melody(tune) for tune in TUNES]) == 1.0


def test_takes_in_the_wrong_order_are_not_matched() -> None:
    references = [melody(tune) for tune in TUNES]
    assert retrieval([melody(tune, 0.3) for tune in TUNES[::-1]], references) == pytest.approx(1 / 3)


def test_distance_to_itself_is_zero() -> None:
    mine = acoustic_features(melody(TUNES[0]))
    assert mine.shape[0] == 12
    assert dtw_distance(mine, mine) == pytest.approx(0.0, abs=1e-9)
