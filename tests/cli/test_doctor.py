"""csm doctor: devices, libraries and folders of this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.run import Result

from csm_cli.engine import memory_estimate

Csm = Callable[..., Result]


def test_lists_what_is_installed(csm: Csm) -> None:
    found = csm("doctor", "--json").json
    assert "cpu" in found["torch"]["devices"] and found["torch"]["threads"] >= 1
    assert found["packages"]["transformers"] != "missing"
    assert {"WAV", "FLAC"} <= set(found["audio"]["formats"])
    assert set(found["hub"]) == {"cache", "token", "offline"}


def test_lists_what_the_published_models_take_and_whether_they_fit(csm: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_estimate, "free_memory", lambda _: 20_000_000_000)
    found = csm("doctor", "--json").json["memory"]
    assert found["free_gb"] == 20.0
    assert found["MisoLabs/MisoTTS"]["bfloat16_gb"] == pytest.approx(16.6, abs=0.1)
    assert found["MisoLabs/MisoTTS fits"] == ["bfloat16"]
    assert found["sesame/csm-1b fits"] == ["float32", "bfloat16"]
    assert "MisoLabs/MisoTTS: float32 33.1 GB" in csm("doctor").out


def test_lists_the_users_files(
    csm: Csm, home: Path, played_audio: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSM_SEED", "3")
    found = csm("doctor", "--json").json
    assert found["playback"] == {"device": "a fake output"}
    assert found["user"] == {
        "voices": str(home / "voices"),
        "saved": [],
        "config": str(home / "config.toml"),
        "settings": ["seed from CSM_SEED"],
    }
    played_audio.missing = True
    (home / "config.toml").write_text("seeds = 3")
    found = csm("doctor", "--json").json
    assert "no sound device" in found["playback"]["unavailable"] and "did you mean seed" in found["user"]["error"]


def test_report_as_text(csm: Csm) -> None:
    result = csm("doctor")
    assert result.code == 0 and "torch" in result.out and "libsndfile" in result.out


def test_never_prints_the_token(csm: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = csm("doctor")
    assert "token: present" in result.out and "hf_secret" not in result.out + result.err


@pytest.mark.parametrize("package", ["torch", "soundfile", "huggingface_hub"])
def test_lists_modules_that_cannot_be_imported(csm: Csm, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = csm("doctor")
    assert result.code == 0 and "cannot be imported" in result.out
