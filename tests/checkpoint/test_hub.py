"""Checkpoints on Hugging Face: huggingface_hub's own code against a small server on this machine."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from helpers.fakehub import COMMIT, ID, FakeHub, dead_server

from csm_cli.checkpoint import open_checkpoint
from csm_cli.errors import CheckpointInvalid, ModelError, ModelGated, ModelNotFound, ModelOffline, OutputFailed


def diagnostic(kind: type[ModelError], model: str = ID, revision: str | None = None) -> str:
    with pytest.raises(kind) as caught:
        open_checkpoint(model, revision)
    assert caught.value.code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_files_named_by_the_config_are_fetched(hub: FakeHub, whole: Path) -> None:
    hub.repositories[ID] = whole
    checkpoint = open_checkpoint(ID)
    local = open_checkpoint(str(whole))
    assert (checkpoint.name, checkpoint.revision, checkpoint.config) == (ID, COMMIT, local.config)
    assert all(tensor.equal(local.weights[name]) for name, tensor in checkpoint.weights.items())
    assert set(checkpoint.codec_weights) == set(local.codec_weights)
    shards = {path.name for path in whole.glob("model-*.safetensors")}
    assert len(shards) > 1
    small = {"config.json", "transformers.safetensors.index.json", "tokenizer.json", "generation_config.json"}
    assert set(hub.asked) == shards | small


def test_cached_models_open_without_a_network(
    hub: FakeHub, whole: Path, point_to: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[ID] = whole
    open_checkpoint(ID)
    point_to(dead_server())
    assert open_checkpoint(ID).revision == COMMIT
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert open_checkpoint(ID).revision == COMMIT


def test_files_that_may_be_absent_may_be_absent_offline(
    hub: FakeHub, whole: Path, point_to: Callable[[str], None], tmp_path: Path
) -> None:
    hub.repositories[ID] = Path(shutil.copytree(whole, tmp_path / "copy"))
    (tmp_path / "copy" / "generation_config.json").unlink()
    open_checkpoint(ID)
    point_to(dead_server())
    assert open_checkpoint(ID).defaults.temperature == 0.9


def test_no_network_and_nothing_cached(point_to: Callable[[str], None]) -> None:
    point_to(dead_server())
    assert "config.json of sesame/csm-1b is not in the cache" in diagnostic(ModelOffline, "sesame/csm-1b")


def test_a_shard_that_is_not_cached_is_named(
    hub: FakeHub, whole: Path, point_to: Callable[[str], None], tmp_path: Path
) -> None:
    hub.repositories[ID] = whole
    checkpoint = open_checkpoint(ID)
    shard = sorted(checkpoint.tokenizer_file.parent.glob("model-*"))[0]
    shard.unlink()
    point_to(dead_server())
    assert f"{shard.name} of {ID} is not in the cache" in diagnostic(ModelOffline)


def test_a_gated_model_is_an_error_with_the_page_of_its_licence(hub: FakeHub, whole: Path) -> None:
    hub.repositories = {"sesame/csm-1b": whole, ID: whole}
    hub.gated = {"sesame/csm-1b", ID}
    line = diagnostic(ModelGated, "sesame/csm-1b")
    for words in ("https://huggingface.co/sesame/csm-1b", "`hf auth login`", "unsloth/csm-1b"):
        assert words in line
    assert "unsloth" not in diagnostic(ModelGated)


def test_an_unknown_repository_lists_similar_ones(hub: FakeHub) -> None:
    line = diagnostic(ModelNotFound, "seasame/csm-1b")
    assert "neither a local checkpoint nor a Hugging Face id" in line
    assert "did you mean sesame/csm-1b" in line


def test_an_invalid_repository_name_is_unknown(hub: FakeHub) -> None:
    assert "neither" in diagnostic(ModelNotFound, "some--one/voice")


def test_an_unknown_revision_is_named(hub: FakeHub, whole: Path) -> None:
    hub.repositories[ID] = whole
    assert "has no revision 'v9'" in diagnostic(ModelNotFound, revision="v9")
    assert open_checkpoint(ID, COMMIT).revision == COMMIT


def test_another_model_is_refused_before_its_weights_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    hub.repositories[ID] = tmp_path
    line = diagnostic(CheckpointInvalid)
    assert line.startswith(f"{ID}: config.json") and "'llama'" in line
    assert set(hub.asked) == {"config.json"}


def test_a_repository_without_a_checkpoint_names_the_missing_file(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[ID] = tmp_path
    assert f"{ID} on Hugging Face has no config.json" in diagnostic(CheckpointInvalid)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert f"{ID} is an adapter" in diagnostic(CheckpointInvalid)


def test_hub_cache_and_token_come_from_the_environment(server: FakeHub, whole: Path, tmp_path: Path) -> None:
    server.repositories[ID] = whole
    server.gated = {ID}
    script = f"from csm_cli.checkpoint import open_checkpoint; print(open_checkpoint({ID!r}).tokenizer_file)"
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_TOKEN": server.token}
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | variables | more,
            capture_output=True,
            text=True,
            check=True,
        )
        assert Path(done.stdout.strip()).is_relative_to(tmp_path)
        variables["HF_ENDPOINT"] = dead_server()


def test_offline_nothing_is_requested(hub: FakeHub, whole: Path) -> None:
    hub.repositories[ID] = whole
    with pytest.raises(ModelOffline, match="--offline"):
        open_checkpoint(ID, offline=True)
    assert hub.asked == []
    open_checkpoint(ID)
    hub.asked.clear()
    assert open_checkpoint(ID, offline=True).revision == COMMIT and hub.asked == []


def test_a_full_disk_is_an_error_with_a_remedy(hub: FakeHub, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[ID] = whole

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(OutputFailed, match="make room, or set HF_HOME"):
        open_checkpoint(ID)
