"""One run over the items of a batch: spoken, written, recorded, told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from csm_cli.batch import Item, Ledger, Tally, sweeper
from csm_cli.cli.console import emit_json, emit_path, note, warn
from csm_cli.cli.progress import Meter, drawn
from csm_cli.cli.report import batch_report
from csm_cli.cli.speaking import Job, Spoken, speak
from csm_cli.cli.summary import crowded, cut, record, tags, told, total
from csm_cli.disk import write_atomically
from csm_cli.errors import BatchPartlyFailed, CsmError, GenerationFailed, OutputFailed
from csm_cli.events import Failure
from csm_cli.types import Conversation

if TYPE_CHECKING:
    from csm_cli.synth import Synthesizer


class Run:
    """Speaks what is chosen, as `tally` counts it; gives up after `patience` failures, and writes a `report`."""

    def __init__(self, job: Job, ledger: Ledger, tally: Tally, patience: float, report: Path | None) -> None:
        self._job, self._ledger, self._tally, self._patience = job, ledger, tally, patience
        self._report = report
        self._items: dict[int, Item] = {}
        self._sweep = sweeper()
        self._written = self._failed = 0

    def go(self, chosen: Iterator[Item], load: Callable[[int], Synthesizer], characters: int) -> None:
        """`load` makes a synthesizer of so many slots; `characters`: of all there is, done or not."""
        first = list(islice(chosen, self._job.slots))
        if first:
            self._work(chain(first, chosen), load(len(first)), characters)
        elif not self._job.telling.quiet:
            note(f"nothing to speak{self._beside()}")
        if self._report:
            batch_report(self._report, self._ledger)
        self._raise_failures(more=bool(self._items) or next(chosen, None) is not None)

    def _work(self, chosen: Iterator[Item], synth: Synthesizer, characters: int) -> None:
        meter = Meter((), synth.codec.frame_rate, lambda: characters - self._tally.skipped)
        try:
            with drawn(meter, self._job.telling.quiet):
                self._speak(synth, chosen, meter)
            self._ledger.settle()
        except BrokenPipeError:
            warn("standard output was closed; the same command speaks the rest")
            raise
        finally:
            if not self._job.telling.quiet:
                of = "" if self._items else f" of {self._tally.taken}"
                note(f"{self._written}{of} written{self._beside()}; {total(meter, synth)}")
                if hint := crowded(self._job, synth):
                    note(hint)

    def _beside(self) -> str:
        """What this run leaves alone."""
        done = f"; {self._tally.done} done before" if self._tally.done else ""
        return done + ("; the rest left for later" if self._tally.left or self._items else "")

    def _speak(self, synth: Synthesizer, chosen: Iterator[Item], meter: Meter) -> None:
        for event in speak(synth, self._job, meter, self._talks(chosen)):
            if isinstance(event, Spoken):
                self._write(self._items.pop(id(event.conversation)), event, synth)
            elif isinstance(event, Failure):
                self._fail(self._items.pop(id(event.conversation)), event.error)
            if self._failed >= self._patience:
                return

    def _talks(self, chosen: Iterator[Item]) -> Iterator[Conversation]:
        for item in chosen:
            self._items[id(item.conversation)] = item
            self._sweep(item.path.parent)
            yield item.conversation

    def _write(self, item: Item, spoken: Spoken, synth: Synthesizer) -> None:
        from csm_cli.audio import encode_audio

        telling = self._job.telling
        try:
            said = tags(spoken.utterances, synth.checkpoint, spoken.conversation.title)
            write_atomically(item.path, encode_audio(item.path, spoken.track.audio, said), flush=False)
        except OutputFailed:
            raise  # a full disk would fail all the others too
        except CsmError as error:
            self._fail(item, error)
            return
        result = record(spoken, str(item.path), synth)
        self._ledger.append(result | {"file": item.file, "fingerprint": item.fingerprint}, item.path)
        self._written += 1
        if not telling.quiet:
            for utterance in spoken.utterances:
                note(f"{item.id}: {told(utterance)}")
        for warning in cut(spoken):
            warn(f"{item.id}: {warning}")
        if telling.json:
            emit_json(result)
        else:
            emit_path(item.path)

    def _fail(self, item: Item, error: CsmError) -> None:
        turns = [{"speaker": turn.name or str(turn.speaker), "text": turn.text} for turn in item.conversation.turns]
        result = {"id": item.id, "status": "failed", "output": None, "error": str(error), "turns": turns}
        self._ledger.append(result | {"fingerprint": item.fingerprint})
        self._failed += 1
        warn(f"{item.id}: {error}")
        if self._job.telling.json:
            emit_json(result)

    def _raise_failures(self, more: bool) -> None:
        if self._failed:
            kind = BatchPartlyFailed if self._written or self._tally.done else GenerationFailed
            tried, stopped = self._written + self._failed, ", the rest were not tried" if more else ""
            raise kind(f"{self._failed} of {tried} items failed{stopped}; the lines above say why")
