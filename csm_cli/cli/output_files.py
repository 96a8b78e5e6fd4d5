"""The files of one conversation: the track, and stems, turns, subtitles and metadata beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli import __version__
from csm_cli.audio.formats import DEFAULT_ENCODING, AudioEncoding
from csm_cli.batch.items import file_name
from csm_cli.cli.console import command_line
from csm_cli.cli.summary import SIDECAR_SCHEMA, spelled_record
from csm_cli.errors import OutputRefused, UsageError
from csm_cli.generation.events import ModelIdentity, audio_tags, utterance_cues
from csm_cli.storage.files import FileContent, check_writable
from csm_cli.storage.paths import expand_path, resolved_name
from csm_cli.storage.untrusted import read_json
from csm_cli.types import Conversation, Turn

if TYPE_CHECKING:
    from csm_cli.cli.synthesis import FinishedConversation, SynthesisJob
    from csm_cli.report.page import ReportRequest

ReportFile = Annotated[
    str | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Write an HTML page with players and waveforms.",
        rich_help_panel="Output",
    ),
]
EmbedAudio = Annotated[
    bool, typer.Option("--embed", help="Put the audio into the report, for sending it.", rich_help_panel="Output")
]


@dataclass(frozen=True)
class OutputFiles:
    """track: None for standard output or no output. turns: one per turn; stems: by speaker; subtitles: by format.

    encoding: of all sound files; its format, if it names one, is that of the track and its stems, and turns are WAV.
    word_times: subtitles and metadata have the times of words.
    """

    track: Path | None
    turns: tuple[Path, ...] = ()
    stems: Mapping[str, Path] = field(default_factory=dict)
    subtitles: Mapping[str, Path] = field(default_factory=dict)
    sidecar: Path | None = None
    encoding: AudioEncoding = DEFAULT_ENCODING
    word_times: bool = False

    def __iter__(self) -> Iterator[Path]:
        others = (*self.turns, *self.stems.values(), *self.subtitles.values())
        yield from (path for path in (self.track, *others, self.sidecar) if path)

    def check(self, clobber: bool, inputs: Iterable[Path] = ()) -> None:
        """Refuses files that cannot be written. `inputs`: files that the run reads and must not replace.

        Raises:
            UsageError: two files with one name, or one that cannot be written or is an input.
        """
        from csm_cli.audio.io import check_output

        input_names, names = set(map(resolved_name, inputs)), set[str]()
        for path in self:
            name = resolved_name(path)
            if name in names:
                raise UsageError(f"{path} would be written twice; name another -o or --turns-dir")
            if name in input_names:
                raise UsageError(f"{path} is read by this run and would be replaced; name another -o")
            names.add(name)
            if path in (*self.subtitles.values(), self.sidecar):
                check_writable(path, clobber)
            else:
                check_output(path, clobber, self._turn_encoding if path in self.turns else self.encoding)

    def contents(
        self, finished: FinishedConversation, model: ModelIdentity, sidecar: Mapping[str, Any]
    ) -> Iterator[tuple[Path, FileContent]]:
        """Every file with its content, encoded while it is written."""
        from csm_cli.audio.io import encode_audio

        track, title, utterances = finished.track, finished.conversation.title, finished.utterances
        if self.track:
            tags = audio_tags(utterances, model, title)
            yield self.track, encode_audio(self.track, track.audio, tags, self.encoding)
        for index, path in enumerate(self.turns):
            tags = audio_tags([utterances[index]], model, title)
            yield path, encode_audio(path, track.turn(index), tags, self._turn_encoding)
        for speaker, audio in track.stems().items() if self.stems else ():
            own = [each for each in utterances if each.turn.label == speaker]
            path, tags = self.stems[speaker], audio_tags(own, model, speaker)
            yield path, encode_audio(path, audio, tags, self.encoding)
        yield from subtitle_contents(self.subtitles, finished)
        if self.sidecar:
            yield self.sidecar, (json.dumps(sidecar, indent=1) + "\n").encode()

    @property
    def _turn_encoding(self) -> AudioEncoding:
        return replace(self.encoding, name="wav", quality=None)

    def outdated(self) -> list[Path]:
        """Files that an earlier run wrote beside the same track and this one does not, by its metadata file."""
        if self.track is None:
            return []
        paths: list[Path] = []
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            sidecar = self.track.with_name(f"{self.track.name}.json")
            earlier = read_json(sidecar)
            names = [Path(name).name for key in ("stems", "subtitles") for name in earlier[key].values()]
            paths = [*map(self.track.with_name, names), sidecar]
        current = set(self)
        return [path for path in paths if path not in current and path.exists()]

    def record(self) -> dict[str, Any]:
        """The paths, for JSON."""
        return {
            "turn_files": [str(path) for path in self.turns],
            "stems": {speaker: str(path) for speaker, path in self.stems.items()},
            "subtitles": {name: str(path) for name, path in self.subtitles.items()},
            "sidecar": str(self.sidecar) if self.sidecar else None,
        }


def subtitle_contents(files: Mapping[str, Path], finished: FinishedConversation) -> Iterator[tuple[Path, bytes]]:
    """The subtitles of a track with their paths. files: by format."""
    from csm_cli.audio.subtitles import SUBTITLE_FORMATS

    cues = utterance_cues(finished.track, finished.utterances) if files else []
    for name, path in files.items():
        yield path, SUBTITLE_FORMATS[name](cues).encode("utf-8", "replace")


def sidecar_record(job: SynthesisJob, result: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a track: the script and options of the job, and its result."""
    conversation = job.conversations[0]
    return {
        "csm": __version__,
        "schema": SIDECAR_SCHEMA,
        "synthetic": True,
        "title": conversation.title or None,
        "script": {
            "context": turn_records(conversation.context),
            "turns": turn_records(conversation.turns, conversation),
            "tail": conversation.tail,
        },
        "options": {"flags": asdict(job.flags), "script": asdict(conversation.defaults)},
        "retry_policy": asdict(job.retry_policy),
        "verified": job.speech.verify,
        "lexicon": dict(conversation.lexicon),
        "dtype": job.speech.dtype,
        "quantize": job.speech.quantize,
        **result,
    }


