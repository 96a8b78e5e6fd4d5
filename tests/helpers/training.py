"""Prepared examples, and the gradients that data-parallel processes compute together."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from helpers.tiny import Shape, random_csm

from csm_cli.checkpoint import open_checkpoint
from csm_cli.data.prepare import codec_digest
from csm_cli.data.store import CodecIdentity, CodedTurn, Example, StoreWriter
from csm_cli.train.batches import collate
from csm_cli.train.loss import LossModule
from csm_cli.train.trainer import OptimizerConfig, Trainer

BOOKS = 8


def examples(count: int = 14) -> list[Example]:
    generator = torch.Generator().manual_seed(0)

    def turn(speaker: int, length: int, trained: bool = True) -> CodedTurn:
        return CodedTurn(
            speaker, "Well, so." * (1 + length % 2), torch.randint(1, 64, (length, BOOKS), generator=generator), trained
        )

    return [
        Example(f"item-{index:02}", (turn(0, 3 + index % 5, False), turn(1, 4 + index % 3)), held_out=index % 5 == 4)
        for index in range(count)
    ]


def store(folder: Path, model: Path, *made: Example, books: int = BOOKS) -> Path:
    writer = StoreWriter(folder, CodecIdentity(codec_digest(open_checkpoint(str(model))), books, 12.5))
    writer.write(0, made)
    writer.finish(1)
    return folder


def write_gradients(folder: Path) -> None:
    """Saves the gradients of all processes' batches, from process 0."""
    accelerator = Accelerator(cpu=True)
    model = random_csm(Shape())
    model.codec_model = torch.nn.Identity()
    trainer = Trainer(LossModule(model), OptimizerConfig(steps=1, learning_rate=1e-3), accelerator)
    world, rank = accelerator.num_processes, accelerator.process_index
    rows = torch.load(folder / "rows.pt", weights_only=False)
    shares = [collate(rows[start : start + 2]) for start in range(0, len(rows), 2)]
    if world == 1:  # the same rows in half as many batches, twice as large
        shares = [collate(rows[start : start + 4]) for start in range(0, len(rows), 4)]
    trainer.compute_gradients(shares[rank::world], {})
    if accelerator.is_main_process:
        gradients = {name: p.grad for name, p in trainer.parameters.items() if p.grad is not None}
        torch.save(gradients, folder / f"gradients-{world}.pt")
