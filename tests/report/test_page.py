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
    BatchOrder,
    ReportDetail,
    ReportPage,
    ReportRequest,
    embed_audio,
    link_audio,
    picture,
    report_row,
    report_turn_rows,
    write_batch_report,
    write_conversation_report,
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
        report_row(result, **({"audio": sound, "picture": picture(tone(0.5), DETAIL)} if sound else {}))
        for result, sound in zip(results(), sounds, strict=True)
    ]
    path = folder / "report.html"
    write_report(path, ReportPage(NASTY, "by the test", (("items", "3"),), retry="csm batch x --retry-failed"), rows)
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
    assert (good["stop"], good["badge"], good["warnings"]) == ("complete", "new", [])
    assert ("seed", "7") in good["more"] and (cut["speaker"], cut["warnings"]) == ("ben", ["was cut"])
    assert (failed["badge"], failed["text"], failed["warnings"]) == ("failed", "Never said.", ["came out empty"])
    voiced = report_row(
        {"id": "a", "voice": "ash", "loudness": {"lufs": -20.5}, "reused": True, "extra": {"scene": "1"}}
    )
    assert (voiced["voice"], voiced["lufs"], voiced["badge"]) == ("ash", -20.5, "kept")
    assert ("scene", "1") in voiced["more"]


def conversation() -> dict[str, Any]:
    take = {"chunk": 1, "seed": 1, "stop": "eos", "duration_s": 0.5, "fault": None}
    takes = [{**take, "number": 1, "picked": True, "audio": ".out.csm/a.wav"}, {**take, "number": 2, "seed": 2}]
    turn = {"id": None, "speaker": "ana", "text": "Hi.", "stop": "eos", "seed": 1, "takes": [], "voice": "ash"}
    turns = [
        turn | {"start_s": 0.0, "end_s": 0.5, "takes": takes},
        turn | {"start_s": 0.5, "end_s": 1.0, "reused": True},
    ]
    return {"output": None, "turns": turns, "warnings": ["turn 2 (x) was"], "rtf": 0.5, "model": "m", "seed": 1}


def test_turns_are_parts_of_their_track_with_their_takes() -> None:
    first, second = report_turn_rows(conversation(), tone(1.0), DETAIL, str)
    assert (first["id"], first["from"], first["to"], first["warnings"]) == ("1", 0.0, 0.5, [])
    assert (second["id"], second["duration"], second["warnings"]) == ("2", 0.5, ["turn 2 (x) was"])
    assert (first["badge"], second["badge"], first["voice"]) == ("new", "kept", "ash")
    assert [(take["number"], take["picked"], bool(take["audio"])) for take in first["takes"]] == [
        (1, True, True),
        (2, False, False),
    ]


def page_rows(path: Path) -> list[dict[str, Any]]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found
    rows: list[dict[str, Any]] = json.loads(found[1])
    return rows


