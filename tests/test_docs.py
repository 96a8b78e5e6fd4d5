"""Every command in the README and in docs/ is run, page by page, in a folder like a fresh clone.

Commands stand in fenced blocks marked `console`, each after `$ `. `csm` commands run in this process, except those with
shell syntax. What needs a person, a GPU or minutes is checked as far as it goes: benchmarks are parsed, `make` targets,
extras and configuration files must exist.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import soundfile
import yaml
from helpers.fakehub import FakeHub
from typer.main import get_command

from csm_cli.cli import main
from csm_cli.cli.app import app
from csm_cli.script.schema import json_schema
from csm_cli.settings import SETTINGS
from csm_cli.train.settings import FromScratchSettings, LoraSettings, TrainSettings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"[|<>&;]|\$\(")
AUDIO = re.compile(r"-o\s+['\"]?(\S+?\.(?:wav|flac))\b")
FOREIGN = re.compile(r"(pip|pipx|hf|git|cd|sudo|apt|accelerate|torchrun|pytest|uv|curl|ls|\.)$")


def commands(page: Path) -> list[str]:
    """The commands of a page in order; a trailing backslash joins lines, a comment after two spaces is dropped."""
    found = []
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append(re.sub(r"\s{2,}#.*$", "", line[2:]).strip())
    return found


CASES = [(page, command) for page in PAGES for command in commands(page)]


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """One folder per page, made when its first command runs."""
    made: dict[Path, Path] = {}

    def clone(page: Path) -> Path:
        if page not in made:
            folder = made[page] = tmp_path_factory.mktemp(f"clone {page.stem}")
            for name in ("samples", "configs"):
                shutil.copytree(ROOT / name, folder / name)
            recordings = shutil.copytree(ROOT / "samples" / "ljspeech", folder / "my-recordings")
            shutil.copy(recordings / "wavs" / "CS001-0001.flac", recordings / "wavs" / "CS001-0017.flac")
            with (recordings / "metadata.csv").open("a") as metadata:  # this id is held out for evaluation
                metadata.write("CS001-0017|The old dog sleeps by the door.|The old dog sleeps by the door.\n")
            shutil.copy(ROOT / "samples" / "context" / "ana.wav", folder / "clip.wav")
            for config in (folder / "configs" / "finetune").glob("*.yaml"):  # a run of seconds, not of hours
                settings = yaml.safe_load(config.read_text())
                config.write_text(yaml.safe_dump(settings | {"steps": 2, "precision": "float32", "tensorboard": False}))
            programs = folder / "bin"
            programs.mkdir()
            for name, script in {
                "csm": f'#!/bin/sh\nexec "{sys.executable}" -P -m csm_cli "$@"\n',
                "aplay": "#!/bin/sh\ncat > /dev/null\n",
            }.items():
                (programs / name).write_text(script)
                (programs / name).chmod(0o755)
        return made[page]

    return clone


@pytest.fixture
def desk(
    request: pytest.FixtureRequest,
    clones: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    played_audio: SimpleNamespace,
    server: FakeHub,
) -> Path:
    """The page's folder, as the working directory, with its own user folder and hub cache and a hub to ask."""
    folder = clones(request.getfixturevalue("page"))
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("CSM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CSM_HOME", str(folder / "home"))
    monkeypatch.setenv("CSM_SEED", "1")  # the same takes in every run
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    bundled = ROOT / "csm_cli" / "assets" / "voice"
    server.repositories |= dict.fromkeys(("sesame/csm-1b", "unsloth/csm-1b"), bundled)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    return folder


def test_every_page_has_commands() -> None:
    assert len(commands(PAGES[0])) >= 10


@pytest.mark.parametrize(("page", "command"), CASES, ids=[f"{page.stem}: {command}" for page, command in CASES])
def test_command_works(page: Path, command: str, desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        check_make(words)
    elif FOREIGN.match(words[0]) or words[0] == "python":
        check_foreign(words)
    elif words[:2] == ["csm", "bench"] or "cuda" in words:
        check_options(words[1:])
    else:
        run(command, words)
        written = AUDIO.search(command)
        if written and "{" not in written[1]:
            assert soundfile.info(desk / written[1]).duration > 0.3


def run(command: str, words: list[str]) -> None:
    if words[0] == "csm" and not SHELL.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", command)):
        assert main(words[1:]) == 0
        return
    assert re.search(r"\bcsm\b", command), f"not a csm command: {command}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_options(words: list[str]) -> None:
    """Every option and argument of the command exists; nothing is run."""
    command, context = get_command(app), None
    while True:
        context = command.make_context(command.name or "csm", list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{word}:", makefile, re.MULTILINE) for word in words[1:] if "=" not in word)


def check_foreign(words: list[str]) -> None:
    """Extras and modules exist, and so does every file of this repository that is named."""
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), f"no module {words[2]}"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        for names in re.findall(r"\[([\w,]+)\]", word):
            assert set(names.split(",")) <= set(extras)
        if word.startswith(("configs/", "samples/", "tests/", "docs/")):
            assert (ROOT / word).exists()


SNIPPETS = [
    (page, blocks)
    for page in PAGES
    if (blocks := re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize(("page", "blocks"), SNIPPETS, ids=[page.stem for page, _ in SNIPPETS])
def test_python_examples_work(page: Path, blocks: list[str], desk: Path) -> None:
    names = {"__name__": "example"}  # later blocks of a page use the names of earlier ones
    for code in blocks:
        exec(compile(code, str(page), "exec"), names)


SCRIPTS = [
    (page, text)
    for page in PAGES
    for text in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if re.search(r"^turns:", text, re.MULTILINE)
]


@pytest.mark.parametrize(("page", "text"), SCRIPTS, ids=[page.stem for page, _ in SCRIPTS])
def test_script_example_is_valid(page: Path, text: str, desk: Path) -> None:
    (desk / "samples" / "example.yaml").write_text(text, encoding="utf-8")
    assert main(["check", "samples/example.yaml"]) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_field_of_scripts_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "scripts.md").read_text(encoding="utf-8")
    fields = {name for kind in ("script", "batch") for name in _properties(json_schema(kind))}
    assert {name for name in fields if f"`{name}`" not in text} == set()


def _properties(schema: object) -> set[str]:
    """The names of all fields in a JSON Schema."""
    if isinstance(schema, list):
        return {name for each in schema for name in _properties(each)}
    if not isinstance(schema, dict):
        return set()
    own = schema.get("properties")
    return (set(own) if isinstance(own, dict) else set()) | _properties(list(schema.values()))


def test_every_option_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert [name for name in SETTINGS if f"| `{name}` |" not in text] == []
    flags = {flag for flag in _flags(get_command(app)) if flag[2:].replace("-", "_") not in SETTINGS}
    assert {flag for flag in flags if f"`{flag}`" not in text} == {
        "--version",
        "--install-completion",
        "--show-completion",
    }


def _flags(command: Any) -> set[str]:
    """The long flags of a command and its subcommands."""
    own = {flag for option in command.params for flag in option.opts if flag.startswith("--")}
    return own.union(*map(_flags, getattr(command, "commands", {}).values()))


def test_every_training_setting_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    fields = [name for kind in (TrainSettings, LoraSettings, FromScratchSettings) for name in kind.model_fields]
    assert [name for name in fields if f"`{name}`" not in text] == []
