"""Headless Chromium over its DevTools protocol: open a page, wait for words, take the picture."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

START_S = 30.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """Return the path of an installed Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One browser with one page, on loopback, with a profile of its own."""

    def __init__(self, width: int = 1500, height: int = 950) -> None:
        self._size = (width, height)
        self._ids = itertools.count(1)

    def __enter__(self) -> Chromium:
        binary = find_chromium()
        if binary is None:
            raise RuntimeError("Chromium is not installed: on Debian, apt-get install chromium")
        self._profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        command = [binary, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += ["--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0"]
        command += [f"--user-data-dir={self._profile}", f"--window-size={self._size[0]},{self._size[1]}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._open = ExitStack()
        self._socket = self._open.enter_context(self._attach())
        self._send("Page.enable")
        self._send("Runtime.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url: str, *words: str, timeout: float = 60.0) -> str:
        """Open a page and wait until all the words stand on it, as a person does: who waits too long loads it anew.

        Returns its text.

        Raises:
            TimeoutError: a word does not appear; the message holds the page's first lines.
        """
        until, patience = time.monotonic() + timeout, timeout / 3
        again_at = 0.0
        text = ""
        while time.monotonic() < until:
            if time.monotonic() >= again_at:
                self._send("Page.navigate", url=url)
                again_at = time.monotonic() + patience
            text = self.text()
            if words and all(word in text for word in words):
                time.sleep(1.0)  # pictures and colours come after the words
                return text
            time.sleep(0.3)
        missing = [word for word in words if word not in text]
        raise TimeoutError(f"{url} does not show {missing}; it says: {text[:600]!r}")

    def text(self) -> str:
        """Return the visible text of the page."""
        return str(self.run("document.body ? document.body.innerText : ''") or "")

    def run(self, script: str) -> Any:
        """Evaluate JavaScript in the page and return its value."""
        answer = self._send("Runtime.evaluate", expression=script, returnByValue=True)
        return answer.get("result", {}).get("value")

    def click(self, words: str) -> bool:
        """Click the smallest element whose text is `words`; tell whether there was one."""
        script = (
            "(() => { const all = [...document.querySelectorAll('a, button, [role=tab], [role=button], span, div')]"
            f".filter(e => e.innerText && e.innerText.trim() === {json.dumps(words)});"
            "const e = all[all.length - 1]; if (!e) return false; e.click(); return true; })()"
        )
        return bool(self.run(script))

    def picture(self, file: Path) -> None:
        """Save what the window shows as PNG."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(self._send("Page.captureScreenshot", format="png")["data"]))

    def _attach(self) -> AbstractContextManager[ClientConnection]:
        port_file = self._profile / "DevToolsActivePort"
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if port_file.exists() and (lines := port_file.read_text().splitlines()):
                try:
                    pages = httpx.get(f"http://127.0.0.1:{lines[0]}/json/list", trust_env=False).json()
                except httpx.HTTPError:
                    pages = []
                for page in pages:
                    if page.get("type") == "page":
                        return connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None)
            time.sleep(0.1)
        self._process.kill()
        raise RuntimeError(f"Chromium did not start within {START_S:.0f} s")

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return dict(message.get("result", {}))
