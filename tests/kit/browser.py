"""A headless Chromium with one page, by its DevTools protocol: no package but ``websockets``, which the server needs.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",  # one that is free; the file DevToolsActivePort says which
    "--no-sandbox",  # root in a container has none
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-component-update",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)
# What a key is to the page, beside its name.
KEYS: dict[str, dict[str, Any]] = {
    "Tab": {"code": "Tab", "windowsVirtualKeyCode": 9},
    "Enter": {"code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    " ": {"code": "Space", "windowsVirtualKeyCode": 32, "text": " "},
    "ArrowLeft": {"code": "ArrowLeft", "windowsVirtualKeyCode": 37},
    "ArrowUp": {"code": "ArrowUp", "windowsVirtualKeyCode": 38},
    "ArrowRight": {"code": "ArrowRight", "windowsVirtualKeyCode": 39},
    "ArrowDown": {"code": "ArrowDown", "windowsVirtualKeyCode": 40},
    "+": {"code": "NumpadAdd", "windowsVirtualKeyCode": 107, "text": "+"},
    "-": {"code": "NumpadSubtract", "windowsVirtualKeyCode": 109, "text": "-"},
}


def chromium() -> str | None:
    """Where a Chromium is; None where none is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """``with Browser() as browser``. ``errors``: what the page's console had of errors, uncaught ones included."""

    def __init__(self, *flags: str, width: int = 1280, height: int = 900):
        self.flags = (*flags, f"--window-size={width},{height}")
        self.errors: list[str] = []
        self._count = 0

    def __enter__(self) -> Browser:
        from websockets.sync.client import connect

        program = chromium()
        assert program is not None, "browser: expected a Chromium, found none"
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [program, *FLAGS, *self.flags, f"--user-data-dir={self._folder.name}", "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        port, path = self._address()
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(connect(f"ws://127.0.0.1:{port}{path}", max_size=None))
        self._session = ""
        (page,) = [one for one in self.say("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self._session = self.say("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.say(f"{domain}.enable")
        self.say("Emulation.setFocusEmulationEnabled", enabled=True)  # as the window that the visitor looks at
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._folder.cleanup()

    def _address(self) -> tuple[str, str]:
        file = Path(self._folder.name) / "DevToolsActivePort"
        end = time.monotonic() + 20
        while time.monotonic() < end and self._process.poll() is None:
            lines = file.read_text().split() if file.exists() else []
            if len(lines) == 2:
                return lines[0], lines[1]
            time.sleep(0.02)
        raise AssertionError("browser: expected it to listen within 20 s, but it did not")

    def say(self, method: str, **params: Any) -> dict[str, Any]:
        """One call of the protocol, and its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            found = json.loads(self._socket.recv(timeout=30))
            if found.get("id") == self._count:
                assert "error" not in found, f"{method}: {found}"
                result: dict[str, Any] = found["result"]
                return result
            self._heard(found.get("method", ""), found.get("params", {}))

    def _heard(self, method: str, about: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(f"{about['entry']['source']}: {about['entry']['text']}")

    def before_the_page(self, script: str) -> None:
        """Run ``script`` in each page that is opened from now on, before the page's own."""
        self.say("Page.addScriptToEvaluateOnNewDocument", source=script)

    def open(self, url: str) -> None:
        self.say("Page.navigate", url=url)
        self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of ``expression`` in the page; of a promise, what it comes to."""
        found = self.say("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 10) -> Any:
        """Wait until ``expression`` is true in the page. Returns: its value."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"not within {seconds} s: {expression}; the page says: {self.status()}"
            time.sleep(0.02)
        return value

    def status(self) -> str:
        return str(self.js("document.getElementById('status')?.textContent"))

    def click(self, selector: str) -> None:
        """By the mouse, so that what is covered or not to be seen is not clicked."""
        x, y = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.mouse([(x, y)])

    def mouse(self, way: list[tuple[float, float]]) -> None:
        """Press at the first point, move along the way, and let go at the last one."""
        button = {"button": "left", "buttons": 1, "clickCount": 1}
        for kind, (x, y) in [
            ("mousePressed", way[0]),
            *(("mouseMoved", p) for p in way[1:]),
            ("mouseReleased", way[-1]),
        ]:
            self.say("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def key(self, name: str, times: int = 1) -> None:
        for _ in range(times):
            self.say("Input.dispatchKeyEvent", type="keyDown", key=name, **KEYS[name])
            self.say("Input.dispatchKeyEvent", type="keyUp", key=name, **KEYS[name])

    def choose_file(self, selector: str, path: Path) -> None:
        """As by the dialogue of an input for files."""
        root = self.say("DOM.getDocument")["root"]["nodeId"]
        node = self.say("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.say("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Path, *, width: int, dark: bool = False) -> None:
        """The whole page as a PNG, as a screen of that many pixels would have it."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.say("Emulation.setEmulatedMedia", features=scheme)
        self.say("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        found = self.say("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))
