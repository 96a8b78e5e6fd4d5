"""Scripts and manifests: the diagnostics of invalid ones as printed, the conversations of valid ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from csm_cli.errors import ScriptInvalid
from csm_cli.script import diagnostic_lines, read_either, read_manifest, read_script, script_from
from csm_cli.types import Conversation, GenerationOptions, Recording, Turn

CASES = Path(__file__).parents[1] / "cases"
SAMPLES = Path(__file__).parents[2] / "samples"
BAD = sorted(path for path in CASES.glob("*/*") if path.suffix != ".txt")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the audio files that cases name."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("one.wav", np.zeros(24000, np.float32), 24000)
    soundfile.write("latin.wav", np.zeros(24000, np.float32), 24000)
    soundfile.write("empty.wav", np.zeros(0, np.float32), 24000)
    soundfile.write("eleven_hours.wav", np.zeros(11 * 3600, np.float32), 1)
    Path("latin.txt").write_bytes("Olé".encode("latin-1"))
    Path("broken.wav").write_bytes(b"RIFF no wave")
    Path("folder").mkdir()
    return tmp_path


def diagnostics(path: str | Path, kind: str = "scripts") -> list[str]:
    read = read_script if kind == "scripts" else read_manifest
    with pytest.raises(ScriptInvalid) as caught:
        read(path)
    return diagnostic_lines(caught.value)


def script(folder: Path, text: str, name: str = "script.yaml") -> Conversation:
    (folder / name).write_text(text, encoding="utf-8")
    return read_script(name)


def manifest(folder: Path, *lines: object) -> list[Conversation]:
    (folder / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return list(read_manifest("m.jsonl"))


@pytest.mark.parametrize("case", BAD, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_diagnostics_are_printed_as_expected(case: Path, folder: Path) -> None:
    shutil.copy(case, folder)
    expected = case.with_suffix(".txt").read_text().splitlines()
    assert [line.rstrip() for line in diagnostics(case.name, case.parent.name)] == expected


def test_every_case_has_an_expectation() -> None:
    assert len(BAD) >= 40
    assert {path.with_suffix(".txt") for path in BAD} == set(CASES.glob("*/*.txt"))


def test_a_script_is_resolved_to_a_conversation(folder: Path) -> None:
    text = """
csm: 1
title: Episode 12
defaults: {gap: 0.25, temperature: 0, max_duration: auto}
speakers:
  ana: {id: 0, voice: one.wav, voice_text: I am Ana., seed: 5}
  ben: {id: 1, gain: -1.5}
  cleo: {id: 2, voice: one.wav, voice_text: I am not in it.}
context:
  - {speaker: ben, audio: one.wav, text: "So?", start: 0.25, end: 0.75}
turns:
  - ana: Better than we feared.
  - {speaker: ben, id: t2, text: "Really?", offset: -0.2, seed: 42, gain: 1}
  - {pause: 1.5}
  - {pause: 0.5}
  - {speaker: ana, audio: one.wav, text: Not once.}
  - {pause: 2}
