"""Stage "codes": the corpus as codec codes with byte-level text ids, and batches of conversations made of them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from csm_cli.recipe.corpus import FRAME, CorpusUtterance, load_shard
from csm_cli.storage.files import atomic_file
from csm_cli.train.batches import IGNORE, LossMask, SequenceRow, apply_loss_mask, collate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import MimiModel

    from csm_cli.recipe.plan import StagePlan
    from csm_cli.train.batches import Batch

# Text ids: 0 to 255 are bytes, then the special tokens.
BEGIN, END, AUDIO, AUDIO_EOS = 256, 257, 258, 259
TEXT_VOCAB = 260
GUIDE, VOICE = "guide", "voice"  # auxiliary losses: byte spoken in the next frame, voice of the turn
_DRAWN_VOICES_SHARE = 0.85  # of dialogues; in the others speaker n has voice n


def text_ids(speaker: int, text: str) -> list[int]:
    """Ids of one turn's text with special tokens; equal to the exported tokenizer's."""
    return [BEGIN, *f"[{speaker}]{text}".encode(), END]


@dataclass(frozen=True)
class CodedUtterance:
    """An utterance of the corpus with its codes, int16 [T, K]."""

    utterance: CorpusUtterance
    codes: NDArray[np.int16]


@dataclass(frozen=True)
class CorpusTurn:
    """An utterance as `speaker`'s turn; trained: False for context."""

    speaker: int
    spoken: CodedUtterance
    trained: bool


