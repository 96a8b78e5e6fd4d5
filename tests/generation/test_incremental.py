"""Which turns of a conversation are reused and which are generated again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from csm_cli.audio.io import Audio
from csm_cli.checkpoint import Checkpoint, open_checkpoint
from csm_cli.generation.events import Segment, Utterance
from csm_cli.generation.fingerprint import SynthesisSetup
from csm_cli.generation.incremental import IncrementalRun, RedoRequest
from csm_cli.generation.turn_cache import TurnCache
from csm_cli.types import Conversation, GenerationOptions, Recording, RetryPolicy, Turn

Run = Callable[..., IncrementalRun]
NO_REDO, UNSET, POLICY = RedoRequest(), GenerationOptions(), RetryPolicy(True)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint))


def opened(output: Path) -> TurnCache:
    return TurnCache.open(output, codebooks=4, vocab=2000)


def conversation(*texts: str) -> Conversation:
    return Conversation(tuple(Turn(index % 2, text) for index, text in enumerate(texts)))


def generate(incremental: IncrementalRun, upto: int | None = None) -> None:
    """Finishes the turns; audio and codes depend on text and seed."""
    for number, turn in enumerate(incremental.conversation.turns[:upto], 1):
        stop, seed = ("recorded", 0) if turn.recording else ("eos", turn.options.seed or 0)
        code = sum(turn.text.encode()) % 2000
        sound = np.full(1920, code / 4000 + seed / 1e6, np.float32)
        segment = (Segment(turn.text, 0.0, 0.08, 1),) if stop == "eos" else ()
        audio, codes = Audio(sound, 24000), torch.full((1, 4), code, dtype=torch.int64)
        utterance = Utterance(incremental.conversation, turn, codes, audio, stop, seed=seed, segments=segment)
        incremental.record(replace(utterance, number=number))


@pytest.fixture
def run(tmp_path: Path, checkpoint: Checkpoint) -> Run:
    """Generates a conversation for the same track as before."""

    def call(
        script: Conversation,
        redo: RedoRequest = NO_REDO,
        flags: GenerationOptions = UNSET,
        retry_policy: RetryPolicy = POLICY,
        soft_limit: int = 0,
    ) -> IncrementalRun:
        setup = SynthesisSetup(replace(checkpoint, soft_limit=soft_limit), flags, retry_policy)
        incremental = IncrementalRun(
            opened(tmp_path / "o.wav"),
            script,
            setup,
            redo,
        )
        generate(incremental)
        incremental.finish()
        return incremental

    return call


def test_an_unchanged_script_reuses_all_turns(run: Run) -> None:
    assert not run(conversation("One", "Two")).reused
    again = run(conversation("One", "Two"))
    assert list(again.reused) == [1, 2] and not again.outdated
    assert [turn.recording is not None for turn in again.conversation.turns] == [True, True]


def test_a_reused_turn_is_reported_as_when_it_was_generated(run: Run, tmp_path: Path, checkpoint: Checkpoint) -> None:
    run(conversation("One"), flags=GenerationOptions(seed=5))
    incremental = IncrementalRun(
        opened(tmp_path / "o.wav"),
        conversation("One"),
        SynthesisSetup(checkpoint, UNSET, POLICY),
        NO_REDO,
    )
    (turn,) = incremental.conversation.turns
    audio = Audio(np.zeros(1920, np.float32), 24000)
    heard = Utterance(incremental.conversation, turn, torch.zeros(1, 4), audio, "recorded", number=1)
    reported = incremental.record(heard)
    assert (reported.cached, reported.stop, reported.turn.recording) == (True, "eos", None)
    assert reported.segments == (Segment("One", 0.0, 0.08, 1),)


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        (lambda turn: replace(turn, text="Zwei"), [1, 3]),
        (lambda turn: replace(turn, speaker=5), [1, 3]),
        (lambda turn: replace(turn, options=GenerationOptions(temperature=0.1)), [1, 3]),
        (lambda turn: replace(turn, gap=2.0, gain=-6.0, id="t2", name="ben"), [1, 2, 3]),
    ],
)
def test_a_turn_is_generated_again_if_what_determines_its_audio_changed(
    run: Run, change: Callable[[Turn], Turn], reused: list[int]
) -> None:
    before = conversation("One", "Two", "Three")
    run(before)
    one, two, three = before.turns
    assert list(run(replace(before, turns=(one, change(two), three))).reused) == reused


def test_turns_after_a_change_are_outdated_or_cascade(run: Run) -> None:
    run(conversation("One", "Two", "Three"))
    assert run(conversation("Eins", "Two", "Three")).outdated == [2, 3]
    assert not run(conversation("Ett", "Two", "Three"), RedoRequest(cascade=True)).reused


def test_redo_gives_new_seeds_to_these_turns_only(run: Run) -> None:
    run(conversation("One", "Two", "Three"), flags=GenerationOptions(seed=3))
    again = run(conversation("One", "Two", "Three"), RedoRequest(turns=frozenset({1, 3})), GenerationOptions(seed=70))
    assert list(again.reused) == [2]
    assert [turn.options.seed for turn in again.conversation.turns] == [70, None, 72]
    assert list(run(conversation("One", "Two", "Three"), flags=GenerationOptions(seed=3)).reused) == [1, 2, 3]


def test_redo_with_the_same_seed_moves_on_to_an_unused_one(run: Run) -> None:
    seed = GenerationOptions(seed=3)
    run(conversation("One", "Two"), flags=seed)
    again = run(conversation("One", "Two"), RedoRequest(turns=frozenset({2})), seed)
    assert again.conversation.turns[1].options.seed == 5
    assert list(run(conversation("One", "Two"), flags=seed).reused) == [1, 2]


def test_fresh_reuses_nothing(run: Run) -> None:
    run(conversation("One"))
    assert not run(conversation("One"), RedoRequest(fresh=True)).reused


def test_other_context_limits_and_retry_policies_reuse_nothing(run: Run) -> None:
    run(conversation("One", "Two"))
    assert not run(conversation("One", "Two"), retry_policy=RetryPolicy(True, takes=3)).reused
    assert not run(conversation("One", "Two"), retry_policy=RetryPolicy(True, takes=3), soft_limit=100).reused


def test_another_context_reuses_nothing(run: Run, tone: Path) -> None:
    run(conversation("One"))
    context = (Turn(0, "Hi", recording=Recording(tone)),)
    heard = replace(conversation("One"), context=context)
    assert not run(heard).reused and list(run(heard).reused) == [1]
    tone.write_bytes(tone.read_bytes()[:-100])
    assert not run(heard).reused


def test_a_lexicon_changes_only_the_turns_with_its_words(run: Run) -> None:
    run(conversation("Hello Nguyen", "Hello"))
    assert list(run(replace(conversation("Hello Nguyen", "Hello"), lexicon={"Nguyen": "win"})).reused) == [2]


def test_a_recorded_turn_is_neither_cached_nor_generated(run: Run, tone: Path) -> None:
    recorded = Turn(1, "Hi", recording=Recording(tone))
    script = Conversation((Turn(0, "One"), recorded, Turn(0, "Three")))
    run(script)
    assert list(run(script).reused) == [1, 3]


def test_turns_finished_before_an_interruption_are_reused(run: Run, tmp_path: Path, checkpoint: Checkpoint) -> None:
    cut = IncrementalRun(
        opened(tmp_path / "o.wav"),
        conversation("One", "Two"),
        SynthesisSetup(checkpoint, UNSET, POLICY),
        NO_REDO,
    )
    generate(cut, upto=1)
    assert cut.finished_count == 1 and list(run(conversation("One", "Two")).reused) == [1]