"""
    ana, file = Turn(0, "Better than we feared.", "ana", options=GenerationOptions(seed=5)), Path("one.wav")
    ben = Turn(1, "Really?", "ben", "t2", gap=-0.2, gain=-0.5, options=GenerationOptions(seed=42))
    assert script(folder, text) == Conversation(
        turns=(ana, ben, Turn(0, "Not once.", "ana", recording=Recording(file), gap=2.25)),
        context=(
            Turn(0, "I am Ana.", "ana", recording=Recording(file)),
            Turn(1, "So?", "ben", recording=Recording(file, 0.25, 0.75), gain=-1.5),
        ),
        id="script",
        title="Episode 12",
        tail=2.0,
        defaults=GenerationOptions(temperature=0.0, max_duration=0.0),
    )


@pytest.mark.parametrize("word", ["12:30:45", "on", "no", "null", "~", "0x10", "1e3", "2024-01-01", "[bold] hi", "7"])
def test_yaml_scalars_stay_as_written(word: str, folder: Path) -> None:
    written = f'"{word}"' if word.startswith("[") else word
    assert script(folder, f"turns:\n  - 0: {written}\n").turns[0].text == word
    named = script(folder, "speakers: {no: {id: 3}}\nturns: [{no: yes}]\n").turns[0]
    assert (named.name, named.speaker, named.text) == ("no", 3, "yes")


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_line_ends_of_every_system(end: str, folder: Path) -> None:
    text = end.join(["turns:", '- ana: "Hi\\tyou."', "- ben: it's #1", ""])
    (folder / "s.yaml").write_text(text, newline="")
    with pytest.raises(ScriptInvalid) as caught:
        read_script(folder / "s.yaml")
    assert [each.line for each in caught.value.diagnostics] == [3]


def test_block_text_loses_only_its_last_line_break(folder: Path) -> None:
    assert script(folder, "turns:\n  - 0: |\n      One.\n      Two.\n").turns[0].text == "One.\nTwo."


def test_a_transcript_is_read_from_beside_the_voice(folder: Path) -> None:
    (folder / "one.txt").write_text("\ufeffI am Ana.\n", encoding="utf-8")
    voiced = script(folder, "speakers: {ana: {id: 0, voice: one.wav}}\nturns: [{ana: Hi.}]\n")
    assert [turn.text for turn in voiced.context] == ["I am Ana."]


def test_paths_are_relative_to_the_script_and_may_use_backslashes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "clips").mkdir()
    shutil.copy("one.wav", "clips/two words.wav")
    monkeypatch.setenv("HOME", str(folder))
    line = "{{speaker: 0, audio: '{}', text: Hi.}}"
    entries = ", ".join(line.format(path) for path in (r"clips\two words.wav", "~/one.wav", folder / "one.wav"))
    (folder / "clips" / "s.yaml").write_text(f"turns: [{entries.replace('clips', '../clips', 1)}]")
    paths = [turn.recording.path for turn in read_script("clips/s.yaml").turns if turn.recording]
    assert [path.resolve() for path in paths] == [
        folder / "clips/two words.wav",
        folder / "one.wav",
        folder / "one.wav",
    ]


@pytest.mark.parametrize("suffix", ["yaml", "jsonl", "json", "txt"])
def test_a_byte_order_mark_is_ignored(suffix: str, folder: Path) -> None:
    (folder / f"s.{suffix}").write_bytes(b'\xef\xbb\xbf{"turns": [{"speaker": 0, "text": "Ol\xc3\xa9"}]}')
    assert read_script(folder / f"s.{suffix}").turns[0].text == "Olé"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("turns: [{0: Hi}]".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"turns:\n  - 0: Ol\xe9\n", "byte 0xE9 is not UTF-8; save the file as UTF-8"),
        (b"turns:\n  - 0: a\x00b\n", "YAML does not allow this character; remove it"),
        (b"x: " + b"a" * 4_000_000, "more than 4 MB of YAML; use JSONL instead"),
    ],
)
def test_undecodable_files_give_one_diagnostic(raw: bytes, message: str, folder: Path) -> None:
    (folder / "s.yaml").write_bytes(raw)
    with pytest.raises(ScriptInvalid) as caught:
        read_script("s.yaml")
    assert [diagnostic.message for diagnostic in caught.value.diagnostics] == [message]


def test_missing_files_and_folders_are_rejected(folder: Path) -> None:
    assert diagnostics("gone.yaml")[0].split(maxsplit=1) == ["gone.yaml", "no such file"]
    assert diagnostics("folder")[0].split(maxsplit=1) == ["folder", "is a directory; name a file in it"]


def test_unprintable_names_cannot_write_to_the_terminal(folder: Path) -> None:
    assert "\x1b" not in "".join(diagnostics("\x1b[31mgone.yaml"))


def test_a_manifest_line_is_a_conversation(folder: Path) -> None:
    context = [{"speaker": 1, "audio": "one.wav", "text": "Hi!"}]
    header = {"csm": 1, "defaults": {"top_k": 0}}
    lines = manifest(
        folder,
        header,
        {"id": "p-001", "speaker": 0, "text": "Hello.", "context": context, "seed": 7},
        {"custom_id": 7, "input": "Hi.", "role": "3"},
        {"turns": [{"0": "One."}, {"1": "Two."}]},
        {"text": "[0]Where? [1]Here, in [brackets]."},
        {"text": "[bold] is spoken"},
        {"messages": [{"role": "0", "content": "Hello from Sesame."}]},
    )
    assert [line.id for line in lines] == ["p-001", "7", "0004", "0005", "0006", "0007"]
    assert [[(turn.speaker, turn.text) for turn in line.turns] for line in lines] == [
        [(0, "Hello.")],
        [(3, "Hi.")],
        [(0, "One."), (1, "Two.")],
        [(0, "Where?"), (1, "Here, in [brackets].")],
        [(0, "[bold] is spoken")],
        [(0, "Hello from Sesame.")],
    ]
    assert lines[0].context == (Turn(1, "Hi!", "1", recording=Recording(Path("one.wav"))),)
    assert lines[0].turns[0].options == GenerationOptions(seed=7)
    assert {line.defaults for line in lines} == {GenerationOptions(top_k=0)}


def test_a_header_gives_every_line_its_voices(folder: Path) -> None:
    header = {"speakers": {"ana": {"id": 4, "voice": "one.wav", "voice_text": "I am Ana.", "temperature": 0.5}}}
    (line,) = manifest(folder, header, {"text": "Hello."})
    assert [(turn.speaker, turn.text, turn.options.temperature) for turn in (*line.context, *line.turns)] == [
        (4, "I am Ana.", None),
        (4, "Hello.", 0.5),
    ]


def test_a_lexicon_of_a_header_applies_to_every_line(folder: Path) -> None:
    conversation = script(folder, "lexicon: {Nguyen: win, 5: five}\nturns:\n  - 0: Ask Nguyen.\n")
    assert conversation.lexicon == {"Nguyen": "win", "5": "five"}
    assert conversation.turns[0].text == "Ask Nguyen."
    own = {"lexicon": {"b": "bee"}, "turns": [{"0": "b"}]}
    lines = manifest(folder, {"lexicon": {"a": "eh", "b": "be"}}, {"text": "a"}, own)
    assert [line.lexicon for line in lines] == [{"a": "eh", "b": "be"}, {"a": "eh", "b": "bee"}]


def test_a_speakers_seed_is_varied_by_turn_and_a_turns_seed_is_not(folder: Path) -> None:
    text = """
