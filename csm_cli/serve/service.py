"""The decode thread: it owns the engine and its caches, and decodes the requests of all clients together.

A request is prepared by a worker (files read, context encoded), waits for a slot, joins the running batch between two
frames and leaves it when its turn ends, when it fails, or when its client does.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from threading import Condition, Thread

from csm_cli.errors import CsmError, DeadlineExceeded, ServerBusy, failure_of
from csm_cli.generation.conversation import ConversationState, ResolvedDefaults
from csm_cli.generation.events import AudioChunk, ConversationFailed, Event, FrameProgress, Utterance
from csm_cli.generation.synthesizer import SynthesisItem, SynthesisRun, Synthesizer
from csm_cli.serve.metrics import Metrics
from csm_cli.types import Conversation, GenerationOptions, RetryPolicy, Turn

log = logging.getLogger(__name__)

_WORKERS = 2  # prepare requests
_CHECK_SECONDS = 0.05  # between two looks at deadlines
_job_ids = count(1)


@dataclass(eq=False)
class SpeechJob:
    """One conversation to synthesize for a client.

    prepare: makes its state, of a conversation with an id of its own; called on a worker. on_event, on_end: called on
    other threads, and must not block; on_end once, with the error or None, after which nothing follows. deadline:
    seconds from submission to the end.
    """

    prepare: Callable[[Synthesizer], ConversationState]
    on_event: Callable[[Event], None]
    on_end: Callable[[CsmError | None], None]
    deadline: float = math.inf
    id: int = field(default_factory=_job_ids.__next__)
    submitted: float = 0.0
    started: float = 0.0  # when it got a slot; 0 before
    state: ConversationState | None = None
    cancelled: bool = False
    audio_seconds: float = 0.0
    first_audio: float = 0.0

    @property
    def overdue(self) -> bool:
        return time.monotonic() > self.submitted + self.deadline

    def require_state(self) -> ConversationState:
        """The state of a prepared job."""
        assert self.state is not None
        return self.state


class SpeechService:
    """Runs the jobs of many clients on one synthesizer.

    max_queue: jobs that may wait beyond those that the slots serve.
    """

    def __init__(self, synth: Synthesizer, max_queue: int = 64, metrics: Metrics | None = None) -> None:
        self.synth = synth
        self.slots = len(synth.engine.slots)
        self.max_queue = max_queue
        self.metrics = metrics or Metrics()
        self.ready = False  # warm
        self.draining = False  # refuses new jobs
        self.open_streams: set[int] = set()  # ids of jobs whose clients have not got all of it; of the event loop
        self._stopped = False
        self._live: dict[int, SpeechJob] = {}  # submitted and not ended
        self._running: dict[str, SpeechJob] = {}  # by the id of the conversation
        self._waiting: deque[SpeechJob] = deque()  # prepared
        self._changed = Condition()
        self._workers = ThreadPoolExecutor(_WORKERS, "csm-prepare")
        self._thread = Thread(target=self._decode, name="csm-decode", daemon=True)
        self.metrics.watch(
            lambda: len(self._live) - len(self._running), lambda: len(self._running), self.slots, max_queue
        )

    @property
    def busy(self) -> int:
        """Jobs in slots."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Jobs that wait or are being prepared."""
        return max(0, len(self._live) - len(self._running))

    @property
    def alive(self) -> bool:
        """Whether the decode thread runs."""
        return self._thread.is_alive()

    def start(self, warm_up: bool = True) -> None:
        """Starts the decode thread; with warm_up, `ready` is set when a first text has been spoken."""
        self._thread.start()
        if not warm_up:
            self.ready = True
            return
        defaults = ResolvedDefaults(
            GenerationOptions(seed=1, max_duration=1.0), self.synth.checkpoint.defaults, RetryPolicy(stream=True)
        )
        conversation = Conversation((Turn(0, "Ready.", "0"),), id="warm-up")

        def set_ready(error: CsmError | None) -> None:
            if error:
                log.warning("the first text failed: %s", error)
            self.ready = error is None

        self.submit(SpeechJob(lambda synth: synth.new_state(conversation, defaults), lambda event: None, set_ready))

    def submit(self, job: SpeechJob) -> None:
        """Queues a job.

        Raises:
            ServerBusy: the queue is full, or the server is stopping.
        """
        with self._changed:
            if self.draining:
                self.metrics.refused.inc()
                raise ServerBusy("the server is stopping; try again later", 5)
            if len(self._live) >= self.slots + self.max_queue:
                self.metrics.refused.inc()
                raise ServerBusy(
                    f"all {self.slots} slots are busy and {self.max_queue} requests wait; try again later",
                    self._retry_after(),
                )
            job.submitted = time.monotonic()
            self._live[job.id] = job
            self.metrics.requests.inc()
        self._workers.submit(self._prepare, job)

    def cancel(self, job: SpeechJob) -> None:
        """Ends a job: its slot is free at the next frame. A job that has ended stays as it is."""
        with self._changed:
            if job.id not in self._live or job.cancelled:
                return
            job.cancelled = True
            self.metrics.cancelled.inc()
            self._changed.notify()

    def drain(self) -> None:
        """From now on refuses new jobs; those it has are finished."""
        with self._changed:
            self.draining = True

    def stop(self) -> None:
        """Cancels all jobs and ends the decode thread."""
        with self._changed:
            self.draining = self._stopped = True
            for job in self._live.values():
                job.cancelled = True
            self._changed.notify()
        self._workers.shutdown(wait=False, cancel_futures=True)
        if self._thread.ident is not None:
            self._thread.join(timeout=30)

    def _retry_after(self) -> int:
        """Seconds until a slot may be free: a queue's length of average jobs."""
        return max(1, min(60, round(self.metrics.mean_seconds * (1 + self.max_queue / self.slots) / 2)))

    def _prepare(self, job: SpeechJob) -> None:
        """On a worker."""
        if job.cancelled:
            self._end(job, None)
            return
        try:
            job.state = job.prepare(self.synth)
        except BaseException as problem:
            self._end(job, failure_of(problem, isolate_stops=True))
            return
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def _decode(self) -> None:
        """The decode thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped, timeout=_CHECK_SECONDS * 10)
                if self._stopped:
                    break
                if not self._waiting:
                    continue
            run = SynthesisRun(self.synth, isolate_stops=True)
            try:
                checked = 0.0
                for event in run.events(self._next_item):
                    self._dispatch(event)
                    if any(job.cancelled for job in self._running.values()) or (
                        time.monotonic() - checked > _CHECK_SECONDS
                    ):
                        checked = time.monotonic()
                        self._remove_ended(run)
            except BaseException as problem:  # of the engine itself: every running job is lost, the thread is not
                log.exception("the decode loop failed")
                failure = failure_of(problem, isolate_stops=True)
                for job in list(self._running.values()):
                    self._end(job, failure)
        for job in list(self._live.values()):
            self._end(job, None)

    def _next_item(self) -> SynthesisItem | None:
        with self._changed:
            while self._waiting:
                job = self._waiting.popleft()
                if job.cancelled or job.overdue:
                    self._end(job, None if job.cancelled else self._overdue(job))
                    continue
                job.started = time.monotonic()
                conversation = job.require_state().conversation
                self._running[conversation.id] = job
                return SynthesisItem(conversation, job.require_state)
        return None

    def _remove_ended(self, run: SynthesisRun) -> None:
        """Ends jobs that were cancelled or are overdue, in a slot or in the queue."""
        for job in [each for each in self._running.values() if each.cancelled or each.overdue]:
            run.cancel(job.require_state().conversation.id)
            self._end(job, None if job.cancelled else self._overdue(job))
        with self._changed:
            for job in [each for each in self._waiting if each.cancelled or each.overdue]:
                self._waiting.remove(job)
                self._end(job, None if job.cancelled else self._overdue(job))

    def _dispatch(self, event: Event) -> None:
        job = self._running.get(event.conversation.id)
        if job is None or isinstance(event, FrameProgress):  # no client needs to know, and each would wake the loop
            return
        if isinstance(event, ConversationFailed):
            self._end(job, event.error)
            return
        now = time.monotonic()
        if isinstance(event, AudioChunk):
            if not job.first_audio:
                job.first_audio = now
                self.metrics.first_audio.observe(now - job.submitted)
            elif now > job.first_audio + job.audio_seconds:
                self.metrics.underruns.inc()
            job.audio_seconds += len(event.samples) / self.synth.codec.rate
        try:
            job.on_event(event)
        except BaseException as problem:
            self._end(job, failure_of(problem, isolate_stops=True))
            return
        if isinstance(event, Utterance) and (event.number >= len(event.conversation.turns) or event.fault):
            if event.stop != "recorded":
                self.metrics.finished(event.audio.duration, now - job.started)
            self._end(job, None)

    def _end(self, job: SpeechJob, error: CsmError | None) -> None:
        with self._changed:
            if self._live.pop(job.id, None) is None:
                return
            if job.state is not None:
                self._running.pop(job.state.conversation.id, None)
        if error:
            self.metrics.failed.inc()
        try:
            job.on_end(error)
        except BaseException:
            log.exception("the end of a request could not be reported")

    @staticmethod
    def _overdue(job: SpeechJob) -> DeadlineExceeded:
        where = "while it was spoken" if job.started else "before a slot was free"
        return DeadlineExceeded(f"the request's deadline of {job.deadline:g} s passed {where}; try again later")
