"""Failures and their exit codes, as the table on top of csm_cli/errors.py has them."""

from __future__ import annotations

import re

import pytest

from csm_cli import errors
from csm_cli.errors import MAX_DIAGNOSTICS_SHOWN, CsmError, Diagnostic, ScriptInvalid

CODES = {name: int(code) for name, code in re.findall(r"^[│├└─ ]*(\w+) +(\d)\b", errors.__doc__ or "", re.MULTILINE)}
CLASSES = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, CsmError)}


def test_the_table_names_every_failure() -> None:
    assert set(CODES) == set(CLASSES)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_failure_ends_with_the_code_of_the_table(name: str) -> None:
    assert CLASSES[name].code == CODES[name]


def test_complaints_are_sorted_counted_and_not_endless() -> None:
    places = [Diagnostic("a.yaml", line, 1, "turns", "wrong") for line in range(MAX_DIAGNOSTICS_SHOWN + 5, 0, -1)]
    failure = ScriptInvalid(places)
    assert [diagnostic.line for diagnostic in failure.diagnostics] == list(range(1, MAX_DIAGNOSTICS_SHOWN + 1))
    assert str(failure) == f"205 errors, the first {MAX_DIAGNOSTICS_SHOWN} are above; nothing was generated"
    assert str(ScriptInvalid(places[:1])) == "1 error; nothing was generated"
