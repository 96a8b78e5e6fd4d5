"""A headless Chromium over its DevTools protocol: pages are driven by real clicks and keys, and seen as screenshots."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from websockets.sync.client import ClientConnection, connect

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--mute-audio",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-port=0",
)
_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowUp": 38, "ArrowDown": 40, "Backspace": 8}


class BrowserPage:
    """One tab. errors: what its console reported as an error, exceptions included."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._ids = connection, itertools.count(1)
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        number = next(self._ids)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif message["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(json.dumps(params["args"]))
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            if params["entry"].get("url", "").endswith("/favicon.ico"):  # asked for beside pages that name no icon
                return
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> Any:
        """Waits until an expression is true; returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, (expression, self.errors, self.evaluate("document.body.innerText"))
            time.sleep(0.05)
        return value

    def wait_for(self, done: Callable[[], bool], seconds: float = 30) -> None:
        """Waits until something outside the page is true."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end
            time.sleep(0.05)

    def open(self, url: str) -> None:
        answer = self.call("Page.navigate", url=url)
        assert not answer.get("errorText"), answer
        self.wait("document.readyState === 'complete'")

    def click(self, selector: str) -> None:
        """A real click in the middle of an element, which counts as the user's gesture."""
        where = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{where}.scrollIntoView({{ block: 'center' }})")
        box = self.evaluate(
            f"(box => [box.x + box.width / 2, box.y + box.height / 2])({where}.getBoundingClientRect())"
        )
        self.drag(box, 0)

    def drag(self, start: list[float], distance: float) -> None:
        """Presses at a point, moves to the right, and releases."""
        x, y = start
        common = {"button": "left", "clickCount": 1, "y": y}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, **common)
        if distance:
            for part in (0.5, 1.0):
                self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + part * distance, buttons=1, **common)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + distance, **common)

    def key(self, name: str, alt: bool = False, control: bool = False, shift: bool = False) -> None:
        """Presses a key of `_KEYS`, or a letter."""
        modifiers = 1 * alt + 2 * control + 8 * shift
        code = {"key": name, "windowsVirtualKeyCode": _KEYS.get(name, ord(name[0].upper())), "modifiers": modifiers}
        text = {"text": "\r"} if name == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def type(self, text: str) -> None:
        """Inserts a text where the focus is."""
        self.call("Input.insertText", text=text)

    def resize(self, width: int, height: int = 900, mobile: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def prefer(self, scheme: str) -> None:
        """light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def download_to(self, folder: Path) -> None:
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser_page(folder: Path) -> Iterator[BrowserPage]:
    """A tab of a new browser, whose profile is in `folder`."""
    command = [shutil.which("chromium") or "chromium", *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_tab_address(folder / "DevToolsActivePort"), max_size=64 << 20) as connection:
            yield BrowserPage(connection)
            connection.send(json.dumps({"id": 0, "method": "Browser.close"}))
        process.wait(20)
    finally:
        process.kill()
        process.wait()


def _tab_address(port_file: Path) -> str:
    """The WebSocket of the first tab, once the browser runs."""
    end = time.monotonic() + 60
    while True:
        try:
            port = port_file.read_text().split()[0]
            tabs = httpx2.get(f"http://127.0.0.1:{port}/json", timeout=10).json()
            return str(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
        except (OSError, IndexError, StopIteration, httpx2.HTTPError):
            assert time.monotonic() < end, "chromium did not start"
            time.sleep(0.05)
