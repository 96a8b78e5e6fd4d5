"""csm takes: the takes of a track, listed, exported and picked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.audio import write_tone

from csm_cli.cli import main
from csm_cli.generation.turn_cache import cache_folder

Csm = Callable[..., Any]
LINES = (
    "turns:\n- ana: One.\n- {speaker: ben, id: reply, text: Two.}\n- {speaker: ana, audio: tone.wav, text: A tone.}\n"
)


OPTIONS = ("--max-duration", "0.4", "--temperature", "0.9", "--takes", "3", "--keep-takes", "--seed", "5")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The folder of a track with three stored takes of each generated turn."""
    folder = tmp_path_factory.mktemp("finished")
    write_tone(folder / "tone.wav")
    (folder / "s.yaml").write_text(LINES)
    assert (
        converse(lambda *words: main([*map(str, words)]), folder / "s.yaml", folder / "out.wav", tiny_checkpoint) == 0
    )
    return folder


@pytest.fixture
def track(finished: Path, tmp_path: Path) -> Path:
    """A copy of the track in another folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out.wav"


@pytest.fixture
def script(track: Path) -> Path:
    return track.with_name("s.yaml")


def converse(csm: Csm, script: Path, track: Path, checkpoint: Path, *more: Any) -> Any:
    files = ("--subs", "srt", "--turns-dir", track.parent / "t")
    return csm("converse", script, "-o", track, "--model", checkpoint, *OPTIONS, *files, *more)


def takes(csm: Csm, track: Path, number: int = 1) -> list[dict[str, Any]]:
    turns = csm("takes", track, "--json").json["turns"]
    found: list[dict[str, Any]] = next(turn["takes"] for turn in turns if turn["number"] == number)
    return found


def picked(found: list[dict[str, Any]]) -> int:
    (number,) = [take["number"] for take in found if take["picked"]]
    return int(number)


def test_all_takes_are_listed_with_their_audio(csm: Csm, track: Path) -> None:
    listed = csm("takes", track, "--json").json
    assert [turn["number"] for turn in listed["turns"]] == [1, 2] and listed["turns"][1]["id"] == "reply"
    found = listed["turns"][0]["takes"]
    assert [take["seed"] for take in found] == [5, 6, 7] and [take["number"] for take in found] == [1, 2, 3]
    assert all(soundfile.info(take["audio"]).duration == pytest.approx(take["duration_s"]) for take in found)
    assert csm("takes", track).out.count("=") == 6
    assert [turn["number"] for turn in csm("takes", track, "--turns", "reply", "--json").json["turns"]] == [2]
    assert json.loads(Path(f"{track}.json").read_text())["turns"][0]["takes"][0]["audio"].endswith(
        Path(found[0]["audio"]).name
    )


def test_a_pick_is_mixed_with_all_files_and_later_runs_keep_it(
    csm: Csm, track: Path, script: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    before = takes(csm, track, 2)
    other = 1 if picked(before) != 1 else 2
    report = tmp_path / "page.html"
    converse(csm, script, track, tiny_checkpoint, "--report", report)
    report.unlink()
    assert csm("takes", track, "--pick", f"reply={other}").code == 0
    assert picked(takes(csm, track, 2)) == other and report.exists()
    chosen, _ = soundfile.read(before[other - 1]["audio"], dtype="float32")
    written, _ = soundfile.read(tmp_path / "t" / "002-ben.wav", dtype="float32")
    assert np.corrcoef(written, chosen)[0, 1] > 0.999  # but for the gain of the track
    sidecar = json.loads(Path(f"{track}.json").read_text())
    assert sidecar["turns"][1]["seed"] == before[other - 1]["seed"]
    mixed = track.read_bytes()
    again = converse(csm, script, track, tiny_checkpoint, "--json")
    assert [turn["reused"] for turn in again.json["turns"]] == [True, True, False]
    assert track.read_bytes() == mixed and picked(takes(csm, track, 2)) == other
    more = converse(csm, script, track, tiny_checkpoint, "--takes", "4", "--json").json["turns"]
    assert [turn["reused"] for turn in more] == [False, True, False]  # what a person picked stays


def test_picking_needs_neither_the_script_nor_the_model_nor_torch(track: Path, script: Path) -> None:
    script.unlink()
    code = "import sys\nfrom csm_cli.cli import main\nassert main(sys.argv[1:]) == 0\nassert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "takes", track.name, "--pick", "1=1", "--pick", "1=2"]
    done = subprocess.run(command, cwd=track.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_takes_of_a_turn_gather_over_redo(csm: Csm, track: Path, script: Path, tiny_checkpoint: Path) -> None:
    converse(csm, script, track, tiny_checkpoint, "--redo", "1")
    found = takes(csm, track)
    assert len(found) == 6 and picked(found) > 3 and len({take["seed"] for take in found}) == 6
    assert csm("takes", track, "--pick", "1=1").code == 0 and picked(takes(csm, track)) == 1


def test_a_text_of_several_chunks_has_takes_of_each(csm: Csm, tmp_path: Path, tiny_checkpoint: Path) -> None:
    script, track = tmp_path / "long.yaml", tmp_path / "long.wav"
    script.write_text("turns:\n- ana: One is here. Two is there. Three is nowhere.\n")
    options = ("--model", tiny_checkpoint, "--takes", "2", "--keep-takes", "--split", "20", "--retries", "0")
    with_chunks = csm("converse", script, "-o", track, *options, "--no-sidecar", "--temperature", "0.9")
    if with_chunks.code:
        pytest.skip("the random model has no usable take")
    found = takes(csm, track)
    assert {take["chunk"] for take in found} == {1, 2, 3}
    other = next(take["number"] for take in found if not take["picked"] and take["chunk"] == 2)
    before = track.read_bytes()
    assert csm("takes", track, "--pick", f"1={other}").code == 0
    chosen = [take for take in takes(csm, track) if take["picked"]]
    assert [take["chunk"] for take in chosen] == [1, 2, 3] and chosen[1]["number"] == other
    assert track.read_bytes() != before


def test_takes_are_exported_and_played(csm: Csm, track: Path, tmp_path: Path, played_audio: Any) -> None:
    done = csm("takes", track, "--turns", "1", "--export", tmp_path / "ex")
    names = sorted(path.name for path in (tmp_path / "ex").iterdir())
    assert names == [f"001-ana-take{number}.wav" for number in (1, 2, 3)] and len(done.out.splitlines()) == 3
    with soundfile.SoundFile(tmp_path / "ex" / names[1]) as file:
        assert "synthetic" in file.comment and "6" in file.comment
    assert csm("takes", track, "--play", "1=2").code == 0 and sum(map(len, played_audio.chunks)) == file.frames


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--pick", "1=9"), "take 9"),
        (("--pick", "9=1"), "turn 9"),
        (("--pick", "3=1"), "turn 3 is a recording"),
        (("--pick", "replay=1"), "replay"),
        (("--pick", "1"), "7=2"),
        (("--turns", "8"), "turn 8"),
        (("--play", "2=0"), "take 0"),
    ],
)
def test_what_does_not_exist_is_named_in_one_line(csm: Csm, track: Path, options: tuple[str, ...], named: str) -> None:
    before = track.read_bytes()
    done = csm("takes", track, *options)
    assert done.code == 2 and named in done.err and len(done.err.splitlines()) == 1 and track.read_bytes() == before


def test_takes_that_were_not_stored_cannot_be_picked(
    csm: Csm, script: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    track = tmp_path / "plain.wav"
    options = ("--model", tiny_checkpoint, "--max-duration", "0.4", "--takes", "2", "--temperature", "0.9")
    assert csm("converse", script, "-o", track, *options).code == 0
    done = csm("takes", track, "--pick", "1=1", "--pick", "1=2")
    assert done.code == 2 and "--keep-takes" in done.err


@pytest.mark.parametrize("name", ["turns.json", "out.wav.track.json"])
@pytest.mark.parametrize("content", ["garbage", "{}", '{"schema": 99, "turns": []}'])
def test_a_foreign_file_in_the_cache_is_one_line(csm: Csm, track: Path, name: str, content: str) -> None:
    (cache_folder(track) / name).write_text(content)
    done = csm("takes", track, "--pick", "1=1")
    assert done.code == 3 and len(done.err.splitlines()) == 1


def test_no_track_and_no_cache_are_one_line(csm: Csm, tmp_path: Path, tone: Path) -> None:
    for path in (tmp_path / "none.wav", tone):
        done = csm("takes", path)
        assert done.code == 3 and str(path) in done.err and len(done.err.splitlines()) == 1


def test_a_record_cannot_lead_a_pick_out_of_the_folder(csm: Csm, track: Path, tmp_path: Path) -> None:
    victim = tmp_path.parent / f"{tmp_path.name}-victim.wav"
    victim.write_bytes(b"mine")
    file = cache_folder(track) / "out.wav.track.json"
    record = json.loads(file.read_text())
    record["files"]["turns"] = [f"../{victim.name}"] * 3
    record["files"]["subtitles"] = {"srt": f"../{victim.name}"}
    file.write_text(json.dumps(record))
    done = csm("takes", track, "--pick", "1=1")
    assert done.code == 0 and victim.read_bytes() == b"mine" and victim.name in done.err
    victim.unlink()


def test_a_pick_of_a_stopped_run_is_refused(csm: Csm, track: Path) -> None:
    (cache_folder(track) / "out.wav.track.json").unlink()
    assert csm("takes", track).code == 0
    done = csm("takes", track, "--pick", "1=1")
    assert done.code == 2 and "csm converse" in done.err
