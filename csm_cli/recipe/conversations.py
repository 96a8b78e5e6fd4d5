"""Codes of the corpus, and batches of conversations made from them.

A conversation is turns of text and frames in one sequence, just as the model reads and continues it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from csm_cli.recipe.corpus import FRAME, CorpusUtterance, load_shard
from csm_cli.recipe.tokenizer import text_ids
from csm_cli.storage.files import atomic_file
from csm_cli.train.batches import IGNORE, LossMask, SequenceRow, collate, make_loss_mask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import MimiModel

    from csm_cli.recipe.plan import StagePlan
    from csm_cli.train.batches import Batch


@dataclass(frozen=True)
class CorpusTake:
    """One utterance as codes int16 [T, K]."""

    utterance: CorpusUtterance
    codes: NDArray[np.int16]


@dataclass(frozen=True)
class CorpusTurn:
    """A take spoken by `speaker`; `learned` is False for a turn that is context only."""

    speaker: int
    take: CorpusTake
    learned: bool


@torch.no_grad()
def encode_samples(codec: MimiModel, clips: Sequence[NDArray[np.int16]]) -> list[NDArray[np.int16]]:
    """Codes [T, K] of whole-frame clips, encoded together: the codec is causal, so padding behind changes nothing."""
    longest = max(map(len, clips))
    padded = np.stack([np.pad(clip, (0, longest - len(clip))) for clip in clips])
    audio = torch.from_numpy(padded).float().to(codec.device) / 32768
    codes = codec.encode(audio[:, None]).audio_codes.transpose(1, 2).to(torch.int16).cpu().numpy()  # [B, T, K]
    return [row[: len(clip) // FRAME] for row, clip in zip(codes, clips, strict=True)]


def encode_shards(codec: MimiModel, stems: Sequence[Path], folder: Path, batch: int = 4) -> None:
    """Write `NNN.npy`, the codes [frames, K] of every shard that has none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        path = folder / f"{stem.name}.npy"
        if not path.exists():
            codes = _encode_shard(codec, stem, batch)
            with atomic_file(path) as file:
                np.save(file, codes)


def _encode_shard(codec: MimiModel, stem: Path, batch: int) -> NDArray[np.int16]:
    utterances, samples = load_shard(stem)
    clips = np.split(samples, np.cumsum([utterance.frames for utterance in utterances])[:-1] * FRAME)
    order = sorted(range(len(clips)), key=lambda index: len(clips[index]))
    codes: list[NDArray[np.int16]] = [np.empty(0, np.int16)] * len(clips)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        for row, found in zip(rows, encode_samples(codec, [clips[row] for row in rows]), strict=True):
            codes[row] = found
    return np.concatenate(codes)


def load_takes(corpus: Path, folder: Path) -> list[CorpusTake]:
    """Every take whose shard has been encoded."""
    takes: list[CorpusTake] = []
    for path in sorted(folder.glob("[0-9][0-9][0-9].npy")):
        utterances, _ = load_shard(corpus / path.stem)
        ends = np.cumsum([utterance.frames for utterance in utterances])
        takes += [CorpusTake(u, c) for u, c in zip(utterances, np.split(np.load(path), ends[:-1]), strict=True)]
    return takes


def join_takes(takes: Sequence[CorpusTake]) -> CorpusTake:
    """Takes of one voice as one: a paragraph."""
    texts = [take.utterance.text for take in takes]
    chars = np.cumsum([0, *(len(text) + 1 for text in texts)]).tolist()
    frames = np.cumsum([0, *(take.utterance.frames for take in takes)]).tolist()
    words = [
        (char + chars[index], at + frames[index])
        for index, take in enumerate(takes)
        for char, at in take.utterance.words
        if char < len(texts[index])
    ]
    utterance = CorpusUtterance(" ".join(texts), takes[0].utterance.voice, frames[-1], tuple(words))
    return CorpusTake(utterance, np.concatenate([take.codes for take in takes]))


def conversation_row(turns: Sequence[CorpusTurn]) -> SequenceRow:
    """Turns one after another; every turn ends in a frame of zeros."""
    rows = [_turn_row(turn) for turn in turns]
    offsets = np.cumsum([0, *(len(row) for row in rows[:-1])])
    guides = [np.where(row.guide >= 0, row.guide + offset, -1.0) for row, offset in zip(rows, offsets, strict=True)]
    names = ("text", "is_text", "codes", "labels", "weights", "voices")
    joined = {name: np.concatenate([getattr(row, name) for row in rows]) for name in names}
    return SequenceRow(guide=np.concatenate(guides), name="", **joined)


