"""Saved voices under a kill and under several processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.audio import RATE, WORDS, speech

from csm_cli.audio.io import Audio
from csm_cli.errors import OutputRefused
from csm_cli.storage import folders
from csm_cli.voices.store import VoiceInfo, add_voice, find_voice, list_voices, remove_voice, voices_folder

ADD = """
import sys
from helpers.audio import RATE, WORDS, speech
from csm_cli.audio.io import Audio
from csm_cli.errors import CsmError
from csm_cli.voices.store import add_voice
audio = Audio(speech(), RATE)
print("ready", flush=True)
sys.stdin.readline()
try:
    add_voice("ana", audio, WORDS)
except CsmError as error:
    sys.exit(error.code)
"""


def test_of_several_processes_that_add_one_name_one_does() -> None:
    paths = {"PYTHONPATH": ":".join(sys.path)}
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    runs = [subprocess.Popen([sys.executable, "-c", ADD], **pipes, text=True, env=os.environ | paths) for _ in range(3)]
    for run in runs:
        assert run.stdout and run.stdout.readline() == "ready\n"
    for run in runs:
        run.communicate("\n")
    assert sorted(run.returncode for run in runs) == [0, 2, 2]
    assert find_voice("ana").info == WORDS


@pytest.mark.parametrize("interrupt", ["kill", "SIGINT"])
def test_a_replacement_interrupted_between_its_renames_loses_no_voice(
    monkeypatch: pytest.MonkeyPatch, interrupt: str
) -> None:
    add_voice("ana", Audio(speech(), RATE), WORDS)
    if interrupt == "kill":
        (voices_folder() / "ana").rename(voices_folder() / ".ana.0123456789abcdef.old")
        assert "ana" in [voice.name for voice in list_voices()]
    else:
        rename = Path.rename

        def interrupted(path: Path, target: Path) -> Path:
            if path.suffix == ".new":
                raise KeyboardInterrupt
            return rename(path, target)

        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            add_voice("ana", Audio(speech(), RATE), VoiceInfo("Others."), replace=True)
    assert find_voice("ana").info == WORDS


def test_a_voice_with_other_files_is_not_removed() -> None:
    voice = add_voice("ana", Audio(speech(), RATE), WORDS)
    (voice.folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputRefused, match=r"notes\.txt"):
        remove_voice("ana")
    with pytest.raises(OutputRefused, match=r"notes\.txt"):
        add_voice("ana", Audio(speech(), RATE), WORDS, replace=True)
    assert (voice.folder / "notes.txt").read_text() == "mine"
