"""LoRA adapters: merged as they are read, they give what peft gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.adapters import by_csm, by_transformers, make_adapter
from helpers.parity import prompt
from helpers.tiny import assert_same_codes
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import CsmForConditionalGeneration

from csm_cli.checkpoint import open_checkpoint
from csm_cli.errors import CheckpointInvalid, CsmError, ModelNotFound

# peft asks transformers in words that are going out of use
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"lm_head": 3}, "rank_pattern": {"q_proj": 2}},
        {"target_modules": ["embed_text_tokens", "k_proj"]},
        {"modules_to_save": ["embed_text_tokens"]},
    ],
    ids=["plain", "rank-stabilized", "patterns", "embedding", "whole-module"],
)
def test_greedy_codes_equal_those_of_peft(tiny_checkpoint: Path, tmp_path: Path, options: dict[str, object]) -> None:
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter", **options)
    theirs = CsmForConditionalGeneration.from_pretrained(tiny_checkpoint)
    given = prompt(theirs, 1, seed=3)
    plain = by_transformers(theirs, given)
    peft = PeftModel.from_pretrained(theirs, adapter).base_model.model
    found = by_csm(open_checkpoint(str(tiny_checkpoint), adapter=str(adapter)), given)
    assert_same_codes("adapted", found, by_transformers(peft, given))
    if "modules_to_save" not in options:
        assert not found.equal(plain[: len(found)])


def test_the_checkpoint_names_the_adapters_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter")
    found = open_checkpoint(str(tiny_checkpoint), adapter=str(adapter))
    assert found.weights.files == {tiny_checkpoint / "model.safetensors", adapter / "adapter_model.safetensors"}
    assert found.name == f"{tiny_checkpoint} with {adapter}"


def diagnostic(base: Path, adapter: Path, kind: type[CsmError] = CheckpointInvalid) -> str:
    with pytest.raises(kind) as caught:
        open_checkpoint(str(base), adapter=str(adapter))
    return str(caught.value)


def test_an_unusable_adapter_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert "nowhere" in diagnostic(tiny_checkpoint, tmp_path / "nowhere", ModelNotFound)
    assert "has no adapter_config.json" in diagnostic(tiny_checkpoint, tiny_checkpoint)
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for change, words in (({"peft_type": "IA3"}, "type IA3"), ({"use_dora": True}, "use_dora")):
        (adapter / "adapter_config.json").write_text(json.dumps(config | change))
        assert words in diagnostic(tiny_checkpoint, adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert "layers.99" in diagnostic_after(tiny_checkpoint, adapter, "layers.0", "layers.99")


def diagnostic_after(base: Path, adapter: Path, old: str, new: str) -> str:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name.replace(old, new): each for name, each in weights.items()}, adapter / "adapter_model.safetensors")
    return diagnostic(base, adapter)


def test_an_adapter_of_other_sizes_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: each[:, :-1].contiguous() for name, each in weights.items()}, path)
    assert "name the model it was made for" in diagnostic(tiny_checkpoint, adapter)


def test_a_changed_codec_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "codec_model" in name and "lora_B" in name)
    save_file(weights | {name: weights[name] + 1}, path)
    assert "changes the codec" in diagnostic(tiny_checkpoint, adapter)
