"""From conversations to utterances, on a tiny random checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import greedy
from tiny import spoken as engine_codes

import csm_cli.generation.synthesizer
from csm_cli.audio.io import Audio
from csm_cli.checkpoint import open_checkpoint
from csm_cli.engine import Request
from csm_cli.errors import AudioUnreadable, PromptTooLong
from csm_cli.generation.events import AudioChunk, ConversationFailed, Event, FrameProgress, Utterance
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.generation.take import Take, TakeBuilder
from csm_cli.models.mimi import ChunkDecoder, finished
from csm_cli.types import Conversation, GenerationOptions, Recording, RetryPolicy, Turn

SHORT = GenerationOptions(max_duration=0.4, seed=1)  # five frames
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def synth(tiny_checkpoint: Path) -> Synthesizer:
    return Synthesizer(open_checkpoint(str(tiny_checkpoint)), CPU, torch.float32, slots=3)


@pytest.fixture(scope="module")
def sung(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    import soundfile

    path = tmp_path_factory.mktemp("voices") / "la la.wav"
    soundfile.write(path, 0.2 * np.sin(np.arange(24000) / 20), 24000)
    return Recording(path)


def spoken(events: list[Event]) -> list[Utterance]:
    return [event for event in events if isinstance(event, Utterance)]


def talk(*texts: str, name: str = "", context: tuple[Turn, ...] = ()) -> Conversation:
    return Conversation(tuple(Turn(n % 2, text) for n, text in enumerate(texts)), context, id=name)


def test_turns_come_in_order_with_their_audio(synth: Synthesizer) -> None:
    events = list(synth.speak([talk("One.", "Two.", "Three.")], SHORT))
    utterances = spoken(events)
    assert [u.turn.text for u in utterances] == ["One.", "Two.", "Three."]
    assert [u.stop for u in utterances] == ["cap"] * 3
    assert [u.seed for u in utterances] == [1, 2, 3]
    assert all(u.codes.shape == (5, 8) and len(u.audio.samples) == 5 * 1920 for u in utterances)
    assert [event.frames for event in events if isinstance(event, FrameProgress)] == [1, 2, 3, 4] * 3


def test_the_audio_is_the_codes_decoded(synth: Synthesizer) -> None:
    (utterance,) = spoken(list(synth.speak([talk("Hello.")], SHORT)))
    np.testing.assert_allclose(utterance.audio.samples, synth.codec.decode(utterance.codes).numpy(), atol=1e-5)


def test_what_was_said_before_changes_what_is_said(synth: Synthesizer) -> None:
    alone, after = (spoken(list(synth.speak([c], SHORT)))[-1] for c in (talk("B."), talk("Aha.", "B.")))
    assert not torch.equal(alone.codes, after.codes)


def test_many_conversations_are_spoken_as_each_alone(synth: Synthesizer) -> None:
    talks = [talk(f"Number {n}.", *["And more."] * (n % 3), name=str(n)) for n in range(7)]
    together: dict[str, list[list[list[int]]]] = {t.id: [] for t in talks}
    for utterance in spoken(list(synth.speak(talks, SHORT))):
        together[utterance.conversation.id].append(utterance.codes.tolist())
    for t in talks:
        assert together[t.id] == [u.codes.tolist() for u in spoken(list(synth.speak([t], SHORT)))]


@pytest.fixture
def beside(synth: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As on CUDA: bursts of frames, and chunks that are decoded together. Says what the codec was told."""
    log: list[str] = []

    def begin(work: Callable[[], torch.Tensor]) -> Callable[[], np.ndarray]:
        log.append("begun")
        done = finished(work)
        return lambda: (log.append("awaited"), done())[1]

    monkeypatch.setattr(
        csm_cli.generation.synthesizer, "ChunkDecoder", lambda codec, rows: ChunkDecoder(codec, begin, rows)
    )
    monkeypatch.setattr(synth.engine.runner, "burst", 4)
    return log


