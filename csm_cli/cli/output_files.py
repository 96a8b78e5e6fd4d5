"""The files of one conversation: the track, and what may lie beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli.batch import file_name
from csm_cli.cli.summary import tags
from csm_cli.cli.synthesis import speaker_label
from csm_cli.errors import UsageError
from csm_cli.storage.files import check_writable
from csm_cli.storage.paths import resolved_name
from csm_cli.types import Conversation

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.cli.synthesis import FinishedConversation

SUBTITLES = ("srt", "vtt", "json")


@dataclass(frozen=True)
class OutputFiles:
    """track: None for standard output or none at all. turns: one for each; stems: by voice; subtitles: by form.

    kind: the format of the track and its stems, "wav", "flac" or "pcm"; by the suffix if None.
    """

    track: Path | None
    turns: tuple[Path, ...] = ()
    stems: Mapping[str, Path] = field(default_factory=dict)
    subtitles: Mapping[str, Path] = field(default_factory=dict)
    sidecar: Path | None = None
    kind: str | None = None

    def __iter__(self) -> Iterator[Path]:
        more = (*self.turns, *self.stems.values(), *self.subtitles.values())
        yield from (path for path in (self.track, *more, self.sidecar) if path)

    def check(self, clobber: bool, read: Iterable[Path] = ()) -> None:
        """Refuses what could not be written. `read`: what the run reads, and must not replace.

        Raises:
            UsageError: two files in one place, or one that cannot be written or is read.
        """
        from csm_cli.audio.io import check_output

        sources, taken = set(map(resolved_name, read)), set[str]()
        for path in self:
            name = resolved_name(path)
            if name in taken:
                raise UsageError(f"{path} would be written twice; name another -o or --turns-dir")
            if name in sources:
                raise UsageError(f"{path} is read by this run and would be replaced; name another -o")
            taken.add(name)
            if path in (*self.subtitles.values(), self.sidecar):
                check_writable(path, clobber)
            else:
                check_output(path, clobber, None if path in self.turns else self.kind)

    def contents(
        self, spoken: FinishedConversation, checkpoint: Checkpoint, record: Mapping[str, Any]
    ) -> Iterator[tuple[Path, bytes]]:
        """Every file with what is in it; `record` goes to the sidecar."""
        from csm_cli.audio.io import encode_audio

        track, name = spoken.track, spoken.conversation.title
        if self.track:
            said = tags(spoken.utterances, checkpoint, name)
            yield self.track, encode_audio(self.track, track.audio, said, self.kind)
        for index, path in enumerate(self.turns):
            yield path, encode_audio(path, track.turn(index), tags([spoken.utterances[index]], checkpoint, name))
        for speaker, stem in track.stems().items() if self.stems else ():
            said = tags(
                [each for each in spoken.utterances if speaker_label(each.turn) == speaker], checkpoint, speaker
            )
            yield self.stems[speaker], encode_audio(self.stems[speaker], stem, said, self.kind)
        yield from self._texts(spoken)
        if self.sidecar:
            yield self.sidecar, (json.dumps(record, indent=1) + "\n").encode()

    def _texts(self, spoken: FinishedConversation) -> Iterator[tuple[Path, bytes]]:
        from csm_cli.audio.subtitles import SUBTITLE_FORMATS, Cue
        from csm_cli.generation.events import Segment

        cues = [
            Cue(span.start + piece.start, span.start + piece.end, speaker_label(each.turn), piece.text)
            for span, each in zip(spoken.track.spans, spoken.utterances, strict=True)
            for piece in each.segments or (Segment(each.turn.text, 0.0, span.end - span.start),)
        ]
        for form, path in self.subtitles.items():
            yield path, SUBTITLE_FORMATS[form](cues).encode("utf-8", "replace")

    def left_over(self) -> list[Path]:
        """What an earlier run wrote beside the same track and this one does not, by the sidecar of that run."""
        if self.track is None:
            return []
        found: list[Path] = []
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            sidecar = self.track.with_name(f"{self.track.name}.json")
            before = json.loads(sidecar.read_text(encoding="utf-8"))
            beside = [Path(name) for part in ("stems", "subtitles") for name in before[part].values()]
            found = [*(self.track.with_name(path.name) for path in beside), sidecar]
        mine = set(self)
        return [path for path in found if path not in mine and path.exists()]

    def record(self) -> dict[str, Any]:
        """Where everything is, for JSON."""
        return {
            "turn_files": [str(path) for path in self.turns],
            "stems": {speaker: str(path) for speaker, path in self.stems.items()},
            "subtitles": {form: str(path) for form, path in self.subtitles.items()},
            "sidecar": str(self.sidecar) if self.sidecar else None,
        }


def turn_files(talk: Conversation, folder: Path) -> tuple[Path, ...]:
    return tuple(folder / f"{number:03d}-{file_name(turn)}.wav" for number, turn in enumerate(talk.turns, 1))


def stem_files(talk: Conversation, track: Path) -> dict[str, Path]:
    """`out.ana.wav` beside `out.wav`, for each speaker; names that become the same in a file's get a number."""
    stems: dict[str, Path] = {}
    taken: set[str] = set()
    for turn in talk.turns:
        if speaker_label(turn) in stems:
            continue
        plain = file_name(turn)
        numbers = (f"{plain}-{count}" for count in range(2, len(taken) + 3))
        name = next(each for each in (plain, *numbers) if each.casefold() not in taken)
        taken.add(name.casefold())
        stems[speaker_label(turn)] = track.with_name(f"{track.stem}.{name}{track.suffix}")
    return stems


def subtitle_files(forms: str, track: Path) -> dict[str, Path]:
    """The files of `--subs srt,vtt`.

    Raises:
        UsageError: a form there is not.
    """
    names = list(dict.fromkeys(name.strip() for name in forms.split(",")))
    if unknown := [name for name in names if name not in SUBTITLES]:
        raise UsageError(f"--subs takes {', '.join(SUBTITLES)}, or several with commas, not {unknown[0]!r}")
    return {name: track.with_suffix(f".{name}") for name in names}
