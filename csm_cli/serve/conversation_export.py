"""A conversation as files: the mixed track, its subtitles, a script for `csm converse`, and all of them in a zip."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from csm_cli.audio.formats import FORMATS
from csm_cli.audio.io import encode
from csm_cli.audio.mix import Track
from csm_cli.audio.subtitles import SUBTITLE_FORMATS
from csm_cli.checkpoint import Checkpoint
from csm_cli.generation.events import Utterance, audio_tags, mix_utterances, utterance_cues
from csm_cli.script.writer import script_yaml
from csm_cli.serve.conversations import HeldClip, HeldConversation, HeldSpeaker
from csm_cli.serve.problems import Conflict
from csm_cli.serve.spoken_response import whole_file

ExportFormat = Literal["wav", "flac", "mp3", "opus", "srt", "vtt", "yaml", "zip"]
_MEDIA_TYPES = {"srt": "application/x-subrip", "vtt": "text/vtt", "yaml": "application/yaml", "zip": "application/zip"}
_SCRIPT_HEAD = "# files that this script names are in the same conversation's export as a zip\n"


@dataclass(frozen=True, eq=False)
class ExportedTurn:
    """A turn as it is exported. utterance: of its picked take, None if it was not spoken yet."""

    speaker: int
    text: str
    gap: float
    gain: float
    utterance: Utterance | None


class ConversationExport:
    """What a conversation was when this was made; later changes have no effect on its files."""

    def __init__(self, conversation: HeldConversation, checkpoint: Checkpoint) -> None:
        self._title, self._checkpoint = conversation.title, checkpoint
        self._speakers: dict[int, HeldSpeaker] = dict(conversation.speakers)
        self._context: tuple[HeldClip, ...] = conversation.context
        self._turns = [
            ExportedTurn(turn.speaker, turn.text, turn.gap, turn.gain, turn.take.utterance if turn.take else None)
            for turn in conversation.turns
        ]

    def file(self, name: ExportFormat) -> tuple[bytes, str]:
        """The content of the export in this format, and its media type.

        Raises:
            Conflict: nothing was spoken yet. UsageError: the format needs PyAV.
        """
        makers: dict[str, Callable[[], bytes]] = {"yaml": self._script, "zip": self._zip}
        make = makers.get(name, lambda: self._rendered(name))
        return make(), _MEDIA_TYPES.get(name) or FORMATS[name].media_type

    def _rendered(self, name: str) -> bytes:
        """The track, or its subtitles."""
        track, utterances = self._mix()
        if name in SUBTITLE_FORMATS:
            return SUBTITLE_FORMATS[name](utterance_cues(track, utterances)).encode("utf-8", "replace")
        return whole_file(track.audio, name, audio_tags(utterances, self._checkpoint, self._title))

    def _mix(self) -> tuple[Track, Sequence[Utterance]]:
        utterances = []
        for each in self._turns:
            if each.utterance:
                name = self._speakers[each.speaker].name
                turn = replace(each.utterance.turn, gap=each.gap, gain=each.gain, name=name)
                utterances.append(replace(each.utterance, turn=turn))
        if not utterances:
            raise Conflict("the conversation has no spoken turn to export")
        return mix_utterances(utterances), utterances

    def _script(self) -> bytes:
        files = self._files()
        return ((_SCRIPT_HEAD if files else "") + script_yaml(self._script_data())).encode("utf-8", "replace")

    def _script_data(self) -> dict[str, Any]:
        """The script: with their seeds and options, its turns are spoken again as they were."""
        if not self._turns:
            raise Conflict("the conversation has no turn to export")
        speakers: dict[str, dict[str, Any]] = {}
        for number, speaker in self._speakers.items():
            entry: dict[str, Any] = {"id": number}
            if speaker.clip and speaker.clip.data:
                entry |= {"voice": _voice_file(number, speaker.clip), "voice_text": speaker.clip.turn.text}
            elif speaker.voice:
                entry["voice"] = speaker.voice
            speakers[speaker.name] = entry
        data: dict[str, Any] = {"csm": 1, **({"title": self._title} if self._title else {}), "speakers": speakers}
        if self._context:
            data["context"] = [
                {
                    "speaker": self._speakers[clip.turn.speaker].name,
                    "audio": _context_file(index, clip),
                    "text": clip.turn.text,
                }
                for index, clip in enumerate(self._context)
            ]
        data["turns"] = [self._turn_data(index, turn) for index, turn in enumerate(self._turns)]
        return data

    def _turn_data(self, index: int, turn: ExportedTurn) -> dict[str, Any]:
        utterance = turn.utterance
        data: dict[str, Any] = {"speaker": self._speakers[turn.speaker].name, "text": turn.text}
        if utterance and utterance.stop == "recorded":
            data["audio"] = _recording_file(index)
        elif utterance:
            data |= replace(utterance.turn.options, seed=utterance.seed).set_values()
        gap = turn.gap if index else max(0.0, turn.gap)  # the first turn has none to overlap
        return data | ({"offset": gap} if gap or index else {}) | ({"gain": turn.gain} if turn.gain else {})

    def _files(self) -> dict[str, bytes]:
        """The sound files that the script names."""
        files = {
            _voice_file(number, speaker.clip): speaker.clip.data
            for number, speaker in self._speakers.items()
            if speaker.clip and speaker.clip.data
        }
        files |= {_context_file(index, clip): clip.data for index, clip in enumerate(self._context)}
        for index, turn in enumerate(self._turns):
            if turn.utterance and turn.utterance.stop == "recorded":
                files[_recording_file(index)] = encode(turn.utterance.audio, "wav")
        return files

    def _zip(self) -> bytes:
        """script.yaml and the files it names, track.wav, track.srt and track.vtt."""
        contents = {"script.yaml": self._script(), **self._files()}
        if any(turn.utterance for turn in self._turns):
            contents |= {f"track.{name}": self._rendered(name) for name in ("wav", "srt", "vtt")}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
        return buffer.getvalue()


# No name of these has a text of a client in it.
def _voice_file(number: int, clip: HeldClip) -> str:
    return f"voices/{number}.{clip.suffix}"


def _context_file(index: int, clip: HeldClip) -> str:
    return f"context/{index + 1}.{clip.suffix}"


def _recording_file(index: int) -> str:
    return f"recordings/{index + 1:03d}.wav"
