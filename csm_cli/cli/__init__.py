"""The command line. `main` is the only place where failures become exit codes."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from csm_cli.cli.console import log_line, remember_command_line, replace_closed_streams, use_utf8, warn
from csm_cli.errors import INTERRUPTED, ScriptInvalid, failure_of

if TYPE_CHECKING:
    from typer import TyperException


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `csm` with these arguments, or the process's own; returns the exit code.

    --debug counts wherever it stands.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)
    arguments = [each for each in given[:end] if each != "--debug"] + given[end:]
    debug = len(arguments) < len(given)
    logging.getLogger("csm_cli").setLevel(logging.DEBUG if debug else logging.WARNING)
    replace_closed_streams()
    use_utf8()
    remember_command_line(arguments)
    try:
        code = _run(arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as closed_pipe:
        return int(closed_pipe.code or 0)
    except BaseException as error:  # panics of Rust are no Exceptions
        if debug:
            traceback.print_exc()
        return _report(error, arguments)
    if code == INTERRUPTED:
        warn("interrupted")
    return code


def _run(arguments: list[str]) -> int:
    from csm_cli.cli.app import app

    code: int | None = app(
        arguments, prog_name="csm", standalone_mode=False, obj={"help_all": "--help-all" in arguments}
    )
    return code or 0


def _report(error: BaseException, arguments: list[str]) -> int:
    from typer import TyperException

    if isinstance(error, TyperException):
        if error.format_message():  # empty where the help was printed for a missing command
            warn(_usage(error, arguments))
        return error.exit_code
    failure = failure_of(error)
    if isinstance(failure, ScriptInvalid):
        from csm_cli.script import diagnostic_lines

        for line in diagnostic_lines(failure):
            log_line(line)
    else:
        warn(str(failure))
    return failure.code


def _usage(error: TyperException, arguments: list[str]) -> str:
    """What is wrong with the command line, the nearest option, and the command whose help says more."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else _command(arguments)
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message.replace("Input should be", "must be").replace("Value error, ", "")  # pydantic's words
    near = getattr(error, "possibilities", None)
    if message.startswith("No such option") and near:
        message = f"{message.partition(' (')[0]}; did you mean {' or '.join(near)}?"
    end = " See" if message.endswith("?") else "; see"
    return f"{message[:1].lower()}{message[1:]}{end} `{command} -h`"


def _command(arguments: list[str]) -> str:
    """The command these arguments are for; not every error knows its own."""
    from typer.main import get_command

    from csm_cli.cli.app import app

    names, command = ["csm"], get_command(app)
    for word in (each for each in arguments if not each.startswith("-")):
        if word not in getattr(command, "commands", {}):
            break
        names.append(word)
        command = command.commands[word]  # type: ignore[attr-defined]
    return " ".join(names)
