"""Checkpoints and adapters as people have them: wrapped, nested, sharded, empty, or not there at all."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.adapters import make_adapter
from helpers.run import Result
from helpers.tiny import Shape, random_csm, save_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from csm_cli.checkpoint import Checkpoint, open_checkpoint
from csm_cli.checkpoint.names import own_name
from csm_cli.errors import CheckpointInvalid

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]
Csm = Callable[..., Result]
LINEAR = "backbone_model.layers.0.self_attn.q_proj"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 3100000000\n".format("ab" * 32)
OLD_POINTER = "version https://hawser.github.com/spec/v1\noid sha256:{}\nsize 12\n".format("cd" * 32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(random_csm(Shape(codebooks=4, codes=32, positions=128)), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def adapter(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(whole, tmp_path_factory.mktemp("peft") / "adapter", modules_to_save=["lm_head"])


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def save_pytorch(folder: Path, value: object, name: str = "pytorch_model.bin", **options: Any) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(value, folder / name, **options)


def assert_same(folder: Path, whole: Path, **options: Any) -> Checkpoint:
    found, expected = open_checkpoint(str(folder), **options), open_checkpoint(str(whole))
    assert set(found.weights) == set(expected.weights)
    assert all(tensor.equal(expected.weights[name]) for name, tensor in found.weights.items())
    assert set(found.codec_weights) == set(expected.codec_weights)
    return found


def diagnostic(model: Path, adapter: Path | None = None) -> str:
    with pytest.raises(CheckpointInvalid) as caught:
        open_checkpoint(str(model), adapter=None if adapter is None else str(adapter))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


PREFIXES = ["module.", "_orig_mod.", "base_model.model.", "model.", "module._orig_mod.", "_orig_mod.module.model."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_wrapped_model_is_read(folder: Path, whole: Path, prefix: str) -> None:
    save_file({prefix + name: each for name, each in weights_of(folder).items()}, folder / "model.safetensors")
    assert_same(folder, whole)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["module", "_orig_mod", "base_model.model", "model", "_fsdp_wrapped_module"])))
def test_any_nesting_of_wrappers_gives_the_models_own_name(wrappers: list[str]) -> None:
    for name in (f"{LINEAR}.weight", "depth_decoder.model.norm.weight", "codec_model.encoder.layers.0.conv.bias"):
        assert own_name(".".join([*wrappers, name])) == name


def test_parts_that_were_compiled_or_sharded_alone_are_read(folder: Path, whole: Path) -> None:
    weights = {
        name.replace("backbone_model.", "backbone_model._orig_mod.").replace(
            "layers.0.", "layers.0._fsdp_wrapped_module."
        ): each
        for name, each in weights_of(folder).items()
    }
    save_file(weights, folder / "model.safetensors")
    assert_same(folder, whole)


def test_two_tensors_of_one_name_are_refused(folder: Path) -> None:
    weights = weights_of(folder)
    save_file(weights | {"module.lm_head.weight": weights["lm_head.weight"] + 1}, folder / "model.safetensors")
    line = diagnostic(folder)
    assert "lm_head.weight twice" in line and "module.lm_head.weight" in line


def test_buffers_are_left_out_and_zero_biases_too(folder: Path, whole: Path) -> None:
    extra = {"backbone_causal_mask": torch.ones(2, 2), "backbone_model.rotary_emb.inv_freq": torch.ones(2)}
    extra |= {f"{LINEAR}.bias": torch.zeros(64), "codebook_embedding.weight": torch.ones(2)}
    weights = weights_of(folder)
    save_file(weights | extra, folder / "model.safetensors")
    assert_same(folder, whole)
    save_file(weights | {f"{LINEAR}.bias": torch.ones(64)}, folder / "model.safetensors")
    assert f"{LINEAR}.bias" in diagnostic(folder)


@pytest.mark.parametrize("factors", [("lora_A", "lora_B"), ("lora_A.default.weight", "lora_B.default.weight")])
def test_a_checkpoint_with_factors_that_are_not_merged_says_so(folder: Path, factors: tuple[str, str]) -> None:
    extra = {f"{LINEAR}.{name}": torch.ones(2, 2) for name in factors}
    save_file(weights_of(folder) | extra, folder / "model.safetensors")
    line = diagnostic(folder)
    assert "LoRA" in line and "merge" in line and LINEAR in line


def trainers_state(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What sesame-finetune saves."""
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}
    return {
        "model": weights,
        "optimizer": {"state": moments, "param_groups": [{"lr": 3e-5, "params": [0]}]},
        "scheduler": {"last_epoch": 3, "_get_lr_called_within_step": False},
        "config": {"batch_size": 8},
        "args": argparse.Namespace(output_dir=Path("exp"), n_epochs=25),
        "best_val_loss": np.float64(6.5),
        "all_tokens": {"text": [np.arange(3)]},
    }