def test_audio_stays_beside_the_page_unless_it_is_embedded(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_audio(tmp_path / "a b.wav", tone(0.5))
    result = {"id": "a", "status": "ok", "stop": "eos", "file": "a b.wav", "duration_s": 0.5, "model": "m"}
    for embed, start in ((False, "a%20b.wav"), (True, "data:audio/flac")):
        write_batch_report(ReportRequest(path, embed=embed), lambda: [result], tmp_path / "results.jsonl")
        assert page_rows(path)[0]["audio"].startswith(start)
    write_conversation_report(ReportRequest(path), conversation(), tone(1.0), "t")
    assert "data:audio/flac" in path.read_text()  # there is no file of it


def test_rows_have_the_order_of_the_manifest_and_say_what_is_new(tmp_path: Path) -> None:
    path, known = tmp_path / "report.html", results()
    write_batch_report(
        ReportRequest(path, "csm batch x.jsonl -o 'o/{id}.wav'"),
        lambda: known,
        tmp_path / "results.jsonl",
        BatchOrder(["a-1", "a-2"], {"a-2"}),
    )
    assert [(row["id"], row["badge"]) for row in page_rows(path)] == [
        ("a-1", "failed"),
        ("a-2", "new"),
        ("a-10", "kept"),  # not in the manifest any more
    ]
    assert "csm batch x.jsonl -o 'o/{id}.wav' --retry-failed" in path.read_text()


def test_of_too_many_items_all_failures_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csm_cli.report.page.MAX_ROWS", 2)
    path = tmp_path / "report.html"
    write_batch_report(ReportRequest(path), results, tmp_path / "results.jsonl", BatchOrder(["a-2", "a-10", "a-1"]))
    assert [row["id"] for row in page_rows(path)] == ["a-2", "a-1"]


def test_a_page_of_2000_rows_stays_under_5_mb(tmp_path: Path) -> None:
    path, sound = tmp_path / "report.html", picture(tone(3.0), ReportDetail.for_rows(2000))
    takes = [{"number": number, "seed": 10**9, "picked": False, "audio": "x" * 60} for number in range(4)]
    record = {"text": "word " * 20, "speaker": "ana", "voice": "ash", "takes": takes, "warnings": []}
    rows = (report_row(record | {"id": f"a-{number}"}, audio="x" * 60, picture=sound) for number in range(2000))
    write_report(path, ReportPage("t", "b"), rows)
    assert path.stat().st_size < 5_000_000


def test_a_picture_shows_where_the_sound_is() -> None:
    half = np.concatenate((np.zeros(12000, np.float32), tone(0.5, 1000).samples))
    shown = picture(Audio(half, 24000), DETAIL)
    assert shown
    wave, spectrum = (np.frombuffer(base64.b64decode(shown[name]), np.uint8) for name in ("wave", "spectrum"))
    assert wave[:28].max() == 0 and wave[32:].min() > 240
    bands = spectrum.reshape(60, 16)
    assert bands[:28].max() == 0 and len(set(bands[32:].argmax(axis=1))) == 1
    assert picture(Audio(half[:0], 24000), DETAIL) is None
    assert picture(Audio(half[:1], 24000), DETAIL)
    assert "spectrum" not in (picture(Audio(half, 24000), ReportDetail(60, 0)) or {})


@pytest.mark.chromium
def test_a_browser_shows_every_row_and_no_text_becomes_markup(tmp_path: Path) -> None:
    script = """
      const texts = [...document.querySelectorAll(".row .text")].map(node => node.textContent);
      document.body.dataset.said = JSON.stringify({ texts, title: document.title,
        ready: document.documentElement.dataset.ready,
        stops: [...document.querySelectorAll(".row .state")].map(node => node.textContent) });
    """
    found = said(browse(batch_page(tmp_path, script)))
    assert found["texts"] == ["Hello there.", NASTY, "Never said."] and found["ready"] == "3"
    assert found["title"].startswith("</script><script>") and found["stops"] == [
        "new",
        "newmax duration",
        "failed",
    ]


@pytest.mark.chromium
def test_a_browser_sorts_filters_and_obeys_keys(tmp_path: Path) -> None:
    script = """
      const ids = () => [...document.querySelectorAll(".row .id")].map(node => node.textContent).join(" ");
      const pressed = key => new KeyboardEvent("keydown", { key, bubbles: true });
      const press = key => (document.activeElement || document.body).dispatchEvent(pressed(key));
      const sort = name => { at("order").value = name; at("order").onchange(); };
      const find = words => { at("find").value = words; at("find").oninput(); };
      const out = {};
      out.unsorted = ids(); sort("bad"); out.failuresFirst = ids(); sort("duration"); out.byLength = ids();
      [...document.querySelectorAll("#chips button")].find(node => node.value === "failed").click(); out.failed = ids();
      press("Escape"); out.all = ids();
      find("BEN seedless"); out.none = ids();
      find("ben 5"); out.found = ids();
      press("Escape"); press("ArrowDown"); press("ArrowDown");
      out.chosen = document.activeElement.querySelector(".id").textContent;
      press("x"); sort(""); for (const box of document.querySelectorAll(".tick")) if (!box.checked) box.click();
      out.orders = [...document.querySelectorAll("#orders code")].map(node => node.textContent);
      press("/"); out.finding = document.activeElement.id;
      const theme = document.documentElement.dataset.theme; document.activeElement.blur(); press("t");
      out.switched = theme !== document.documentElement.dataset.theme;
      document.body.dataset.said = JSON.stringify(out);
    """
    found = said(browse(batch_page(tmp_path, script)))
    assert found["unsorted"] == "a-2 a-10 a-1" and found["failuresFirst"] == "a-1 a-10 a-2"
    assert (found["failed"], found["none"], found["found"]) == ("a-1", "", "a-10")
    assert found["byLength"] == found["all"] == "a-2 a-10 a-1" and found["chosen"] == "a-10"
    assert found["orders"] == ["a-2\na-10\na-1", "csm batch x --retry-failed"]
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
        edge: Math.max(...boxes("*").map(box => box.right)) });
    """
    found = said(browse(batch_page(tmp_path, script), 500))
    assert found["wide"] <= 760 and found["edge"] <= 360
    assert len(found["ids"]) == 3 and min(found["ids"]) > 10


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


@pytest.mark.chromium
def test_a_browser_gives_the_commands_for_ticked_turns_and_other_takes(tmp_path: Path) -> None:
    script = """
      const boxes = document.querySelectorAll(".tick"); boxes[0].click(); boxes[1].click();
      document.querySelectorAll(".take input")[0].checked = false;
      const uses = document.querySelectorAll(".take input"); uses[uses.length - 1].click();
      const lanes = [...document.querySelectorAll(".lane i")].map(node => Math.round(parseFloat(node.style.left)));
      const codes = [...document.querySelectorAll("#orders code")].map(node => node.textContent);
      document.querySelector("#orders button:not(.copy)").click();
      document.body.dataset.said = JSON.stringify({ lanes, codes, hidden: at("orders").hidden });
    """
    result = conversation()
    result["turns"][0]["takes"][1]["audio"] = ".out.csm/b.wav"
    write_audio(tmp_path / "out.wav", tone(1.0))
    result["output"] = str(tmp_path / "out.wav")
    path = tmp_path / "report.html"
    write_conversation_report(ReportRequest(path, "csm converse s.yaml -o out.wav"), result, tone(1.0), "t")
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>"))
    found = said(browse(path))
    assert found["lanes"] == [0, 50] and found["hidden"]
    assert found["codes"][0] == "csm converse s.yaml -o out.wav --redo 1-2"
    assert found["codes"][1] == f"csm takes {tmp_path / 'out.wav'} --pick 1=2"
