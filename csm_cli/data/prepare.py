"""Datasets to a store of codes, chunk by chunk: audio is encoded, conversations are cut to the model's context.

An interrupted run resumes: a chunk whose shard is on disk with the same fingerprint is not encoded again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from csm_cli.audio.clip_checks import clip_warnings
from csm_cli.audio.codes import parse_codes
from csm_cli.audio.io import Audio, resample
from csm_cli.checkpoint import open_checkpoint
from csm_cli.data.checks import ClipLimits, read_clips
from csm_cli.data.dataset import (
    ChunkResult,
    DatasetChunk,
    DroppedClip,
    SpeakerNumbers,
    TrainingClip,
    TrainingConversation,
)
from csm_cli.data.packed import read_packed_codes
from csm_cli.data.store import CodecIdentity, CodedTurn, Example, StoreWriter
from csm_cli.data.workers import map_processes
from csm_cli.device import pick_device
from csm_cli.errors import InputError, NothingToLearn, failure_of
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.models.mimi import Codec
from csm_cli.models.mimi.config import codec_config
from csm_cli.storage.files import exclusive_lock
from csm_cli.storage.fingerprint import Fingerprint, fingerprint

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint

SCHEMA = 3  # one more whenever the same clips make other shards
_ENCODE_BATCH = {"cpu": 1, "cuda": 16}  # clips encoded together
_CONTEXT_DIVISOR = 4  # at most a quarter of an example repeats the end of the one before


@dataclass(frozen=True)
class EncodingConfig:
    """How examples are made. held_out: share of conversations kept from training; threads: of torch, 0 for its own."""

    model: str | None
    revision: str | None = None
    device: str = "auto"
    limits: ClipLimits = field(default_factory=ClipLimits)
    held_out: float = 0.0
    threads: int = 0
    offline: bool = False


class Encoder:
    """Encodes chunks with a checkpoint's codec and tokenizer. max_positions: context length of the model."""

    def __init__(self, config: EncodingConfig) -> None:
        """Raises ModelError as `open_checkpoint`, UsageError or DeviceError as `pick_device`."""
        if config.threads:
            torch.set_num_threads(config.threads)
        device = pick_device(config.device)
        self.checkpoint = open_checkpoint(config.model, config.revision, offline=config.offline)
        model = self.checkpoint.config
        self._config = config
        self._codec = Codec.load(self.checkpoint.codec_config, self.checkpoint.codec_weights, device, model.codebooks)
        self._prompts = PromptBuilder(self.checkpoint.tokenizer_file, model)
        self.batch_size = _ENCODE_BATCH.get(device.type, 1)
        self.max_positions = model.backbone.max_seq_len
        self.identity = CodecIdentity(codec_digest(self.checkpoint), model.codebooks, self._codec.frame_rate)

    def encode(self, chunk: DatasetChunk) -> tuple[list[Example], ChunkResult]:
        """The examples of a chunk, and the result of each of its clips."""
        result = ChunkResult(dropped=[item for item in chunk if isinstance(item, DroppedClip)])
        conversations = [item for item in chunk if isinstance(item, TrainingConversation)]
        turns = self._encode_clips(conversations, result)
        examples: list[Example] = []
        for conversation in conversations:
            runs: list[list[CodedTurn]] = [[]]  # turns with no dropped clip between them
            for clip in conversation.clips:
                turn, seconds, warnings = next(turns)
                try:
                    positions = self._positions(turn) if isinstance(turn, CodedTurn) else 0
                except InputError as problem:  # of the tokenizer
                    turn = DroppedClip(conversation.id, clip.place, "invalid row", str(problem), round(seconds, 2))
                    positions = 0
                if positions > self.max_positions:
                    detail = f"takes {positions} positions, the model's context has {self.max_positions}"
                    turn = DroppedClip(conversation.id, clip.place, "exceeds context", detail, round(seconds, 2))
                turn = turn if isinstance(turn, CodedTurn) else replace(turn, id=conversation.id)
                result.add(clip, turn if isinstance(turn, DroppedClip) else seconds)
                if isinstance(turn, CodedTurn):
                    result.warn(clip, warnings)
                    runs[-1].append(turn)
                else:
                    runs.append([])
            parts = [
                part
                for run in runs
                for part in split_turns(run, [self._positions(turn) for turn in run], self.max_positions)
            ]
            held_out = is_held_out(conversation.id, self._config.held_out)
            for number, part in enumerate(parts, 1):
                name = conversation.id if len(parts) == 1 else f"{conversation.id}#{number}"
                examples.append(Example(name, tuple(part), held_out))
        return examples, result

    def _encode_clips(
        self, conversations: Iterable[TrainingConversation], result: ChunkResult
    ) -> Iterator[tuple[CodedTurn | DroppedClip, float, dict[str, str]]]:
        """Each clip encoded or dropped, with its seconds and warnings; clips of similar length are encoded together.

        Codes that are saved beside the audio are used as they are, if this codec made them; `result` counts them.
        """
        clips = (
            (clip, audio, self._saved_turn(clip) if isinstance(audio, Audio) else None)
            for conversation in conversations
            for clip, audio in zip(conversation.clips, read_clips(conversation, self._config.limits), strict=True)
        )
        while rows := list(islice(clips, 4 * self.batch_size)):
            block = [(clip, audio) for clip, audio, _ in rows]
            turns: dict[int, CodedTurn | DroppedClip] = {
                index: saved for index, (_, _, saved) in enumerate(rows) if saved is not None
            }
            result.reused += len(turns)
            readable = [
                index for index, (_, audio) in enumerate(block) if isinstance(audio, Audio) and index not in turns
            ]
            readable.sort(key=lambda index: block[index][1].duration)  # type: ignore[union-attr]
            for start in range(0, len(readable), self.batch_size):
                batch = {index: block[index] for index in readable[start : start + self.batch_size]}
                turns |= self._encode_batch(batch)
            for index, (_, audio) in enumerate(block):
                if isinstance(audio, DroppedClip):
                    yield audio, audio.seconds, {}
                else:
                    yield turns[index], audio.duration, clip_warnings(audio)

    def _saved_turn(self, clip: TrainingClip) -> CodedTurn | None:
        if clip.codec != self._codec.fingerprint or clip.recording is None or clip.row is None:
            return None
        data = read_packed_codes(clip.recording.path, clip.row)
        start, end = clip.frames
        try:
            codes = parse_codes(data or b"", self._codec.codebooks, self.checkpoint.config.vocab)[start:end]
        except ValueError:
            return None
        is_whole = 0 <= start < end and len(codes) == end - start
        return CodedTurn(clip.speaker, clip.text, torch.from_numpy(codes), clip.trained) if is_whole else None

    def _encode_batch(self, clips: Mapping[int, tuple[TrainingClip, Any]]) -> dict[int, CodedTurn | DroppedClip]:
        """The turns of clips by index; where encoding them together fails, each is encoded alone, or dropped."""
        try:
            samples = [self._resample(audio) for _, audio in clips.values()]
            encoded = [codes.cpu() for codes in self._codec.encode_batch(samples)]
        except BaseException as problem:
            failure = failure_of(problem)
            if len(clips) > 1:
                return {index: turn for index in clips for turn in self._encode_batch({index: clips[index]}).values()}
            ((index, (clip, audio)),) = clips.items()
            detail = f"{failure.kind}: {problem}"
            return {index: DroppedClip("", clip.place, "unreadable", detail, round(audio.duration, 2))}
        return {
            index: CodedTurn(clip.speaker, clip.text, codes, clip.trained)
            for (index, (clip, _)), codes in zip(clips.items(), encoded, strict=True)
        }

    def _resample(self, audio: Audio) -> torch.Tensor:
        """[T * frame_samples]: at the codec's rate, padded with silence to whole frames."""
        samples = torch.from_numpy(resample(audio, self._codec.rate).samples)
        return nn.functional.pad(samples, (0, -len(samples) % self._codec.frame_samples))

    def _positions(self, turn: CodedTurn) -> int:
        """Positions of the turn in a prompt: its text ids, its frames and the end frame."""
        return len(self._prompts.text_ids(turn.speaker, turn.text)) + len(turn.codes) + 1


