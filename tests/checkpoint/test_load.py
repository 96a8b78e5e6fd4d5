"""Local checkpoints in transformers' format: what loads, and the message for each defect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import LLAMA3, Shape, random_csm
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CsmForConditionalGeneration

from csm_cli.checkpoint import expected_shapes, open_checkpoint
from csm_cli.checkpoint import find as source
from csm_cli.errors import CheckpointInvalid, ModelNotFound, UsageError
from csm_cli.types import GenerationOptions

BACKBONE_TABLE = "backbone_model.embed_tokens.embed_audio_tokens.weight"
DEPTH_TABLE = "depth_decoder.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def model() -> CsmForConditionalGeneration:
    return random_csm(Shape(codebooks=4, codes=32, positions=128))


@pytest.fixture(scope="module")
def whole(model: CsmForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of the whole checkpoint, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def assert_same_tensors(folder: Path, model: CsmForConditionalGeneration) -> None:
    checkpoint = open_checkpoint(str(folder))
    state = model.state_dict()
    assert set(checkpoint.weights) == set(expected_shapes(checkpoint.config))
    assert all(tensor.equal(state[name]) for name, tensor in checkpoint.weights.items())
    assert "decoder.layers.0.conv.weight" in checkpoint.codec_weights
    assert len(checkpoint.codec_weights) > 20


def diagnostic(folder: Path, kind: type[Exception] = CheckpointInvalid) -> str:
    with pytest.raises(kind) as caught:
        open_checkpoint(str(folder))
    assert caught.value.code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_tensor_equals_the_one_transformers_saved(whole: Path, model: CsmForConditionalGeneration) -> None:
    assert_same_tensors(whole, model)


def test_a_weights_file_may_be_named_itself(whole: Path) -> None:
    assert open_checkpoint(str(whole / "model.safetensors")).config == open_checkpoint(str(whole)).config


def test_shards_are_found_by_their_index(folder: Path, model: CsmForConditionalGeneration, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert_same_tensors(folder, model)


def test_the_config_names_the_weights_to_prefer(folder: Path, model: CsmForConditionalGeneration) -> None:
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    save_file({"audio_head": torch.zeros(1)}, folder / "model.safetensors")
    edit_json(folder / "config.json", transformers_weights="mine.safetensors")
    assert_same_tensors(folder, model)


def test_missing_weights_that_the_config_names_are_an_error(folder: Path) -> None:
    edit_json(folder / "config.json", transformers_weights="mine.safetensors")
    assert "has no mine.safetensors" in diagnostic(folder)


def test_a_tilde_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert open_checkpoint(f"~/{folder.name}").weights


@pytest.mark.parametrize("stored", [(BACKBONE_TABLE,), (DEPTH_TABLE,), (BACKBONE_TABLE, DEPTH_TABLE)])
def test_the_tied_table_may_be_stored_once_or_twice(
    folder: Path, model: CsmForConditionalGeneration, stored: tuple[str, ...]
) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        table = tensors.pop(DEPTH_TABLE)
        tensors.update({name: table.clone() for name in stored})

    edit_tensors(folder, rename)
    assert_same_tensors(folder, model)


def test_any_dtype_loads(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    assert {tensor.dtype for tensor in open_checkpoint(str(folder)).weights.values()} == {torch.bfloat16}


def test_the_bundled_voice_is_the_default(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source.resources, "files", lambda package: tmp_path)
    with pytest.raises(ModelNotFound, match="unsloth/csm-1b"):
        open_checkpoint()
    shutil.copytree(whole, tmp_path / "assets" / "voice")
    assert open_checkpoint().name == "bundled voice"


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("backbone_model.layers.1.mlp.up_proj.weight"))
    line = diagnostic(folder)
    assert "model.safetensors lacks tensor backbone_model.layers.1.mlp.up_proj.weight" in line


def test_both_tables_are_needed_where_they_are_not_tied(folder: Path) -> None:
    edit_json(folder / "config.json", tie_codebooks_embeddings=False)
    assert BACKBONE_TABLE in diagnostic(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"lora_A.weight": torch.zeros(1), "z": torch.zeros(1)}))
    assert "tensor lora_A.weight and 1 more" in diagnostic(folder)


def test_a_badly_shaped_tensor_is_named_with_both_shapes(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(36, 64)}))
    line = diagnostic(folder)
    assert "model.safetensors: tensor lm_head.weight is [36, 64], config.json asks for [35, 64]" in line


def test_tables_that_should_be_tied_and_differ_are_refused(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({BACKBONE_TABLE: tensors[DEPTH_TABLE] + 1}))
    assert "differ" in diagnostic(folder)


@pytest.mark.parametrize("keep", [0, 100, -10])
def test_a_truncated_safetensors_file_is_damaged(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} is damaged" in diagnostic(folder)


def test_a_missing_shard_is_named(folder: Path, model: CsmForConditionalGeneration) -> None:
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in diagnostic(folder)


def test_a_tensor_of_the_index_that_its_shard_lacks_is_named(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"ghost": "model.safetensors"}}')
    assert "model.safetensors has no tensor ghost" in diagnostic(folder)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {"a": 1}}', "nonsense"])
def test_a_broken_index_is_named(folder: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in diagnostic(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\ufeff{}"])
def test_a_config_that_is_not_json_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert f"{folder / 'config.json'} is not" in diagnostic(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"codec_config": "mimi"}, "codec_config"),
        ({"hidden_size": 1e999}, "hidden_size"),
        ({"num_attention_heads": 0}, '"num_attention_heads" is 0'),
        ({"num_codebooks": 5}, "num_codebooks is 5, depth_decoder_config's is 4"),
        ({"codebook_eos_token_id": 99}, "codebook_eos_token_id is 99"),
        ({"codebook_eos_token_id": -1}, "codebook_eos_token_id is -1"),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 0.125}}, "high_freq_factor"),
        ({"rope_parameters": LLAMA3 | {"factor": 0}}, "factor"),
    ],
)
def test_another_models_config_is_refused(folder: Path, change: dict[str, Any], words: str) -> None:
    edit_json(folder / "config.json", **change)
    assert words in diagnostic(folder)


def test_a_depth_decoder_without_room_for_a_frame_is_refused(folder: Path) -> None:
    depth = json.loads((folder / "config.json").read_text())["depth_decoder_config"]
    edit_json(folder / "config.json", depth_decoder_config={**depth, "max_position_embeddings": 3})
    assert "3 positions, too few for 4 codebooks" in diagnostic(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    assert f"{folder} has no {file}" in diagnostic(folder)


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert "has no config.json" in diagnostic(tmp_path)


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "sesame/csm-1b"}')
    assert "is an adapter for sesame/csm-1b" in diagnostic(tmp_path)


def test_an_unknown_name_lists_similar_ones(tmp_path: Path) -> None:
    (tmp_path / "my_voice").mkdir()
    assert "did you mean sesame/csm-1b or unsloth/csm-1b?" in diagnostic(Path("csm-1b"), ModelNotFound)
    assert "did you mean " + str(tmp_path / "my_voice") in diagnostic(tmp_path / "my_voise", ModelNotFound)
    assert diagnostic(Path("gone/ckpt.pt"), ModelNotFound).startswith("'gone/ckpt.pt' is neither")
    for name in ("n" * 300, f"{'n' * 300}/{'n' * 300}.pt", "~nobody/model.pt"):
        assert "is neither a local checkpoint" in diagnostic(Path(name), ModelNotFound)


def test_a_revision_of_a_local_checkpoint_is_refused(whole: Path) -> None:
    with pytest.raises(UsageError, match="--revision"):
        open_checkpoint(str(whole), "main")


@pytest.mark.parametrize(
    ("published", "options"),
    [
        (None, GenerationOptions(temperature=0.9, top_k=50)),
        ({"max_new_tokens": 125}, GenerationOptions(temperature=0.9, top_k=50)),
        ({"do_sample": True, "temperature": 0.5, "top_k": 7}, GenerationOptions(temperature=0.5, top_k=7)),
        ({"do_sample": False}, GenerationOptions(temperature=0.0, top_k=50)),
        ({"depth_decoder_temperature": 0.9, "depth_decoder_top_k": 50}, GenerationOptions(temperature=0.9, top_k=50)),
        (
            {"depth_decoder_do_sample": False, "depth_decoder_top_k": 5},
            GenerationOptions(temperature=0.9, top_k=50, depth_temperature=0.0, depth_top_k=5),
        ),
    ],
)
def test_defaults_come_from_the_generation_config(
    folder: Path, published: dict[str, Any] | None, options: GenerationOptions
) -> None:
    path = folder / "generation_config.json"
    path.unlink()
    if published is not None:
        path.write_text(json.dumps(published))
    assert open_checkpoint(str(folder)).defaults.sampling == options.sampling


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"depth_decoder_temperature": float("nan")},
        {"top_k": -3},
        {"depth_decoder_top_k": float("inf")},
    ],
)
def test_an_impossible_default_is_named(folder: Path, values: dict[str, Any]) -> None:
    edit_json(folder / "generation_config.json", **values)
    assert f"generation_config.json: {next(iter(values))} takes" in diagnostic(folder)


def test_the_soft_limit_is_read(folder: Path) -> None:
    assert open_checkpoint(str(folder)).soft_limit == 0
    edit_json(folder / "generation_config.json", csm_memory=200)
    assert open_checkpoint(str(folder)).soft_limit == 200


@pytest.mark.parametrize("positions", [-1, "many", 1.5])
def test_an_impossible_soft_limit_is_named(folder: Path, positions: object) -> None:
    edit_json(folder / "generation_config.json", csm_memory=positions)
    assert "csm_memory must be a whole number >= 0" in diagnostic(folder)
