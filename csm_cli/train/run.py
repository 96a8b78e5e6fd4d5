"""A run of `csm train`: from its settings to events, checkpoints and samples; a stopped run resumes exactly."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from csm_cli.data.prepare import codec_digest
from csm_cli.data.store import open_store
from csm_cli.errors import InputError, UsageError
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.storage.files import exclusive_lock, remove_temp_files
from csm_cli.storage.folders import check_replaceable, claim_folder, recover_folder
from csm_cli.train.batches import BatchSpec, ExampleSampler, LossMask, evaluation_batches
from csm_cli.train.history import HistoryWriter, plot_history, save_state
from csm_cli.train.loss import LossModule
from csm_cli.train.settings import TrainSettings
from csm_cli.train.trainable_model import SampleGenerator, TrainableModel
from csm_cli.train.trainer import OptimizerConfig, Trainer, detect_lost_process, make_accelerator

STATE = "state.pt"
STATE_VERSION = 2
_OWN_NAMES = re.compile(r"state\.pt|history\.jsonl|loss\.png|best|last|samples|tensorboard")


@dataclass(frozen=True)
class TrainingStarted:
    """step: last finished step of an earlier run, 0 for a new run."""

    step: int
    trainable_parameters: int
    total_parameters: int
    examples: int
    held_out_examples: int


@dataclass(frozen=True)
class StepDone:
    """A step's mean losses by name; `positions` processed in `seconds` by all processes."""

    step: int
    losses: Mapping[str, float]
    positions: int
    seconds: float


@dataclass(frozen=True)
class EvaluationDone:
    """Mean cross-entropy of each codebook over the held-out examples; loss: backbone + weighted depth loss."""

    step: int
    codebook_losses: tuple[float, ...]
    loss: float
    is_best: bool


@dataclass(frozen=True)
class CheckpointSaved:
    """path: folder of an adapter or checkpoint (`best`, `last`), or of generated samples."""

    step: int
    path: Path


TrainingEvent = TrainingStarted | StepDone | EvaluationDone | CheckpointSaved


