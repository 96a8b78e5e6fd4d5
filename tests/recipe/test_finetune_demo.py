"""The fine-tuning demo in small: it measures the model before and after training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csm_cli.recipe.finetune_demo import main


@pytest.mark.espeak
def test_demo_measures_before_and_after(
    tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "demo.yaml"
    config.write_text(
        f"data: {tmp_path / 'data'}\noutput: {tmp_path / 'run'}\nmodel: {tiny_checkpoint}\nlora: {{rank: 2}}\n"
        "steps: 2\nbatch_tokens: 200\nevaluate_every: 1\nsave_every: 0\n"
    )
    main([str(config), "--minutes", "0.1", "--sentences", "1"])
    figures = json.loads(capfd.readouterr().out)
    assert figures["steps"] == 2 and 0 <= figures["voice_match_before"] <= 1
    assert {"voice_match", "retrieval", "voice_match_of_codec", "minutes"} <= figures.keys()