speakers: {ana: {id: 0, seed: 40}, ben: {id: 1}, cleo: {id: 2, seed: 9223372036854775807}}
turns:
  - ana: One.
  - ben: Two.
  - ana: Three.
  - {speaker: ana, text: Four., seed: 7}
  - cleo: Five.
"""
    assert [turn.options.seed for turn in script(folder, text).turns] == [40, None, 42, 7, 3]


def test_standard_input_is_a_dash(folder: Path) -> None:
    code = "from csm_cli.script import read_manifest as m; print(next(iter(m('-'))).turns[0].text)"
    run = subprocess.run([sys.executable, "-c", code], input=b'{"text": "Hi."}', capture_output=True, check=True)
    assert run.stdout.strip() == b"Hi."


def test_scripts_and_manifests_are_distinguished(folder: Path) -> None:
    assert [item.id for item in read_either(SAMPLES / "batch.jsonl")] == ["alone", "answer"]
    assert [item.title for item in read_either(SAMPLES / "dialogue.jsonl")] == ["A walk in the morning"]
    shutil.copy(CASES / "manifests" / "lines.jsonl", "m.jsonl")
    with pytest.raises(ScriptInvalid) as caught:
        read_either("m.jsonl")
    assert "carl" in str(caught.value.diagnostics)


def test_the_length_limit_applies_to_the_part_of_a_file(folder: Path) -> None:
    turn = {"speaker": 0, "text": "Hi.", "audio": "eleven_hours.wav", "start": 0, "end": 3}
    assert script_from({"turns": [turn]}).turns[0].recording == Recording(Path("eleven_hours.wav"), 0, 3)


@pytest.mark.parametrize(
    ("name", "problem"), [("fifo.wav", "is a pipe or a device"), ("bytes.raw", "not readable as audio")]
)
def test_unreadable_audio_is_rejected(folder: Path, name: str, problem: str) -> None:
    os.mkfifo("fifo.wav")
    Path("bytes.raw").write_bytes(bytes(100))
    with pytest.raises(ScriptInvalid) as caught:
        script_from({"turns": [{"speaker": 0, "text": "Hi.", "audio": name}]})
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.file == name and diagnostic.message.startswith(problem)


def test_control_characters_in_a_transcript_are_rejected(folder: Path) -> None:
    Path("one.txt").write_text("I am\x1b[2J Ana.")
    Path("s.yaml").write_text("speakers: {ana: {id: 0, voice: one.wav}}\nturns: [{ana: Hi.}]\n")
    assert "control character U+001B cannot be spoken" in diagnostics("s.yaml")[0]


def test_yaml_is_not_a_manifest(folder: Path) -> None:
    Path("m.yaml").write_text("turns:\n  - 0: Hi.\n")
    assert diagnostics("m.yaml", "manifests")[0].split(maxsplit=1)[1].startswith("is YAML, which is a script")


def test_plain_data_is_a_script(folder: Path) -> None:
    assert script_from({"turns": [{"speaker": 0, "text": "Hi."}]}).turns == (Turn(0, "Hi.", "0"),)
    with pytest.raises(ScriptInvalid) as caught:
        script_from({"turns": [{"speaker": 0, "text": ""}]})
    assert [(each.location, each.path) for each in caught.value.diagnostics] == [("<data>", "turns[0].text")]


def test_the_samples_agree() -> None:
    yaml, jsonl = (read_script(SAMPLES / f"dialogue.{suffix}") for suffix in ("yaml", "jsonl"))
    assert yaml == jsonl
    assert len(yaml.context) == 2
    chat = read_script(SAMPLES / "chat.json")
    assert ([turn.speaker for turn in chat.context], [turn.speaker for turn in chat.turns]) == ([1, 0], [1])


def test_reading_a_script_needs_no_torch() -> None:
    code = "import sys; from csm_cli.script import *; read_script(sys.argv[1]); print('torch' in sys.modules)"
    path = str(SAMPLES / "dialogue.yaml")
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    assert run.stdout.strip() == b"False"


def test_subtitles_are_rejected_with_the_command_that_converts_them(folder: Path) -> None:
    (folder / "talk.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHi.\n")
    with pytest.raises(ScriptInvalid) as caught:
        read_script("talk.srt")
    assert "csm script convert" in caught.value.diagnostics[0].message
