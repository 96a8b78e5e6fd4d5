"""The Python API: the same audio as the commands, typed results, and errors of the package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.run import Result

import csm_cli

OPTIONS: dict[str, Any] = {"max_duration": 0.4, "seed": 1}  # five frames
FLAGS = ("--max-duration", 0.4, "--seed", 1)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> csm_cli.Model:
    return csm_cli.load(tiny_checkpoint, device="cpu", slots=2)


@pytest.fixture
def dialogue(tmp_path: Path, tone: Path) -> Path:
    turns = [{"speaker": "ana", "text": "Hi."}, {"speaker": "ben", "audio": tone.name, "text": "La.", "offset": 0.5}]
    turns.append({"speaker": "ana", "text": "Bye.", "offset": 0.25, "gain": -6})
    path = tmp_path / "dialogue.json"
    path.write_text(json.dumps({"turns": turns}))
    return path


def read(path: Path) -> np.ndarray:
    samples, _ = soundfile.read(path, dtype="int16")
    return np.asarray(samples)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import csm_cli, sys; print(sorted({'numpy', 'torch', 'pydantic'} & set(sys.modules)), csm_cli.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("[] ")


def test_all_public_names_exist() -> None:
    assert all(hasattr(csm_cli, name) for name in csm_cli.__all__) and "load" in dir(csm_cli)
    with pytest.raises(AttributeError, match="no attribute 'unload'"):
        _ = csm_cli.unload  # type: ignore[attr-defined]


def test_say_is_what_the_command_writes(
    model: csm_cli.Model, csm: Callable[..., Result], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    speech = model.say("Hello there.", **OPTIONS)
    assert speech.samples.dtype == np.float32 and len(speech.samples) == 5 * 1920
    assert (speech.rate, speech.duration, speech.stop, speech.seed) == (model.rate, 0.4, "cap", 1)
    assert (speech.turn.text, speech.turn.speaker) == ("Hello there.", 0)
    command = tmp_path / "command.wav"
    assert csm("say", "Hello there.", "--model", tiny_checkpoint, "-o", command, *FLAGS).code == 0
    saved = speech.save(tmp_path / "api.wav")
    assert saved == tmp_path / "api.wav" and np.array_equal(read(saved), read(command))
    with soundfile.SoundFile(saved) as first, soundfile.SoundFile(command) as second:
        assert first.comment == second.comment and first.comment.startswith("synthetic speech")


def test_a_tagged_text_is_one_track_of_several_turns(model: csm_cli.Model) -> None:
    speech = model.say("[0]Hi. [3]Oh?", **OPTIONS)
    assert [turn.speaker for turn in speech.turns] == [0, 3] and len(speech.samples) == 2 * 5 * 1920


def test_voice_and_context_change_the_speech(model: csm_cli.Model, tone: Path) -> None:
    plain = model.say("Hello.", **OPTIONS)
    tone.with_suffix(".txt").write_text("La la.")
    by_file = model.say("Hello.", voice=str(tone), **OPTIONS)
    by_flag = model.say("Hello.", voice=f"{tone}=La la.", **OPTIONS)
    turn = csm_cli.Turn(0, "La la.", recording=csm_cli.Recording(tone))
    by_context = [model.say("Hello.", context=[each], **OPTIONS) for each in (turn, f"[0]{tone}=La la.")]
    assert not np.array_equal(plain.samples, by_file.samples)
    assert all(np.array_equal(by_file.samples, each.samples) for each in (by_flag, *by_context))


def test_say_all_yields_in_order_and_equals_single_calls(model: csm_cli.Model) -> None:
    texts = ["One.", "[0]Two. [1]Yes.", "Three."]
    together = list(model.say_all(texts, **OPTIONS))
    assert [speech.turn.text for speech in together] == ["One.", "Two.", "Three."]
    for text, speech in zip(texts, together, strict=True):
        assert np.array_equal(model.say(text, **OPTIONS).samples, speech.samples)


def test_converse_yields_turns_and_mix_is_the_commands_track(
    model: csm_cli.Model, csm: Callable[..., Result], tiny_checkpoint: Path, dialogue: Path
) -> None:
    turns = list(model.converse(dialogue, **OPTIONS))
    assert [(turn.turn.name, turn.stop, turn.seed) for turn in turns] == [
        ("ana", "cap", 1),
        ("ben", "recorded", None),
        ("ana", "cap", 3),
    ]
    track = csm_cli.mix(turns)
    assert (track.stop, track.seed, len(track.turns)) == ("cap", 1, 3)
    command = dialogue.with_name("command.wav")
    assert csm("converse", dialogue, "--model", tiny_checkpoint, "-o", command, *FLAGS).code == 0
    assert np.array_equal(read(track.save(dialogue.with_name("api.flac"))), read(command))


def test_a_script_can_be_a_dict_or_a_conversation(model: csm_cli.Model) -> None:
    (by_dict,) = model.converse({"turns": [{"speaker": "ana", "text": "Hi."}]}, **OPTIONS)
    (same,) = model.converse(csm_cli.Conversation((csm_cli.Turn(0, "Hi."),)), **OPTIONS)
    assert np.array_equal(by_dict.samples, same.samples)


def test_mix_reaches_a_loudness_and_refuses_nothing(model: csm_cli.Model) -> None:
    from csm_cli.audio.loudness import loudness

    track = csm_cli.mix([model.say("Hello.", **OPTIONS)], tail=0.1, loudness=-20)
    assert loudness(track.samples, track.rate) == pytest.approx(-20, abs=1.0) and track.duration == 0.5
    with pytest.raises(csm_cli.UsageError):
        csm_cli.mix([])


def test_a_stream_is_the_untrimmed_take_in_chunks(model: csm_cli.Model) -> None:
    chunks = list(model.stream("Hello there.", **OPTIONS))
    assert len(chunks) > 1 and all(chunk.dtype == np.float32 for chunk in chunks)
    streamed, spoken = np.concatenate(chunks), model.say("Hello there.", trim=False, **OPTIONS).samples
    assert np.allclose(streamed / max(1.0, np.abs(streamed).max()), spoken, atol=1e-6)  # a track is within full scale


def test_a_stream_that_is_not_read_to_its_end_frees_the_model(model: csm_cli.Model) -> None:
    stream = model.stream("Hello there.", **OPTIONS)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert model.say("Hello.", **OPTIONS).duration == 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"chunk_chars": 3}, "split|chunk_chars"),
        ({"takes": 0}, "takes"),
    ],
)
def test_impossible_values_are_named(model: csm_cli.Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(csm_cli.UsageError, match=message):
        model.say("Hello.", **options)


def test_an_unknown_option_is_a_type_error(model: csm_cli.Model) -> None:
    with pytest.raises(TypeError, match="temprature"):
        model.say("Hello.", temprature=1)  # type: ignore[call-arg]


def test_errors_are_the_packages_own(model: csm_cli.Model, silent_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(csm_cli.ScriptInvalid, match="1 error") as invalid:
        model.converse({"turns": [{"speaker": "ana"}]})
    assert "text" in "".join(invalid.value.__notes__)
    with pytest.raises(csm_cli.GenerationFailed, match=r'turn 1 \(0: "Hello."\) came out empty'):
        csm_cli.load(silent_checkpoint, device="cpu").say("Hello.", seed=1)
    with pytest.raises(csm_cli.ModelNotFound):
        csm_cli.load(tmp_path / "none", offline=True)
    with pytest.raises(csm_cli.VoiceNotFound):
        model.say("Hello.", voice="nobody")
    with pytest.raises(csm_cli.OutputRefused):
        model.say("Hello.", **OPTIONS).save(tmp_path / "a.xyz")
    with pytest.raises(csm_cli.UsageError):
        csm_cli.load(quantize="int3")


def test_the_bundled_voice_speaks() -> None:
    model = csm_cli.load(device="cpu")
    speech = model.say("Good morning.", voice="ash", seed=1)
    assert speech.stop == "eos" and 0.5 < speech.duration < 5 and not speech.warnings


DOCS = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_examples_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks in order, as one program."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    written = {path.name: soundfile.info(path).duration for path in tmp_path.iterdir()}
    assert set(written) == {"morning.wav", "line-1.flac", "line-2.flac", "dialogue.wav"}
    assert all(0.5 < duration < 15 for duration in written.values())


def test_the_python_api_takes_every_generation_option() -> None:
    from csm_cli.api import Options
    from csm_cli.settings import GENERATION

    assert set(GENERATION) <= set(Options.__annotations__)


def test_pauses_and_a_lexicon_in_a_text(model: csm_cli.Model) -> None:
    short, long = (model.say(f"Hello. [pause {seconds}] Bye.", **OPTIONS) for seconds in (0.5, 1.25))
    assert len(long.samples) - len(short.samples) == round(0.75 * model.rate)
    spelled, plain = (model.say(text, **OPTIONS).samples for text in ("Hello, Win.", "Hello, Nguyen."))
    assert np.array_equal(model.say("Hello, Nguyen.", lexicon={"Nguyen": "Win"}, **OPTIONS).samples, spelled)
    assert not np.array_equal(spelled, plain)
