"""Synthesis of conversations with a tiny random checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import decode_all as engine_codes
from helpers.tiny import greedy

import csm_cli.generation.synthesizer
from csm_cli.audio.io import Audio
from csm_cli.checkpoint import open_checkpoint
from csm_cli.engine import Request
from csm_cli.errors import AudioUnreadable, PromptTooLong
from csm_cli.generation.events import AudioChunk, ConversationFailed, Event, FrameProgress, Utterance
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.generation.take import Take, TakeBuilder
from csm_cli.models.mimi import ChunkDecoder, run_inline
from csm_cli.types import Conversation, GenerationOptions, Recording, RetryPolicy, Turn

SHORT = GenerationOptions(max_duration=0.4, seed=1)  # five frames
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def synth(tiny_checkpoint: Path) -> Synthesizer:
    return Synthesizer(open_checkpoint(str(tiny_checkpoint)), CPU, torch.float32, slots=3)


@pytest.fixture(scope="module")
def tone_recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    import soundfile

    path = tmp_path_factory.mktemp("voices") / "la la.wav"
    soundfile.write(path, 0.2 * np.sin(np.arange(24000) / 20), 24000)
    return Recording(path)


def utterances_of(events: list[Event]) -> list[Utterance]:
    return [event for event in events if isinstance(event, Utterance)]


def conversation(*texts: str, name: str = "", context: tuple[Turn, ...] = ()) -> Conversation:
    return Conversation(tuple(Turn(n % 2, text) for n, text in enumerate(texts)), context, id=name)


def test_turns_come_in_order_with_their_audio(synth: Synthesizer) -> None:
    events = list(synth.speak([conversation("One.", "Two.", "Three.")], SHORT))
    utterances = utterances_of(events)
    assert [u.turn.text for u in utterances] == ["One.", "Two.", "Three."]
    assert [u.stop for u in utterances] == ["cap"] * 3
    assert [u.seed for u in utterances] == [1, 2, 3]
    assert all(u.codes.shape == (5, 8) and len(u.audio.samples) == 5 * 1920 for u in utterances)
    assert [event.frames for event in events if isinstance(event, FrameProgress)] == [1, 2, 3, 4] * 3


def test_the_audio_is_the_codes_decoded(synth: Synthesizer) -> None:
    (utterance,) = utterances_of(list(synth.speak([conversation("Hello.")], SHORT)))
    np.testing.assert_allclose(utterance.audio.samples, synth.codec.decode(utterance.codes).numpy(), atol=1e-5)


def test_past_turns_change_the_next_turn(synth: Synthesizer) -> None:
    alone, after = (
        utterances_of(list(synth.speak([c], SHORT)))[-1] for c in (conversation("B."), conversation("Aha.", "B."))
    )
    assert not torch.equal(alone.codes, after.codes)


def test_conversations_generated_together_equal_each_alone(synth: Synthesizer) -> None:
    conversations = [conversation(f"Number {n}.", *["And more."] * (n % 3), name=str(n)) for n in range(7)]
    together: dict[str, list[list[list[int]]]] = {t.id: [] for t in conversations}
    for utterance in utterances_of(list(synth.speak(conversations, SHORT))):
        together[utterance.conversation.id].append(utterance.codes.tolist())
    for t in conversations:
        assert together[t.id] == [u.codes.tolist() for u in utterances_of(list(synth.speak([t], SHORT)))]


@pytest.fixture
def async_codec_log(synth: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As on CUDA: bursts of frames, and chunks that are decoded together. Says what the codec was actual."""
    log: list[str] = []

    def begin(work: Callable[[], torch.Tensor]) -> Callable[[], np.ndarray]:
        log.append("begun")
        done = run_inline(work)
        return lambda: (log.append("awaited"), done())[1]

    monkeypatch.setattr(
        csm_cli.generation.synthesizer, "ChunkDecoder", lambda codec, rows: ChunkDecoder(codec, begin, rows)
    )
    monkeypatch.setattr(synth.engine.runner, "steps_per_sync", 4)
    return log


