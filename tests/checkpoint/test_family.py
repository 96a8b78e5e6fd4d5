"""The family of CSM: MisoTTS beside csm-1b, told apart by tensors' shapes; other shapes are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.original import BOOKS, CONFIG, MIMI, MISO, VOCAB, conversation, original_weights, reference_logits
from helpers.run import Result
from helpers.tiny import byte_tokenizer
from safetensors.torch import save_file
from torch import Tensor
from transformers import MimiConfig, MimiModel

from csm_cli.checkpoint import Checkpoint, open_checkpoint
from csm_cli.checkpoint import load as loading
from csm_cli.checkpoint.find import LocalFolder
from csm_cli.checkpoint.sesame import convert_sesame, family_config, sesame_config, sesame_name, transformers_config
from csm_cli.checkpoint.weights import StoredTensor, expected_shapes
from csm_cli.errors import CheckpointInvalid
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.models.csm.config import model_config
from csm_cli.models.csm.family import FAMILY, FLAVORS, FamilyModel
from csm_cli.models.csm.kv_cache import PrefillSlots
from csm_cli.models.csm.model import CsmModel

Csm = Callable[..., Result]
CSM_1B, MISO_TTS = FAMILY
MISO_CONFIG = CONFIG | {"backbone_head_dim": 8, "decoder_head_dim": 4, "csm_prompt_style": "spaced"}


@pytest.fixture(scope="module")
def miso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of MisoTTS' proportions in Sesame's names, with codec and tokenizer."""
    folder = tmp_path_factory.mktemp("miso")
    torch.manual_seed(0)
    MimiModel(MimiConfig(**MIMI)).save_pretrained(folder / "mimi")
    save_file(original_weights(MISO), folder / "model.safetensors")
    for place in (folder, folder / "mimi"):
        byte_tokenizer().save(str(place / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(MISO_CONFIG))
    return folder


@pytest.fixture(autouse=True)
def hub(miso: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "HubRepository", lambda name, **_: LocalFolder(miso / "mimi", name))


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


def test_logits_of_misos_proportions_are_those_of_the_formats_description(miso: Path) -> None:
    rows = conversation()
    expected = reference_logits(original_weights(MISO), rows, MISO)
    assert all(each.std() > 0.5 for each in expected)
    for ours, theirs in zip(our_logits(open_checkpoint(str(miso)), rows), expected, strict=True):
        torch.testing.assert_close(ours, theirs[:, : ours.shape[1]], atol=2e-4, rtol=0)


def test_the_reference_uses_the_ratios_of_the_published_sizes() -> None:
    for name, stack in (("llama-8B", MISO["backbone"]), ("llama-300M", MISO["decoder"])):
        flavor = FLAVORS[name]
        assert stack.heads / stack.kv_heads == flavor.heads / flavor.kv_heads
        assert stack.inner / stack.dim == flavor.intermediate / flavor.hidden
        assert stack.heads * stack.head_dim == stack.dim and flavor.heads % stack.heads == 0
    assert MISO["decoder"].dim / MISO["backbone"].dim == 1536 / 4096


def stored_shapes(model: FamilyModel, **changes: tuple[int, ...]) -> dict[str, StoredTensor]:
    """The tensors of a published model, of which only shapes exist."""
    shapes = {sesame_name(name): shape for name, shape in expected_shapes(family_config(model)).items()}
    return {
        name: StoredTensor(shape, lambda shape=shape: torch.empty(shape, device="meta"), Path("model.safetensors"))
        for name, shape in (shapes | changes).items()
    }


@pytest.mark.parametrize(
    ("model", "backbone", "decoder"),
    [
        (CSM_1B, (16, 2048, 32, 8, 64, 8192), (4, 1024, 8, 2, 128, 8192)),
        (MISO_TTS, (32, 4096, 32, 8, 128, 14336), (8, 1536, 24, 6, 64, 6912)),
    ],
    ids=["csm-1b", "MisoTTS"],
)
def test_real_shapes_without_a_config_tell_the_model(
    model: FamilyModel, backbone: tuple[int, ...], decoder: tuple[int, ...]
) -> None:
    stored = stored_shapes(model)
    config = model_config(transformers_config({}, stored, {}))
    sizes = [
        (s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, s.intermediate) for s in (config.backbone, config.depth)
    ]
    assert sizes == [backbone, decoder]
    assert (config.codebooks, config.vocab, config.text_vocab) == (32, 2051, 128256)
    assert (config.backbone.max_seq_len, config.depth.max_seq_len) == (2048, 33)
    assert config.prompt_style == model.prompt_style
    tensors = convert_sesame(stored, config, "model.safetensors")
    assert {name: tensors[name].read().shape for name in tensors} == expected_shapes(config)
    flavors = sesame_config(config, {})
    assert (flavors["backbone_flavor"], flavors["decoder_flavor"]) == (model.backbone, model.decoder)


def test_transformers_config_of_misos_sizes_has_its_prompts_too() -> None:
    raw = transformers_config({}, stored_shapes(MISO_TTS), {})
    assert "csm_prompt_style" not in raw and model_config(raw).prompt_style == "spaced"
    raw["num_hidden_layers"] = 31
    assert model_config(raw).prompt_style == "plain"


CHANGED = {
    "backbone.layers.0.attn.q_proj.weight": (2048, 4096),
    "backbone.layers.0.mlp.w1.weight": (14_000, 4096),
    "decoder.layers.0.attn.k_proj.weight": (512, 1536),
    "decoder.layers.8.attn.q_proj.weight": (1536, 1536),
    "backbone.layers.32.mlp.w1.weight": (1, 1),
}


@pytest.mark.parametrize("name", CHANGED)
def test_an_unknown_shape_is_refused_by_its_stack_and_sizes(name: str) -> None:
    with pytest.raises(CheckpointInvalid) as caught:
        transformers_config({}, stored_shapes(MISO_TTS, **{name: CHANGED[name]}), {})
    line = str(caught.value)
    assert f"the {name.split('.')[0]} has" in line and "MisoLabs/MisoTTS" in line and "head_dim" in line


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"backbone_flavor": "llama-1B"}, "backbone_flavor is llama-1B"),
        ({"decoder_flavor": "llama-100M"}, "decoder_flavor is llama-100M"),
        ({"decoder_flavor": "llama-3B"}, "decoder_flavor 'llama-3B' is unknown"),
        ({"backbone_head_dim": 24}, "heads of 24"),
        ({"backbone_head_dim": True}, "backbone_head_dim"),
    ],
)
def test_a_config_that_does_not_fit_the_shapes_is_refused(config: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointInvalid) as caught:
        transformers_config(config, stored_shapes(MISO_TTS), {})
    assert words in str(caught.value)