@pytest.mark.parametrize(
    "retry_policy", [RetryPolicy(), RetryPolicy(trim=True, max_retries=1), RetryPolicy(stream=True)], ids=str
)
def test_a_codec_beside_the_frames_says_the_same(
    synth: Synthesizer, retry_policy: RetryPolicy, request: pytest.FixtureRequest
) -> None:
    talks = [talk(f"Number {n}.", *["And more."] * (n % 3), name=str(n)) for n in range(5)]
    options = GenerationOptions(temperature=1.0, max_duration=1.7, seed=3)
    wanted = {(u.conversation.id, u.turn): u for u in spoken(list(synth.speak(talks, options, retry_policy)))}
    request.getfixturevalue("beside")
    events = list(synth.speak(talks, options, retry_policy))
    told = {(u.conversation.id, u.turn): u for u in spoken(events)}
    assert told.keys() == wanted.keys()
    for key, utterance in told.items():
        assert torch.equal(utterance.codes, wanted[key].codes)
        assert (utterance.stop, utterance.fault) == (wanted[key].stop, wanted[key].fault)
        np.testing.assert_allclose(utterance.audio.samples, wanted[key].audio.samples, atol=1e-5)
        heard = [e.samples for e in events if isinstance(e, AudioChunk) and (e.conversation.id, e.turn) == key]
        assert not retry_policy.stream or np.array_equal(np.concatenate(heard), utterance.audio.samples)


def test_nobody_waits_for_sound_before_the_next_chunk_falls_due(synth: Synthesizer, beside: list[str]) -> None:
    """Three rows, whose chunks end at frames 4, 8, 16, 28 and 30: each begins when the frames after it are launched."""
    talks, seen = [talk(f"Number {n}.") for n in range(3)], []
    for event in synth.speak(talks, GenerationOptions(max_duration=30 * 0.08, seed=1)):
        if isinstance(event, FrameProgress) and event.frames % 4 == 0 and event.conversation is talks[-1]:
            seen.append("".join(word[0] for word in beside))
    assert seen == ["", "baaa", "baaab", "baaabaaa", "baaabaaab", "baaabaaab", "baaabaaabaaa"]
    assert "".join(word[0] for word in beside) == "baaabaaabaaabb" + 2 * "aaa"