@pytest.mark.parametrize(
    "retry_policy", [RetryPolicy(), RetryPolicy(trim=True, max_retries=1), RetryPolicy(stream=True)], ids=str
)
def test_an_asynchronous_codec_gives_the_same_audio(
    synth: Synthesizer, retry_policy: RetryPolicy, request: pytest.FixtureRequest
) -> None:
    conversations = [conversation(f"Number {n}.", *["And more."] * (n % 3), name=str(n)) for n in range(5)]
    options = GenerationOptions(temperature=1.0, max_duration=1.7, seed=3)
    expected = {
        (u.conversation.id, u.turn): u for u in utterances_of(list(synth.speak(conversations, options, retry_policy)))
    }
    request.getfixturevalue("async_codec_log")
    events = list(synth.speak(conversations, options, retry_policy))
    actual = {(u.conversation.id, u.turn): u for u in utterances_of(events)}
    assert actual.keys() == expected.keys()
    for key, utterance in actual.items():
        assert torch.equal(utterance.codes, expected[key].codes)
        assert (utterance.stop, utterance.fault) == (expected[key].stop, expected[key].fault)
        np.testing.assert_allclose(utterance.audio.samples, expected[key].audio.samples, atol=1e-5)
        chunks = [e.samples for e in events if isinstance(e, AudioChunk) and (e.conversation.id, e.turn) == key]
        assert not retry_policy.stream or np.array_equal(np.concatenate(chunks), utterance.audio.samples)


def test_audio_is_awaited_only_when_the_next_chunk_is_due(synth: Synthesizer, async_codec_log: list[str]) -> None:
    """Three rows, whose chunks end at frames 4, 8, 16, 28 and 30: each starts when the next frames are launched."""
    conversations, seen = [conversation(f"Number {n}.") for n in range(3)], []
    for event in synth.speak(conversations, GenerationOptions(max_duration=30 * 0.08, seed=1)):
        if isinstance(event, FrameProgress) and event.frames % 4 == 0 and event.conversation is conversations[-1]:
            seen.append("".join(word[0] for word in async_codec_log))
    assert seen == ["", "baaa", "baaab", "baaabaaa", "baaabaaab", "baaabaaab", "baaabaaabaaa"]
    assert "".join(word[0] for word in async_codec_log) == "baaabaaabaaabb" + 2 * "aaa"


