"""Clips to examples: sound to codes, and conversations cut to the model's window by whole turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from csm_cli.audio.io import Audio, resample
from csm_cli.checkpoint import open_checkpoint
from csm_cli.data.clips import ClipFindings, DatasetEntry, DroppedClip, TrainingClip, TrainingConversation
from csm_cli.data.examine import ClipLimits, read_clip
from csm_cli.data.store import CodecIdentity, CodedTurn, Example
from csm_cli.device import pick_device
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.models.mimi import Codec
from csm_cli.models.mimi.config import codec_config
from csm_cli.storage.fingerprint import Fingerprint, fingerprint

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint

_BATCH = {"cpu": 1, "cuda": 16}  # clips encoded together; on a CPU that gains nothing
_CONTEXT = 4  # the part of a window, at most, that repeats the end of the one before


@dataclass(frozen=True)
class EncodingRecipe:
    """How examples are made. held_out: the share of conversations kept from training; threads: of torch, 0 for all."""

    model: str | None
    revision: str | None = None
    device: str = "auto"
    limits: ClipLimits = field(default_factory=ClipLimits)
    held_out: float = 0.0
    threads: int = 0
    offline: bool = False


@dataclass(frozen=True, eq=False)
class _Spoken:
    """A clip on its way: its sound, then its codes; or why it was left out. seconds: of its sound."""

    talk: TrainingConversation
    clip: TrainingClip
    got: Audio | CodedTurn | DroppedClip
    seconds: float


class Encoder:
    """A checkpoint's codec and tokenizer. coding: what goes into a store; window: positions of the model."""

    def __init__(self, recipe: EncodingRecipe) -> None:
        """Raises ModelError as `open_checkpoint`, UsageError or DeviceError as `pick_device`."""
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        device = pick_device(recipe.device)
        self.checkpoint = open_checkpoint(recipe.model, recipe.revision, offline=recipe.offline)
        config = self.checkpoint.config
        self._recipe = recipe
        self._codec = Codec.load(self.checkpoint.codec_config, self.checkpoint.codec_weights, device, config.codebooks)
        self._prompt_builder = PromptBuilder(self.checkpoint.tokenizer_file, config)
        self._batch = _BATCH.get(device.type, 1)
        self.window = config.backbone.max_seq_len
        self.coding = CodecIdentity(codec_identity(self.checkpoint), config.codebooks, self._codec.frame_rate)

    def encode(self, piece: DatasetEntry) -> tuple[list[Example], ClipFindings]:
        """The examples of a piece, and what became of its clips."""
        found = ClipFindings([], [item for item in piece if isinstance(item, DroppedClip)])
        talks = [item for item in piece if isinstance(item, TrainingConversation)]
        entries = self._coded(_heard(talks, self._recipe.limits))
        examples: list[Example] = []
        for talk in talks:
            turns = [self._kept(next(entries), found) for _ in talk.clips]
            examples += self._examples(talk, turns)
        return examples, found

    def _coded(self, entries: Iterator[_Spoken]) -> Iterator[_Spoken]:
        """The same entries with codes for sounds, those of like length encoded together."""
        while block := list(islice(entries, 4 * self._batch)):
            sounds = [(at, entry.got) for at, entry in enumerate(block) if isinstance(entry.got, Audio)]
            sounds.sort(key=lambda pair: pair[1].duration)
            for start in range(0, len(sounds), self._batch):
                some = sounds[start : start + self._batch]
                samples = [self._samples(audio) for _, audio in some]
                for (at, _), codes in zip(some, self._codec.encode_batch(samples), strict=True):
                    clip = block[at].clip
                    block[at] = replace(block[at], got=CodedTurn(clip.speaker, clip.text, codes.cpu(), clip.learned))
            yield from block

    def _samples(self, audio: Audio) -> Tensor:
        """[T * frame_samples]: at the codec's rate, filled up with silence to whole frames."""
        samples = torch.from_numpy(resample(audio, self._codec.rate).samples)
        return nn.functional.pad(samples, (0, -len(samples) % self._codec.frame_samples))

    def _kept(self, entry: _Spoken, found: ClipFindings) -> CodedTurn | None:
        """The turn of an entry where it can be learned from; notes what became of it."""
        got = entry.got
        assert not isinstance(got, Audio)
        if isinstance(got, CodedTurn) and (size := self._positions(got)) > self.window:
            detail = f"takes {size} positions, the model's window has {self.window}"
            got = DroppedClip(entry.talk.id, entry.clip.place, "no room", detail, round(entry.seconds, 2))
        found.note(entry.clip, got if isinstance(got, DroppedClip) else entry.seconds)
        return None if isinstance(got, DroppedClip) else got

    def _positions(self, turn: CodedTurn) -> int:
        """Rows of the turn in a prompt: its text's ids, its frames, and the frame that ends it."""
        return len(self._prompt_builder.text_ids(turn.speaker, turn.text)) + len(turn.codes) + 1

    def _examples(self, talk: TrainingConversation, turns: Sequence[CodedTurn | None]) -> Iterator[Example]:
        """The windows of a conversation; one begins anew after a turn that was left out."""
        windows = [
            window
            for run in _runs(turns)
            for window in split_to_windows(run, [self._positions(turn) for turn in run], self.window)
        ]
        out = is_held_out(talk.id, self._recipe.held_out)
        for number, window in enumerate(windows, 1):
            name = talk.id if len(windows) == 1 else f"{talk.id}#{number}"
            yield Example(name, tuple(window), out)


def split_to_windows(turns: Sequence[CodedTurn], sizes: Sequence[int], window: int) -> Iterator[list[CodedTurn]]:
    """Whole turns in order, as many as a window of so many positions holds; `sizes`: positions of each.

    Each after the first begins with the last turns of the one before, as context, in at most a quarter of it.
    """
    start = first = 0  # where the window in hand begins, and where its turns are new
    for at in range(1, len(turns) + 1):
        if at < len(turns) and sum(sizes[start : at + 1]) <= window:
            continue
        heard = [replace(turn, learned=False) for turn in turns[start:first]]
        if any(turn.learned for turn in turns[first:at]):
            yield [*heard, *turns[first:at]]
        if at < len(turns):
            room = min(window // _CONTEXT, window - sizes[at])
            first = start = at
            while start and sum(sizes[start - 1 : at]) <= room:
                start -= 1


def is_held_out(name: str, share: float) -> bool:
    """Whether a conversation is among the share that is kept from training; the same in every run and every order."""
    return int(fingerprint(name, length=16), 16) < share * 2**64


def codec_identity(checkpoint: Checkpoint) -> str:
    """What turns sound into codes, in one number: the codec's sizes and tensors, and how many codebooks are used."""
    sizes = (checkpoint.config.codebooks, codec_config(checkpoint.codec_config))
    digest = Fingerprint(repr(sizes))
    for name in sorted(checkpoint.codec_weights):
        digest.add(name)
        digest.add(checkpoint.codec_weights[name].float().contiguous().numpy().tobytes())
    return digest.hex()


def _heard(talks: Iterable[TrainingConversation], limits: ClipLimits) -> Iterator[_Spoken]:
    for talk in talks:
        for clip, got in zip(talk.clips, read_clip(talk, limits), strict=True):
            yield _Spoken(talk, clip, got, got.seconds if isinstance(got, DroppedClip) else got.duration)


def _runs(turns: Sequence[CodedTurn | None]) -> Iterator[list[CodedTurn]]:
    """Turns that follow each other with none left out between them."""
    run: list[CodedTurn] = []
    for turn in [*turns, None]:
        if turn is not None:
            run.append(turn)
        elif run:
            yield run
            run = []
