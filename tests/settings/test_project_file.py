"""./csm.toml may come with somebody else's folder: it chooses no model, no code and no network, and cannot hang."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.run import Result

from csm_cli.checkpoint import find
from csm_cli.errors import ConfigInvalid
from csm_cli.settings import SETTINGS, read_configuration
from csm_cli.settings.limits import MAX_CONFIG_BYTES

Csm = Callable[..., Result]
LOADS = {
    "model": '"evil/model"',
    "adapter": '"evil/adapter"',
    "revision": '"main"',
    "verify": "true",
    "verify_model": '"evil"',
    "compile": "true",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_loads_code_or_weights_is_marked() -> None:
    assert {name for name, setting in SETTINGS.items() if setting.user_only} == set(LOADS)


@pytest.mark.parametrize("name", LOADS)
def test_a_project_cannot_choose_what_is_loaded(csm: Csm, here: Path, home: Path, name: str) -> None:
    (here / "csm.toml").write_text(f"{name} = {LOADS[name]}\n")
    result = csm("say", "Hi", "-o", "a.wav")
    assert result.code == 2
    assert "csm.toml" in result.err and name in result.err and str(home / "config.toml") in result.err
    assert not (here / "a.wav").exists()
    (here / "csm.toml").rename(home / "config.toml")
    assert str(read_configuration().merged[name].value).lower() == LOADS[name].strip('"')


def test_a_project_can_only_forbid_the_network(
    here: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "config.toml").write_text("offline = true\n")
    (here / "csm.toml").write_text("offline = false\ntemperature = 0.5\n")
    merged = read_configuration().merged
    assert (merged["offline"].value, merged["offline"].source) == (True, str(home / "config.toml"))
    assert merged["temperature"].value == 0.5
    assert "offline" in caplog.text
    (home / "config.toml").write_text("offline = false\n")
    (here / "csm.toml").write_text("offline = true\n")
    assert read_configuration().merged["offline"].value is True
    monkeypatch.setenv("CSM_OFFLINE", "false")  # of the user
    assert read_configuration().merged["offline"].value is False


@pytest.mark.parametrize("owner", ["project", "user"])
@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "huge", "deep", "digits", "folder"])
def test_a_file_that_is_no_configuration_is_refused_at_once(here: Path, home: Path, target: str, owner: str) -> None:
    os.mkfifo(here / "pipe")
    (here / "folder").mkdir()
    (here / "huge").write_text("seed = 1\n" + "#" * MAX_CONFIG_BYTES)
    (here / "deep").write_text("seed = " + "[" * 20_000 + "]" * 20_000)
    (here / "digits").write_text("seed = " + "9" * 20_000)
    file = here / "csm.toml" if owner == "project" else home / "config.toml"
    file.symlink_to(here / target)
    with pytest.raises(ConfigInvalid) as caught:
        read_configuration()
    assert file.name in str(caught.value) and len(str(caught.value)) < 500


def test_a_folder_named_like_a_repository_is_told(
    csm: Csm, here: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find._note_local.cache_clear()
    shutil.copytree(tiny_checkpoint, here / "sesame" / "csm-1b")
    flags = "--max-duration", 0.2, "-o", here / "a.wav", "-q"
    told = csm("say", "Hi", "--model", "sesame/csm-1b", *flags)
    assert told.code == 0 and len([line for line in told.err.splitlines() if "sesame/csm-1b is a folder" in line]) == 1
    meant = csm("say", "Hi", "--model", "./sesame/csm-1b", *flags)
    assert meant.code == 0 and "is a folder" not in meant.err
