"""The HTML report: its content, and how a real browser shows it."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csm_cli.audio.io import Audio, write_audio
from csm_cli.report.page import (
    ReportDetail,
    ReportPage,
    embed_audio,
    link_audio,
    report_row,
    report_turn_rows,
    spectrogram,
    write_report,
)

NASTY = "</script><script>document.title='owned'</script> [bold]&amp; \u2028 \U0001f600 <!--"
DETAIL = ReportDetail(60, 16)


def tone(seconds: float, pitch: float = 440.0) -> Audio:
    samples = 0.3 * np.sin(np.arange(round(seconds * 24000)) * 2 * np.pi * pitch / 24000)
    return Audio(samples.astype(np.float32), 24000)


def results() -> list[dict[str, Any]]:
    turn = {"speaker": "ana", "text": "Hello there.", "takes": [{}]}
    return [
        {"id": "a-2", "status": "ok", "stop": "eos", "seed": 7, "duration_s": 0.5, "warnings": [], "turns": [turn]},
        {"id": "a-10", "status": "ok", "stop": "cap", "seed": 5, "duration_s": 0.25, "warnings": ["was cut"]}
        | {"turns": [turn | {"speaker": "ben", "text": NASTY, "takes": [{}, {}]}]},
        {"id": "a-1", "status": "failed", "error": "came out empty"}
        | {"turns": [{"speaker": "ana", "text": "Never said."}]},
    ]


def batch_page(folder: Path, extra: str = "") -> Path:
    """Two items inside the page, one of them by a link, one that failed; `extra` is a script run at the end."""
    write_audio(folder / "ü #2.wav", tone(0.25))
    sounds = [embed_audio(tone(0.5)), link_audio("ü #2.wav"), None]
    rows = [
        report_row(result, **({"audio": sound, "picture": spectrogram(tone(0.5), DETAIL)} if sound else {}))
        for result, sound in zip(results(), sounds, strict=True)
    ]
    path = folder / "report.html"
    write_report(path, ReportPage(NASTY, "by the test", (("items", "3"),)), rows)
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"<script>{extra}</script></body>"))
    return path


def browse(path: Path, width: int = 1200) -> str:
    """The document as Chromium has it when its scripts have run, failing on any word of theirs about an error."""
    chromium = shutil.which("chromium") or "chromium"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--enable-logging=stderr"]
    flags += ["--autoplay-policy=no-user-gesture-required", f"--window-size={width},900"]
    command = [chromium, *flags, "--dump-dom", path.as_uri()]
    run = subprocess.run([*command], capture_output=True, text=True, timeout=120, check=True)
    assert not [line for line in run.stderr.splitlines() if "CONSOLE" in line], run.stderr
    return run.stdout


def said(document: str) -> Any:
    """What the extra script found out."""
    found = re.search(r'data-said="([^"]*)"', document)
    assert found, document[:2000]
    return json.loads(html.unescape(found[1]))


def test_rows_show_the_fields_of_a_result() -> None:
    good, cut, failed = (report_row(result) for result in results())
    assert (good["stop"], good["seed"], good["takes"], good["warnings"]) == ("complete", 7, 1, [])
    assert (cut["speaker"], cut["takes"], cut["warnings"]) == ("ben", 2, ["was cut"])
    assert (failed["status"], failed["text"], failed["warnings"]) == ("failed", "Never said.", ["came out empty"])


def test_turns_are_parts_of_their_track() -> None:
    turns = [{"id": None, "speaker": "ana", "text": "Hi.", "stop": "eos", "seed": 1, "takes": []}] * 2
    spans = [{"start_s": 0.0, "end_s": 0.5}, {"start_s": 0.5, "end_s": 1.0}]
    result = {"turns": [turn | span for turn, span in zip(turns, spans, strict=True)], "warnings": ["turn 2 (x) was"]}
    first, second = report_turn_rows(result, tone(1.0), DETAIL)
    assert (first["id"], first["from"], first["to"], first["warnings"]) == ("1", 0.0, 0.5, [])
    assert (second["id"], second["duration"], second["warnings"]) == ("2", 0.5, ["turn 2 (x) was"])


def test_a_picture_shows_where_the_sound_is() -> None:
    half = np.concatenate((np.zeros(12000, np.float32), tone(0.5, 1000).samples))
    shown = spectrogram(Audio(half, 24000), DETAIL)
    assert shown
    wave, spectrum = (np.frombuffer(base64.b64decode(shown[name]), np.uint8) for name in ("wave", "spectrum"))
    assert wave[:28].max() == 0 and wave[32:].min() > 240
    bands = spectrum.reshape(60, 16)
    assert bands[:28].max() == 0 and len(set(bands[32:].argmax(axis=1))) == 1
    assert spectrogram(Audio(half[:0], 24000), DETAIL) is None
    assert spectrogram(Audio(half[:1], 24000), DETAIL)


@pytest.mark.chromium
def test_a_browser_shows_every_row_and_no_text_becomes_markup(tmp_path: Path) -> None:
    script = """
      const texts = [...document.querySelectorAll(".row .text")].map(node => node.textContent);
      document.body.dataset.said = JSON.stringify({ texts, title: document.title,
        ready: document.documentElement.dataset.ready,
        stops: [...document.querySelectorAll(".row .stop")].map(node => node.textContent) });
    """
    found = said(browse(batch_page(tmp_path, script)))
    assert found["texts"] == ["Hello there.", NASTY, "Never said."] and found["ready"] == "3"
    assert found["title"].startswith("</script><script>") and found["stops"] == [
        "complete",
        "max duration · 2 takes",
        "failed",
    ]


@pytest.mark.chromium
def test_a_browser_sorts_filters_and_obeys_keys(tmp_path: Path) -> None:
    script = """
      const ids = () => [...document.querySelectorAll(".row .id")].map(node => node.textContent).join(" ");
      const pressed = key => new KeyboardEvent("keydown", { key, bubbles: true });
      const press = key => (document.activeElement || document.body).dispatchEvent(pressed(key));
      const sort = name => [...document.querySelectorAll("#head button")].find(node => node.value === name).click();
      const find = words => { at("find").value = words; at("find").oninput(); };
      const out = {};
      sort("id"); out.byId = ids(); sort("id"); out.fallingId = ids(); sort("id"); out.unsorted = ids();
      sort("duration"); out.byLength = ids();
      [...document.querySelectorAll("#chips button")].find(node => node.value === "failed").click(); out.failed = ids();
      press("Escape"); out.all = ids();
      find("BEN seedless"); out.none = ids();
      find("ben 5"); out.found = ids();
      press("Escape"); press("ArrowDown"); press("ArrowDown");
      out.chosen = document.activeElement.querySelector(".id").textContent;
      press("/"); out.finding = document.activeElement.id;
      const theme = document.documentElement.dataset.theme; document.activeElement.blur(); press("t");
      out.switched = theme !== document.documentElement.dataset.theme;
      document.body.dataset.said = JSON.stringify(out);
    """
    found = said(browse(batch_page(tmp_path, script)))
    assert found["byId"] == "a-1 a-2 a-10" and found["fallingId"] == "a-10 a-2 a-1"
    assert found["unsorted"] == "a-2 a-10 a-1" and found["byLength"] == "a-1 a-10 a-2"
    assert (found["failed"], found["none"], found["found"]) == ("a-1", "", "a-10")
    assert found["all"] == "a-1 a-10 a-2" and found["chosen"] == "a-10"
    assert found["finding"] == "find" and found["switched"]


@pytest.mark.chromium
def test_a_phone_shows_ids_beside_speakers_and_nothing_over_its_edge(tmp_path: Path) -> None:
    """Chromium makes no window below 500 pixels, which has the narrow layout already."""
    script = """
      document.documentElement.style.width = "360px";
      all[0].id = "a-long-name-of-an-item-".repeat(6); list();
      const boxes = name => [...document.querySelectorAll(".row " + name)].map(node => node.getBoundingClientRect());
      document.body.dataset.said = JSON.stringify({ wide: innerWidth,
        ids: boxes(".id").map(box => Math.min(box.width, box.height)),
        edge: Math.max(...boxes("*").map(box => box.right)),
        above: boxes(".id").map((box, index) => boxes(".who")[index].top - box.bottom) });
    """
    found = said(browse(batch_page(tmp_path, script), 500))
    assert found["wide"] <= 760 and found["edge"] <= 360
    assert len(found["ids"]) == 3 and min(found["ids"]) > 10 and min(found["above"]) >= 0


@pytest.mark.chromium
def test_a_browser_plays_embedded_and_linked_audio(tmp_path: Path) -> None:
    script = """
      const lengths = all.filter(row => row.audio).map(row => new Promise(done => {
        const sound = new Audio(row.audio);
        sound.onloadedmetadata = () => done(sound.duration); sound.onerror = () => done(sound.error.message);
      }));
      Promise.all(lengths).then(found => { document.body.dataset.said = JSON.stringify(found); });
    """
    assert said(browse(batch_page(tmp_path, script))) == [pytest.approx(0.5, abs=0.01), pytest.approx(0.25, abs=0.01)]
