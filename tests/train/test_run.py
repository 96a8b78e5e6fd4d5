"""Runs of csm train: exact resuming, several processes, saved checkpoints, and errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiny import BOS, Shape, random_csm, save_checkpoint
from helpers.training import BOOKS, examples, store, write_gradients
from safetensors.torch import load_file
from transformers import CsmForConditionalGeneration

from csm_cli.checkpoint import open_checkpoint
from csm_cli.data.store import CodedTurn, Example, open_store
from csm_cli.errors import InputError, TrainingFailed, UsageError
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.train.batches import BatchSpec, ExampleSampler, LossMask
from csm_cli.train.run import CheckpointSaved, EvaluationDone, StepDone, TrainingEvent, TrainingRun
from csm_cli.train.settings import TrainSettings


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    return store(tmp_path_factory.mktemp("data"), tiny_checkpoint, *examples())


@pytest.fixture
def settings(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        data=str(data),
        output=str(tmp_path / "run"),
        model=str(tiny_checkpoint),
        steps=6,
        batch_tokens=120,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        warmup_steps=2,
        depth_frame_share=0.5,
        token_corruption=0.1,
        evaluate_every=3,
        save_every=0,
        ema_decay=0.9,
    )


def changed(settings: TrainSettings, **changes: object) -> TrainSettings:
    return TrainSettings(**{**settings.model_dump(), **changes})


def losses(events: Iterator[TrainingEvent]) -> list[tuple[int, float, float]]:
    return [(e.step, e.losses["backbone"], e.losses["depth"]) for e in events if isinstance(e, StepDone)]


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.2}], ids=["full", "lora"])
def test_killed_run_resumes_exactly(settings: TrainSettings, tmp_path: Path, lora: dict[str, object] | None) -> None:
    settings = changed(settings, lora=lora)
    whole = losses(TrainingRun(settings, device="cpu").events())
    other = changed(settings, output=str(tmp_path / "killed"), save_every=2)
    killed = TrainingRun(other, device="cpu").events()
    first = [next(killed) for _ in range(8)]  # past the state saved after step 2, into later steps
    assert max(event.step for event in first if isinstance(event, StepDone)) in (3, 4)
    killed.close()
    torch.manual_seed(999)
    rest = losses(TrainingRun(other, device="cpu").events())
    assert rest[0][0] in (3, 5) and rest[-1][0] == 6
    torch.testing.assert_close(torch.tensor(rest), torch.tensor(whole[-len(rest) :]), rtol=0, atol=1e-5)
    rows = [json.loads(line) for line in (other.output_folder / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    one, two = (load_file(each.output_folder / "last" / name) for each in (settings, other))
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=0, atol=1e-5)


def test_stopping_finishes_and_saves_the_step(settings: TrainSettings) -> None:
    requests: list[int] = []
    for event in TrainingRun(settings, device="cpu").events(lambda: bool(requests)):
        if isinstance(event, StepDone) and event.step == 2:
            requests.append(1)
    assert losses(TrainingRun(settings, device="cpu").events())[0][0] == 4


def test_resuming_needs_the_same_settings(settings: TrainSettings) -> None:
    list(TrainingRun(settings, device="cpu").events())
    with pytest.raises(UsageError, match=r"was started with learning_rate 0.003, now 0.001"):
        TrainingRun(changed(settings, learning_rate=0.001), device="cpu")
    (settings.output_folder / "state.pt").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"state.pt is damaged"):
        TrainingRun(settings, device="cpu")


def test_saved_checkpoints_load(settings: TrainSettings) -> None:
    events = list(TrainingRun(settings, device="cpu").events())
    assert [event.step for event in events if isinstance(event, EvaluationDone)] == [3, 6]
    assert {event.path.name for event in events if isinstance(event, CheckpointSaved)} >= {"last", "best"}
    assert (settings.output_folder / "loss.png").stat().st_size > 1000
    found = open_checkpoint(str(settings.output_folder / "last"))
    theirs = CsmForConditionalGeneration.from_pretrained(settings.output_folder / "last").state_dict()
    assert all(theirs[name].equal(tensor) for name, tensor in found.weights.items())
    base = open_checkpoint(settings.model)
    assert not base.weights["lm_head.weight"].equal(found.weights["lm_head.weight"])
    assert base.codec_weights["decoder.layers.0.conv.weight"].equal(found.codec_weights["decoder.layers.0.conv.weight"])


def test_adapter_changes_its_target_modules_only(settings: TrainSettings) -> None:
    settings = changed(settings, lora={"rank": 2, "target_modules": ["q_proj"]})
    list(TrainingRun(settings, device="cpu").events())
    base = open_checkpoint(settings.model)
    found = open_checkpoint(settings.model, adapter=str(settings.output_folder / "best"))
    moved = {name for name in base.weights if not base.weights[name].equal(found.weights[name])}
    assert moved == {name for name in base.weights if name.endswith("q_proj.weight")}
    with pytest.raises(UsageError, match="no linear 'w_proj'"):
        TrainingRun(changed(settings, lora={"target_modules": ["w_proj"]}), device="cpu")


def test_random_weights_in_other_sizes(settings: TrainSettings) -> None:
    sizes = {"backbone": {"num_hidden_layers": 1, "hidden_size": 32}, "depth": {"num_hidden_layers": 1}}
    settings = changed(settings, from_scratch=sizes, steps=2, ema_decay=0.0)
    list(TrainingRun(settings, device="cpu").events())
    found = open_checkpoint(str(settings.output_folder / "last")).config
    assert (found.backbone.layers, found.backbone.hidden, found.depth.layers) == (1, 32, 1)


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_gradient_checkpointing_changes_no_loss(settings: TrainSettings, lora: dict[str, object] | None) -> None:
    settings = changed(settings, lora=lora)
    plain = losses(TrainingRun(settings, device="cpu").events())
    checkpointed = changed(settings, gradient_checkpointing=True, output=settings.output + "-checkpointed")
    torch.testing.assert_close(
        torch.tensor(losses(TrainingRun(checkpointed, device="cpu").events())), torch.tensor(plain)
    )


def test_eight_bit_optimizer_needs_bitsandbytes(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UsageError, match="needs bitsandbytes"):
        TrainingRun(changed(settings, optimizer="adamw8bit"), device="cpu")


def test_samples_are_generated_during_training(settings: TrainSettings) -> None:
    sampled = changed(settings, sample_texts=["Hi.", "[1] So."], sample_every=6)
    list(TrainingRun(sampled, device="cpu").events())
    assert sorted(path.name for path in (settings.output_folder / "samples" / "000006").iterdir()) == [
        "00.wav",
        "01.wav",
    ]
    assert (
        losses(TrainingRun(changed(settings, output=settings.output + "2"), device="cpu").events())[-1]
        == history(sampled)[-1]
    )


def history(settings: TrainSettings) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (settings.output_folder / "history.jsonl").read_text().splitlines()]
    return [(row["step"], row["backbone"], row["depth"]) for row in rows if row["split"] == "train"]


def test_non_finite_loss_stops_with_step_and_example(settings: TrainSettings, data: Path) -> None:
    run = TrainingRun(settings, device="cpu")
    with torch.no_grad():
        run.trainable.model.embed_text_tokens.weight[BOS] = torch.nan
    with pytest.raises(TrainingFailed, match=r"step 1: the loss is not finite at item-\d\d"):
        list(run.events())
    assert not (settings.output_folder / "last").exists()


def test_unusable_data_is_named(settings: TrainSettings, tmp_path: Path) -> None:
    codes, model = torch.ones(4, BOOKS, dtype=torch.int64), Path(str(settings.model))
    long = Example("long", (CodedTurn(0, "Hi.", codes.repeat(200, 1)),))
    context = Example("context", (CodedTurn(0, "Hi.", codes, trained=False),))
    silent = Example("silent", (CodedTurn(0, " ", codes),))
    for example, message in (
        (long, "long: has"),
        (context, "context: has no turn"),
        (silent, "silent: there is no text"),
    ):
        folder = store(tmp_path / example.id, model, example)
        with pytest.raises(InputError, match=message):
            list(TrainingRun(changed(settings, data=str(folder)), device="cpu").events())
    with pytest.raises(InputError, match="no examples"):
        TrainingRun(changed(settings, data=str(store(tmp_path / "none", model))), device="cpu")
    few = Example("few", (CodedTurn(0, "Hi.", codes[:, :4]),))
    with pytest.raises(InputError, match="4 codebooks, the model 8"):
        TrainingRun(changed(settings, data=str(store(tmp_path / "few", model, few, books=4))), device="cpu")


def test_data_of_another_codec_is_rejected(settings: TrainSettings, tmp_path: Path) -> None:
    moved = save_checkpoint(random_csm(Shape(), seed=1), tmp_path / "other")
    with pytest.raises(InputError, match="prepared for another codec"):
        TrainingRun(changed(settings, model=str(moved)), device="cpu")


def test_batches_depend_on_the_seed_and_use_every_example(data: Path, tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    prompts = PromptBuilder(checkpoint.tokenizer_file, checkpoint.config)

    def sampler(seed: int) -> ExampleSampler:
        return ExampleSampler(open_store(data), prompts, BatchSpec(120, 512, seed), BOOKS)

    one, same, other = sampler(1), sampler(1), sampler(2)
    names = [one.batch(number, LossMask()).example_ids for number in range(20)]
    assert [same.batch(number, LossMask()).example_ids for number in reversed(range(20))] == names[::-1]
    assert [other.batch(number, LossMask()).example_ids for number in range(20)] != names
    seen = [name for batch in names for name in batch]
    count = len(open_store(data))
    assert len(set(seen[:count])) == count
    for number in range(20):
        batch = one.batch(number, LossMask())
        assert batch.text_ids.numel() <= 120 or len(batch.example_ids) == 1


TWO = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.training import write_gradients
write_gradients(Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    prompts = PromptBuilder(checkpoint.tokenizer_file, checkpoint.config)
    sampler = ExampleSampler(open_store(data), prompts, BatchSpec(1, 512, 0), BOOKS)
    mask = LossMask(depth_frame_share=0.5)
    chosen = [sampler.row(index, 0, mask) for index in range(8)]
    torch.save(chosen, tmp_path / "rows.pt")
    (tmp_path / "two.py").write_text(TWO)
    here = Path(__file__).parents[1]
    write_gradients(tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [*launch, str(tmp_path / "two.py"), str(here), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(here.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"gradients-{world}.pt") for world in (1, 2))
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-5, atol=1e-5)
