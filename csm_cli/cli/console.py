"""Standard output, standard error and the log. User text is printed as it is, never as markup."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import sys
import unicodedata
import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli.errors import UsageError

if TYPE_CHECKING:
    from csm_cli.cli.options import OutputOptions


_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they reorder what a terminal shows


_command_line: ContextVar[tuple[str, ...]] = ContextVar("command_line", default=())
_REDO_FLAGS = ("--redo", "--fresh", "--retry-failed", "--force")  # of one run, not of the next


def remember_command_line(arguments: Sequence[str]) -> None:
    _command_line.set(tuple(arguments))


def command_line() -> str:
    """The command of this process as a shell reads it, without what is for one run only; empty if it is unknown."""
    words: list[str] = []
    is_value = False
    for word in _command_line.get():
        name = word.partition("=")[0]
        if not is_value and name not in _REDO_FLAGS:
            words.append(word)
        is_value = word == "--redo"
    return shlex.join(["csm", *words]) if words else ""


def emit(line: str) -> None:
    """Prints a line of the result and flushes it, for readers of a pipe."""
    print(_printable(line), flush=True)


def emit_path(path: Path | str) -> None:
    """Prints a path or URL: its exact bytes to a pipe, as `use_utf8` permits; to a terminal as `emit`."""
    print(_printable(str(path)) if sys.stdout.isatty() else path, flush=True)


def emit_json(record: Any) -> None:
    """Prints one line of JSON; control characters and the bytes of undecodable names as escapes."""
    text = json.dumps(record, ensure_ascii=False)
    print(
        re.sub("[\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text),
        flush=True,
    )


def emit_bytes(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def log_line(line: str) -> None:
    """Prints a line to standard error."""
    print(_printable(line), file=sys.stderr, flush=True)


def warn(line: str) -> None:
    log_line(f"csm: {line}")


def replace_closed_streams() -> None:
    """Opens the null device in place of each closed standard stream."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def use_utf8() -> None:
    """Makes the standard streams UTF-8, whatever the code page, so that YAML and JSON on a pipe can be read again.

    File names that are not valid text keep their bytes on standard output.
    """
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


def refuse_terminal() -> None:
    """Raises UsageError if standard output, which gets audio, is a terminal or closed."""
    if sys.__stdout__ is None:
        raise UsageError("-o - writes audio, and standard output is closed; add a pipe or name a file")
    if sys.stdout.isatty():
        raise UsageError("-o - writes audio, and standard output is a terminal; add a pipe or name a file")


def configure_logging(output_options: OutputOptions) -> None:
    """Sets the level of the package's log; silences the libraries' logs unless --verbose or --debug."""
    log = logging.getLogger("csm_cli")
    if output_options.verbose:
        log.setLevel(min(log.level, logging.INFO))  # it is DEBUG after --debug
    log.handlers = [_StderrHandler()]
    log.propagate = False
    if log.isEnabledFor(logging.INFO):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if output_options.quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")


class _StderrHandler(logging.Handler):
    """Looks up sys.stderr for each record, since a progress bar replaces it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def _printable(line: str) -> str:
    """`line` with control characters (Cc), lone surrogates of undecodable names (Cs) and marks of direction escaped."""
    odd = (unicodedata.category(char) in ("Cc", "Cs") or char in _DIRECTION for char in line)
    return "".join(char.encode("unicode_escape").decode() if bad else char for char, bad in zip(line, odd, strict=True))