def test_flavors_that_were_never_published_together_need_a_prompt_style() -> None:
    mixed = stored_shapes(MISO_TTS)
    mixed = {name: each for name, each in mixed.items() if not name.startswith("decoder.")}
    mixed |= {name: each for name, each in stored_shapes(CSM_1B).items() if name.startswith("decoder.")}
    with pytest.raises(CheckpointInvalid, match="llama-8B with llama-100M"):
        transformers_config({}, mixed, {})
    assert model_config(transformers_config({"csm_prompt_style": "plain"}, mixed, {})).prompt_style == "plain"
    with pytest.raises(CheckpointInvalid, match="csm_prompt_style"):
        model_config(transformers_config({"csm_prompt_style": "loud"}, mixed, {}))


def test_a_file_of_unknown_sizes_without_a_config_is_refused(miso: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(miso / "model.safetensors")
    with pytest.raises(CheckpointInvalid, match="the backbone has 4 layers"):
        open_checkpoint(str(tmp_path))


def plain_copy(miso: Path, folder: Path) -> Path:
    (folder / "model.safetensors").symlink_to(miso / "model.safetensors")
    config = {name: value for name, value in MISO_CONFIG.items() if name != "csm_prompt_style"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_prompt_has_a_space_after_the_tag_and_another_fingerprint(miso: Path, tmp_path: Path) -> None:
    opened, other = (open_checkpoint(str(model)) for model in (miso, plain_copy(miso, tmp_path)))
    spaced, plain = (
        PromptBuilder(each.tokenizer_file, replace(each.config, text_vocab=300)) for each in (opened, other)
    )
    assert spaced.text_ids(3, "hi") == plain.text_ids(3, " hi") == spaced.text_ids(3, "  hi")
    assert plain.text_ids(3, "hi") != spaced.text_ids(3, "hi")
    assert opened.fingerprint != other.fingerprint


def test_the_style_survives_an_export_to_either_format(csm: Csm, miso: Path, tmp_path: Path) -> None:
    assert csm("export", miso, "-o", tmp_path / "t").code == 0
    assert csm("export", tmp_path / "t", "--to", "original", "-o", tmp_path / "o").code == 0
    for folder in (tmp_path / "t", tmp_path / "o"):
        found = open_checkpoint(str(folder))
        assert found.config.prompt_style == "spaced"
        assert found.config.depth.heads == 12
