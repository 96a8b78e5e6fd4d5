"""Sesame's original format against a plain reading of its description: torchtune's Llama, RoPE on interleaved pairs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.original import (
    BACKBONE_DIM,
    BOOKS,
    CONFIG,
    DECODER_DIM,
    HEADS,
    INNER,
    KV_HEADS,
    LAYERS,
    MIMI,
    TEXT_VOCAB,
    VOCAB,
    Weights,
    conversation,
    original_weights,
    reference_logits,
)
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CsmConfig, CsmForConditionalGeneration, MimiConfig, MimiModel

from csm_cli.checkpoint import Checkpoint, open_checkpoint
from csm_cli.checkpoint import load as loading
from csm_cli.checkpoint.find import LocalFolder
from csm_cli.errors import CheckpointInvalid
from csm_cli.models.csm.kv_cache import PrefillSlots
from csm_cli.models.csm.model import CsmModel


@pytest.fixture(scope="module")
def companion_repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for kyutai/mimi and for the repository with the tokenizer."""
    folder = tmp_path_factory.mktemp("companion_repositories")
    torch.manual_seed(0)
    MimiModel(MimiConfig(**MIMI)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def hub(companion_repositories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "HubRepository", lambda name, **_: LocalFolder(companion_repositories, name))


@pytest.fixture(params=["model.safetensors", "ckpt.pt"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write(tmp_path, original_weights(), request.param)
    return tmp_path


def write(folder: Path, weights: Weights, file: str = "model.safetensors") -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if file == "ckpt.pt":
        torch.save(weights, folder / file)
    else:
        save_file(weights, folder / file)


def transformers_logits(checkpoint: Checkpoint, folder: Path, rows: Tensor) -> tuple[Tensor, Tensor]:
    model = CsmForConditionalGeneration(transformers_config(folder)).eval()
    outcome = model.load_state_dict(dict(checkpoint.weights), strict=False)
    assert not outcome.unexpected_keys
    assert all(name.startswith("codec_model.") for name in outcome.missing_keys)
    is_text = rows[:, -1:] >= 0
    frames = model.backbone_model.embed_tokens(rows[None, :, :-1].clamp(min=0))
    inputs = torch.where(is_text, model.embed_text_tokens(rows[None, :, -1].clamp(min=0)), frames)
    with torch.no_grad():
        hidden = model.backbone_model(inputs_embeds=inputs).last_hidden_state
        codes = F.pad(rows[-1:, :-2], (1, 0))
        depth = model.depth_decoder(input_ids=codes, backbone_last_hidden_state=hidden[:, -2])
        return model.lm_head(hidden)[0], depth.logits[0]


def transformers_config(folder: Path) -> CsmConfig:
    """The config somebody would write by hand for these sizes, RoPE as published with the conversion of csm-1b."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0}
    backbone = {"low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 1024}
    depth = {"low_freq_factor": 1 / 512, "high_freq_factor": 1 / 128, "original_max_position_embeddings": 16}
    shared = {"num_codebooks": BOOKS, "vocab_size": VOCAB, "intermediate_size": INNER}
    shared |= {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    return CsmConfig(
        **shared,
        text_vocab_size=TEXT_VOCAB,
        hidden_size=BACKBONE_DIM,
        num_hidden_layers=LAYERS["backbone"],
        rope_parameters={**rope, **backbone},
        bos_token_id=1,
        pad_token_id=1,
        audio_token_id=1,
        audio_eos_token_id=2,
        codebook_pad_token_id=VOCAB - 1,
        codec_config={"model_type": "mimi", **MIMI},
        depth_decoder_config={
            **shared,
            "model_type": "csm_depth_decoder_model",
            "backbone_hidden_size": BACKBONE_DIM,
            "hidden_size": DECODER_DIM,
            "num_hidden_layers": LAYERS["decoder"],
            "max_position_embeddings": BOOKS + 1,
            "rope_parameters": {**rope, **depth},
        },
    )


def our_logits(checkpoint: Checkpoint, rows: Tensor) -> tuple[Tensor, Tensor]:
    model = CsmModel(checkpoint.config, checkpoint.weights, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        inputs = model.embed_prompt(rows)[None]
        hidden = model.backbone(inputs, model.backbone.new_cache(1, len(rows)), PrefillSlots(0, 1, 0, len(rows)))
        codes = rows[-1, :-2] + torch.arange(BOOKS - 1) * VOCAB
        depth_inputs = torch.cat([model.projector(hidden[0, -2:-1]), model.depth_table[codes]])[None]
        mixed = model.depth(depth_inputs, model.depth.new_cache(1, BOOKS), PrefillSlots(0, 1, 0, BOOKS))
        depth = torch.stack([head(mixed[0, n + 1, None])[0] for n, head in enumerate(model.depth_heads)])
        return model.head(hidden[0]), depth


def both_logits(checkpoint: Checkpoint, folder: Path, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield transformers_logits(checkpoint, folder, rows)
    yield our_logits(checkpoint, rows)


def test_logits_are_those_of_the_formats_description(folder: Path) -> None:
    rows = conversation()
    first, others = reference_logits(original_weights(), rows)
    assert first.std() > 0.5
    assert others.std() > 0.5
    for ours_first, ours_others in both_logits(open_checkpoint(str(folder)), folder, rows):
        torch.testing.assert_close(ours_first, first[:, : ours_first.shape[1]], atol=1e-4, rtol=0)
        torch.testing.assert_close(ours_others, others[:, : ours_others.shape[1]], atol=1e-4, rtol=0)


def test_codec_and_tokenizer_come_from_other_repositories(folder: Path, companion_repositories: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.codec_config["codebook_size"] == 32
    assert "decoder.layers.0.conv.weight" in checkpoint.codec_weights
    assert checkpoint.tokenizer_file == companion_repositories / "tokenizer.json"
    assert (checkpoint.config.audio_token, checkpoint.config.audio_eos_token) == (128002, 128003)


def test_transformers_config_may_lie_beside_original_weights(folder: Path) -> None:
    plain = open_checkpoint(str(folder))
    transformers_config(folder).save_pretrained(folder)
    beside = open_checkpoint(str(folder))
    assert beside.config.backbone.heads == plain.config.backbone.heads
    assert all(tensor.equal(plain.weights[name]) for name, tensor in beside.weights.items())


def diagnostic(folder: Path) -> str:
    with pytest.raises(CheckpointInvalid) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["decoder.layers.0.mlp.w3.weight", "audio_embeddings.weight", "codebook0_head.weight", "backbone.norm.scale"],
)
def test_a_missing_tensor_is_named_as_on_disk(tmp_path: Path, name: str) -> None:
    weights = original_weights()
    del weights[name]
    write(tmp_path, weights)
    assert f"lacks tensor {name}" in diagnostic(tmp_path)


@pytest.mark.parametrize("name", ["audio_head", "text_embeddings.weight", "backbone.layers.0.attn.q_proj.weight"])
def test_a_tensor_that_sizes_are_read_from_is_named_too(tmp_path: Path, name: str) -> None:
    weights = original_weights()
    write(tmp_path, {**weights, name: torch.zeros(3)})
    assert f"tensor {name} has 1 dimensions" in diagnostic(tmp_path)
    del weights[name]
    write(tmp_path, weights)
    assert f"tensor {name} is missing" in diagnostic(tmp_path)


def test_an_unexpected_or_badly_shaped_tensor_is_named_as_on_disk(tmp_path: Path) -> None:
    write(tmp_path, original_weights() | {"backbone.extra": torch.zeros(1)})
    assert "tensor backbone.extra" in diagnostic(tmp_path)
    write(tmp_path, original_weights() | {"projection.weight": torch.zeros(2, 2)})
    assert "tensor projection.weight is [2, 2]" in diagnostic(tmp_path)


def test_an_unknown_flavor_and_a_wrong_head_size_are_named(tmp_path: Path) -> None:
    write(tmp_path, original_weights())
    (tmp_path / "config.json").write_text('{"backbone_flavor": "llama-9B", "decoder_head_dim": 8}')
    assert "backbone_flavor 'llama-9B' is unknown" in diagnostic(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "decoder_head_dim": 7}))
    assert "do not divide into heads of 7" in diagnostic(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x04N."])
def test_a_damaged_pytorch_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ckpt.pt").write_bytes(content)
    assert "ckpt.pt is damaged" in diagnostic(tmp_path)


def test_a_pytorch_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    torch.save({"audio_head": Harmful(tmp_path / "ran")}, tmp_path / "ckpt.pt")
    assert "mkdir" in diagnostic(tmp_path)
    torch.save({"audio_head": torch.nn.Linear(1, 1)}, tmp_path / "ckpt.pt")
    assert "torch.nn.modules.linear.Linear" in diagnostic(tmp_path)
    assert not (tmp_path / "ran").exists()
    for value in (1, Path("x")):
        torch.save({"audio_head": value}, tmp_path / "ckpt.pt")
        assert "not a mapping of names to tensors" in diagnostic(tmp_path)


class Harmful:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)
