"""A real browser without a library for it: Debian's headless Chromium, spoken to over a pipe (the DevTools protocol).

Every request but that of the file itself is an answer to "does it load anything from outside"; the flags keep the browser's own
services quiet.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-dev-shm-usage", "--disable-extensions", "--no-first-run", "--no-default-browser-check",
         "--hide-scrollbars", "--remote-debugging-pipe")  # fmt: skip
NONE = f"no Chromium here ({', '.join(NAMES[:2])}); apt-get install chromium-headless-shell brings one"
OVERFLOW = """
[document.documentElement.scrollWidth, innerWidth, [...document.querySelectorAll('main *')].filter(one =>
  !one.closest('.scroll *, svg *') && one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML)]
"""


def find() -> str | None:
    """The program; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in one browser, to be used as a context."""

    def __init__(self) -> None:
        program = find()
        assert program, NONE
        self.console: list[str] = []  # what the page said, or the browser about it
        self.requests: list[str] = []  # URLs, as asked for
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        keep = (to_browser, from_browser)
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        arguments = [program, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, *arguments], pass_fds=keep, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for end in keep:
            os.close(end)
        self._buffer, self._last, self._session = b"", 0, ""

    def __enter__(self) -> Browser:
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            os.close(self._write)
            os.close(self._read)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(
        self, path: Path | str, width: int = 1100, *, dark: bool = False, height: int = 900, scale: float = 1
    ) -> None:
        """Show a file as a device of that width would, and wait until it is there."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=Path(path).absolute().as_uri())
        self._wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of some JavaScript in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, *, height: int | None = None, whole: bool = False) -> bytes:
        """A PNG of the first `height` pixels, or of all of it."""
        wide, tall = self.evaluate("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": wide, "height": tall if whole else min(height or 900, tall), "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def pdf(self) -> bytes:
        """As it would be printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            got = self._next()
            if got.get("id") == self._last:
                assert "error" not in got, got["error"]
                return dict(got["result"])
            self._note(got)

    def _wait_for(self, event: str) -> None:
        while (got := self._next()).get("method") != event:
            self._note(got)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled":
                self.console.append(" ".join(str(arg.get("value")) for arg in params["args"]))
            case "Runtime.exceptionThrown":
                self.console.append(params["exceptionDetails"]["text"])
            case "Log.entryAdded":
                self.console.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            block = os.read(self._read, 1 << 16)
            assert block, "the browser has ended"
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))