def test_frames_of_a_burst_that_come_after_an_early_end_are_dropped(
    synth: Synthesizer, beside: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Early(TakeBuilder):
        def add_frame(self, codes: torch.Tensor) -> str | None:
            return super().add_frame(codes) or ("silence" if len(self) == 6 else None)

    monkeypatch.setattr(csm_cli.generation.synthesizer, "TakeBuilder", Early)
    heard = spoken(
        list(synth.speak([talk("One.", "Two."), talk("Three.")], GenerationOptions(max_duration=1.0, seed=1)))
    )
    assert [(u.stop, len(u.codes)) for u in heard] == [("silence", 6)] * 3


def test_conversations_are_taken_as_slots_become_free(synth: Synthesizer) -> None:
    taken = []

    def source() -> object:
        for n in range(6):
            taken.append(n)
            yield talk(f"Number {n}.")

    next(iter(synth.speak(source(), SHORT)))
    assert taken == [0, 1, 2]


def test_context_is_heard_and_each_file_encoded_once(
    synth: Synthesizer, sung: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original: Callable[..., object] = csm_cli.generation.synthesizer.read_audio
    monkeypatch.setattr(
        csm_cli.generation.synthesizer, "read_audio", lambda path, *rest: (read.append(path), original(path, *rest))[1]
    )
    heard = (Turn(0, "La la.", recording=sung),)
    with_context, again = (spoken(list(synth.speak([talk("Hi.", context=heard)], SHORT)))[0] for _ in range(2))
    without = spoken(list(synth.speak([talk("Hi.")], SHORT)))[0]
    assert torch.equal(with_context.codes, again.codes)
    assert not torch.equal(with_context.codes, without.codes)
    assert read == [sung.path]


def test_a_recorded_turn_keeps_its_audio_and_is_heard(synth: Synthesizer, sung: Recording) -> None:
    turns = (Turn(0, "La la.", recording=sung), Turn(1, "Nice."), Turn(0, "La.", recording=sung))
    first, second, third = spoken(list(synth.speak([Conversation(turns)], SHORT)))
    assert (first.stop, second.stop, third.stop) == ("recorded", "cap", "recorded")
    np.testing.assert_allclose(first.audio.samples, 0.2 * np.sin(np.arange(24000) / 20), atol=1e-4)
    as_context = Conversation((Turn(1, "Nice."),), (Turn(0, "La la.", recording=sung),))
    (same,) = spoken(list(synth.speak([as_context], GenerationOptions(max_duration=0.4))))
    assert torch.equal(second.codes, same.codes)


def test_a_broken_context_costs_only_its_own_conversation(synth: Synthesizer, tmp_path: Path) -> None:
    broken = (Turn(0, "La.", recording=Recording(tmp_path / "none.wav")),)
    events = list(synth.speak([talk("A."), talk("B.", context=broken, name="b"), talk("C.")], SHORT))
    assert [u.turn.text for u in spoken(events)] == ["A.", "C."]
    (failure,) = [event for event in events if isinstance(event, ConversationFailed)]
    assert failure.conversation.id == "b"
    assert isinstance(failure.error, AudioUnreadable)


def test_a_text_too_long_for_the_window_is_said(synth: Synthesizer) -> None:
    (failure,) = list(synth.speak([talk("word " * 200)], GenerationOptions(seed=1)))
    assert isinstance(failure, ConversationFailed)
    assert isinstance(failure.error, PromptTooLong)


def test_a_model_that_says_nothing_is_empty(mute_checkpoint: Path) -> None:
    synth = Synthesizer(open_checkpoint(str(mute_checkpoint)), CPU, torch.float32)
    (utterance,) = spoken(list(synth.speak([talk("Hello.")], GenerationOptions(seed=1))))
    assert (utterance.stop, len(utterance.audio.samples)) == ("empty", 0)


def test_flags_override_turns_and_turns_override_the_scripts_defaults(synth: Synthesizer) -> None:
    turns = (Turn(0, "A."), Turn(0, "B.", options=GenerationOptions(max_duration=0.16, seed=9)))
    script = Conversation(turns, defaults=GenerationOptions(max_duration=0.4, seed=50))
    found = []
    for flags in (GenerationOptions(), GenerationOptions(max_duration=0.24), GenerationOptions(seed=0)):
        utterances = spoken(list(synth.speak([script], flags)))
        found.append([(len(each.codes), each.seed) for each in utterances])
    assert found == [[(5, 50), (2, 9)], [(3, 50), (3, 9)], [(5, 0), (2, 1)]]


WILD = GenerationOptions(temperature=1.0, seed=1)  # this checkpoint never ends a turn by itself
CAREFUL = RetryPolicy(trim=True, max_retries=2)


class Judge(TakeBuilder):
    """Finds fault with every take but those of seed 2, and lets none end early."""

    def add_frame(self, codes: torch.Tensor) -> None:
        super().add_frame(codes)

    def finish(self, stop: str) -> Take:
        made = super().finish(stop)
        return replace(made, fault="" if made.seed == 2 else "is bad")


def test_a_bad_take_is_followed_by_the_next_seeds_until_one_is_good(
    synth: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (second,) = spoken(list(synth.speak([talk("Hello.")], replace(WILD, seed=2))))
    monkeypatch.setattr(csm_cli.generation.synthesizer, "TakeBuilder", Judge)
    (kept,) = spoken(list(synth.speak([talk("Hello.")], WILD, CAREFUL)))
    assert [take.seed for take in kept.takes] == [1, 2]
    assert (kept.seed, kept.fault) == (2, "") and torch.equal(kept.codes, second.codes)


def test_a_conversation_ends_with_a_turn_that_has_no_good_take(
    synth: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csm_cli.generation.synthesizer, "TakeBuilder", Judge)
    hopeless, other = talk("Hello.", "And more.", name="a"), talk("Hi.", name="b")
    heard = spoken(list(synth.speak([hopeless, other], replace(SHORT, temperature=1.0, seed=5), CAREFUL)))
    assert [(u.conversation.id, len(u.takes), u.fault) for u in heard] == [("a", 3, "is bad"), ("b", 3, "is bad")]


def test_greedy_takes_are_all_the_same_and_made_once(synth: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csm_cli.generation.synthesizer, "TakeBuilder", Judge)
    (only,) = spoken(list(synth.speak([talk("Hello.")], SHORT, CAREFUL)))
    assert len(only.takes) == 1


def test_a_take_that_ends_early_frees_its_slot_and_what_is_kept_is_heard(
    synth: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(TakeBuilder):
        def add_frame(self, codes: torch.Tensor) -> str | None:
            super().add_frame(codes)
            return "silence" if len(self) == 4 else None

        def finish(self, stop: str) -> Take:
            made = super().finish(stop)
            return replace(made, codes=made.codes[:2], fault="")

    monkeypatch.setattr(csm_cli.generation.synthesizer, "TakeBuilder", Impatient)
    first, second = spoken(list(synth.speak([talk("One.", "Two.")], SHORT, CAREFUL)))
    assert (first.stop, second.stop) == ("silence", "silence") and not synth.engine.busy
    monkeypatch.undo()
    rows = [synth.prompt_builder.turn_tokens(0, "One.", first.codes), synth.prompt_builder.turn_tokens(1, "Two.", None)]
    (alone,) = engine_codes(synth.engine, [Request(torch.cat(rows), greedy(5))])
    assert torch.equal(alone[:2], second.codes)


PARTS = RetryPolicy(trim=True, max_retries=2, chunk_chars=12)
LONG = talk("One is here. Two is here. Three is here.", "And me.")


class Ender(TakeBuilder):
    """Ends every take after its fourth frame, with a fault where the seed is in `bad`."""

    bad: tuple[int, ...] = ()

    def add_frame(self, codes: torch.Tensor) -> str | None:
        super().add_frame(codes)
        return "silence" if len(self) == 4 else None

    def finish(self, stop: str) -> Take:
        made = super().finish(stop)
        fault = "is bad" if made.seed in self.bad else ""
        return replace(made, codes=torch.stack(self._frames), samples=np.full(4 * 1920, 0.5, np.float32), fault=fault)


@pytest.fixture
def ender(monkeypatch: pytest.MonkeyPatch) -> type[Ender]:
    class Mine(Ender):
        pass

    monkeypatch.setattr(csm_cli.generation.synthesizer, "TakeBuilder", Mine)
    return Mine


def test_a_long_turn_comes_out_as_one(synth: Synthesizer, ender: type[Ender]) -> None:
    ender.bad = (2,)
    events = list(synth.speak([LONG], WILD, PARTS))
    whole, after = spoken(events)
    assert whole.turn.text == "One is here. Two is here. Three is here."
    assert [piece.text for piece in whole.segments] == ["One is here.", "Two is here.", "Three is here."]
    assert [(take.chunk_number, take.seed) for take in whole.takes] == [(1, 1), (2, 2), (2, 3), (3, 4)]
    kept = [whole.takes[index].codes for index in (0, 2, 3)]
    assert torch.equal(whole.codes, torch.cat(kept))
    assert (whole.seed, whole.stop, whole.fault) == (1, "silence", "")
    assert [take.seed for take in after.takes] == [2, 3]
    frames = [event.frames for event in events if isinstance(event, FrameProgress)]
    assert max(frames[:12]) == 11


def test_a_split_turn_repeats_with_the_seed_it_reports(synth: Synthesizer, ender: type[Ender]) -> None:
    ender.bad = (7,)
    first, again = (spoken(list(synth.speak([LONG], replace(WILD, seed=seed), PARTS)))[0] for seed in (7, 7))
    assert first.seed == 7
    assert torch.equal(first.codes, again.codes)


def test_later_parts_hear_the_earlier_ones(synth: Synthesizer, ender: type[Ender]) -> None:
    whole = spoken(list(synth.speak([LONG], WILD, PARTS)))[0]
    turns = tuple(Turn(0, piece.text) for piece in whole.segments)
    alone = spoken(list(synth.speak([Conversation(turns)], WILD, RetryPolicy(trim=True))))
    assert torch.equal(whole.codes, torch.cat([u.codes for u in alone]))


def test_a_part_without_a_good_take_is_the_turns_fault(synth: Synthesizer, ender: type[Ender]) -> None:
    ender.bad = (2, 3, 4)
    (only,) = spoken(list(synth.speak([LONG], WILD, PARTS)))
    assert only.fault == "is bad"
    assert [take.seed for take in only.takes] == [1, 2, 3, 4]


def test_of_several_takes_the_best_is_kept(synth: Synthesizer, ender: type[Ender]) -> None:
    ender.bad = (1, 3)
    (kept,) = spoken(list(synth.speak([talk("Hello.")], WILD, RetryPolicy(trim=True, takes=3))))
    assert [take.seed for take in kept.takes] == [1, 2, 3]
    assert (kept.seed, kept.fault) == (2, "")


def test_where_none_of_several_is_good_there_are_retries(synth: Synthesizer, ender: type[Ender]) -> None:
    ender.bad = (1, 2, 3)
    (kept,) = spoken(list(synth.speak([talk("Hello.")], WILD, RetryPolicy(trim=True, takes=2, max_retries=2))))
    assert ([take.seed for take in kept.takes], kept.seed) == ([1, 2, 3, 4], 4)


class Ears:
    """Hears these words, one take after another."""

    def __init__(self, *words: str) -> None:
        self.words = list(words)

    def transcribe(self, audio: Audio) -> str:
        assert audio.rate == 24000
        return self.words.pop(0)


def test_a_take_that_says_other_words_is_tried_again(synth: Synthesizer, ender: type[Ender]) -> None:
    spelled = Conversation((Turn(0, "Hello Ana there."),), lexicon={"Ana": "Anna"})
    (kept,) = spoken(list(synth.speak([spelled], WILD, CAREFUL, Ears("Something else.", "Hello Anna there"))))
    assert (kept.seed, kept.fault) == (2, "")
    assert [take.transcription.text for take in kept.takes if take.transcription] == [
        "Something else.",
        "Hello Anna there",
    ]
    assert kept.takes[0].fault.startswith("was heard as")


def test_what_the_lexicon_respells_is_another_text_to_the_model_alone(synth: Synthesizer) -> None:
    respelled = replace(talk("Hello Ana."), lexicon={"ana": "Anna"})
    mine, same, other = (
        spoken(list(synth.speak([each], SHORT)))[0] for each in (respelled, talk("Hello Anna."), talk("Hello Ana."))
    )
    assert mine.turn.text == "Hello Ana."
    assert torch.equal(mine.codes, same.codes) and not torch.equal(mine.codes, other.codes)


def test_how_full_the_window_was_is_told(synth: Synthesizer) -> None:
    words = "word " * 35  # a position a character
    first, second, third = spoken(list(synth.speak([talk(words, words, words)], SHORT)))
    prompt = len(synth.prompt_builder.text_ids(0, words))
    assert first.peak_positions == prompt + 5
    assert second.peak_positions == 2 * prompt + 1 + 2 * 5
    assert third.peak_positions == 2 * prompt + 1 + 2 * 5
    assert [u.evicted for u in (first, second, third)] == [(), (), (1,)]
