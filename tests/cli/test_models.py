"""csm models: the Hugging Face cache, filled from a small server on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.fakehub import COMMIT, ID, FakeHub, dead_server
from helpers.run import Result
from helpers.tiny import Shape, random_csm, save_checkpoint

Csm = Callable[..., Result]


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(random_csm(Shape()), tmp_path_factory.mktemp("speaking"))


@pytest.fixture
def served(hub: FakeHub, speaking: Path) -> FakeHub:
    (speaking / "ckpt.pt").write_text("never fetched")
    hub.repositories[ID] = speaking
    return hub


def test_an_empty_cache_has_the_bundled_voice(csm: Csm, hub: FakeHub) -> None:
    result = csm("models", "list")
    assert result.code == 0 and result.out.splitlines() == ["bundled voice  the default without --model"]
    assert csm("models", "list", "--json").json == []


def test_a_pulled_model_is_listed_found_and_removed(csm: Csm, served: FakeHub) -> None:
    pulled = csm("models", "pull", ID)
    folder = Path(pulled.out.strip())
    assert pulled.code == 0 and f"commit {COMMIT}" in pulled.err
    assert "ckpt.pt" not in served.asked
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
    }
    (listed,) = csm("models", "list", "--json").json
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert listed == {"id": ID, "revision": COMMIT, "refs": ["main"], "folder": str(folder), "bytes": size}
    assert f"{COMMIT[:8]}" in csm("models", "list").out
    assert csm("models", "where", ID).out == csm("models", "where", ID, "--revision", "main").out == f"{folder}\n"
    removed = csm("models", "rm", ID)
    assert removed.code == 0 and "freed" in removed.err and not folder.exists()
    gone = csm("models", "where", ID)
    assert gone.code == 4 and f"csm models pull {ID}" in gone.err


def test_a_pulled_model_speaks_offline(
    csm: Csm, served: FakeHub, point_to: Callable[[str], None], tmp_path: Path
) -> None:
    run = ("say", "Hi", "--model", ID, "--max-duration", "0.4", "-o", tmp_path / "a.wav", "--offline")
    result = csm(*run)
    assert result.code == 4 and "not in the cache" in result.err and served.asked == []
    csm("models", "pull", ID, "-q")
    point_to(dead_server())
    served.asked.clear()
    assert csm(*run).code == 0 and csm("models", "pull", ID, "--offline").code == 0 and served.asked == []


def test_offline_can_be_configured(
    csm: Csm, served: FakeHub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "config.toml").write_text(f'offline = true\nmodel = "{ID}"\n')
    run = ("say", "Hi", "--max-duration", "0.4", "-o", tmp_path / "a.wav")
    assert csm(*run).code == 4 and served.asked == []
    monkeypatch.setenv("CSM_OFFLINE", "0")
    assert csm(*run).code == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [("someone/gated", "accept its licence"), ("someone/nothing", "neither a local checkpoint nor a Hugging Face id")],
)
def test_a_failed_pull_has_a_reason(csm: Csm, served: FakeHub, speaking: Path, name: str, message: str) -> None:
    served.repositories["someone/gated"] = speaking
    served.gated = {"someone/gated"}
    result = csm("models", "pull", name)
    assert result.code == 4 and message in result.err and not result.out


def test_a_model_that_is_not_cached_lists_similar_ones(csm: Csm, served: FakeHub) -> None:
    csm("models", "pull", ID)
    for command in ("where", "rm"):
        result = csm("models", command, "someone/voices")
        assert result.code == 4 and f"did you mean {ID}" in result.err
    result = csm("models", "rm", ID, "--revision", "v9")
    assert result.code == 4 and "not its revision 'v9'" in result.err
    assert csm("models", "where", ID).code == 0


def test_a_failed_removal_is_reported(csm: Csm, served: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    csm("models", "pull", ID)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    result = csm("models", "rm", ID)
    assert result.code == 1 and "could not be removed" in result.err and "freed" not in result.err


def test_other_models_in_the_cache_are_ignored(csm: Csm, served: FakeHub) -> None:
    folder = Path(csm("models", "pull", ID).out.strip())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert csm("models", "list", "--json").json == [] and csm("models", "rm", ID).code == 4


def test_local_checkpoints_are_found(csm: Csm, tiny_checkpoint: Path) -> None:
    assert csm("models", "where").out.endswith("assets/voice\n")
    assert csm("models", "where", tiny_checkpoint).out == f"{tiny_checkpoint}\n"
    assert csm("models", "where", "no such thing").code == 4
