"""Checkpoints, adapters and tokenizers made to hang, to crash or to take all memory are refused, in one line."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import Shape, random_csm, save_checkpoint
from safetensors.torch import save_file

from csm_cli.checkpoint import open_checkpoint, read_checkpoint_config
from csm_cli.checkpoint.adapter import merge_adapter
from csm_cli.checkpoint.sesame import transformers_config
from csm_cli.checkpoint.weights import read_weights
from csm_cli.errors import CheckpointInvalid, InputError
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.models.limits import CSM_LIMITS, MIMI_LIMITS

MODULE = "backbone_model.layers.0.self_attn.q_proj"
DEEP = "[" * 5000 + "]" * 5000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(random_csm(Shape(codebooks=4, codes=32, positions=128)), tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def refused(read: Callable[[], object]) -> str:
    started = time.process_time()
    with pytest.raises(CheckpointInvalid) as caught:
        read()
    assert time.process_time() - started < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def change_config(folder: Path, keys: tuple[str, ...], value: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


SIZES = [
    *((key,) for key in CSM_LIMITS if key != "original_max_position_embeddings"),
    *(("depth_decoder_config", key) for key in ("num_hidden_layers", "hidden_size", "head_dim", "num_codebooks")),
    *(("codec_config", key) for key in MIMI_LIMITS),
    ("rope_parameters", "original_max_position_embeddings"),
]


@pytest.mark.parametrize("keys", SIZES, ids=".".join)
def test_every_size_has_a_limit(folder: Path, keys: tuple[str, ...]) -> None:
    change_config(folder, keys, 10**9)
    assert keys[-1] in refused(lambda: open_checkpoint(str(folder)))


ODD: list[Any] = [-1, 0, True, 1.5, "8", [8], {"a": 8}, None, 10**30, [[1]] * 100]


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
def test_no_type_of_a_value_is_a_crash(folder: Path, value: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for part in ((), ("depth_decoder_config",), ("codec_config",), ("rope_parameters",)):
        inner = config
        for key in part:
            inner = inner[key]
        for name in inner:
            (folder / "config.json").write_text(json.dumps(config))
            change_config(folder, (*part, name), value)
            try:
                read_checkpoint_config(str(folder))
            except CheckpointInvalid as error:
                assert len(str(error)) < 600


@pytest.mark.parametrize("key", ["codebook_eos_token_id", "audio_token_id", "audio_eos_token_id"])
@pytest.mark.parametrize("value", [-1, 10**12, "0"])
def test_ids_are_within_the_vocabulary(folder: Path, key: str, value: object) -> None:
    change_config(folder, (key,), value)
    assert key in refused(lambda: open_checkpoint(str(folder)))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_deep_json_is_refused_where_it_stands(folder: Path, name: str) -> None:
    (folder / name).write_text('{"weight_map": ' + DEEP + "}")
    assert name in refused(lambda: open_checkpoint(str(folder)))


@pytest.mark.parametrize("config", [{"backbone_flavor": []}, {"backbone_flavor": {"a": 1}, "backbone_head_dim": "x"}])
def test_odd_flavors_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    stack = {"attn.q_proj.weight": (4, 4), "attn.k_proj.weight": (4, 4), "mlp.w1.weight": (4, 4)}
    tensors = {f"backbone.layers.0.{name}": torch.zeros(shape) for name, shape in stack.items()}
    tensors |= {f"decoder.layers.0.{name}": torch.zeros(shape) for name, shape in stack.items()}
    tensors |= {"audio_head": torch.zeros(3, 4, 5), "text_embeddings.weight": torch.zeros(4, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    stored = read_weights(None, tmp_path / "model.safetensors")  # type: ignore[arg-type]
    refused(lambda: transformers_config(config, stored, {}))


def adapter(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    pair = {f"{MODULE}.lora_A.weight": torch.ones(2, 64), f"{MODULE}.lora_B.weight": torch.ones(64, 2)}
    pair = pair if tensors is None else tensors
    save_file({f"base_model.model.{name}": each for name, each in pair.items()}, folder / "adapter_model.safetensors")
    return str(folder)


PATTERNS = ["(a+)+", "(.*.*)*x", ".*.*.*x", "[a-z]+", "a{9999}", "(?:x)", "q_proj" * 100, "(q|q)*", "\\w+_proj", ""]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_adapters_pattern_is_not_run_as_any_regex(whole: Path, tmp_path: Path, pattern: str) -> None:
    name = adapter(tmp_path / "adapter", alpha_pattern={pattern: 4})
    assert "alpha_pattern" in refused(lambda: open_checkpoint(str(whole), adapter=name))


@pytest.mark.parametrize(
    "pattern", ["q_proj", "self_attn.q_proj", r"layers\.\d+\.self_attn\.q_proj", "k_proj|q_proj", ".*q_proj"]
)
def test_names_alternatives_and_wildcards_are_patterns(whole: Path, tmp_path: Path, pattern: str) -> None:
    plain = open_checkpoint(str(whole))
    name = adapter(tmp_path / "adapter", alpha_pattern={"v_proj": 1, pattern: 4}, lora_alpha=8)
    merged = open_checkpoint(str(whole), adapter=name)
    difference = merged.weights[f"{MODULE}.weight"] - plain.weights[f"{MODULE}.weight"]
    assert difference.mean().item() == pytest.approx(4 / 2 * 2, abs=1e-3)  # alpha / rank of ones @ ones


@pytest.mark.parametrize("alpha", ["8", None, [8], 10**400, True])
def test_alpha_is_a_number(whole: Path, tmp_path: Path, alpha: Any) -> None:
    refused(lambda: open_checkpoint(str(whole), adapter=adapter(tmp_path / "adapter", lora_alpha=alpha)))
    refused(lambda: open_checkpoint(str(whole), adapter=adapter(tmp_path / "adapter", alpha_pattern={"q_proj": alpha})))


@pytest.mark.parametrize("shape", [(), (64,), (0, 64), (2, 64, 1)])
def test_factors_are_matrices(whole: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    pair = {f"{MODULE}.lora_A.weight": torch.ones(shape), f"{MODULE}.lora_B.weight": torch.ones(64, 2)}
    assert MODULE in refused(lambda: merge_adapter(_stored(whole), adapter(tmp_path / "adapter", pair), True))


def _stored(folder: Path) -> Any:
    return read_weights(None, folder / "model.safetensors")  # type: ignore[arg-type]


def test_a_pytorch_tensor_is_no_larger_than_its_file(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(1 << 40)  # a file of a kilobyte
    torch.save({"a": huge}, tmp_path / "ckpt.pt")
    assert "tensor a" in refused(lambda: read_weights(None, tmp_path / "ckpt.pt"))  # type: ignore[arg-type]


def test_the_ids_of_a_tokenizer_are_the_models(whole: Path, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["h"] = 100_000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = read_checkpoint_config(str(folder)).config
    assert "100000" in refused(lambda: PromptBuilder(folder / "tokenizer.json", config).text_ids(0, "hi"))


class Panic(BaseException):
    """As pyo3's PanicException."""


def test_a_panic_of_the_tokenizer_is_a_failure_of_the_text(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = PromptBuilder(whole / "tokenizer.json", read_checkpoint_config(str(whole)).config)

    class Panicking:
        def encode(self, *_: object, **__: object) -> None:
            raise Panic("index out of bounds")

    monkeypatch.setattr(builder, "_tokenizer", Panicking())
    with pytest.raises(InputError, match="index out of bounds"):
        builder.text_ids(0, "hi")
