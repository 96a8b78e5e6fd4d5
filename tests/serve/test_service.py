"""The decode thread: many clients on one engine, each with its own failure, cancellation and deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Event as Flag

import numpy as np
import pytest
import torch

from csm_cli.errors import CsmError, DeadlineExceeded, ServerBusy, UsageError
from csm_cli.generation.conversation import ConversationState, ResolvedDefaults
from csm_cli.generation.events import AudioChunk, Event, Utterance
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.serve.service import SpeechJob, SpeechService
from csm_cli.types import Conversation, GenerationOptions, RetryPolicy, Turn

LONG = GenerationOptions(max_duration=20.0, seed=1)


@dataclass
class Client:
    """What one client got."""

    events: list[Event] = field(default_factory=list)
    error: CsmError | None = None
    ended: Flag = field(default_factory=Flag)
    first: Flag = field(default_factory=Flag)
    job: SpeechJob | None = None

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, AudioChunk):
            self.first.set()

    def on_end(self, error: CsmError | None) -> None:
        self.error = error
        self.ended.set()

    @property
    def codes(self) -> torch.Tensor:
        return next(event.codes for event in self.events if isinstance(event, Utterance))

    @property
    def samples(self) -> np.ndarray:
        return np.concatenate([event.samples for event in self.events if isinstance(event, AudioChunk)])


@pytest.fixture
def service(synth: Synthesizer) -> Iterator[SpeechService]:
    made = SpeechService(synth, max_queue=16)
    made.start(warm_up=False)
    yield made
    made.stop()


def submit(
    service: SpeechService,
    text: str,
    options: GenerationOptions,
    deadline: float = 60,
    prepare: Callable[[Synthesizer], ConversationState] | None = None,
    trim: bool = False,
) -> Client:
    client = Client()
    policy = RetryPolicy(trim=trim, chunk_chars=80, stream=True)
    conversation = Conversation((Turn(0, text),), id=str(time.perf_counter_ns()))
    defaults = ResolvedDefaults(options, service.synth.checkpoint.defaults, policy)
    make = prepare or (lambda synth: synth.new_state(conversation, defaults))
    client.job = SpeechJob(make, client.on_event, client.on_end, deadline)
    service.submit(client.job)
    return client


def wait(*clients: Client) -> None:
    for client in clients:
        assert client.ended.wait(60)


def test_sixteen_clients_get_the_samples_of_each_alone(service: SpeechService) -> None:
    def options(number: int) -> GenerationOptions:
        return GenerationOptions(temperature=0.9, top_k=20, seed=number, max_duration=0.3 + 0.1 * number)

    together = [submit(service, f"This is client {n}.", options(n), trim=True) for n in range(16)]
    wait(*together)
    for number, client in enumerate(together):
        alone = submit(service, f"This is client {number}.", options(number), trim=True)
        wait(alone)
        assert client.error is None and torch.equal(client.codes, alone.codes)
        np.testing.assert_array_equal(client.samples, alone.samples)


def test_a_request_joins_a_running_batch_and_leaves_it_first(service: SpeechService) -> None:
    long = submit(service, "A long one.", LONG)
    assert long.first.wait(30)
    short = submit(service, "A short one.", GenerationOptions(max_duration=0.4, seed=1))
    wait(short)
    assert not long.ended.is_set() and service.busy == 1
    service.cancel(long.job)  # type: ignore[arg-type]
    wait(long)
    assert long.error is None and service.busy == 0


def test_a_cancelled_request_frees_its_slot_for_one_that_waits(service: SpeechService) -> None:
    clients = [submit(service, f"Number {n}.", LONG) for n in range(4)]
    for client in clients:
        assert client.first.wait(30)
    waiting = submit(service, "Next.", GenerationOptions(max_duration=0.4, seed=1))
    service.cancel(clients[2].job)  # type: ignore[arg-type]
    wait(waiting, clients[2])
    assert waiting.error is None and [each.ended.is_set() for each in clients] == [False, False, True, False]


@pytest.mark.parametrize("problem", [ValueError("bad"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_a_failure_of_any_kind_is_of_one_request(service: SpeechService, problem: BaseException) -> None:
    def fail(synth: Synthesizer) -> ConversationState:
        raise problem

    class Failing(ConversationState):
        def request(self, text_tokens: torch.Tensor) -> None:  # type: ignore[override]
            raise problem

    defaults = ResolvedDefaults(LONG, service.synth.checkpoint.defaults, RetryPolicy())

    def fail_later(synth: Synthesizer) -> ConversationState:
        state = synth.new_state(Conversation((Turn(0, "Hi."),), id="failing"), defaults)
        state.__class__ = Failing
        return state

    good = submit(service, "Good.", GenerationOptions(max_duration=0.8, seed=1))
    bad = [submit(service, "Bad.", LONG, prepare=each) for each in (fail, fail_later)]
    wait(good, *bad)
    assert good.error is None and all(isinstance(each.error, CsmError) for each in bad)


def test_a_failed_prefill_fails_one_request(service: SpeechService, monkeypatch: pytest.MonkeyPatch) -> None:
    admit, calls = service.synth.engine.admit, []

    def refuse_second(request: object) -> None:
        calls.append(request)
        if len(calls) == 2:
            raise RuntimeError("CUDA out of memory")
        admit(request)  # type: ignore[arg-type]

    monkeypatch.setattr(service.synth.engine, "admit", refuse_second)
    clients = [submit(service, f"Number {n}.", GenerationOptions(max_duration=0.8, seed=1)) for n in range(3)]
    wait(*clients)
    assert sorted(type(each.error).__name__ for each in clients) == ["NoneType", "NoneType", "OutOfMemory"]


def test_the_decode_thread_survives_a_failure_of_the_engine(
    service: SpeechService, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(service.synth.engine.runner, "run", lambda *_: 1 / 0)
        broken = submit(service, "Broken.", LONG)
        wait(broken)
    assert broken.error is not None
    good = submit(service, "Good.", GenerationOptions(max_duration=0.4, seed=1))
    wait(good)
    assert good.error is None and service.alive


def test_a_request_has_a_deadline(service: SpeechService) -> None:
    late = submit(service, "Too long.", LONG, deadline=0.3)
    wait(late)
    assert isinstance(late.error, DeadlineExceeded) and service.busy == 0


def test_the_queue_is_bounded(synth: Synthesizer) -> None:
    service = SpeechService(synth, max_queue=2)
    service.start(warm_up=False)
    clients = [submit(service, "Hello.", LONG) for _ in range(6)]
    with pytest.raises(ServerBusy):
        submit(service, "One too many.", LONG)
    service.stop()
    wait(*clients)


def test_a_draining_service_finishes_what_it_has(service: SpeechService) -> None:
    running = submit(service, "Hello.", GenerationOptions(max_duration=0.8, seed=1))
    service.drain()
    with pytest.raises(ServerBusy):
        submit(service, "Hi.", LONG)
    wait(running)
    assert running.error is None


def test_a_second_run_on_one_synthesizer_is_refused(synth: Synthesizer) -> None:
    conversation = Conversation((Turn(0, "Hello."),), id="first")
    first = synth.speak([conversation], LONG)
    next(first)
    with pytest.raises(UsageError):
        next(synth.speak([conversation], LONG))
    first.close()
    assert next(synth.speak([conversation], LONG))
