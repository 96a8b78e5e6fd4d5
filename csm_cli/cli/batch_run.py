"""One run over the items of a batch: spoken, written, recorded, told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from csm_cli.batch import BatchItem, Counts, Ledger, remove_stale_temp_files
from csm_cli.cli.console import emit_json, emit_path, log_line, warn
from csm_cli.cli.progress import ProgressMeter, show_progress
from csm_cli.cli.summary import (
    audio_tags,
    contention_hint,
    conversation_record,
    describe_utterance,
    summarize,
    turn_warnings,
)
from csm_cli.cli.synthesis import FinishedConversation, SynthesisJob, speak
from csm_cli.errors import BatchPartlyFailed, CsmError, GenerationFailed, OutputFailed
from csm_cli.generation.events import ConversationFailed
from csm_cli.storage.files import write_atomically
from csm_cli.types import Conversation

if TYPE_CHECKING:
    from csm_cli.generation.synthesizer import Synthesizer


class BatchRun:
    """Speaks what is chosen, as `tally` counts it; gives up after `patience` failures, and writes a `report`."""

    def __init__(self, job: SynthesisJob, ledger: Ledger, tally: Counts, patience: float, report: Path | None) -> None:
        self._job, self._ledger, self._tally, self._patience = job, ledger, tally, patience
        self._report = report
        self._items: dict[str, BatchItem] = {}
        self._sweep = remove_stale_temp_files()
        self._written = self._failed = 0

    def go(self, chosen: Iterator[BatchItem], load: Callable[[int], Synthesizer], characters: int) -> None:
        """`load` makes a synthesizer of so many slots; `characters`: of all there is, done or not."""
        first = list(islice(chosen, self._job.slots))
        if first:
            self._work(chain(first, chosen), load(len(first)), characters)
        elif not self._job.output_options.quiet:
            log_line(f"nothing to speak{self._beside()}")
        if self._report:
            from csm_cli.report.page import write_batch_report

            write_batch_report(self._report, self._ledger.latest, self._ledger.path)
        self._raise_failures(more=bool(self._items) or next(chosen, None) is not None)

    def _work(self, chosen: Iterator[BatchItem], synth: Synthesizer, characters: int) -> None:
        meter = ProgressMeter((), synth.codec.frame_rate, lambda: characters - self._tally.skipped)
        try:
            with show_progress(meter, self._job.output_options.quiet):
                self._speak(synth, chosen, meter)
            self._ledger.settle()
        except BrokenPipeError:
            warn("standard output was closed; the same command speaks the rest")
            raise
        finally:
            if not self._job.output_options.quiet:
                of = "" if self._items else f" of {self._tally.taken}"
                summary = summarize(meter, synth.checkpoint.name, synth.device)
                log_line(f"{self._written}{of} written{self._beside()}; {summary}")
                if hint := contention_hint(self._job, synth):
                    log_line(hint)

    def _beside(self) -> str:
        """What this run leaves alone."""
        done = f"; {self._tally.done} done before" if self._tally.done else ""
        return done + ("; the rest left for later" if self._tally.left or self._items else "")

    def _speak(self, synth: Synthesizer, chosen: Iterator[BatchItem], meter: ProgressMeter) -> None:
        for event in speak(synth, self._job, meter, self._talks(chosen)):
            if isinstance(event, FinishedConversation):
                self._write(self._items.pop(event.conversation.id), event, synth)
            elif isinstance(event, ConversationFailed):
                self._fail(self._items.pop(event.conversation.id), event.error)
            if self._failed >= self._patience:
                return

    def _talks(self, chosen: Iterator[BatchItem]) -> Iterator[Conversation]:
        for item in chosen:
            self._items[item.id] = item
            self._sweep(item.path.parent)
            yield item.conversation

    def _write(self, item: BatchItem, spoken: FinishedConversation, synth: Synthesizer) -> None:
        from csm_cli.audio.io import encode_audio

        output_options = self._job.output_options
        try:
            said = audio_tags(spoken.utterances, synth.checkpoint, spoken.conversation.title)
            write_atomically(item.path, encode_audio(item.path, spoken.track.audio, said), flush=False)
        except OutputFailed:
            raise  # a full disk would fail all the others too
        except CsmError as error:
            self._fail(item, error)
            return
        result = conversation_record(spoken, str(item.path), synth.checkpoint, str(synth.device))
        self._ledger.append(result | {"file": item.file, "fingerprint": item.fingerprint}, item.path)
        self._written += 1
        if not output_options.quiet:
            for utterance in spoken.utterances:
                log_line(f"{item.id}: {describe_utterance(utterance)}")
        for warning in turn_warnings(spoken):
            warn(f"{item.id}: {warning}")
        if output_options.json:
            emit_json(result)
        else:
            emit_path(item.path)

    def _fail(self, item: BatchItem, error: CsmError) -> None:
        turns = [{"speaker": turn.name or str(turn.speaker), "text": turn.text} for turn in item.conversation.turns]
        result = {"id": item.id, "status": "failed", "output": None, "error": str(error), "turns": turns}
        self._ledger.append(result | {"fingerprint": item.fingerprint})
        self._failed += 1
        warn(f"{item.id}: {error}")
        if self._job.output_options.json:
            emit_json(result)

    def _raise_failures(self, more: bool) -> None:
        if self._failed:
            kind = BatchPartlyFailed if self._written or self._tally.done else GenerationFailed
            tried, stopped = self._written + self._failed, ", the rest were not tried" if more else ""
            raise kind(f"{self._failed} of {tried} items failed{stopped}; the lines above say why")
