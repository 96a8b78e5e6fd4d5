"""A fault at file operations of every command that writes: nothing is lost, half-written or left behind.

`CSM_TEST_EVERY_FAULT=1 pytest -m slow tests/cli/test_faults.py -s` takes every operation, which needs half an hour, and
prints how many were tried for each command. Without it a few of each are taken.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from helpers.audio import write_tone
from helpers.faults import FAULTS, Command, Ended, check_faults, fault_runner
from helpers.training import examples, store

Run = Callable[..., Ended]
COMMANDS = (
    "say",
    "converse",
    "batch",
    "merge",
    "export",
    "voices add",
    "voices rm",
    "data prepare",
    "train",
    "script convert",
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "work"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def run(workplace: Path) -> Iterator[Run]:
    with fault_runner(workplace / "home") as runner:
        yield runner


def foreign(folder: Path, name: str = "notes.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    return folder / name


def prepare(name: str, work: Path, model: Path, run: Run) -> Command:
    """The command in a fresh folder that already holds an earlier result and the user's own files."""
    shutil.rmtree(work)
    work.mkdir()
    out = work / "out"
    notes = foreign(out)
    quick = ["--model", model, "--device", "cpu", "-q"]

    def ready(*arguments: object) -> None:
        ended = run(Command([*arguments], work, (), ()), "none", 0)
        assert ended.code == 0, ended.output

    if name == "say":
        words = ["say", "[0]Hi there.", "--seed", 1, "--max-duration", 0.3]
        return Command([*words, "-o", foreign(out, "a.wav"), *quick], work, [out / "a.wav"], [notes])
    if name == "converse":
        script = work / "script.yaml"
        turns = [{"speaker": 0, "text": "Hi."}, {"speaker": 1, "text": "Well."}]
        script.write_text(yaml.safe_dump({"turns": turns, "defaults": {"seed": 3, "max_duration": 0.3}}))
        stems = [out / "a.wav", out / "a.0.wav", out / "a.1.wav"]
        return Command(["converse", script, "-o", stems[0], "--stems", *quick], work, stems, [notes])
    lines = work / "lines.jsonl"
    row = {"text": "Well, so.", "max_duration": 0.3, "speaker": 0}
    lines.write_text("\n".join(json.dumps({"id": f"n{number}", **row}) for number in range(3)))
    items = [out / f"n{number}.wav" for number in range(3)]
    if name == "batch":
        return Command(["batch", lines, "-o", out / "{id}.wav", "--batch-size", 1, *quick], work, items, [notes])
    if name == "merge":
        for part in (1, 2):
            ready("batch", lines, "-o", work / f"part{part}" / "{id}.wav", "--shard", f"{part}/2", *quick)
        folders = [work / "part1", work / "part2"]
        return Command(["merge", *folders, "-o", out, "-q"], work, [*items, *folders], [notes])
    if name == "export":
        ready("export", model, "-o", out / "model", "-q")
        return Command(
            ["export", model, "-o", out / "model", "--dtype", "bfloat16", "-q"], work, [out / "model"], [notes]
        )
    if name.startswith("voices"):
        voice, other = work / "home" / "voices" / "ana", foreign(work / "home" / "voices")
        clip = write_tone(work / "clip.wav", seconds=3.0)
        ready("voices", "add", "ana", clip, "--text", "First words.", "--model", model, "-q")
        if name == "voices rm":
            return Command(["voices", "rm", "ana"], work, [voice], [other])
        clip = write_tone(work / "new.wav", seconds=4.0)
        adding = ["voices", "add", "ana", clip, "--text", "Other words.", "--replace", "--model", model, "-q"]
        return Command(adding, work, [voice], [other])
    if name == "data prepare":
        recordings = work / "recordings"
        recordings.mkdir()
        rows = []
        for number in range(3):
            write_tone(recordings / f"{number}.wav", seconds=1.0 + number / 4)
            rows.append(json.dumps({"audio": f"{number}.wav", "text": f"Words {number}."}))
        (recordings / "metadata.jsonl").write_text("\n".join(rows))
        mine = [notes, foreign(out, "20240101.jsonl"), foreign(out, "7.safetensors")]
        files = [out / "index.json", out / "00000.safetensors"]
        return Command(["data", "prepare", recordings, "-o", out, *quick], work, files, mine)
    if name == "train":
        data, settings = store(work / "data", model, *examples()), work / "train.yaml"
        steps = {"steps": 2, "save_every": 1, "evaluate_every": 1, "warmup_steps": 1, "batch_tokens": 100}
        places = {"data": str(data), "output": str(out), "model": str(model), "lora": {"rank": 2}}
        settings.write_text(yaml.safe_dump(places | steps))
        return Command(["train", settings, "--device", "cpu", "-q"], work, [], [notes, foreign(out, "a.tmp")])
    subtitles = work / "talk.srt"
    subtitles.write_text("1\n00:00:01,000 --> 00:00:02,000\nHello there.\n")
    foreign(out, "talk.yaml")
    return Command(["script", "convert", subtitles, "-o", out / "talk.yaml"], work, [out / "talk.yaml"], [notes])


@pytest.mark.parametrize("name", ["say", "export", "voices add"])
def test_a_kill_at_some_operations_loses_nothing(name: str, workplace: Path, tiny_checkpoint: Path, run: Run) -> None:
    check_faults(run, prepare(name, workplace, tiny_checkpoint, run), ["kill"], sample=4)


@pytest.mark.parametrize("name", ["export", "data prepare"])
def test_two_processes_at_once_lose_nothing(name: str, workplace: Path, tiny_checkpoint: Path, run: Run) -> None:
    check_faults(run, prepare(name, workplace, tiny_checkpoint, run), ["twin"], sample=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_fault_at_any_operation_loses_nothing(
    name: str, workplace: Path, tiny_checkpoint: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = None if os.environ.get("CSM_TEST_EVERY_FAULT") else 4
    tried = check_faults(run, prepare(name, workplace, tiny_checkpoint, run), FAULTS, sample)
    with capsys.disabled():
        print(f"\n{name}: {tried} operations tried, 0 lost", end="")