def split_turns(turns: Sequence[CodedTurn], sizes: Sequence[int], max_positions: int) -> Iterator[list[CodedTurn]]:
    """Splits a conversation into lists of whole turns that fit; `sizes`: positions of each turn.

    Each list after the first starts with the last turns of the one before as context, in at most a quarter of it.
    """
    start = new = 0  # first turn of the current list, and its first turn that is not context
    for end in range(1, len(turns) + 1):
        if end < len(turns) and sum(sizes[start : end + 1]) <= max_positions:
            continue
        context = [replace(turn, trained=False) for turn in turns[start:new]]
        if any(turn.trained for turn in turns[new:end]):
            yield [*context, *turns[new:end]]
        if end < len(turns):
            room = min(max_positions // _CONTEXT_DIVISOR, max_positions - sizes[end])
            new = start = end
            while start and sum(sizes[start - 1 : end]) <= room:
                start -= 1


def is_held_out(name: str, share: float) -> bool:
    """Whether a conversation is held out from training: by a hash of its id, so the same in every run."""
    return int(fingerprint(name, length=16), 16) < share * 2**64


def codec_digest(checkpoint: Checkpoint) -> str:
    """Digest of all that determines the codes: the codec's config and tensors, and the number of codebooks."""
    sizes = (checkpoint.config.codebooks, codec_config(checkpoint.codec_config))
    digest = Fingerprint(repr(sizes))
    for name in sorted(checkpoint.codec_weights):
        digest.add(name)
        digest.add(checkpoint.codec_weights[name].float().contiguous().numpy().tobytes())
    return digest.hex()


@dataclass(frozen=True)
class PrepareProgress:
    """A finished chunk. examples: how many it makes; resumed: its shard is of an earlier run."""

    result: ChunkResult
    examples: int
    resumed: bool


@dataclass(frozen=True)
class _Job:
    """One chunk for a worker process. done: its progress where the shard exists already."""

    number: int
    chunk: DatasetChunk
    fingerprint: str
    config: EncodingConfig
    writer: StoreWriter
    done: PrepareProgress | None


class Preparation:
    """Writes the store of a dataset into a folder."""

    def __init__(self, folder: Path, config: EncodingConfig, workers: int = 1) -> None:
        """Raises ModelError as `open_checkpoint`, UsageError or DeviceError as `pick_device`."""
        self._folder, self._workers = folder, workers
        self._config = replace(config, threads=1) if workers > 1 else config
        encoder = _encoder(self._config)
        self._writer = StoreWriter(folder, encoder.identity)
        tokenizer = fingerprint(encoder.checkpoint.tokenizer_file)
        limits = asdict(config.limits)
        self._basis = [SCHEMA, asdict(encoder.identity), encoder.max_positions, tokenizer, limits, config.held_out]
        self._info = {
            "model": encoder.checkpoint.name,
            "revision": encoder.checkpoint.revision,
            "max_positions": encoder.max_positions,
            "held_out_share": config.held_out,
        }

    def run(self, chunks: Iterable[DatasetChunk], speakers: SpeakerNumbers) -> Iterator[PrepareProgress]:
        """Yields each chunk once it is on disk; the store is complete after the last.

        Raises:
            NothingToLearn: no example came of it; no shard remains.
            InputError: a dataset cannot be read.
            UsageError: another run uses this folder.
            OutputRefused, OutputFailed: it cannot be written; finished shards remain.
            CsmError: a worker was killed.
        """
        with exclusive_lock(self._folder):
            self._writer.claim()
            count = examples = 0
            for progress in map_processes(_run_job, self._jobs(chunks), self._workers):
                count, examples = count + 1, examples + progress.examples
                yield progress
            if not examples:
                self._writer.discard(count)
                raise NothingToLearn
            self._writer.finish(count, {**self._info, "speakers": speakers.names})

    def _jobs(self, chunks: Iterable[DatasetChunk]) -> Iterator[_Job]:
        for number, chunk in enumerate(chunks):
            digest = _chunk_fingerprint(self._basis, chunk)
            note, done = self._writer.note(number), None
            if note and note.get("fingerprint") == digest:
                done = PrepareProgress(ChunkResult.from_json(note), note["examples"], True)
            yield _Job(number, [] if done else chunk, digest, self._config, self._writer, done)


def _run_job(job: _Job) -> PrepareProgress:
    if job.done:
        return job.done
    examples, result = _encoder(job.config).encode(job.chunk)
    note = {"fingerprint": job.fingerprint, "examples": len(examples), **result.to_json()}
    job.writer.write(job.number, examples, note)
    return PrepareProgress(result, len(examples), False)


@lru_cache(maxsize=1)
def _encoder(config: EncodingConfig) -> Encoder:
    return Encoder(config)


def _chunk_fingerprint(basis: list[Any], chunk: DatasetChunk) -> str:
    """Equal fingerprints make equal shards. Of an audio file its name, size and date count, not its folder."""
    parts = [
        [item.id, [clip_fingerprint(clip) for clip in item.clips]]
        if isinstance(item, TrainingConversation)
        else [item.reason, item.detail]
        for item in chunk
    ]
    return fingerprint(basis, parts)


def clip_fingerprint(clip: TrainingClip) -> list[Any]:
    recording = clip.recording
    parts = [clip.speaker, clip.text, clip.trained, clip.duration, clip.rate, clip.row]
    parts += [clip.codec, clip.frames] if clip.codec else []
    if recording is None:
        return parts
    try:
        stat = recording.path.stat()
        file = [stat.st_size, stat.st_mtime_ns]
    except OSError:  # reported where the file is read
        file = []
    return [*parts, recording.path.name, recording.start, recording.end, *file]
