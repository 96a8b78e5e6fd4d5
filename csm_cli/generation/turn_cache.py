"""How a dialogue's turns came out, kept beside its track.

The folder `.out.wav.csm` holds state.json, and of each turn its sound (float32 WAV) and its codes (.npy, [T, K]).
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from csm_cli.errors import OutputFailed, OutputRefused
from csm_cli.generation.events import Utterance
from csm_cli.storage.files import exclusive_lock, write_together
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.types import Recording

_LOG = logging.getLogger(__name__)
SCHEMA = 2  # one more whenever the same turn is to sound different
RECORD = "state.json"
_OTHERS = 100  # turns kept that are not in the track, or as many as are


def lock_track(output: Path) -> AbstractContextManager[None]:
    """Keeps other runs from the state of an output.

    Raises:
        UsageError: another run is at it. OutputRefused: the folder cannot be written to.
    """
    return exclusive_lock(_folder(output), shown=output)


def _folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.csm")


@dataclass(frozen=True)
class CachedTurn:
    """A turn as it came out.

    mark: of its text, speaker, options and model; heard: of all that was said before it, as it was heard; name: of its
    sound and codes, and of their files. given: the seed somebody asked for; seed: the one that made it. parts: as in
    `Recording`, then where each lies, as `Piece` has it; positions: the most the window held.
    """

    number: int
    text: str
    mark: str
    heard: str
    name: str
    seed: int
    given: int | None
    stop: str
    takes: tuple[dict[str, Any], ...] = ()
    parts: tuple[tuple[str, int], ...] = ()
    pieces: tuple[dict[str, Any], ...] = ()
    positions: int = 0
    warnings: tuple[str, ...] = ()


@dataclass
class TurnCache:
    """The kept turns of one output, the newest last."""

    output: Path
    turns: list[CachedTurn] = field(default_factory=list)

    @classmethod
    def beside(cls, output: Path) -> TurnCache:
        """The state of an output; empty where there is none, or one of another version."""
        state = cls(output)
        try:
            record = json.loads((state.folder / RECORD).read_text(encoding="utf-8"))
            state.turns = [_kept(each) for each in record["turns"]] if record["schema"] == SCHEMA else []
        except FileNotFoundError:
            pass
        except (OSError, ValueError, LookupError, TypeError) as error:
            _LOG.warning("%s cannot be read (%s): all turns are spoken again", state.folder / RECORD, error)
        return state

    @property
    def folder(self) -> Path:
        return _folder(self.output)

    def add(self, turn: CachedTurn, utterance: Utterance) -> CachedTurn:
        """Keeps the utterance of `turn`, at once; returns it with its name.

        Raises:
            OutputRefused, OutputFailed: the folder cannot be written to.
        """
        codes, samples = utterance.codes.numpy().astype(np.int16), utterance.audio.samples
        named = replace(turn, name=_content(codes, samples))
        array, sound = io.BytesIO(), io.BytesIO()
        np.save(array, codes)
        soundfile.write(sound, samples, utterance.audio.rate, format="WAV", subtype="FLOAT")
        self._put(zip(self._files(named), (sound.getvalue(), array.getvalue()), strict=True))
        self.turns.append(named)
        self._write()
        return named

    def settle(self, turns: Sequence[CachedTurn], disliked: Sequence[CachedTurn]) -> None:
        """Keeps these turns, and of those that are not disliked the newest others: a script may have them again."""
        if not turns:
            return
        others = [turn for turn in self.turns if turn not in turns and turn not in disliked]
        self.turns = [*others[-max(_OTHERS, len(turns)) :], *turns]
        self._write()
        names = {turn.name for turn in self.turns}
        for path in self.folder.iterdir():
            if path.suffix in (".wav", ".npy") and path.stem not in names:
                path.unlink(missing_ok=True)

    def recording(self, turn: CachedTurn) -> Recording:
        sound, codes = self._files(turn)
        return Recording(sound, codes_path=codes, chunks=turn.parts)

    def intact(self, turn: CachedTurn) -> bool:
        """Whether a turn's files are what was written; the log says where they are not."""
        sound, codes = self._files(turn)
        try:
            samples, _ = soundfile.read(sound, dtype="float32")
            good = _content(np.load(codes, allow_pickle=False), samples) == turn.name
        except (OSError, ValueError, EOFError, soundfile.SoundFileError):
            good = False
        if not good:
            _LOG.warning("what is kept of turn %d is damaged: it is spoken again", turn.number)
        return good

    def _files(self, turn: CachedTurn) -> tuple[Path, Path]:
        return self.folder / f"{turn.name}.wav", self.folder / f"{turn.name}.npy"

    def _write(self) -> None:
        record = {"schema": SCHEMA, "turns": [asdict(turn) for turn in self.turns]}
        text = json.dumps(record, ensure_ascii=False, indent=1)
        self._put([(self.folder / RECORD, text.encode("utf-8", "replace"))])

    def _put(self, files: Iterable[tuple[Path, bytes]]) -> None:
        try:
            write_together(files)
        except (OutputFailed, OutputRefused) as error:  # of files that nobody has named
            reason = getattr(error.__cause__, "strerror", None) or error
            hint = "make room, or name another -o, and run again"
            raise type(error)(f"{self.output}: its turns could not be kept beside it ({reason}); {hint}") from error


def _kept(record: dict[str, Any]) -> CachedTurn:
    """Raises LookupError, TypeError or ValueError where it is none."""
    lists = {name: tuple(record[name]) for name in ("takes", "pieces", "warnings")}
    return CachedTurn(**record | lists | {"parts": tuple((text, int(frames)) for text, frames in record["parts"])})


def _content(codes: Any, samples: Any) -> str:
    return fingerprint(codes.tobytes(), samples.tobytes(), length=16)
