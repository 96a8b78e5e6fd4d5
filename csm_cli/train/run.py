"""`csm train`: a run of training from its settings, as events; it goes on where it was stopped, exactly."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from csm_cli.checkpoint import Checkpoint
from csm_cli.data.encode import codec_identity
from csm_cli.data.store import Store, open_store
from csm_cli.errors import InputError, UsageError
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.storage.files import exclusive_lock, recover_folder, remove_temp_files
from csm_cli.train.batches import LossMask
from csm_cli.train.distributed import all_reduce, make_accelerator
from csm_cli.train.examples import BatchSpec, ExampleSampler, evaluation_batches
from csm_cli.train.loss import LossModule
from csm_cli.train.progress import HistoryWriter, save_atomically
from csm_cli.train.samples import SampleSpeaker
from csm_cli.train.settings import TrainSettings
from csm_cli.train.trainable_model import TrainableModel
from csm_cli.train.trainer import Optimization, Trainer

_LOG = logging.getLogger(__name__)
STATE = "state.pt"


@dataclass(frozen=True)
class TrainingStarted:
    """step: the last one of an earlier run, 0 for none; parameters: trained and in all; examples: and held out."""

    step: int
    parameters: tuple[int, int]
    examples: tuple[int, int]


@dataclass(frozen=True)
class StepDone:
    """A step's mean losses, and how many positions it read in how many seconds, over all processes."""

    step: int
    losses: Mapping[str, float]
    positions: int
    seconds: float


@dataclass(frozen=True)
class EvaluationDone:
    """Mean cross-entropy of each codebook over the held-out examples; loss: what training sums; best: so far."""

    step: int
    codebooks: tuple[float, ...]
    loss: float
    best: bool


@dataclass(frozen=True)
class CheckpointSaved:
    """What can be used: an adapter or a checkpoint folder, or spoken samples."""

    step: int
    path: Path


TrainingEvent = TrainingStarted | StepDone | EvaluationDone | CheckpointSaved