def test_frames_of_a_step_after_an_early_stop_are_dropped(
    synth: Synthesizer, async_codec_log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Early(TakeBuilder):
        def add_frame(self, codes: torch.Tensor) -> str | None:
            return super().add_frame(codes) or ("silence" if len(self) == 6 else None)

    monkeypatch.setattr(csm_cli.generation.synthesizer, "TakeBuilder", Early)
    utterances = utterances_of(
        list(
            synth.speak(
                [conversation("One.", "Two."), conversation("Three.")], GenerationOptions(max_duration=1.0, seed=1)
            )
        )
    )
    assert [(u.stop, len(u.codes)) for u in utterances] == [("silence", 6)] * 3


def test_conversations_are_read_as_slots_become_free(synth: Synthesizer) -> None:
    taken = []

    def source() -> object:
        for n in range(6):
            taken.append(n)
            yield conversation(f"Number {n}.")

    next(iter(synth.speak(source(), SHORT)))
    assert taken == [0, 1, 2]


def test_context_counts_and_each_file_is_encoded_once(
    synth: Synthesizer, tone_recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original: Callable[..., object] = csm_cli.generation.synthesizer.read_audio
    monkeypatch.setattr(
        csm_cli.generation.synthesizer, "read_audio", lambda path, *rest: (read.append(path), original(path, *rest))[1]
    )
    context = (Turn(0, "La la.", recording=tone_recording),)
    with_context, again = (
        utterances_of(list(synth.speak([conversation("Hi.", context=context)], SHORT)))[0] for _ in range(2)
    )
    without = utterances_of(list(synth.speak([conversation("Hi.")], SHORT)))[0]
    assert torch.equal(with_context.codes, again.codes)
    assert not torch.equal(with_context.codes, without.codes)
    assert read == [tone_recording.path]


def test_a_recorded_turn_keeps_its_audio_and_is_context(synth: Synthesizer, tone_recording: Recording) -> None:
    turns = (Turn(0, "La la.", recording=tone_recording), Turn(1, "Nice."), Turn(0, "La.", recording=tone_recording))
    first, second, third = utterances_of(list(synth.speak([Conversation(turns)], SHORT)))
    assert (first.stop, second.stop, third.stop) == ("recorded", "cap", "recorded")
    np.testing.assert_allclose(first.audio.samples, 0.2 * np.sin(np.arange(24000) / 20), atol=1e-4)
    as_context = Conversation((Turn(1, "Nice."),), (Turn(0, "La la.", recording=tone_recording),))
    (same,) = utterances_of(list(synth.speak([as_context], GenerationOptions(max_duration=0.4))))
    assert torch.equal(second.codes, same.codes)


def test_an_unreadable_context_fails_only_its_own_conversation(synth: Synthesizer, tmp_path: Path) -> None:
    broken = (Turn(0, "La.", recording=Recording(tmp_path / "none.wav")),)
    events = list(
        synth.speak([conversation("A."), conversation("B.", context=broken, name="b"), conversation("C.")], SHORT)
    )
    assert [u.turn.text for u in utterances_of(events)] == ["A.", "C."]
    (failure,) = [event for event in events if isinstance(event, ConversationFailed)]
    assert failure.conversation.id == "b"
    assert isinstance(failure.error, AudioUnreadable)


def test_a_text_too_long_for_the_window_fails(synth: Synthesizer) -> None:
    (failure,) = list(synth.speak([conversation("word " * 200)], GenerationOptions(seed=1)))
    assert isinstance(failure, ConversationFailed)
    assert isinstance(failure.error, PromptTooLong)


def test_a_model_without_speech_gives_an_empty_utterance(silent_checkpoint: Path) -> None:
    synth = Synthesizer(open_checkpoint(str(silent_checkpoint)), CPU, torch.float32)
    (utterance,) = utterances_of(list(synth.speak([conversation("Hello.")], GenerationOptions(seed=1))))
    assert (utterance.stop, len(utterance.audio.samples)) == ("empty", 0)


def test_flags_override_turns_and_turns_override_the_scripts_defaults(synth: Synthesizer) -> None:
    turns = (Turn(0, "A."), Turn(0, "B.", options=GenerationOptions(max_duration=0.16, seed=9)))
    script = Conversation(turns, defaults=GenerationOptions(max_duration=0.4, seed=50))
    found = []
    for flags in (GenerationOptions(), GenerationOptions(max_duration=0.24), GenerationOptions(seed=0)):
        utterances = utterances_of(list(synth.speak([script], flags)))
        found.append([(len(each.codes), each.seed) for each in utterances])
    assert found == [[(5, 50), (2, 9)], [(3, 50), (3, 9)], [(5, 0), (2, 1)]]


WILD = GenerationOptions(temperature=1.0, seed=1)  # this checkpoint never ends a turn by itself
RETRY = RetryPolicy(trim=True, max_retries=2)


class Judge(TakeBuilder):
    """Only takes of seed 2 are usable, and none ends early."""

    def add_frame(self, codes: torch.Tensor) -> None:
        super().add_frame(codes)

    def finish(self, stop: str) -> Take:
        made = super().finish(stop)
        return replace(made, fault="" if made.seed == 2 else "is bad")


def test_an_unusable_take_is_retried_with_the_next_seeds(synth: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    (second,) = utterances_of(list(synth.speak([conversation("Hello.")], replace(WILD, seed=2))))
    monkeypatch.setattr(csm_cli.generation.synthesizer, "TakeBuilder", Judge)
    (chosen,) = utterances_of(list(synth.speak([conversation("Hello.")], WILD, RETRY)))
    assert [take.seed for take in chosen.takes] == [1, 2]
    assert (chosen.seed, chosen.fault) == (2, "") and torch.equal(chosen.codes, second.codes)


def test_a_conversation_ends_at_a_turn_without_a_usable_take(
    synth: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csm_cli.generation.synthesizer, "TakeBuilder", Judge)
    failing, other = conversation("Hello.", "And more.", name="a"), conversation("Hi.", name="b")
    utterances = utterances_of(list(synth.speak([failing, other], replace(SHORT, temperature=1.0, seed=5), RETRY)))
    assert [(u.conversation.id, len(u.takes), u.fault) for u in utterances] == [("a", 3, "is bad"), ("b", 3, "is bad")]


def test_greedy_takes_are_made_once(synth: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csm_cli.generation.synthesizer, "TakeBuilder", Judge)
    (only,) = utterances_of(list(synth.speak([conversation("Hello.")], SHORT, RETRY)))
    assert len(only.takes) == 1


def test_an_early_stop_frees_the_slot_and_the_trimmed_take_is_context(
    synth: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopsEarly(TakeBuilder):
        def add_frame(self, codes: torch.Tensor) -> str | None:
            super().add_frame(codes)
            return "silence" if len(self) == 4 else None

        def finish(self, stop: str) -> Take:
            made = super().finish(stop)
            return replace(made, codes=made.codes[:2], fault="")

    monkeypatch.setattr(csm_cli.generation.synthesizer, "TakeBuilder", StopsEarly)
    first, second = utterances_of(list(synth.speak([conversation("One.", "Two.")], SHORT, RETRY)))
    assert (first.stop, second.stop) == ("silence", "silence") and not synth.engine.busy
    monkeypatch.undo()
    rows = [synth.prompt_builder.turn_tokens(0, "One.", first.codes), synth.prompt_builder.turn_tokens(1, "Two.", None)]
    (alone,) = engine_codes(synth.engine, [Request(torch.cat(rows), greedy(5))])
    assert torch.equal(alone[:2], second.codes)


CHUNKED = RetryPolicy(trim=True, max_retries=2, chunk_chars=12)
LONG = conversation("One is here. Two is here. Three is here.", "And me.")


class Ender(TakeBuilder):
    """Ends every take after its fourth frame, with a fault where the seed is in `bad`."""

    bad: tuple[int, ...] = ()

    def add_frame(self, codes: torch.Tensor) -> str | None:
        super().add_frame(codes)
        return "silence" if len(self) == 4 else None

    def finish(self, stop: str) -> Take:
        made = super().finish(stop)
        fault = "is bad" if made.seed in self.bad else ""
        return replace(made, codes=torch.stack(self.frames), samples=np.full(4 * 1920, 0.5, np.float32), fault=fault)


@pytest.fixture
def ender(monkeypatch: pytest.MonkeyPatch) -> type[Ender]:
    class Mine(Ender):
        pass

    monkeypatch.setattr(csm_cli.generation.synthesizer, "TakeBuilder", Mine)
    return Mine


def test_a_chunked_turn_is_one_utterance(synth: Synthesizer, ender: type[Ender]) -> None:
    ender.bad = (2,)
    events = list(synth.speak([LONG], WILD, CHUNKED))
    whole, after = utterances_of(events)
    assert whole.turn.text == "One is here. Two is here. Three is here."
    assert [segment.text for segment in whole.segments] == ["One is here.", "Two is here.", "Three is here."]
    assert [(take.chunk_number, take.seed) for take in whole.takes] == [(1, 1), (2, 2), (2, 3), (3, 4)]
    chosen = [whole.takes[index].codes for index in (0, 2, 3)]
    assert torch.equal(whole.codes, torch.cat(chosen))
    assert (whole.seed, whole.stop, whole.fault) == (1, "silence", "")
    assert [take.seed for take in after.takes] == [2, 3]
    frames = [event.frames for event in events if isinstance(event, FrameProgress)]
    assert max(frames[:12]) == 11


def test_a_chunked_turn_repeats_with_its_reported_seed(synth: Synthesizer, ender: type[Ender]) -> None:
    ender.bad = (7,)
    first, again = (utterances_of(list(synth.speak([LONG], replace(WILD, seed=seed), CHUNKED)))[0] for seed in (7, 7))
    assert first.seed == 7
    assert torch.equal(first.codes, again.codes)


def test_later_chunks_have_the_earlier_ones_as_context(synth: Synthesizer, ender: type[Ender]) -> None:
    whole = utterances_of(list(synth.speak([LONG], WILD, CHUNKED)))[0]
    turns = tuple(Turn(0, segment.text) for segment in whole.segments)
    alone = utterances_of(list(synth.speak([Conversation(turns)], WILD, RetryPolicy(trim=True))))
    assert torch.equal(whole.codes, torch.cat([u.codes for u in alone]))


def test_a_chunk_without_a_usable_take_is_the_turns_fault(synth: Synthesizer, ender: type[Ender]) -> None:
    ender.bad = (2, 3, 4)
    (only,) = utterances_of(list(synth.speak([LONG], WILD, CHUNKED)))
    assert only.fault == "is bad"
    assert [take.seed for take in only.takes] == [1, 2, 3, 4]


def test_the_best_of_several_takes_is_chosen(synth: Synthesizer, ender: type[Ender]) -> None:
    ender.bad = (1, 3)
    (chosen,) = utterances_of(list(synth.speak([conversation("Hello.")], WILD, RetryPolicy(trim=True, takes=3))))
    assert [take.seed for take in chosen.takes] == [1, 2, 3]
    assert (chosen.seed, chosen.fault) == (2, "")


def test_without_a_usable_take_there_are_retries(synth: Synthesizer, ender: type[Ender]) -> None:
    ender.bad = (1, 2, 3)
    (chosen,) = utterances_of(
        list(synth.speak([conversation("Hello.")], WILD, RetryPolicy(trim=True, takes=2, max_retries=2)))
    )
    assert ([take.seed for take in chosen.takes], chosen.seed) == ([1, 2, 3, 4], 4)


class FakeRecognizer:
    """Returns these texts, one for each take."""

    def __init__(self, *words: str) -> None:
        self.words = list(words)

    def transcribe(self, audio: Audio) -> str:
        assert audio.rate == 24000
        return self.words.pop(0)


def test_a_take_with_other_words_is_retried(synth: Synthesizer, ender: type[Ender]) -> None:
    spelled = Conversation((Turn(0, "Hello Ana there."),), lexicon={"Ana": "Anna"})
    (chosen,) = utterances_of(
        list(synth.speak([spelled], WILD, RETRY, FakeRecognizer("Something else.", "Hello Anna there")))
    )
    assert (chosen.seed, chosen.fault) == (2, "")
    assert [take.transcription.text for take in chosen.takes if take.transcription] == [
        "Something else.",
        "Hello Anna there",
    ]
    assert chosen.takes[0].fault.startswith("was recognized as")


def test_the_lexicon_changes_the_models_text_only(synth: Synthesizer) -> None:
    respelled = replace(conversation("Hello Ana."), lexicon={"ana": "Anna"})
    mine, same, other = (
        utterances_of(list(synth.speak([each], SHORT)))[0]
        for each in (respelled, conversation("Hello Anna."), conversation("Hello Ana."))
    )
    assert mine.turn.text == "Hello Ana."
    assert torch.equal(mine.codes, same.codes) and not torch.equal(mine.codes, other.codes)


def test_the_peak_positions_are_reported(synth: Synthesizer) -> None:
    words = "word " * 35  # a position a character
    first, second, third = utterances_of(list(synth.speak([conversation(words, words, words)], SHORT)))
    prompt = len(synth.prompt_builder.text_ids(0, words))
    assert first.peak_positions == prompt + 5
    assert second.peak_positions == 2 * prompt + 1 + 2 * 5
    assert third.peak_positions == 2 * prompt + 1 + 2 * 5
    assert [u.evicted for u in (first, second, third)] == [(), (), (1,)]
