"""csm train as a user meets it: lines, paths, exit codes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Result
from test_train_finetune import examples, store

from csm_cli.cli import training
from csm_cli.train.finetune import Stepped

Run = Callable[..., Result]


@pytest.fixture
def config(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    data = store(tmp_path / "my data", tiny_checkpoint, *examples())
    settings = {"data": str(data), "output": str(tmp_path / "my run"), "model": str(tiny_checkpoint)}
    settings |= {"steps": 4, "batch_tokens": 100, "evaluate_every": 2, "lora": {"rank": 2}}
    path = tmp_path / "my config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_run_tells_its_way_and_prints_what_it_made(csm: Run, config: Path, tmp_path: Path) -> None:
    result = csm("train", config, "--cpu")
    assert (result.code, result.out) == (0, f"{tmp_path / 'my run' / 'best'}\n")
    assert "parameters learn from 12 examples; 2 are held out" in result.err
    assert "step 1 of 4: backbone" in result.err and "tokens/s" in result.err
    assert "step 2: held-out loss" in result.err and "by codebook" in result.err
    again = csm("train", config, "--cpu", "-q")
    assert (again.code, again.out) == (0, result.out)
    spoken = csm("say", "Hi.", "--model", yaml.safe_load(config.read_text())["model"], "--adapter", result.out.strip())
    assert spoken.code == 2 and "no output named" in spoken.err


def test_an_interrupted_run_is_saved(csm: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell = training.Teller.tell

    def interrupting(self: training.Teller, event: object) -> None:
        tell(self, event)  # type: ignore[arg-type]
        if isinstance(event, Stepped) and event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training.Teller, "tell", interrupting)
    result = csm("train", config, "--cpu")
    assert result.code == 130 and "stopped after step 2, which is saved" in result.err
    assert (tmp_path / "my run" / "last" / "adapter_config.json").exists()
    monkeypatch.undo()
    assert "going on from step 2" in csm("train", config, "--cpu").err


def test_failures_are_one_line(csm: Run, config: Path, tmp_path: Path) -> None:
    assert csm("train", tmp_path / "no.yaml").code == 3
    text = config.read_text()
    config.write_text(text.replace("my data", "no data"))
    result = csm("train", config)
    assert result.code == 3 and "make it with csm data prepare" in result.err
    config.write_text(text + "model_: x\n")
    assert "did you mean" in csm("train", config).err
