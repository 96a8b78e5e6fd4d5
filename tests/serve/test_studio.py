"""The studio: its files, and what a person does with it in a real browser."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tomllib
import wave
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.browser import BrowserPage, browser_page
from helpers.serving import RunningServer, running_server

import csm_cli.serve.voices
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.serve.studio.routes import studio_files

ROOT = Path(__file__).parents[2]
STATUS = "document.querySelector('#status-text').textContent"
IDLE = "document.querySelector('#main').textContent !== 'Stop'"


def each_of(selector: str, value: str, where: str = "true") -> str:
    """JavaScript: a value of each element that is shown."""
    shown = f"[...document.querySelectorAll({json.dumps(selector)})].filter(it => it.checkVisibility() && {where})"
    return f"{shown}.map(it => {value})"


TEXTS = each_of(".turn .text", "it.value")
TAKES = each_of(".turn", "it.querySelectorAll('.take').length")
STOPS = each_of(".turn .stop", "it.textContent")
SEEDS = each_of(".turn .seed", "it.textContent")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserPage]:
    with browser_page(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(tab: BrowserPage) -> Iterator[BrowserPage]:
    """A tab at desktop width that fails a test whose page reported an error."""
    tab.resize(1280)
    tab.errors.clear()
    yield tab
    assert not tab.errors


def visit(page: BrowserPage, url: str) -> None:
    """Opens the studio as in a new tab."""
    page.open(f"{url}/studio/icon.svg")
    page.evaluate("sessionStorage.clear()")
    page.open(f"{url}/")
    page.wait("document.documentElement.dataset.ready")


def write(page: BrowserPage, turn: int, text: str) -> None:
    """Replaces the text of a turn."""
    page.click(f".turn:nth-child({turn}) .text")
    page.evaluate("document.activeElement.select()")
    page.type(text)


def speak_all(page: BrowserPage) -> None:
    page.click("#main")
    page.wait(f"{STATUS}.includes('First sound') && {IDLE}", 120)


def export(page: BrowserPage, folder: Path) -> zipfile.ZipFile:
    """What the button Save downloads."""
    folder.mkdir(exist_ok=True)
    page.download_to(folder)
    page.click("#save")
    page.wait(f"{STATUS}.startsWith('Saved')")
    page.wait_for(lambda: any(folder.glob("*.zip")))
    (file,) = folder.glob("*.zip")
    return zipfile.ZipFile(io.BytesIO(file.read_bytes()))


def script_turns(archive: zipfile.ZipFile) -> list[tuple[str, str]]:
    turns = yaml.safe_load(archive.read("script.yaml"))["turns"]
    return [(turn["speaker"], turn["text"]) for turn in turns]


def conversation(page: BrowserPage, server: RunningServer) -> dict[str, Any]:
    """What the server has, once the page has sent it all."""
    page.evaluate("new Promise(resolve => setTimeout(resolve, 700))")
    found: dict[str, Any] = server.http.get(f"/v1/conversations/{page.evaluate('location.hash.slice(1)')}").json()
    return found


def test_the_page_and_its_files_are_served_with_strict_headers(server: RunningServer) -> None:
    page = server.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for name in (*studio_files(), ""):
        response = server.http.get(f"/studio/{name}" if name else "/")
        policy = response.headers["content-security-policy"]
        assert response.status_code == 200 and "default-src 'none'" in policy and "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    for path in ("/studio/routes.py", "/studio/__init__.py", "/studio/..%2fapp.py", "/studio/none.js"):
        assert server.http.get(path).status_code == 404


def test_the_page_names_no_other_host_and_only_files_that_exist() -> None:
    contents = {name: data.decode() for name, (data, _) in studio_files().items()}
    for text in contents.values():
        assert set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text)) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text)
    named = re.findall(r'(?:src|href)="/studio/([^"]+)"', contents["page.html"])
    named += [name for text in contents.values() for name in re.findall(r'from "\./([^"]+)"', text)]
    assert set(named) == contents.keys() - {"page.html"}
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", contents["page.html"])


def test_a_wheel_has_the_files_of_the_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["csm_cli.serve.studio"]
    folder = ROOT / "csm_cli" / "serve" / "studio"
    assert {path.name for pattern in patterns for path in folder.glob(pattern)} == studio_files().keys()


def test_the_page_needs_no_key_and_gives_no_data(synth: Synthesizer) -> None:
    with running_server(synth, api_key="secret") as locked:
        assert locked.http.get("/").status_code == 200 and locked.http.get("/studio/studio.js").status_code == 200
        assert locked.http.get("/v1/audio/voices").status_code == 401


@pytest.mark.chromium
def test_the_first_visit_shows_an_example(page: BrowserPage, server: RunningServer) -> None:
    visit(page, server.url)
    assert len(page.evaluate(TEXTS)) == 3
    voices = page.evaluate("[...document.querySelectorAll('.speaker .voice')].map(each => each.value)")
    assert len(set(voices)) == 2 and all(voices)


@pytest.mark.chromium
def test_dialogues_are_read_as_text(page: BrowserPage, server: RunningServer) -> None:
    visit(page, server.url)

    def parsed(text: str) -> list[list[Any]]:
        module = "import('/studio/dialogue.js')"
        turns = f"{module}.then(it => it.parseDialogue({json.dumps(text)}).map(turn => [turn.label, turn.text]))"
        found: list[list[Any]] = page.evaluate(turns)
        return found

    assert parsed("Ana: Hi.\r\n**Ben:** Hello: you.\n\nZoë Ray : Yes.") == [
        ["Ana", "Hi."],
        ["Ben", "Hello: you."],
        ["Zoë Ray", "Yes."],
    ]
    assert parsed("[0] Hi. [1]Hello.\n[12]: Yes.") == [["#0", "Hi."], ["#1", "Hello."], ["#12", "Yes."]]
    assert parsed("Ana: It goes\non here.\n\nA new one.") == [["Ana", "It goes on here."], [None, "A new one."]]
    assert parsed("One.\nTwo.") == [[None, "One."], [None, "Two."]]
    assert parsed("He said, and I heard it: no.\nAt 10:30 we go.") == [
        [None, "He said, and I heard it: no."],
        [None, "At 10:30 we go."],
    ]
    assert parsed(" \n[0]\n") == []


@pytest.mark.slow
@pytest.mark.chromium
def test_turns_are_inserted_moved_edited_and_deleted(page: BrowserPage, server: RunningServer, tmp_path: Path) -> None:
    visit(page, server.url)
    speak_all(page)
    page.click(".turn:nth-child(2) .insert")
    page.type("And where are the dogs?")
    page.key("Enter")
    page.wait(f"{STATUS}.startsWith('1 turn') && {IDLE}")
    first, second, third = (
        "Shall we go for a walk today?",
        "Yes, the sun is warm this morning.",
        "We can walk down to the river.",
    )
    inserted = "And where are the dogs?"
    record = conversation(page, server)
    assert [turn["input"] for turn in record["turns"]] == [first, inserted, second, third]
    assert [turn["outdated"] for turn in record["turns"]] == [False, False, True, True]
    page.click(".turn:nth-child(2) .text")
    page.key("ArrowDown", alt=True)
    page.key("ArrowDown", alt=True)
    assert [turn["input"] for turn in conversation(page, server)["turns"]] == [first, second, third, inserted]
    assert not any(turn["outdated"] for turn in conversation(page, server)["turns"][:3])
    page.click(".turn:nth-child(2) .more")
    page.click(".turn:nth-child(2) .delete")
    page.click(".turn:nth-child(2) .delete")
    assert [turn["input"] for turn in conversation(page, server)["turns"]] == [first, third, inserted]
    write(page, 1, "Shall we go home now?")
    assert page.evaluate("document.querySelector('#main').textContent") == "Speak 1 turn"
    speak_all(page)
    assert conversation(page, server)["turns"][0]["input"] == "Shall we go home now?"
    page.click("#as-text")
    text = page.evaluate("document.querySelector('#script').value")
    assert text.splitlines()[0] == "Ana: Shall we go home now?"
    page.evaluate("document.querySelector('#script').select()")
    page.type(f"{text}\nBen: Hello.")
    page.click("#as-turns")
    assert len(page.evaluate(TEXTS)) == 4 and len(conversation(page, server)["turns"]) == 3
    speak_all(page)
    archive = export(page, tmp_path / "saved")
    assert script_turns(archive)[-1] == ("Ben", "Hello.") and len(script_turns(archive)) == 4


@pytest.mark.slow
@pytest.mark.chromium
def test_a_voice_and_a_turn_are_recorded(
    page: BrowserPage, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csm_cli.serve.voices, "prepare_clip", lambda audio, text: (audio, []))  # the sound is a beep
    visit(page, server.url)

    def record(words: str) -> None:
        page.click("#record")
        page.evaluate("new Promise(resolve => setTimeout(resolve, 2500))")
        page.click("#record")
        page.wait("!document.querySelector('#clip-sound').hidden")
        page.evaluate("document.querySelector('#clip-words').select()")
        page.type(words)

    page.click(".speaker:nth-child(2) .record")
    record("Beep beep beep.")
    for field, text in (("name", "beeper"), ("consent", "a machine, for tests")):
        page.click(f"#clip-{field}")
        page.type(text)
    page.click("#clip-save")
    page.wait("!document.querySelector('#clip-dialog').open")
    assert page.evaluate("document.querySelector('.speaker:nth-child(2) .voice').value") == "beeper"
    assert "beeper" in [voice["id"] for voice in server.http.get("/v1/audio/voices").json()["data"]]
    page.click(".turn:nth-child(1) .more")
    page.click(".turn:nth-child(1) .own")
    record("Beep, she said.")
    page.click("#clip-save")
    page.wait("!document.querySelector('#clip-dialog').open")
    speak_all(page)
    turns = conversation(page, server)["turns"]
    assert [turn["source"] for turn in turns] == ["recorded", "synthesized", "synthesized"]
    assert turns[0]["input"] == "Beep, she said." and 1.5 < turns[0]["takes"][0]["duration"] < 4


@pytest.mark.slow
@pytest.mark.chromium
def test_it_asks_for_the_key_of_the_server(page: BrowserPage, synth: Synthesizer) -> None:
    with running_server(synth, api_key="secret") as locked:
        page.open(f"{locked.url}/")
        for key in ("wrong", "secret"):
            page.wait("document.querySelector('#key-dialog').open")
            page.type(key)
            page.key("Enter")
        page.wait("document.documentElement.dataset.ready")
        speak_all(page)
        assert "secret" not in page.evaluate("location.href + JSON.stringify(localStorage)")
        # the refusals are what it shall meet
        page.errors[:] = [error for error in page.errors if "401" not in error]


@pytest.mark.slow
@pytest.mark.chromium
def test_a_server_that_is_busy_gone_or_has_forgotten(page: BrowserPage, synth: Synthesizer) -> None:
    with running_server(synth) as server:
        visit(page, server.url)
        speak_all(page)
        server.service.draining = True
        page.click(".turn:nth-child(3) .speak")
        page.wait(f"{STATUS}.includes('Next try')")
        server.service.draining = False
        page.wait(f"{STATUS}.includes('First sound') && {IDLE}")
        assert page.evaluate(TAKES) == [0, 0, 2]
        server.http.delete(f"/v1/conversations/{page.evaluate('location.hash.slice(1)')}")
        page.click(".turn:nth-child(3) .speak")
        page.wait("!document.querySelector('#status-action').hidden")
        page.click("#status-action")
        page.wait(f"{STATUS}.startsWith('3 turns') && {IDLE}")
        assert len(conversation(page, server)["turns"]) == 3
    page.click(".turn:nth-child(3) .speak")
    page.wait("!document.querySelector('.turn:nth-child(3) .why').hidden")
    assert len(page.evaluate(TEXTS)) == 3 and page.evaluate(IDLE)
    # the refusals and the lost server are what it shall meet
    page.errors[:] = [error for error in page.errors if not re.search("503|404|ERR_CONNECTION", error)]


@pytest.mark.slow
@pytest.mark.chromium
def test_a_name_that_cannot_be_used_is_refused_at_the_speakers(page: BrowserPage, server: RunningServer) -> None:
    visit(page, server.url)
    page.click(".speaker .name")
    page.evaluate("document.activeElement.select()")
    page.type("text")  # a field of scripts
    page.click("#main")
    page.wait("!document.querySelector('#speakers-error').hidden")
    page.click(".speaker .name")
    page.evaluate("document.activeElement.select()")
    page.type("<b>Anna</b>")
    page.key("Tab")
    speak_all(page)
    assert page.evaluate("document.querySelector('#speakers-error').hidden")
    assert conversation(page, server)["speakers"]["0"]["name"] == "<b>Anna</b>"
    page.errors[:] = [error for error in page.errors if "400" not in error]


@contextmanager
def csm_serve(*arguments: str) -> Iterator[str]:
    """The command itself; the URL it prints."""
    command = [sys.executable, "-m", "csm_cli", "serve", "--port", "0", "--quiet", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.slow
@pytest.mark.chromium
def test_a_dialogue_is_written_streamed_redone_and_exported(page: BrowserPage, tmp_path: Path) -> None:
    """With the bundled voice, as a person would: clicks, keys and a drag."""
    with csm_serve() as url:
        visit(page, url)
        texts = ["Good morning, my friend.", "The house is quiet today.", "We can go to the garden."]
        for number, text in enumerate(texts, 1):
            write(page, number, text)
        page.click(".turn:nth-child(3) .text")
        page.key("Enter", control=True)
        page.wait("document.querySelector('.turn .row').classList.contains('speaking')")
        page.wait("Boolean(document.querySelector('.see.playing'))")
        page.wait(f"{STATUS}.startsWith('3 turns') && {IDLE}", 180)
        assert page.evaluate(STOPS) == ["complete"] * 3
        pixels = "it.getContext('2d').getImageData(0, 0, it.width, it.height).data.some(Boolean)"
        assert page.evaluate(each_of(".see canvas", pixels)) == [True] * 3
        page.click(".turn:nth-child(2) .speak")
        page.wait(f"{STATUS}.startsWith('1 turn') && {IDLE}", 120)
        assert page.evaluate(TAKES) == [0, 2, 0] and "outdated" in page.evaluate(STOPS)[2]
        page.click(".turn:nth-child(2) .take")
        page.wait("document.querySelector('.turn:nth-child(2) .take').getAttribute('aria-pressed') === 'true'")
        page.wait("!document.querySelector('.turn:nth-child(3) .stop').textContent.includes('outdated')")
        page.evaluate("scrollTo(0, 0)")
        gap = "Number(document.querySelector('.turn:nth-child(3) .gap-value').value)"
        (box,) = page.evaluate(each_of(".block:nth-child(3)", "it.getBoundingClientRect().toJSON()"))
        page.drag([box["x"] + box["width"] / 2, box["y"] + 5], 120)
        assert page.evaluate(gap) > 0.5 and page.evaluate(IDLE)  # a drag plays nothing
        seeds, dragged = (
            page.evaluate("[...document.querySelectorAll('.seed')].map(each => each.textContent)"),
            page.evaluate(gap),
        )
        archive = export(page, tmp_path / "saved")
        page.open(f"{url}/studio/icon.svg")
        page.evaluate("history.back()")
        page.wait("document.documentElement.dataset.ready")
        assert page.evaluate(TEXTS) == texts and page.evaluate(gap) == dragged
        assert page.evaluate(SEEDS) == seeds
        page.click("#main")
        page.wait("document.querySelector('#track').classList.contains('playing')")
        page.key("Escape")
        assert page.evaluate(IDLE)
    assert {"script.yaml", "track.wav", "track.srt", "track.vtt"} <= set(archive.namelist())
    assert [text for _, text in script_turns(archive)] == texts
    script = yaml.safe_load(archive.read("script.yaml"))
    assert [f"seed {turn['seed']}" for turn in script["turns"]] == seeds
    assert script["turns"][2]["offset"] == dragged
    with wave.open(io.BytesIO(archive.read("track.wav"))) as track:
        assert track.getnframes() / track.getframerate() > 3
    assert archive.read("track.srt").decode().count("-->") == 3


@pytest.mark.slow
@pytest.mark.chromium
def test_a_phone_shows_everything_within_its_width(page: BrowserPage, server: RunningServer) -> None:
    page.resize(390, 844, mobile=True)
    visit(page, server.url)
    speak_all(page)
    page.click(".turn:nth-child(2) .more")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert max(page.evaluate(each_of("main *", "it.getBoundingClientRect().right"))) <= 390
    heights = each_of("main button", "[it.getBoundingClientRect().height, it.className]")
    assert not [each for each in page.evaluate(heights) if each[0] < 36]


@pytest.mark.chromium
def test_every_control_has_a_name_and_can_be_reached_by_tab(page: BrowserPage, server: RunningServer) -> None:
    visit(page, server.url)
    fields = "main :is(button, input, select, textarea)"
    named = "it.ariaLabel || it.labels?.length || it.textContent.trim()"
    assert page.evaluate(each_of(fields, "it.outerHTML", f"!({named})")) == []
    controls = len(page.evaluate(each_of(fields, "1", "!it.disabled")))
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(controls):
        page.key("Tab")
        reached.add(page.evaluate("(it => it.id || it.ariaLabel)(document.activeElement)"))
    assert len(reached) == controls
