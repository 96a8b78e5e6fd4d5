"""Which turns of a dialogue are kept and which are spoken again."""

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
AS_IT_IS, UNSET, CARE = RedoRequest(), GenerationOptions(), RetryPolicy(True)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint))


def talk(*texts: str) -> Conversation:
    return Conversation(tuple(Turn(index % 2, text) for index, text in enumerate(texts)))


def spoken(replay: IncrementalRun, upto: int | None = None) -> None:
    """The turns come out; each sounds as its text and its seed say."""
    for turn in replay.conversation.turns[:upto]:
        stop, seed = ("recorded", 0) if turn.recording else ("eos", turn.options.seed or 0)
        code = sum(turn.text.encode()) % 2000
        sound = np.full(1920, code / 4000 + seed / 1e6, np.float32)
        piece = (Segment(turn.text, 0.0, 0.08, 1),) if stop == "eos" else ()
        audio, codes = Audio(sound, 24000), torch.full((1, 4), code, dtype=torch.int64)
        replay.hear(Utterance(replay.conversation, turn, codes, audio, stop, seed=seed, segments=piece))


@pytest.fixture
def run(tmp_path: Path, checkpoint: Checkpoint) -> Run:
    """Speaks a dialogue to the same track as before."""

    def call(
        dialogue: Conversation,
        wish: RedoRequest = AS_IT_IS,
        flags: GenerationOptions = UNSET,
        retry_policy: RetryPolicy = CARE,
        memory: int = 0,
    ) -> IncrementalRun:
        voice = SynthesisSetup(replace(checkpoint, soft_limit=memory), flags, retry_policy)
        replay = IncrementalRun(TurnCache.beside(tmp_path / "o.wav"), dialogue, voice, wish)
        spoken(replay)
        replay.settle()
        return replay

    return call


def test_nothing_changed_keeps_all_as_it_was(run: Run) -> None:
    assert not run(talk("One", "Two")).kept
    again = run(talk("One", "Two"))
    assert list(again.kept) == [0, 1] and not again.stale
    assert [turn.recording is not None for turn in again.conversation.turns] == [True, True]


def test_a_kept_turn_is_told_as_when_it_was_spoken(run: Run, tmp_path: Path, checkpoint: Checkpoint) -> None:
    run(talk("One"), flags=GenerationOptions(seed=5))
    replay = IncrementalRun(
        TurnCache.beside(tmp_path / "o.wav"), talk("One"), SynthesisSetup(checkpoint, UNSET, CARE), AS_IT_IS
    )
    (turn,) = replay.conversation.turns
    heard = Utterance(
        replay.conversation, turn, torch.zeros(1, 4), Audio(np.zeros(1920, np.float32), 24000), "recorded"
    )
    told = replay.hear(heard)
    assert (told.cached, told.stop, told.turn.recording) == (True, "eos", None)
    assert told.segments == (Segment("One", 0.0, 0.08, 1),)


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda turn: replace(turn, text="Zwei"), [0, 2]),
        (lambda turn: replace(turn, speaker=5), [0, 2]),
        (lambda turn: replace(turn, options=GenerationOptions(temperature=0.1)), [0, 2]),
        (lambda turn: replace(turn, gap=2.0, gain=-6.0, id="t2", name="ben"), [0, 1, 2]),
    ],
)
def test_a_turn_is_spoken_again_for_what_it_sounds_by(
    run: Run, change: Callable[[Turn], Turn], left: list[int]
) -> None:
    before = talk("One", "Two", "Three")
    run(before)
    one, two, three = before.turns
    assert list(run(replace(before, turns=(one, change(two), three))).kept) == left


def test_what_follows_a_change_is_stale_or_cascades(run: Run) -> None:
    run(talk("One", "Two", "Three"))
    assert run(talk("Eins", "Two", "Three")).stale == [1, 2]
    assert not run(talk("Ett", "Two", "Three"), RedoRequest(cascade=True)).kept


def test_redo_gives_new_seeds_to_these_turns_only(run: Run) -> None:
    run(talk("One", "Two", "Three"), flags=GenerationOptions(seed=3))
    again = run(talk("One", "Two", "Three"), RedoRequest(redo=frozenset({1, 3})), GenerationOptions(seed=70))
    assert list(again.kept) == [1]
    assert [turn.options.seed for turn in again.conversation.turns] == [70, None, 71]
    assert list(run(talk("One", "Two", "Three"), flags=GenerationOptions(seed=3)).kept) == [0, 1, 2]


def test_fresh_keeps_nothing(run: Run) -> None:
    run(talk("One"))
    assert not run(talk("One"), RedoRequest(fresh=True)).kept


def test_other_models_windows_and_care_speak_all_again(run: Run) -> None:
    run(talk("One", "Two"))
    assert not run(talk("One", "Two"), retry_policy=RetryPolicy(True, takes=3)).kept
    assert not run(talk("One", "Two"), retry_policy=RetryPolicy(True, takes=3), memory=100).kept


def test_other_context_speaks_all_again(run: Run, tone: Path) -> None:
    run(talk("One"))
    context = (Turn(0, "Hi", recording=Recording(tone)),)
    heard = replace(talk("One"), context=context)
    assert not run(heard).kept and list(run(heard).kept) == [0]
    tone.write_bytes(tone.read_bytes()[:-100])
    assert not run(heard).kept


def test_a_lexicon_counts_where_its_word_is_said(run: Run) -> None:
    run(talk("Hello Nguyen", "Hello"))
    assert list(run(replace(talk("Hello Nguyen", "Hello"), lexicon={"Nguyen": "win"})).kept) == [1]


def test_a_recorded_turn_is_neither_kept_nor_spoken(run: Run, tone: Path) -> None:
    recorded = Turn(1, "Hi", recording=Recording(tone))
    dialogue = Conversation((Turn(0, "One"), recorded, Turn(0, "Three")))
    run(dialogue)
    assert list(run(dialogue).kept) == [0, 2]


def test_what_came_out_before_an_end_is_kept(run: Run, tmp_path: Path, checkpoint: Checkpoint) -> None:
    cut = IncrementalRun(
        TurnCache.beside(tmp_path / "o.wav"), talk("One", "Two"), SynthesisSetup(checkpoint, UNSET, CARE), AS_IT_IS
    )
    spoken(cut, upto=1)
    assert cut.done == 1 and list(run(talk("One", "Two")).kept) == [0]
