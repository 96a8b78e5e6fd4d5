"""Crops of a corpus that the codec is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from csm_cli.recipe.corpus import FRAME, load_shard
from csm_cli.recipe.natural_corpus import COLUMNS
from csm_cli.train.batches import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

PHONEMES = ' .,?!;:"()—…abdefhijklmnpstuvwzæðŋɐɑɔəɚɛɜɡɪɹɾʃʊʌʒʔʤʧθᵊᵻAIOWYTɒɨːˈˌ'
"""The phoneme classes that codebook 0 is asked for: Kokoro's symbols for English."""


class CorpusCrops:
    """Random crops of shards, not aligned to frames or utterances; voices by the square root of their speech.

    A batch is (waveforms float32 [B, N] in -1..1, phoneme classes [B, 4, T], IGNORE where the teacher tells none).
    """

    def __init__(self, stems: Sequence[Path], frames: int, seed: int) -> None:
        self._samples = frames * FRAME
        self._random = np.random.default_rng(seed)
        runs = [run for stem in stems for run in _voice_runs(stem) if len(run.samples) > self._samples]
        self._voices = [[run for run in runs if run.voice == voice] for voice in sorted({run.voice for run in runs})]
        lengths = np.array([sum(len(run.samples) for run in voice) for voice in self._voices], float)
        self._shares = np.sqrt(lengths) / np.sqrt(lengths).sum()

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        waveforms, classes = zip(*(self._crop() for _ in range(size)), strict=True)
        return torch.from_numpy(np.stack(waveforms)).float() / 32768, torch.from_numpy(np.stack(classes))

    def _crop(self) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        runs = self._voices[self._random.choice(len(self._voices), p=self._shares)]
        lengths = np.array([len(run.samples) - self._samples for run in runs], float)
        run = runs[self._random.choice(len(runs), p=lengths / lengths.sum())]
        start = int(self._random.integers(len(run.samples) - self._samples))
        middles = start + (np.arange(self._samples // FRAME * COLUMNS) + 0.5) * (FRAME / COLUMNS)
        columns = run.classes[(middles * COLUMNS / FRAME).astype(int)]
        return np.asarray(run.samples[start : start + self._samples]), columns.reshape(-1, COLUMNS).T


@dataclass(frozen=True, eq=False)
class _VoiceRun:
    """Consecutive utterances of one voice: samples int16 [T * 1920], phoneme classes [T * 4]."""

    voice: int
    samples: NDArray[np.int16]
    classes: NDArray[np.int64]


def _voice_runs(stem: Path) -> list[_VoiceRun]:
    utterances, samples = load_shard(stem)
    ends = np.cumsum([utterance.frames for utterance in utterances])
    voices = np.array([utterance.voice for utterance in utterances])
    columns = [utterance.phonemes or "\0" * (utterance.frames * COLUMNS) for utterance in utterances]
    places = {symbol: index for index, symbol in enumerate(PHONEMES)}
    classes = np.array([places.get(symbol, IGNORE) for symbol in "".join(columns)], np.int64)
    changes = np.flatnonzero(np.diff(voices)) + 1
    bounds = [0, *(ends[changes - 1]), ends[-1]]
    return [
        _VoiceRun(int(voice), samples[start * FRAME : end * FRAME], classes[start * COLUMNS : end * COLUMNS])
        for voice, start, end in zip(voices[[0, *changes]], bounds[:-1], bounds[1:], strict=True)
    ]