@torch.no_grad()
def encode_samples(codec: MimiModel, clips: Sequence[NDArray[np.int16]]) -> list[NDArray[np.int16]]:
    """Codes [T, K] of whole-frame clips, encoded together; the codec is causal, so padding at the end is harmless."""
    longest = max(map(len, clips))
    padded = np.stack([np.pad(clip, (0, longest - len(clip))) for clip in clips])
    audio = torch.from_numpy(padded).float().to(codec.device) / 32768
    codes = codec.encode(audio[:, None]).audio_codes.transpose(1, 2).to(torch.int16).cpu().numpy()  # [B, T, K]
    return [row[: len(clip) // FRAME] for row, clip in zip(codes, clips, strict=True)]


def encode_shards(codec: MimiModel, stems: Sequence[Path], folder: Path, batch: int = 4) -> None:
    """Writes `NNN.npy`, the codes [frames, K], for every shard that has none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        path = folder / f"{stem.name}.npy"
        if path.exists():
            continue
        utterances, samples = load_shard(stem)
        clips = np.split(samples, np.cumsum([utterance.frames for utterance in utterances])[:-1] * FRAME)
        by_length = sorted(range(len(clips)), key=lambda index: len(clips[index]))
        codes: dict[int, NDArray[np.int16]] = {}
        for start in range(0, len(clips), batch):
            indices = by_length[start : start + batch]
            codes |= zip(indices, encode_samples(codec, [clips[index] for index in indices]), strict=True)
        with atomic_file(path) as file:
            np.save(file, np.concatenate([codes[index] for index in range(len(clips))]))


def load_utterances(stems: Sequence[Path], folder: Path) -> list[CodedUtterance]:
    """All utterances of the shards `stems` whose codes are in `folder`."""
    loaded: list[CodedUtterance] = []
    for stem in stems:
        path = folder / f"{stem.name}.npy"
        if path.exists():
            utterances, _ = load_shard(stem)
            ends = np.cumsum([utterance.frames for utterance in utterances])
            codes = np.split(np.load(path), ends[:-1])
            loaded += [CodedUtterance(*pair) for pair in zip(utterances, codes, strict=True)]
    return loaded


def join_utterances(parts: Sequence[CodedUtterance]) -> CodedUtterance:
    """Utterances of one voice as one paragraph."""
    texts = [part.utterance.text for part in parts]
    byte_offsets = np.cumsum([0, *(len(text.encode()) + 1 for text in texts)]).tolist()
    frame_offsets = np.cumsum([0, *(part.utterance.frames for part in parts)]).tolist()
    words = [
        (byte + byte_offsets[index], frame + frame_offsets[index])
        for index, part in enumerate(parts)
        for byte, frame in part.utterance.words
        if byte <= len(texts[index].encode())
    ]
    joined = CorpusUtterance(" ".join(texts), parts[0].utterance.voice, frame_offsets[-1], tuple(words))
    return CodedUtterance(joined, np.concatenate([part.codes for part in parts]))


def conversation_row(turns: Sequence[CorpusTurn]) -> SequenceRow:
    """Turns one after another, each with an end frame of zeros; see `_turn_row` for the auxiliary targets."""
    rows = [_turn_row(turn) for turn in turns]
    offsets = np.cumsum([0, *(len(row) for row in rows[:-1])])
    guides = [row.aux_targets[GUIDE] for row in rows]
    guides = [np.where(guide != IGNORE, guide + offset, IGNORE) for guide, offset in zip(guides, offsets, strict=True)]
    names = ("text_ids", "is_text", "codes", "labels", "weights")
    joined: dict[str, Any] = {name: np.concatenate([getattr(row, name) for row in rows]) for name in names}
    voices = np.concatenate([row.aux_targets[VOICE] for row in rows])
    return SequenceRow(**joined, aux_targets={GUIDE: np.concatenate(guides), VOICE: voices})


def _turn_row(turn: CorpusTurn) -> SequenceRow:
    """guide: for each next frame the position of the byte spoken in it; voice: before the turn's first two frames."""
    ids = text_ids(turn.speaker, turn.spoken.utterance.text)
    frames = np.concatenate([turn.spoken.codes, np.zeros_like(turn.spoken.codes[:1])]).astype(np.int64)
    start, length, books = len(ids), len(ids) + len(frames), frames.shape[1]
    text, is_text = np.zeros(length, np.int64), np.zeros(length, bool)
    text[:start], is_text[:start] = ids, True
    codes, labels = np.zeros((length, books), np.int64), np.full((length, books), IGNORE, np.int64)
    codes[start:] = frames
    guide, voice = np.full(length, float(IGNORE)), np.full(length, IGNORE, np.int64)
    if turn.trained:
        labels[start:] = frames
        guide[start - 1 : length - 1] = _spoken_positions(turn, len(frames))
        voice[start - 1 : start + 1] = turn.spoken.utterance.voice
    return SequenceRow(text, is_text, codes, labels, np.ones(length, np.float32), {GUIDE: guide, VOICE: voice})


def _spoken_positions(turn: CorpusTurn, frames: int) -> NDArray[np.float64]:
    """Position in the turn of the byte spoken in each frame [frames], interpolated between the utterance's anchors."""
    utterance = turn.spoken.utterance
    prefix = len(text_ids(turn.speaker, "")) - 1
    end = len(utterance.text.encode())
    anchors = [(byte, frame) for byte, frame in utterance.words if byte <= end and frame < frames - 1]
    places = [*(byte for byte, _ in anchors), end]
    times = [*(frame for _, frame in anchors), float(frames - 1)]
    positions: NDArray[np.float64] = np.interp(np.arange(frames) + 0.5, times, places)
    return prefix + positions


class ConversationMixer:
    """Endless batches of about `tokens` positions, conversations of similar length together.

    mask: what of each conversation counts in the loss; None for all of it.
    """

    def __init__(
        self, utterances: Sequence[CodedUtterance], seed: int, tokens: int, mask: LossMask | None = None
    ) -> None:
        self._utterances = utterances
        self._random = random.Random(seed)
        self._mask_random = np.random.default_rng(seed)
        self._tokens = tokens
        self._mask = mask

    def batches(self, stage: StagePlan) -> Iterator[Batch]:
        """Batches of a stage's conversations.

        In single turns, and in a few dialogues, speaker n has voice n; in other dialogues voices are drawn at random.
        """
        usable = [
            each
            for each in self._utterances
            if each.utterance.voice < stage.voices and each.utterance.frames <= stage.max_frames
        ]
        by_voice: dict[int, list[CodedUtterance]] = {}
        for each in usable:
            by_voice.setdefault(each.utterance.voice, []).append(each)
        while True:
            pool: list[SequenceRow] = []
            while sum(map(len, pool)) < 24 * self._tokens:
                kind = self._random.random()
                spoken = self._random.choice(usable)
                if kind < stage.dialogues:
                    pool.append(conversation_row(self._dialogue(by_voice, stage)))
                    continue
                if kind < stage.dialogues + stage.paragraphs:
                    same_voice = by_voice[spoken.utterance.voice]
                    spoken = join_utterances(self._random.choices(same_voice, k=self._random.randint(2, 7)))
                pool.append(conversation_row([CorpusTurn(spoken.utterance.voice, spoken, trained=True)]))
            batches = list(_split_rows(sorted(pool, key=len), self._tokens))
            self._random.shuffle(batches)
            for rows in batches:
                if self._mask is not None:
                    rows = [apply_loss_mask(row, self._mask, self._mask_random) for row in rows]
                yield collate(rows)

    def _dialogue(self, by_voice: dict[int, list[CodedUtterance]], stage: StagePlan) -> list[CorpusTurn]:
        """Two turns or more; where voices are drawn, a speaker's first turn is context only."""
        count = min(len(by_voice), self._random.randint(1, stage.speakers))
        drawn = self._random.random() < _DRAWN_VOICES_SHARE
        speakers = self._random.sample(range(4), count) if drawn else sorted(by_voice)[:count]
        voices = self._random.sample(sorted(by_voice), count) if drawn else speakers
        voice_of = dict(zip(speakers, voices, strict=True))
        known: set[int] = set() if drawn else set(speakers)
        order = [self._random.choice(speakers) for _ in range(self._random.randint(2, stage.turns))]
        if not known and len(set(order)) == len(order):
            order.append(order[0])  # otherwise every turn would be context
        turns = []
        for speaker in order:
            spoken = self._random.choice(by_voice[voice_of[speaker]])
            turns.append(CorpusTurn(speaker, spoken, trained=speaker in known))
            known.add(speaker)
        return turns


def _split_rows(rows: Sequence[SequenceRow], tokens: int) -> Iterator[list[SequenceRow]]:
    """Neighbours whose padded batch has at most so many positions."""
    group: list[SequenceRow] = []
    for row in rows:
        if group and len(row) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(row)
    yield group