def turn_records(turns: Sequence[Turn], conversation: Conversation | None = None) -> list[dict[str, Any]]:
    """Turns as in a script's JSON. conversation: that they are generated for, which decides how they are spelled."""
    return [
        {
            "id": turn.id or None,
            "speaker": turn.label,
            "text": turn.text,
            **spelled_record(turn, conversation),
            "audio": str(turn.recording.path) if turn.recording else None,
            "gap": turn.gap,
            "gain": turn.gain,
            "speed": turn.speed,
            "options": {name: value for name, value in asdict(turn.options).items() if value is not None},
        }
        for turn in turns
    ]


def turn_files(conversation: Conversation, folder: Path) -> tuple[Path, ...]:
    return tuple(folder / f"{number:03d}-{file_name(turn)}.wav" for number, turn in enumerate(conversation.turns, 1))


def stem_files(conversation: Conversation, track: Path) -> dict[str, Path]:
    """`out.ana.wav` beside `out.wav` for each speaker; a number is added where two speakers' file names are equal."""
    stems: dict[str, Path] = {}
    used: set[str] = set()
    for turn in conversation.turns:
        if turn.label in stems:
            continue
        plain = file_name(turn)
        numbered = (f"{plain}-{count}" for count in range(2, len(used) + 3))
        name = next(each for each in (plain, *numbered) if each.casefold() not in used)
        used.add(name.casefold())
        stems[turn.label] = track.with_name(f"{track.stem}.{name}{track.suffix}")
    return stems


def report_request(name: str | None, embed: bool = False) -> ReportRequest | None:
    """The report of `--report`, checked before a model is loaded, with the command of this run.

    Raises:
        UsageError: --embed without --report. OutputRefused: not an HTML file, or it cannot be written.
    """
    if name is None:
        if embed:
            raise UsageError("--embed puts audio into the report; name one with --report page.html")
        return None
    from csm_cli.report.page import ReportRequest

    path = expand_path(name)
    if path.suffix.lower() not in (".html", ".htm"):
        raise OutputRefused(f"--report {name}: the report is an HTML page; name it like report.html")
    check_writable(path)
    return ReportRequest(path, command_line(), embed)