def _turn_row(turn: CorpusTurn) -> SequenceRow:
    ids = text_ids(turn.speaker, turn.take.utterance.text)
    frames = np.concatenate([turn.take.codes, np.zeros_like(turn.take.codes[:1])]).astype(np.int64)
    lead, length, books = len(ids), len(ids) + len(frames), frames.shape[1]
    text, is_text = np.zeros(length, np.int64), np.zeros(length, bool)
    text[:lead], is_text[:lead] = ids, True
    codes, labels = np.zeros((length, books), np.int64), np.full((length, books), IGNORE, np.int64)
    codes[lead:] = frames
    guide, voices = np.full(length, -1.0), np.full(length, IGNORE, np.int64)
    if turn.learned:
        labels[lead:] = frames
        guide[lead - 1 : length - 1] = _heard_bytes(turn, len(frames))
        voices[lead - 1 : lead + 1] = turn.take.utterance.voice
    return SequenceRow(text, is_text, codes, labels, np.ones(length, np.float32), guide, voices)


def _heard_bytes(turn: CorpusTurn, frames: int) -> NDArray[np.float64]:
    """The position in the turn of the byte heard in each frame [frames], from the word starts."""
    utterance = turn.take.utterance
    prefix = len(text_ids(turn.speaker, "")) - 1
    end = len(utterance.text.encode())
    words = [(char, at) for char, at in utterance.words if char < end]
    chars = [*(char for char, _ in words), end]
    times = [*(at for _, at in words), float(frames - 1)]
    heard: NDArray[np.float64] = np.interp(np.arange(frames) + 0.5, times, chars)
    return prefix + heard


class ConversationMixer:
    """Endless batches of about `tokens` positions, conversations of like length together.

    lesson: what of each conversation is learned; None for everything.
    """

    def __init__(self, takes: Sequence[CorpusTake], seed: int, tokens: int, lesson: LossMask | None = None) -> None:
        self._takes = takes
        self._random = random.Random(seed)
        self._choices = np.random.default_rng(seed)
        self._tokens = tokens
        self._lesson = lesson

    def batches(self, stage: StagePlan) -> Iterator[Batch]:
        """Batches of the conversations a stage asks for.

        In single turns, and in a few of the dialogues, speaker n has voice n; in the others voices are drawn afresh.
        """
        heard = [take for take in self._takes if take.utterance.voice < stage.voices]
        fit = [take for take in heard if take.utterance.frames <= stage.max_frames]
        by_voice: dict[int, list[CorpusTake]] = {}
        for take in fit:
            by_voice.setdefault(take.utterance.voice, []).append(take)
        while True:
            pool: list[SequenceRow] = []
            while sum(map(len, pool)) < 24 * self._tokens:
                kind = self._random.random()
                take = self._random.choice(fit)
                if kind < stage.dialogues:
                    pool.append(conversation_row(self._dialogue(by_voice, stage)))
                    continue
                if kind < stage.dialogues + stage.paragraphs:
                    same = by_voice[take.utterance.voice]
                    take = join_takes(self._random.choices(same, k=self._random.randint(2, 7)))
                pool.append(conversation_row([CorpusTurn(take.utterance.voice, take, learned=True)]))
            batches = list(_grouped(sorted(pool, key=len), self._tokens))
            self._random.shuffle(batches)
            yield from (collate([self._chosen(row) for row in rows]) for rows in batches)

    def _chosen(self, row: SequenceRow) -> SequenceRow:
        return row if self._lesson is None else make_loss_mask(row, self._lesson, self._choices)

    def _dialogue(self, by_voice: dict[int, list[CorpusTake]], stage: StagePlan) -> list[CorpusTurn]:
        """Two turns and more; a speaker's first turn is context only where its voice is drawn afresh."""
        count = min(len(by_voice), self._random.randint(1, stage.speakers))
        drawn = self._random.random() < 0.85
        numbers = self._random.sample(range(4), count) if drawn else sorted(by_voice)[:count]
        heard = self._random.sample(sorted(by_voice), count) if drawn else numbers
        voices = dict(zip(numbers, heard, strict=True))
        known: set[int] = set() if drawn else set(numbers)
        turns = []
        order = [self._random.choice(numbers) for _ in range(self._random.randint(2, stage.turns))]
        if not known and len(set(order)) == len(order):
            order.append(order[0])  # otherwise nothing would be learned
        for speaker in order:
            turns.append(CorpusTurn(speaker, self._random.choice(by_voice[voices[speaker]]), learned=speaker in known))
            known.add(speaker)
        return turns


def _grouped(rows: Sequence[SequenceRow], tokens: int) -> Iterator[list[SequenceRow]]:
    group: list[SequenceRow] = []
    for row in rows:
        if group and len(row) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(row)
    yield group
