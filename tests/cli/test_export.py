"""csm export: what it writes loads in transformers and in csm, and says the same; there and back is bit-equal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.adapters import by_csm, by_transformers, make_adapter
from helpers.original import CONFIG, MIMI, original_weights
from helpers.parity import Prompt
from helpers.run import Result
from helpers.tiny import Shape, assert_same_codes, byte_tokenizer, random_csm, save_checkpoint, text_rows
from safetensors.torch import load_file, save_file
from transformers import CsmForConditionalGeneration, MimiConfig, MimiModel

from csm_cli.checkpoint import open_checkpoint

Run = Callable[..., Result]


def assert_says_the_same(one: Path, other: Path, adapter: Path | None = None) -> None:
    """transformers on `other` says what we say of `one` with the adapter, and of `other`."""
    theirs = CsmForConditionalGeneration.from_pretrained(other, dtype=torch.float32)
    ids = torch.randint(0, 60, (9,), generator=torch.Generator().manual_seed(5))
    given = Prompt(ids, [], text_rows(ids, theirs.config.num_codebooks))
    before = by_csm(open_checkpoint(str(one), adapter=None if adapter is None else str(adapter)), given)
    assert_same_codes("in transformers", before, by_transformers(theirs, given))
    assert_same_codes("in csm", by_csm(open_checkpoint(str(other)), given), before)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_merged(csm: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter")
    result = csm("export", tiny_checkpoint, "--adapter", adapter, "-o", tmp_path / "merged")
    assert (result.code, result.out) == (0, f"{tmp_path / 'merged'}\n")
    assert_says_the_same(tiny_checkpoint, tmp_path / "merged", adapter)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("merged")] == ["merged"]


@pytest.mark.parametrize("tied", [True, False])
def test_both_audio_tables_are_written(csm: Run, tmp_path: Path, tied: bool) -> None:
    model = random_csm(Shape())
    if not tied:
        model.config.tie_codebooks_embeddings = False
        table = model.depth_decoder.model.embed_tokens
        table.weight = torch.nn.Parameter(torch.randn_like(table.weight))
    folder = save_checkpoint(model, tmp_path / "model")
    assert csm("export", folder, "-o", tmp_path / "copy").code == 0
    stored = load_file(tmp_path / "copy" / "model.safetensors")
    first = stored["backbone_model.embed_tokens.embed_audio_tokens.weight"]
    assert first.equal(stored["depth_decoder.model.embed_tokens.weight"]) == tied
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["tie_word_embeddings"] is False
    if tied:
        assert_says_the_same(folder, tmp_path / "copy")
    else:
        assert "holds one" in csm("export", folder, "--to", "original", "-o", tmp_path / "other").err


def original(folder: Path) -> Path:
    """A checkpoint as Sesame publishes it, its codec and tokenizer beside it."""
    folder.mkdir()
    torch.manual_seed(0)
    MimiModel(MimiConfig(**MIMI)).save_pretrained(folder / "mimi")
    shutil.copy(folder / "mimi" / "model.safetensors", folder / "codec.safetensors")
    save_file(original_weights(), folder / "model.safetensors")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_a_round_trip_through_the_original_format_is_bit_equal(
    csm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from csm_cli.checkpoint import load as loading
    from csm_cli.checkpoint.find import LocalFolder

    first = original(tmp_path / "first")
    monkeypatch.setattr(loading, "HubRepository", lambda name, offline: LocalFolder(first / "mimi", name))
    assert csm("export", first, "-o", tmp_path / "second").code == 0
    assert csm("export", tmp_path / "second", "--to", "original", "-o", tmp_path / "third").code == 0
    before, after = load_file(first / "model.safetensors"), load_file(tmp_path / "third" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) and before[name].dtype == after[name].dtype for name in before)
    config = json.loads((tmp_path / "third" / "config.json").read_text())
    assert {name: config[name] for name in CONFIG if not name.endswith("_flavor")} == {
        name: value for name, value in CONFIG.items() if not name.endswith("_flavor")
    }
    assert csm("export", tmp_path / "third", "-o", tmp_path / "fourth").code == 0
    second, fourth = (load_file(tmp_path / name / "model.safetensors") for name in ("second", "fourth"))
    assert second.keys() == fourth.keys() and all(second[name].equal(fourth[name]) for name in second)
    assert_says_the_same(tmp_path / "third", tmp_path / "second")


def test_the_bundled_voice_becomes_original_and_speaks(csm: Run, tmp_path: Path) -> None:
    assert csm("export", "--to", "original", "-o", tmp_path / "voice").code == 0
    stored = load_file(tmp_path / "voice" / "model.safetensors")
    assert "codebook0_head.weight" in stored and not any(name.startswith("codec_model") for name in stored)
    bundled, same = open_checkpoint(), open_checkpoint(str(tmp_path / "voice"))
    assert all(bundled.weights[name].equal(same.weights[name]) for name in bundled.weights)
    assert same.config == bundled.config and same.codec_weights.keys() == bundled.codec_weights.keys()


def test_weights_are_written_in_the_given_dtype(csm: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert csm("export", tiny_checkpoint, "--dtype", "bf16", "-o", tmp_path / "small").code == 0
    stored = load_file(tmp_path / "small" / "model.safetensors")
    assert {each.dtype for name, each in stored.items() if not name.startswith("codec_model")} == {torch.bfloat16}
    assert json.loads((tmp_path / "small" / "config.json").read_text())["dtype"] == "bfloat16"


def test_folders_with_other_files_are_left_unchanged(csm: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    result = csm("export", tiny_checkpoint, "-o", tmp_path / "mine")
    assert result.code == 2 and "notes.txt" in result.err
    assert csm("export", tiny_checkpoint, "-o", tmp_path / "mine" / "notes.txt").code == 2
    assert csm("export", tiny_checkpoint, "-o", tmp_path / "a", "--to", "gguf").code == 2
    assert csm("export", tiny_checkpoint, "-o", tmp_path / "a", "--dtype", "int4").code == 2
    assert csm("export", tiny_checkpoint, "-o", tmp_path / "a").code == 0
    assert csm("export", tiny_checkpoint, "-o", tmp_path / "a", "--no-clobber").code == 2
    assert csm("export", tiny_checkpoint, "-o", tmp_path / "a").code == 0
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert csm("export", tiny_checkpoint, "-o", tmp_path / "a").code == 2
    assert csm("export", tiny_checkpoint, "-o", tmp_path / "a", "--force").code == 0


def test_a_checkpoint_does_not_replace_itself(csm: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert csm("export", tiny_checkpoint, "-o", tmp_path / "a").code == 0
    (tmp_path / "link").symlink_to("a")
    before = (tmp_path / "a" / "model.safetensors").read_bytes()
    result = csm("export", tmp_path / "a", "-o", tmp_path / "link", "--dtype", "bf16")
    assert result.code == 2 and "would be replaced" in result.err
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before


def test_a_full_disk_leaves_the_old_checkpoint(
    csm: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert csm("export", tiny_checkpoint, "-o", tmp_path / "a").code == 0
    before = (tmp_path / "a" / "model.safetensors").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    result = csm("export", tiny_checkpoint, "-o", tmp_path / "a")
    assert result.code == 1 and "No space left" in result.err
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
