"""Every command in the README and in docs/ is run, page by page, in a folder like a fresh clone.

Commands stand in fenced blocks marked `console`, each after `$ `. `csm` commands run in this process, except those with
shell syntax. What needs a person, a GPU or minutes is checked as far as it goes: benchmarks are parsed, `make` targets,
extras and configuration files must exist.
"""

from __future__ import annotations

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

import huggingface_hub
import pytest
import soundfile
import yaml
from fakehub import FakeHub
from typer.main import get_command

from csm_cli.cli import main
from csm_cli.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"[|<>&;]|\$\(")
AUDIO = re.compile(r"-o\s+['\"]?(\S+?\.(?:wav|flac))\b")
NOT_OURS = {
    "pip",
    "pipx",
    "hf",
    "git",
    "cd",
    "sudo",
    "apt",
    "accelerate",
    "torchrun",
    "pytest",
    ".",
    "uv",
    "curl",
    "ls",
}


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
            shutil.copytree(ROOT / "samples" / "ljspeech", folder / "my-recordings")
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
    heard: SimpleNamespace,
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
    elif words[0] in NOT_OURS:
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
    """Extras exist, and so does every file of this repository that is named."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        for names in re.findall(r"\[([\w,]+)\]", word):
            assert set(names.split(",")) <= set(extras)
        if word.startswith(("configs/", "samples/", "tests/", "docs/")):
            assert (ROOT / word).exists()


SNIPPETS = [
    (page, code)
    for page in PAGES
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=[page.stem for page, _ in SNIPPETS])
def test_python_example_works(page: Path, code: str, desk: Path) -> None:
    exec(compile(code, str(page), "exec"), {"__name__": "example"})


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