class TrainingRun:
    """A model, its data and the folder where its state lies; `main` is false in all processes but one."""

    def __init__(self, settings: TrainSettings, device: str = "auto", offline: bool = False) -> None:
        """Raises InputError for data that cannot be trained on, and as the parts it is made of."""
        self.settings = settings
        self.folder = settings.folder
        with all_reduce(self.folder / STATE, lambda: 0):
            self._prepare(settings, device, offline)

    def _prepare(self, settings: TrainSettings, device: str, offline: bool) -> None:
        self.accelerator = make_accelerator(device, settings.precision == "bfloat16")
        self.main = self.accelerator.is_main_process
        self.subject = TrainableModel(settings, offline)
        found = self.subject.checkpoint
        self._prompt_builder = PromptBuilder(found.tokenizer_file, found.config)
        data = Path(settings.data).expanduser()
        portions = BatchSpec(settings.batch_tokens, found.config.backbone.max_seq_len, settings.seed)
        store = open_store(data)
        _refuse_other_codec(store, found)
        self._deck = ExampleSampler(store, self._prompt_builder, portions, found.config.codebooks)
        self._held_out = open_store(data, held_out=True)
        self._lesson = LossMask(
            settings.depth_share, settings.corrupt, settings.start_weight, found.config.codebook_size
        )
        self.trainer = Trainer(LossModule(self.subject.model), _optimization(settings), self.accelerator)
        self._samples = SampleSpeaker(settings.samples, found, self._prompt_builder)
        self._best = float("inf")
        self._dealt = 0
        self._resume()

    @property
    def steps(self) -> int:
        return self.settings.steps

    def events(self, stop: Callable[[], bool] = lambda: False) -> Iterator[TrainingEvent]:
        """Trains to the last step; where `stop` says so in any process, saves and ends after the step in hand.

        Raises:
            TrainingFailed: a loss that is not finite. InputError: data damaged on the way. OutputFailed: a full disk.
            UsageError: another run is at this folder. OutputRefused: it cannot be written to. PeerLost: one of several
            processes has ended.
        """
        alone = exclusive_lock(self.folder) if self.main else nullcontext()
        with alone, all_reduce(self.folder / STATE, lambda: self.trainer.step):
            yield self._begun()
            yield from self._trained(stop, self._record() if self.main else None)

    def _record(self) -> HistoryWriter:
        """The figures so far; what a kill has left half-written is gone."""
        for folder in (self.folder, *self.folder.glob("samples/*")):
            remove_temp_files(folder)
        for name in ("best", "last"):
            recover_folder(self.folder / name)
        return HistoryWriter(self.folder, self.trainer.step, self.settings.tensorboard)

    def _trained(self, stop: Callable[[], bool], record: HistoryWriter | None) -> Iterator[TrainingEvent]:
        while self.trainer.step < self.steps:
            event = self._step()
            stopping = bool(self.trainer.reduced(torch.tensor(float(stop()))) > 0)
            step, last = event.step, event.step == self.steps
            if record:
                record.add(step, "train", event.losses)
            yield event
            if len(self._held_out) and (last or _due(step, self.settings.evaluate_every)):
                yield from self._evaluated(step, record)
            if self.main and self._due_samples(step, last):
                yield self._spoken(step)
            if last or stopping or _due(step, self.settings.save_every):
                yield from self._saved(step, record)
            if stopping:
                return

    def _begun(self) -> TrainingStarted:
        total = sum(p.numel() for p in self.subject.model.parameters())
        trained = sum(p.numel() for p in self.trainer.parameters.values())
        return TrainingStarted(self.trainer.step, (trained, total), (len(self._deck.lengths), len(self._held_out)))

    def _step(self) -> StepDone:
        began = time.perf_counter()
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        numbers = [self._dealt + index * world + rank for index in range(self.settings.accumulate)]
        batches = [self._deck.batch(number, self._lesson) for number in numbers]
        self._dealt += self.settings.accumulate * world
        positions = self.trainer.reduced(torch.tensor(sum(batch.text.numel() for batch in batches)))
        losses = self.trainer.update(batches)
        del losses["guide"], losses["voice"]
        return StepDone(self.trainer.step, losses, int(positions), time.perf_counter() - began)

    def _evaluated(self, step: int, record: HistoryWriter | None) -> Iterator[EvaluationDone | CheckpointSaved]:
        """Evaluates the averaged weights; keeps them where they are the best so far."""
        share = (self.accelerator.process_index, self.accelerator.num_processes)
        batches = evaluation_batches(self._held_out, self._prompt_builder, self.settings.batch_tokens, share)
        codebooks = self.trainer.evaluate(batches)
        depth = sum(codebooks[1:]) / len(codebooks[1:])
        loss = codebooks[0] + self.settings.depth_weight * depth
        best, self._best = loss < self._best, min(loss, self._best)
        if record:
            books = {f"codebook {number}": value for number, value in enumerate(codebooks)}
            record.add(step, "held out", {"backbone": codebooks[0], "depth": depth, **books})
        yield EvaluationDone(step, tuple(codebooks), loss, best)
        if best and self.main:
            yield self._keep("best", step)

    def _due_samples(self, step: int, last: bool) -> bool:
        every = self.settings.sample_every
        return bool(self.settings.samples and every) and (last or _due(step, every))

    def _spoken(self, step: int) -> CheckpointSaved:
        folder = self.folder / "samples" / f"{step:06}"
        with self.trainer.averaged():
            self._samples.write(self.subject.model, folder, self.settings.seed)
        return CheckpointSaved(step, folder)

    def _saved(self, step: int, record: HistoryWriter | None) -> Iterator[CheckpointSaved]:
        """Keeps the weights first: a run killed in between comes to this step again."""
        if record is None:
            return
        kept = self._keep("last", step)
        state = {
            "settings": self.settings.what_is_learned,
            "dealt": self._dealt,
            "best": self._best,
            **self.trainer.state(),
        }
        save_atomically(state, self.folder / STATE)
        record.draw()
        yield kept

    def _keep(self, name: str, step: int) -> CheckpointSaved:
        with self.trainer.averaged():
            self.subject.save(self.folder / name)
        return CheckpointSaved(step, self.folder / name)

    def _resume(self) -> None:
        """Raises InputError for a damaged state, UsageError for one of other settings."""
        path = self.folder / STATE
        if not path.exists():
            return
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            before = state["settings"]
        except Exception as problem:  # what unpickling raises is not bounded
            raise InputError(f"{path} is damaged ({type(problem).__name__}); remove it to begin anew") from problem
        for name, value in self.settings.what_is_learned.items():
            if before.get(name) != value:
                raise UsageError(
                    f"{self.folder} was begun with {name} {before.get(name)!r}, now {value!r}; name another output"
                )
        self._dealt, self._best = state["dealt"], state["best"]
        self.trainer.load(state)


def _optimization(settings: TrainSettings) -> Optimization:
    return Optimization(
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warm_up=settings.warm_up,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        depth_weight=settings.depth_weight,
        average_decay=settings.average,
        eight_bit=settings.optimizer == "adamw8bit",
        seed=settings.seed,
    )


def _refuse_other_codec(store: Store, checkpoint: Checkpoint) -> None:
    """Raises InputError where the data was prepared with a codec whose codes mean something else."""
    if store.codebooks == checkpoint.config.codebooks and store.coding.codec != codec_identity(checkpoint):
        raise InputError(
            f"the data was prepared for another codec than {checkpoint.name}'s; run csm data prepare with --model of it"
        )


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