WRAPPED: dict[str, Callable[[Mapping[str, Tensor]], Any]] = {
    "plain": dict,
    "trainer": trainers_state,
    "lightning": lambda weights: {"state_dict": {f"model.{n}": t for n, t in weights.items()}, "epoch": 3},
    "deepspeed": lambda weights: {"module": weights, "global_steps": 4, "ds_config": {"a": 1}},
    "common": lambda weights: {"epoch": 1, "model_state_dict": weights, "loss": torch.tensor(1.0)},
    "ema": lambda weights: {"ema": {"decay": 0.99, "shadow": weights}},
    "nested": lambda weights: {"state": 1, "model": {"state_dict": {f"module.{n}": t for n, t in weights.items()}}},
    "parameters": lambda weights: {n: torch.nn.Parameter(t) for n, t in weights.items() if t.is_floating_point()},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_what_a_trainer_saved_is_read(
    folder: Path, whole: Path, wrap: Callable[[Mapping[str, Tensor]], Any], tmp_path: Path
) -> None:
    save_pytorch(folder, wrap(weights_of(folder)), "model_final.pt")
    assert_same(folder, whole)
    (folder / "model_final.pt").rename(folder / "step_400.pth")
    assert "step_400.pth" in diagnostic(folder)
    assert_same(folder / "step_400.pth", whole)


def test_a_file_of_an_old_pytorch_is_read(folder: Path, whole: Path) -> None:
    save_pytorch(folder, weights_of(folder), _use_new_zipfile_serialization=False)
    assert_same(folder, whole)


def test_the_first_of_several_state_dicts_is_read_and_said(
    folder: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = weights_of(folder)
    save_pytorch(folder, {"ema": {n: t + 1 for n, t in weights.items()}, "model": weights})
    assert_same(folder, whole)
    assert "model and ema" in caplog.text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "no tensor"),
        ({"model": {}}, "model"),
        ([1, 2], "a list"),
        ({"optimizer": {"state": {}}}, "optimizer"),
        ({"model": torch.nn.Linear(2, 2)}, "torch.nn.modules.linear.Linear"),
        ({1: torch.zeros(1)}, "it holds 1"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(folder: Path, value: Any, words: str) -> None:
    save_pytorch(folder, value)
    line = diagnostic(folder)
    assert words in line and "pytorch_model.bin" in line and "damaged" not in line


def test_a_file_of_very_many_classes_is_refused_soon(folder: Path, tmp_path: Path) -> None:
    kinds = {f"v{n}": type(f"K{n}", (), {"__module__": "argparse", "__qualname__": f"K{n}"})() for n in range(99)}
    for kind in kinds.values():
        setattr(argparse, type(kind).__name__, type(kind))
    try:
        save_pytorch(folder, weights_of(folder) | kinds)
    finally:
        for kind in kinds.values():
            delattr(argparse, type(kind).__name__)
    assert "argparse.K" in diagnostic(folder)


def test_shards_of_pytorch_files_are_found_by_their_index(folder: Path, whole: Path) -> None:
    names = sorted(weights := weights_of(folder))
    files = {name: f"pytorch_model-0000{1 + n % 2}-of-00002.bin" for n, name in enumerate(names)}
    for file in set(files.values()):
        save_pytorch(folder, {name: weights[name] for name in names if files[name] == file}, file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same(folder, whole)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin" in diagnostic(folder)


@pytest.mark.parametrize(
    "text", [POINTER, OLD_POINTER, "/annex/objects/SHA256E-s3--ab.safetensors\n", "<!DOCTYPE html>"]
)
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_a_placeholder_is_named_as_what_it_is(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    line = diagnostic(folder)
    assert str(folder / file) in line
    assert "git lfs pull" in line or "git annex get" in line or "web page" in line


def test_a_shard_or_a_pytorch_file_may_be_a_placeholder_too(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "ckpt.pt").write_text(POINTER)
    assert "git lfs pull" in diagnostic(folder)
    assert "git lfs pull" in diagnostic(folder / "ckpt.pt")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    (folder / "model-1.safetensors").write_text(POINTER)
    assert "model-1.safetensors" in (line := diagnostic(folder)) and "git lfs pull" in line


def test_a_file_without_tensors_is_refused(folder: Path, whole: Path, tmp_path: Path) -> None:
    save_file({}, folder / "model.safetensors")
    assert "model.safetensors holds no tensor" in diagnostic(folder)


def changed_adapter(adapter: Path, folder: Path, rename: Callable[[str], str] = str, **config: Any) -> Path:
    shutil.copytree(adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({rename(name): each for name, each in weights.items()}, folder / "adapter_model.safetensors")
    values = json.loads((folder / "adapter_config.json").read_text()) | config
    values = {name: value for name, value in values.items() if value != "absent"}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def raw_state(name: str) -> str:
    """As in model.state_dict() of a PeftModel."""
    name = name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")
    return name.replace("lm_head.weight", "lm_head.modules_to_save.default.weight")


RENAMED: dict[str, Callable[[str], str]] = {
    "raw": raw_state,
    "another adapter name": lambda name: raw_state(name).replace("default", "my-voice"),
    "ddp": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{raw_state(name)}",
    "without peft's prefix": lambda name: name.removeprefix("base_model.model."),
    "nested": lambda name: f"module._orig_mod.model.{name}",
    "compiled inside": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
}


@pytest.mark.parametrize("rename", RENAMED.values(), ids=RENAMED)
def test_an_adapter_with_wrapped_names_is_that_adapter(
    whole: Path, adapter: Path, tmp_path: Path, rename: Callable[[str], str]
) -> None:
    expected = open_checkpoint(str(whole), adapter=str(adapter)).weights
    found = open_checkpoint(str(whole), adapter=str(changed_adapter(adapter, tmp_path / "a", rename))).weights
    assert all(tensor.equal(expected[name]) for name, tensor in found.items())
    assert not expected["lm_head.weight"].equal(open_checkpoint(str(whole)).weights[f"{LINEAR}.weight"])


def test_an_adapter_of_an_old_peft_or_its_file_is_read(whole: Path, adapter: Path, tmp_path: Path) -> None:
    expected = open_checkpoint(str(whole), adapter=str(adapter)).weights
    other = changed_adapter(adapter, tmp_path / "a")
    torch.save(load_file(other / "adapter_model.safetensors"), other / "adapter_model.bin")
    (other / "adapter_model.safetensors").unlink()
    for name in (other, other / "adapter_model.bin", adapter / "adapter_model.safetensors"):
        found = open_checkpoint(str(whole), adapter=str(name)).weights
        assert all(tensor.equal(expected[name]) for name, tensor in found.items())


NULLS = {"alpha_pattern": None, "rank_pattern": None, "use_rslora": None, "use_dora": None, "r": None, "bias": None}


@pytest.mark.parametrize("value", [None, "absent"])
def test_null_and_missing_options_are_pefts_defaults(whole: Path, adapter: Path, tmp_path: Path, value: Any) -> None:
    expected = open_checkpoint(str(whole), adapter=str(adapter)).weights
    config = dict.fromkeys(NULLS, value) | {"base_model_name_or_path": value, "target_modules": value}
    found = open_checkpoint(str(whole), adapter=str(changed_adapter(adapter, tmp_path / "a", **config))).weights
    assert all(tensor.equal(expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"lora_alpha": None}, "lora_alpha"),
        ({"peft_type": None}, "peft_type"),
        ({"peft_type": "absent"}, "peft_type"),
        ({"modules_to_save": ["embed_text_tokens"]}, "embed_text_tokens"),
        ({"modules_to_save": ["lm_head", "norm"]}, "norm"),
    ],
)
def test_an_adapter_that_does_not_say_enough_is_refused_by_the_field(
    whole: Path, adapter: Path, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    assert words in diagnostic(whole, changed_adapter(adapter, tmp_path / "a", **config))


def test_an_alpha_that_is_not_there_is_pefts_default(whole: Path, adapter: Path, tmp_path: Path) -> None:
    missing = changed_adapter(adapter, tmp_path / "a", lora_alpha="absent")
    default = changed_adapter(adapter, tmp_path / "b", lora_alpha=8)
    one, other = (open_checkpoint(str(whole), adapter=str(each)).weights for each in (missing, default))
    assert all(tensor.equal(other[name]) for name, tensor in one.items())


def test_an_unusable_adapter_is_refused_for_what_it_is(whole: Path, adapter: Path, tmp_path: Path) -> None:
    empty = changed_adapter(adapter, tmp_path / "empty")
    save_file({}, empty / "adapter_model.safetensors")
    assert "adapter_model.safetensors holds no tensor" in diagnostic(whole, empty)
    torch.save({}, empty / "adapter_model.bin")
    (empty / "adapter_model.safetensors").unlink()
    assert "adapter_model.bin holds no tensor" in diagnostic(whole, empty)
    (empty / "adapter_model.bin").unlink()
    assert "has no adapter_model.safetensors" in diagnostic(whole, empty)
    assert "--model" in diagnostic(whole, whole)
    original = changed_adapter(adapter, tmp_path / "o", lambda name: name.replace("backbone_model", "backbone"))
    assert "Sesame" in diagnostic(whole, original)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        pointer = changed_adapter(adapter, tmp_path / file)
        (pointer / file).write_text(POINTER)
        assert file in (line := diagnostic(whole, pointer)) and "git lfs pull" in line


def test_at_the_terminal(csm: Csm, whole: Path, folder: Path, adapter: Path, tmp_path: Path) -> None:
    save_pytorch(folder, trainers_state({f"module.{n}": t for n, t in weights_of(folder).items()}), "model_final.pt")
    name = changed_adapter(adapter, tmp_path / "a", raw_state)
    options = ("--max-duration", "0.3", "--seed", "1", "--dtype", "float32")
    for model, wav in ((whole, "one.wav"), (folder, "two.wav")):
        result = csm("say", "[0]hi", "--model", model, "--adapter", name, "-o", tmp_path / wav, *options)
        assert result.code in (0, 1), result.err
    (name / "adapter_model.safetensors").write_text(POINTER)
    result = csm("say", "[0]hi", "--model", folder, "--adapter", name, "-o", tmp_path / "three.wav")
    assert result.code == 4 and "git lfs pull" in result.err and not (tmp_path / "three.wav").exists()