class TrainingRun:
    """A model, its data and its output folder; `is_main` in one of several processes."""

    def __init__(self, settings: TrainSettings, device: str = "auto", offline: bool = False) -> None:
        """Raises InputError for data that cannot be trained on, UsageError for a state of other settings; and as
        `TrainableModel` and `make_accelerator`."""
        self.settings = settings
        self.folder = settings.output_folder
        with detect_lost_process(self.folder / STATE, lambda: 0):
            self._load(device, offline)
            self._resume()

    def _load(self, device: str, offline: bool) -> None:
        settings = self.settings
        self.accelerator = make_accelerator(device, settings.precision == "bfloat16", settings.peer_timeout)
        self.is_main = self.accelerator.is_main_process
        self.trainable = TrainableModel(settings, offline)
        checkpoint = self.trainable.checkpoint
        config = checkpoint.config
        self._prompts = PromptBuilder(checkpoint.tokenizer_file, config)
        data = Path(settings.data).expanduser()
        store, self._held_out = open_store(data), open_store(data, held_out=True)
        if store.codec.codebooks == config.codebooks and store.codec.digest != codec_digest(checkpoint):
            problem = f"the data was prepared for another codec than {checkpoint.name}'s"
            raise InputError(f"{problem}; run csm data prepare with this --model")
        spec = BatchSpec(settings.batch_tokens, config.backbone.max_seq_len, settings.seed)
        self._sampler = ExampleSampler(store, self._prompts, spec, config.codebooks)
        self._mask = LossMask(
            settings.depth_frame_share, settings.token_corruption, settings.turn_start_weight, config.codebook_size
        )
        optimizer = OptimizerConfig(
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            depth_loss_weight=settings.depth_loss_weight,
            ema_decay=settings.ema_decay,
            eight_bit=settings.optimizer == "adamw8bit",
            seed=settings.seed,
        )
        self.trainer = Trainer(LossModule(self.trainable.model), optimizer, self.accelerator)
        self._samples = SampleGenerator(settings.sample_texts, checkpoint, self._prompts)
        self._best_loss = float("inf")
        self._batches_used = 0

    def _resume(self) -> None:
        """Raises InputError for a damaged state, UsageError for one of other settings."""
        path = self.folder / STATE
        if not path.exists():
            return
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            version, earlier = state.get("version"), state["settings"]
        except Exception as problem:  # unpickling may raise anything
            raise InputError(f"{path} is damaged ({type(problem).__name__}); remove it to start over") from problem
        if version != STATE_VERSION:
            raise UsageError(f"{path} was saved by another version of csm; remove it to start over")
        for name, value in self.settings.resume_key.items():
            if earlier.get(name) != value:
                change = f"{name} {earlier.get(name)!r}, now {value!r}"
                raise UsageError(f"{self.folder} was started with {change}; choose another output")
        self._batches_used, self._best_loss = state["batches_used"], state["best_loss"]
        self.trainer.load_state_dict(state)

    def events(self, stop: Callable[[], bool] = lambda: False) -> Iterator[TrainingEvent]:
        """Trains to the last step. Where `stop` returns true in any process: ends after this step and saves.

        Raises:
            TrainingFailed: a loss that is not finite. InputError: data damaged during the run. OutputFailed: disk full.
            UsageError: another run uses this folder. OutputRefused: it cannot be written to. PeerLost: another process
            of this run has ended.
        """
        lock = exclusive_lock(self.folder) if self.is_main else nullcontext()
        with lock, detect_lost_process(self.folder / STATE, lambda: self.trainer.step):
            parameters = list(self.trainable.model.parameters())
            yield TrainingStarted(
                step=self.trainer.step,
                trainable_parameters=sum(p.numel() for p in self.trainer.parameters.values()),
                total_parameters=sum(p.numel() for p in parameters),
                examples=len(self._sampler.lengths),
                held_out_examples=len(self._held_out),
            )
            history = None
            if self.is_main:
                claim_folder(self.folder, "training run", _OWN_NAMES)
                remove_temp_files(self.folder)
                for name in ("best", "last"):
                    recover_folder(self.folder / name)
                    check_replaceable(self.folder / name, "checkpoint")
                history = HistoryWriter(self.folder, self.trainer.step, self.settings.tensorboard)
            yield from self._train(stop, history)

    def _train(self, stop: Callable[[], bool], history: HistoryWriter | None) -> Iterator[TrainingEvent]:
        settings, folder = self.settings, self.folder
        while self.trainer.step < settings.steps:
            event = self._step()
            stopping = bool(self.trainer.sum_over_processes(torch.tensor(float(stop()))) > 0)
            step, last = event.step, event.step == settings.steps
            if history:
                history.add(step, "train", event.losses)
            yield event
            if len(self._held_out) and (last or _is_due(step, settings.evaluate_every)):
                yield from self._evaluate(step, history)
            wants_samples = settings.sample_texts and settings.sample_every
            if self.is_main and wants_samples and (last or _is_due(step, settings.sample_every)):
                samples = folder / "samples" / f"{step:06}"
                with self.trainer.ema_weights():
                    self._samples.write(self.trainable.model, samples, settings.seed)
                yield CheckpointSaved(step, samples)
            if self.is_main and (last or stopping or _is_due(step, settings.save_every)):
                yield self._save(step)
            if stopping:
                return

    def _step(self) -> StepDone:
        start = time.perf_counter()
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        accumulation = self.settings.gradient_accumulation_steps
        numbers = [self._batches_used + index * world + rank for index in range(accumulation)]
        batches = [self._sampler.batch(number, self._mask) for number in numbers]
        self._batches_used += accumulation * world
        positions = self.trainer.sum_over_processes(torch.tensor(sum(batch.text_ids.numel() for batch in batches)))
        losses = self.trainer.update(batches)
        return StepDone(self.trainer.step, losses, int(positions), time.perf_counter() - start)

    def _evaluate(self, step: int, history: HistoryWriter | None) -> Iterator[EvaluationDone | CheckpointSaved]:
        """Evaluates the averaged weights and saves them as `best` where their loss is the lowest so far."""
        shard = (self.accelerator.process_index, self.accelerator.num_processes)
        batches = evaluation_batches(self._held_out, self._prompts, self.settings.batch_tokens, shard)
        codebooks = self.trainer.evaluate(batches)
        depth = sum(codebooks[1:]) / len(codebooks[1:])
        loss = codebooks[0] + self.settings.depth_loss_weight * depth
        is_best, self._best_loss = loss < self._best_loss, min(loss, self._best_loss)
        if history:
            figures = {f"codebook_{number}": value for number, value in enumerate(codebooks)}
            history.add(step, "held_out", {"backbone": codebooks[0], "depth": depth, **figures})
        yield EvaluationDone(step, tuple(codebooks), loss, is_best)
        if is_best and self.is_main:
            yield self._save_weights("best", step)

    def _save(self, step: int) -> CheckpointSaved:
        """Saves the weights before the state: a run killed in between repeats this step."""
        saved = self._save_weights("last", step)
        state = {
            "version": STATE_VERSION,
            "settings": self.settings.resume_key,
            "batches_used": self._batches_used,
            "best_loss": self._best_loss,
            **self.trainer.state_dict(),
        }
        save_state(state, self.folder / STATE)
        plot_history(self.folder)
        return saved

    def _save_weights(self, name: str, step: int) -> CheckpointSaved:
        with self.trainer.ema_weights():
            self.trainable.save(self.folder / name)
        return CheckpointSaved(step, self.folder / name)


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
