"""csm doctor: what this machine can do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.run import Result

Csm = Callable[..., Result]


def test_says_what_there_is(csm: Csm) -> None:
    found = csm("doctor", "--json").json
    assert "cpu" in found["torch"]["devices"] and found["torch"]["threads"] >= 1
    assert found["packages"]["transformers"] != "missing"
    assert {"WAV", "FLAC"} <= set(found["sound"]["reads"])
    assert set(found["hub"]) == {"cache", "token", "offline"}


def test_says_what_is_the_users_own(
    csm: Csm, home: Path, played_audio: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSM_SEED", "3")
    found = csm("doctor", "--json").json
    assert found["playing"] == {"device": "a fake output"}
    assert found["yours"] == {
        "voices": str(home / "voices"),
        "saved": [],
        "config": str(home / "config.toml"),
        "set": ["seed by CSM_SEED"],
    }
    played_audio.missing = True
    (home / "config.toml").write_text("seeds = 3")
    found = csm("doctor", "--json").json
    assert "no sound device" in found["playing"]["error"] and "did you mean seed" in found["yours"]["error"]


def test_as_text(csm: Csm) -> None:
    result = csm("doctor")
    assert result.code == 0 and "torch" in result.out and "libsndfile" in result.out


def test_never_prints_the_token(csm: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = csm("doctor")
    assert "token: present" in result.out and "hf_secret" not in result.out + result.err


@pytest.mark.parametrize("package", ["torch", "soundfile", "huggingface_hub"])
def test_says_what_cannot_be_imported(csm: Csm, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = csm("doctor")
    assert result.code == 0 and "cannot be imported" in result.out
