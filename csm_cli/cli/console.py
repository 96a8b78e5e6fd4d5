"""What goes to standard output and standard error. User text is printed as it is, never as markup."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli.errors import UsageError

if TYPE_CHECKING:
    from csm_cli.cli.options import OutputOptions


def emit(line: str) -> None:
    """A line of result, at once: a reader may be waiting at the other end of a pipe."""
    print(_printable(line), flush=True)


def emit_path(path: Path) -> None:
    """Exactly as it is, whatever bytes its name has: `keep_names` made standard output take them."""
    print(path, flush=True)


def emit_json(record: Any) -> None:
    """One line; the bytes of undecodable names as JSON's escapes, since JSON is UTF-8."""
    text = json.dumps(record, ensure_ascii=False)
    print(re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text), flush=True)


def emit_bytes(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def log_line(line: str) -> None:
    """A line for the person who waits; none of it is a result."""
    print(_printable(line), file=sys.stderr, flush=True)


def warn(line: str) -> None:
    log_line(f"csm: {line}")


def open_streams() -> None:
    """Puts the null device where a standard stream is closed, on the descriptor that is free."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def keep_names() -> None:
    """Lets file names that are not text through standard output unchanged."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")


def refuse_terminal() -> None:
    """Raises UsageError where audio would be written to a terminal, or nowhere."""
    if sys.__stdout__ is None:
        raise UsageError("-o - writes audio, and standard output is closed; add a pipe or name a file")
    if sys.stdout.isatty():
        raise UsageError("-o - writes audio, and standard output is a terminal; add a pipe or name a file")


def set_up(output_options: OutputOptions) -> None:
    """Levels of our own log, and silence for the libraries'."""
    log = logging.getLogger("csm_cli")
    log.setLevel(logging.DEBUG if output_options.debug else logging.INFO if output_options.verbose else logging.WARNING)
    log.handlers = [_Notes()]
    log.propagate = False
    if output_options.verbose or output_options.debug:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if output_options.quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")


class _Notes(logging.Handler):
    """Looks sys.stderr up each time, since a progress bar stands in for it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def _printable(line: str) -> str:
    """`line` without what would steer a terminal (Cc), and without lone surrogates of undecodable names (Cs)."""
    odd = (unicodedata.category(char) in ("Cc", "Cs") for char in line)
    return "".join(char.encode("unicode_escape").decode() if bad else char for char, bad in zip(line, odd, strict=True))
