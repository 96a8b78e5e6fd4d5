"""Any input is read or rejected with diagnostics that have a location."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from csm_cli.errors import MAX_DIAGNOSTICS_SHOWN, InputError, ScriptInvalid
from csm_cli.script import diagnostic_lines, read_either, read_manifest, read_script
from csm_cli.script.schema import TURN_FIELDS

WORDS = sorted(
    {*TURN_FIELDS, "turns", "messages", "speakers", "defaults", "context", "csm", "gap", "ana", "0", "content"}
)
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from([*WORDS, "one.wav"])
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
entries = st.dictionaries(st.sampled_from(WORDS), trees, min_size=1, max_size=4)
scripts = st.fixed_dictionaries(
    {"turns": st.lists(entries, max_size=3)},
    optional={"context": st.lists(entries, max_size=2), "speakers": trees, "defaults": trees, "messages": trees},
)
fast = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read_or_reject(read: Callable[[str], object], name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    try:
        read(name)
    except ScriptInvalid as invalid:
        assert invalid.diagnostics
        lines = diagnostic_lines(invalid)
        assert len(lines) == len(invalid.diagnostics) + 1
        assert all(line.isprintable() for line in lines)
        extent = len(re.findall("[\r\n]", content.decode("utf-8", "replace"))) + 2
        for diagnostic in invalid.diagnostics:
            assert diagnostic.message
            assert (diagnostic.column > 0 and 0 < diagnostic.line <= extent) or diagnostic.file != name


@fast
@given(scripts | trees)
def test_any_json_tree(tree: Any) -> None:
    raw = json.dumps(tree).encode()
    read_or_reject(read_script, "s.json", raw)
    read_or_reject(read_manifest, "m.jsonl", raw)


NEXT_LINE = {"turns": [{"0": {"\x85": None}, "ana": {"\x85": None}, "audio": {"\u2028": None}}]}


@fast
@given(scripts | trees)
@example(NEXT_LINE)
def test_any_yaml_tree(tree: Any) -> None:
    read_or_reject(read_script, "s.yaml", yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace"))


@fast
@given(
    st.lists(st.text(alphabet="-: []{}\"'\n\tab0&*!|>#,?\\", max_size=60) | st.sampled_from(["turns:\n", "- ana: "]))
)
@example(["turns:\n  - ", "[" * 100_000])
@example(["turns:\n  - ", "{a: " * 10_000])
@example(['{"turns": ', "[" * 100_000])
@example(["- " * 50_000])
def test_any_text(pieces: list[str]) -> None:
    raw = "".join(pieces).encode()
    for name in ("s.yaml", "s.json", "s.jsonl", "s.txt"):
        read_or_reject(read_either, name, raw)


cells = st.text(alphabet="ab0,;\"'\n\r\t #[]{}\x07\u2028é", max_size=12) | st.sampled_from(
    [*WORDS, '"', "[0]Hi. [1]Ho."]
)


@settings(fast, max_examples=50)
@given(st.sampled_from(["text", "id,text", "text,seed,speaker", "input,id"]), st.lists(st.lists(cells), max_size=6))
@example("text", [["a" * 200_000]])
@example("text", [["\r" * 1000]])
def test_any_table_and_any_lines(header: str, rows: list[list[str]]) -> None:
    raw = "\n".join([header, *map(",".join, rows)]).encode()
    for name in ("m.csv", "m.tsv", "m.txt"):
        read_or_reject(read_either, name, raw)


LONG = [
    b"turns:\n  - 0: " + b"a b " * 750_000,
    b"turns:\n- 0: [" + b"a," * 1_500_000,
    b'{"turns": [' + b"1," * 1_500_000,
    b'{"text": "' + b"[0]a " * 600_000 + b'"}',
    b'{"speaker": 0, "text": "' + b"a" * 3_000_000 + b'"}',
    b"{" * 5_000_000,
    b"a " * 1_500_000,
]


@pytest.mark.parametrize("raw", LONG, ids=lambda raw: raw[:12].decode())
def test_oversized_input_gives_short_diagnostics(raw: bytes) -> None:
    for name in ("s.yaml", "s.json", "s.jsonl", "m.txt"):
        Path(name).write_bytes(raw)
        with pytest.raises(ScriptInvalid) as caught:
            read_either(name)
        assert all(len(line) < 400 for line in diagnostic_lines(caught.value))


def test_many_diagnostics_are_counted_and_the_first_are_shown() -> None:
    Path("m.jsonl").write_text('{"text": ""}\n' * 5000)
    with pytest.raises(ScriptInvalid) as caught:
        read_manifest("m.jsonl")
    assert [diagnostic.line for diagnostic in caught.value.diagnostics] == list(range(1, MAX_DIAGNOSTICS_SHOWN + 1))
    assert str(caught.value).startswith(f"5000 errors, the first {MAX_DIAGNOSTICS_SHOWN} are above; nothing")


def test_a_file_that_changes_while_it_is_read_is_an_error() -> None:
    Path("m.jsonl").write_text('{"text": "Hi."}\n')
    manifest = read_manifest("m.jsonl")
    Path("m.jsonl").write_text('{"text": "Hi."}\n{"text": "Ho."}\n')
    with pytest.raises(InputError, match="was changed while it was read"):
        list(manifest)


@fast
@given(st.binary(max_size=80))
def test_any_bytes(raw: bytes) -> None:
    for name in ("s.yaml", "s.json", "s.jsonl"):
        read_or_reject(read_script, name, raw)
    read_or_reject(read_manifest, "m.jsonl", raw)


@pytest.mark.parametrize(
    "line",
    [
        r'{"text": "\ud800"}',
        r'{"text": "\u0000"}',
        '{"text": "Hi.", "seed": ' + "9" * 5000 + "}",
        '{"text": "Hi.", "seed": 1e999}',
        '{"text": "Hi.", "id": "' + "x" * 5000 + '"}',
        '{"text": "Hi.", "context": [{"speaker": 0, "text": "Hi.", "audio": "' + "x" * 5000 + '"}]}',
        '{"text": "Hi.", "context": [{"speaker": 0, "text": "Hi.", "audio": "~nobody/a.wav"}]}',
        '{"text": "Hi.", "speaker": ' + "9" * 4000 + "}",
    ],
)
def test_extreme_values_are_rejected(line: str) -> None:
    Path("m.jsonl").write_text(line)
    with pytest.raises(ScriptInvalid) as caught:
        read_manifest("m.jsonl")
    assert len(max(diagnostic_lines(caught.value), key=len)) < 6000


def test_diagnostics_are_sorted_and_counted() -> None:
    Path("s.yaml").write_text("turns:\n" + "".join(f"  - 0: {'x' if at % 2 else ''}\n" for at in range(30)))
    with pytest.raises(ScriptInvalid, match=r"^15 errors; nothing was generated") as caught:
        read_script("s.yaml")
    assert [diagnostic.line for diagnostic in caught.value.diagnostics] == list(range(2, 32, 2))
