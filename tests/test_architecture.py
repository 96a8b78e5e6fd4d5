"""Architecture: imports point downward, start-up is light, and names are plain and unique."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "csm_cli"

# Lowest first. A module may import from its own line and from the lines before it.
FLOORS = [
    ["errors"],
    ["types"],
    ["device", "storage", "settings"],
    ["audio", "script", "checkpoint", "models", "voices"],
    ["engine", "report"],
    ["generation"],
    ["batch"],
    ["serve"],
    ["data"],
    ["train"],
    ["bench"],
    ["api"],
    ["cli"],
    ["recipe", "__main__"],
]
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "assets" not in path.parts)


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("csm_cli."):
            names.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("csm_cli.")}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    upward = {other for other in imported_rooms(path) if ROOMS[other] > ROOMS[room]}
    assert not upward, f"{room} imports {upward} from above"


def test_training_does_not_know_the_engine() -> None:
    assert not [path for path in (PACKAGE / "train").glob("*.py") if {"engine", "synth"} & imported_rooms(path)]


HEAVY = ("torch", "transformers", "librosa", "numpy", "soundfile", "pydantic")


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import csm_cli", HEAVY),
        ("import csm_cli.cli", HEAVY),
        ("import csm_cli.device", HEAVY),
        ("import csm_cli.script", ("torch", "transformers", "librosa")),
        ("import csm_cli.generation.synthesizer", ("transformers", "librosa")),
    ],
)
def test_heavy_imports_are_late(statement: str, heavy: tuple[str, ...]) -> None:
    code = f"{statement}; import sys; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_package_root_has_six_modules() -> None:
    roots = {path.stem for path in PACKAGE.glob("*.py")}
    assert roots == {"__init__", "__main__", "api", "device", "errors", "types"}


def test_nothing_imports_the_recipe() -> None:
    """It is how the bundled voice was made, and no part of what a user runs."""
    users = {room_of(path) for path in modules() if "recipe" in imported_rooms(path)}
    assert users <= {"recipe"}


def test_class_names_are_unique() -> None:
    counts = Counter(
        node.name
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in counts.items() if count > 1]


# Names of an earlier private vocabulary; docs/architecture.md has the terms in use.
RETIRED = re.compile(
    "_*(Tape|Brief|Hand|Given|Said|Piece|Part|Care|Wish|Kept|Deck|Taped|Graphed|Pace|Room|Pick|Place|Scatter|Scribe"
    "|Entrusted|Marker|Tally|Complaint|Cast|Drafts|Telling|Told|Beside|Again|Order|Learner|Lesson|Aids|Portions|HEADLESS"
    "|EASY|burst|extent|sweeper|forgotten|breaths|deck|tape|talk|heard|hand|wish|care|told|said|kept|scribe|tally|hush"
    "|trip)_*"
)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_retired_names_are_not_used(path: Path) -> None:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for attribute in ("id", "attr", "name", "arg"):
            name = getattr(node, attribute, None)
            if isinstance(name, str) and RETIRED.fullmatch(name):
                found.add(name)
    assert not found
