"""Stores made of datasets: whatever stops a run, the next one goes on and ends with the same store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from filelock import FileLock

from csm_cli.data.clips import DatasetEntry, DroppedClip, SpeakerNumbers
from csm_cli.data.encode import EncodingRecipe
from csm_cli.data.prepare import Preparation, PrepareProgress
from csm_cli.data.rows import RowReader
from csm_cli.data.sources import find_datasets, read_datasets, read_entries
from csm_cli.data.store import open_store
from csm_cli.errors import InputError, NothingToLearn, OutputFailed, UsageError

CLIPS = 7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LJSpeech of seven clips, the fourth without text."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "wavs").mkdir()
    for number in range(CLIPS):
        noise = np.random.default_rng(number).normal(0, 0.1, 6000 + 500 * number)
        soundfile.write(folder / "wavs" / f"{number}.wav", noise, 16000)
    rows = [f"{number}|{'' if number == 3 else 'Words.'}\n" for number in range(CLIPS)]
    (folder / "metadata.csv").write_text("".join(rows))
    return folder


@pytest.fixture
def recipe(tiny_checkpoint: Path) -> EncodingRecipe:
    return EncodingRecipe(str(tiny_checkpoint), device="cpu", held_out=0.3)


def cut(dataset: Path, clips: int = 2) -> Iterator[DatasetEntry]:
    return read_entries(read_datasets(find_datasets([dataset]), RowReader(SpeakerNumbers())), clips)


def run(dataset: Path, folder: Path, recipe: EncodingRecipe, workers: int = 1) -> list[PrepareProgress]:
    return list(Preparation(folder, recipe, workers).run(cut(dataset), SpeakerNumbers()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_a_dataset_becomes_a_store(dataset: Path, tmp_path: Path, recipe: EncodingRecipe) -> None:
    steps = run(dataset, tmp_path / "store", recipe)
    train, out = open_store(tmp_path / "store"), open_store(tmp_path / "store", held_out=True)
    assert len(steps) == 4 and sum(step.examples for step in steps) == len(train) + len(out) == CLIPS - 1
    assert [drop.reason for step in steps for drop in step.found.drops] == ["no text"]
    names = {example.id.rpartition("/")[2] for store in (train, out) for example in store}
    assert names == {"0", "1", "2", "4", "5", "6"}
    assert train.about["window"] == 512 and train.about["held_out_share"] == 0.3


def test_what_is_done_is_not_done_again(dataset: Path, tmp_path: Path, recipe: EncodingRecipe) -> None:
    first = run(dataset, tmp_path / "store", recipe)
    made = contents(tmp_path / "store")
    again = run(dataset, tmp_path / "store", recipe)
    assert [step.done_before for step in first + again] == [False] * 4 + [True] * 4
    assert [step.found for step in again] == [step.found for step in first]
    assert contents(tmp_path / "store") == made


def test_only_what_has_changed_is_done_again(dataset: Path, tmp_path: Path, recipe: EncodingRecipe) -> None:
    copy = tmp_path / dataset.name
    (copy / "wavs").mkdir(parents=True)
    for path in (dataset / "wavs").iterdir():
        os.link(path, copy / "wavs" / path.name)
    (copy / "metadata.csv").write_text((dataset / "metadata.csv").read_text().replace("5|Words.", "5|Other."))
    run(dataset, tmp_path / "store", recipe)
    steps = run(copy, tmp_path / "store", recipe)
    assert [step.done_before for step in steps] == [True, True, False, True]


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_broken_off_is_gone_on_with(dataset: Path, tmp_path: Path, recipe: EncodingRecipe, after: int) -> None:
    run(dataset, tmp_path / "whole", recipe)
    steps = Preparation(tmp_path / "store", recipe).run(cut(dataset), SpeakerNumbers())
    for _ in range(after):
        next(steps)
    steps.close()
    with pytest.raises(InputError, match="run csm data prepare to the end"):
        open_store(tmp_path / "store")
    rest = run(dataset, tmp_path / "store", recipe)
    assert [step.done_before for step in rest] == [True] * after + [False] * (4 - after)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_workers_make_the_same_store(dataset: Path, tmp_path: Path, recipe: EncodingRecipe) -> None:
    one, two = run(dataset, tmp_path / "one", recipe), run(dataset, tmp_path / "two", recipe, workers=2)
    assert one == two and contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_full_disk_keeps_what_was_finished(
    dataset: Path, tmp_path: Path, recipe: EncodingRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OutputFailed(f"{path}: could not be written (No space left on device); nothing was left behind")

    steps = Preparation(tmp_path / "store", recipe).run(cut(dataset), SpeakerNumbers())
    next(steps)
    monkeypatch.setattr("csm_cli.data.store.write_atomically", full)
    with pytest.raises(OutputFailed, match="No space left"):
        next(steps)
    monkeypatch.undo()
    assert [step.done_before for step in run(dataset, tmp_path / "store", recipe)] == [True, False, False, False]


def test_a_damaged_shard_is_made_anew(dataset: Path, tmp_path: Path, recipe: EncodingRecipe) -> None:
    run(dataset, tmp_path / "store", recipe)
    made = contents(tmp_path / "store")
    shard = tmp_path / "store" / "00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    assert [step.done_before for step in run(dataset, tmp_path / "store", recipe)] == [True, True, False, True]
    assert contents(tmp_path / "store") == made


def test_another_run_at_the_same_folder(dataset: Path, tmp_path: Path, recipe: EncodingRecipe) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(UsageError, match="in use by another run"):
        run(dataset, tmp_path, recipe)


def test_nothing_left(dataset: Path, tmp_path: Path, recipe: EncodingRecipe) -> None:
    (tmp_path / "metadata.csv").write_text("a|\n")
    with pytest.raises(NothingToLearn):
        run(tmp_path, tmp_path / "store", recipe)
    assert not (tmp_path / "store").exists()


def test_nothing_left_takes_no_finished_store_along(dataset: Path, tmp_path: Path, recipe: EncodingRecipe) -> None:
    nothing = [DroppedClip("a", "m:1", "broken row", "is none")]
    list(Preparation(tmp_path / "store", recipe).run([nothing, *cut(dataset)], SpeakerNumbers()))
    made = contents(tmp_path / "store")
    with pytest.raises(NothingToLearn):
        list(Preparation(tmp_path / "store", recipe).run([nothing], SpeakerNumbers()))
    assert contents(tmp_path / "store") == made


KILLED = """
import os, signal, sys
from pathlib import Path
from data.test_prepare import cut
from csm_cli.data.clips import Speakers
from csm_cli.data.encode import Recipe
from csm_cli.data.prepare import Preparation
import csm_cli.data.store as store
path = Path(sys.argv[2])
put = store.write_atomically
def dying(target, data):
    if target.name == sys.argv[4]:
        os.kill(os.getpid(), signal.SIGKILL)
    put(target, data)
store.write_atomically = dying
list(Preparation(path, Recipe(sys.argv[3], device="cpu", held_out=0.3)).run(cut(Path(sys.argv[1])), Speakers()))
"""


@pytest.mark.parametrize("moment", ["00002.safetensors", "index.json"])
def test_kill_minus_nine_at_any_moment(
    dataset: Path, tmp_path: Path, recipe: EncodingRecipe, tiny_checkpoint: Path, moment: str
) -> None:
    run(dataset, tmp_path / "whole", recipe)
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    command = [sys.executable, "-c", KILLED, str(dataset), str(tmp_path / "store"), str(tiny_checkpoint), moment]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(InputError, match="no finished store"):
        open_store(tmp_path / "store")
    steps = run(dataset, tmp_path / "store", recipe)
    assert [step.done_before for step in steps].count(True) == {"00002.safetensors": 2, "index.json": 4}[moment]
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
