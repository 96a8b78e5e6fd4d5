"""Names and files made to break a reader are diagnostics: reserved field names, devices and pipes, too many columns."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.audio import write_tone

from csm_cli.errors import Diagnostic, ScriptInvalid
from csm_cli.script import parse_voice, read_manifest, read_script, script_from
from csm_cli.script.limits import MAX_COLUMNS, MAX_TRANSCRIPT_BYTES


def refused(read: Callable[[], object]) -> tuple[Diagnostic, ...]:
    with pytest.raises(ScriptInvalid) as caught:
        read()
    return caught.value.diagnostics


# names with a meaning inside the validation: of a key's error, and of the members of unions
@pytest.mark.parametrize("name", ["[key]", "\0spoken", "\0x", "\0", "[0]", ""])
def test_any_field_name_is_only_a_name(name: str, tmp_path: Path) -> None:
    turn = {"speaker": "a", "text": "b", name: 1}
    data: dict[str, Any] = {"turns": [turn, {name: 3}], name: 2, "lexicon": {name: 4}, "speakers": {name: {name: 1}}}
    assert refused(lambda: script_from(data))
    (tmp_path / "s.json").write_text(json.dumps(data))
    (tmp_path / "m.jsonl").write_text(json.dumps({"text": "b", name: 1}) + "\n")
    (tmp_path / "m.csv").write_text(f"text,{name or '-'}\nhi,x\n")
    assert refused(lambda: read_script(tmp_path / "s.json"))
    assert {each.line for each in refused(lambda: read_manifest(tmp_path / "m.jsonl"))} == {1}
    if name.isprintable():
        (item,) = read_manifest(tmp_path / "m.csv")
        assert item.extra == {name or "-": "x"}
    else:
        assert refused(lambda: read_manifest(tmp_path / "m.csv"))[0].line in (1, 2)


def test_a_table_of_too_many_columns_names_their_number(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("text" + ",x" * MAX_COLUMNS + "\nhi\n")
    (diagnostic,) = refused(lambda: read_manifest(tmp_path / "m.csv"))
    assert str(MAX_COLUMNS + 1) in diagnostic.message


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "huge"])
def test_the_text_of_a_voice_is_a_small_regular_file(target: str, tmp_path: Path) -> None:
    write_tone(tmp_path / "v.wav", 1.0)
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to
    (tmp_path / "huge").write_bytes(b"x" * (MAX_TRANSCRIPT_BYTES + 1))
    (tmp_path / "v.txt").symlink_to(target)
    script = {"speakers": {"a": {"voice": "v.wav"}}, "turns": [{"a": "b"}]}
    assert "v.txt" in refused(lambda: parse_voice(str(tmp_path / "v.wav"), 0))[0].file
    assert "v.txt" in refused(lambda: script_from(script, tmp_path))[0].file


def test_a_device_is_no_script_and_a_pipe_is_one() -> None:
    assert "device" in refused(lambda: read_script("/dev/zero"))[0].message
    read, write = os.pipe()
    with os.fdopen(write, "wb") as file:
        file.write(b"turns:\n- a: Hello.\n")
    assert read_script(f"/dev/fd/{read}").turns[0].text == "Hello."
    os.close(read)
