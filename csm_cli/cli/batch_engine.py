"""The engine of `csm batch`: items to results, in this process or in a worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from csm_cli.batch.items import BatchItem
from csm_cli.batch.ledger import CODES_SUFFIX
from csm_cli.batch.results import ItemResult, WorkerPlace, extra_columns, failed_result
from csm_cli.cli.console import log_line
from csm_cli.cli.output_files import subtitle_contents
from csm_cli.cli.progress import ProgressMeter
from csm_cli.cli.summary import conversation_record, describe_utterance, turn_warnings
from csm_cli.cli.synthesis import (
    FinishedConversation,
    SynthesisJob,
    open_synthesizer,
    pick_device_and_dtype,
    speak,
    with_word_times,
)
from csm_cli.errors import CsmError, OutputFailed, failure_of
from csm_cli.generation.events import ConversationFailed, audio_tags
from csm_cli.storage.files import write_atomically
from csm_cli.storage.outputs import OutputStore
from csm_cli.types import Conversation

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.generation.synthesizer import Synthesizer

Loader = Callable[[SynthesisJob, "Checkpoint"], "Synthesizer"]


class SynthesisEngine:
    """Generates items with a loaded model and writes their files, which are not published yet (see `ItemResult`).

    save_codes: writes the codes of each item beside its audio, as a .npy [T, K].
    """

    def __init__(
        self,
        synth: Synthesizer,
        job: SynthesisJob,
        meter: ProgressMeter,
        outputs: OutputStore,
        save_codes: bool = False,
    ) -> None:
        self.slots, self.outputs = job.slots, outputs
        self._synth, self._job, self._meter, self._save_codes = synth, job, meter, save_codes

    def results(self, items: Iterator[BatchItem]) -> Generator[ItemResult, None, None]:
        """Raises OutputFailed where the disk is full or failed, which would fail all other items too."""
        reader = _ConversationReader(items)
        for event in speak(self._synth, self._job, self._meter, reader):
            if isinstance(event, FinishedConversation):
                yield self._written(reader.active.pop(event.conversation.id), event)
            elif isinstance(event, ConversationFailed):
                item = reader.active.pop(event.conversation.id)
                yield failed_result(item, event.error, [take.seed for take in event.takes])
            while reader.failed:
                yield reader.failed.popleft()
        yield from reader.failed

    def _written(self, item: BatchItem, finished: FinishedConversation) -> ItemResult:
        import numpy as np

        from csm_cli.audio.codes import write_codes
        from csm_cli.audio.io import encode_audio

        synth = self._synth
        try:
            if self._job.word_times:
                finished = with_word_times(finished, self._job.speech.whisper)
            tags = audio_tags(finished.utterances, synth.checkpoint, finished.conversation.title)
            location = self.outputs.location(item.path)
            record = conversation_record(finished, location, synth.checkpoint, str(synth.device))
            data = encode_audio(item.path, finished.track.audio, tags, self._job.encoding)
            subtitles = list(subtitle_contents(item.subtitles, finished))
        except BaseException as problem:
            return failed_result(item, failure_of(problem))
        files = [*item.subtitles.values(), item.path]
        try:
            if self._save_codes:
                codes = [np.asarray(each.codes) for each in finished.utterances]
                files.append(item.path.with_suffix(CODES_SUFFIX))
                write_atomically(files[-1], write_codes(np.concatenate(codes)), flush=False)
                record["codec"] = synth.codec.fingerprint
                for turn, own in zip(record["turns"], codes, strict=True):
                    turn["frames"] = len(own)
            for path, content in subtitles:
                write_atomically(path, content, flush=False)
            write_atomically(item.path, data, flush=False)
        except OutputFailed:
            raise
        except BaseException as problem:  # it is encoded while it is written
            return failed_result(item, failure_of(problem))
        record |= extra_columns(item)
        if item.subtitles:
            record["subtitles"] = {name: self.outputs.location(path) for name, path in item.subtitles.items()}
        del record["rtf"]  # items are decoded together: the time of one says nothing about its own cost
        record["elapsed_s"] = round(sum(each.seconds for each in finished.utterances), 3)
        utterances = finished.utterances
        return ItemResult(
            item.id,
            record,
            tuple(files),
            tuple(describe_utterance(each, batched=True) for each in utterances),
            tuple(turn_warnings(finished)),
            sum(len(each.codes) for each in utterances if each.stop != "recorded"),
            tuple(each.stop for each in utterances),
            item.chars,
        )


class _ConversationReader:
    """The conversations of items, read as slots become free, also after `items` had none for a while.

    active: items that were read. failed: results of items that cannot be generated.
    """

    def __init__(self, items: Iterator[BatchItem]) -> None:
        self._items = items
        self.active: dict[str, BatchItem] = {}  # by conversation id
        self.failed: deque[ItemResult] = deque()

    def __iter__(self) -> _ConversationReader:
        return self

    def __next__(self) -> Conversation:
        while (item := next(self._items)).error:
            self.failed.append(failed_result(item, item.error))
        self.active[item.id] = item
        return item.conversation


@dataclass(frozen=True)
class SynthesisTask:
    """What a worker does, as `WorkerTask`: opens the same checkpoint and generates items.

    job: without a recognizer, which every worker loads for itself; slots 0: as many as fit into memory.
    revision, fingerprint: of the checkpoint. outputs: where the items' files belong.
    """

    job: SynthesisJob
    revision: str | None
    fingerprint: str
    outputs: OutputStore
    load: Loader = open_synthesizer
    save_codes: bool = False

    def open(self, place: WorkerPlace) -> SynthesisEngine:
        """Raises CsmError: no such device, not enough memory, or another checkpoint than the parent's."""
        import torch

        from csm_cli.checkpoint import open_checkpoint

        torch.set_num_threads(place.threads)
        speech = replace(self.job.speech, device=place.device or self.job.speech.device)
        checkpoint = open_checkpoint(speech.model, self.revision, speech.adapter, offline=speech.offline)
        if checkpoint.fingerprint != self.fingerprint:
            raise CsmError(f"{speech.model} is another checkpoint where a worker runs; copy the same one to all hosts")
        quiet = replace(self.job.output_options, quiet=True)
        job = replace(self.job, speech=speech, output_options=quiet, recognizer=speech.recognizer())
        job = replace(job, slots=job.slots or automatic_slots(job, checkpoint, place.sharing))
        synth = self.load(job, checkpoint)
        return SynthesisEngine(synth, job, ProgressMeter((), synth.codec.frame_rate), self.outputs, self.save_codes)


def automatic_slots(job: SynthesisJob, checkpoint: Checkpoint, sharing: int = 1) -> int:
    """Items decoded at once, by free memory. sharing: workers that share the device."""
    from csm_cli.engine.memory_estimate import estimate_memory

    device, dtype = pick_device_and_dtype(job.speech)
    int8 = job.speech.quantize == "int8"
    estimate = estimate_memory(checkpoint.config, device, dtype, int8, sharing)
    if not job.output_options.quiet:
        log_line(f"up to {estimate.slots} items at once (--batch-size auto: {estimate})")
    return estimate.slots
