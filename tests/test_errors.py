"""Errors have the exit codes in the table of csm_cli/errors.py."""

from __future__ import annotations

import re

import pytest

from csm_cli import errors
from csm_cli.errors import MAX_DIAGNOSTICS_SHOWN, CsmError, Diagnostic, ScriptInvalid

CODES = {name: int(code) for name, code in re.findall(r"^[│├└─ ]*(\w+) +(\d)\b", errors.__doc__ or "", re.MULTILINE)}
CLASSES = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, CsmError)}


def test_the_table_names_every_error() -> None:
    assert set(CODES) == set(CLASSES)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_each_error_has_the_exit_code_of_the_table(name: str) -> None:
    assert CLASSES[name].code == CODES[name]


def test_diagnostics_are_sorted_counted_and_limited() -> None:
    diagnostics = [Diagnostic("a.yaml", line, 1, "turns", "wrong") for line in range(MAX_DIAGNOSTICS_SHOWN + 5, 0, -1)]
    error = ScriptInvalid(diagnostics)
    assert [diagnostic.line for diagnostic in error.diagnostics] == list(range(1, MAX_DIAGNOSTICS_SHOWN + 1))
    assert str(error) == f"205 errors, the first {MAX_DIAGNOSTICS_SHOWN} are above; nothing was generated"
    assert str(ScriptInvalid(diagnostics[:1])) == "1 error; nothing was generated"
