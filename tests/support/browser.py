"""A headless Chromium for tests, driven over its DevTools protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
    "--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip
NAMED = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Escape": 27, " ": 32, "Home": 36, "End": 35}


def find_browser() -> str | None:
    """The path of a Chromium, None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """A browser with a profile of its own in `folder`; a context manager that ends it."""

    def __init__(self, folder: Path) -> None:
        command = [str(find_browser()), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: (folder / "DevToolsActivePort").exists())
        self._port = int(wait_for(lambda: (folder / "DevToolsActivePort").read_text()).splitlines()[0])

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def open(self, url: str, width: int = 1280, height: int = 800, dark: bool = False) -> "Tab":
        """A new tab of that size, once its page is loaded."""
        target = httpx.put(f"http://127.0.0.1:{self._port}/json/new?about:blank").json()
        tab = Tab(target["webSocketDebuggerUrl"])
        mobile = width < 500
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if mobile else 1, "mobile": mobile}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.call("Page.navigate", url=url)
        wait_for(lambda: tab.run("location.href != 'about:blank' && document.readyState == 'complete'"))
        return tab


class Tab:
    """One page."""

    def __init__(self, address: str) -> None:
        self._socket = connect(address, max_size=None)
        self._ids = itertools.count(1)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression (of a promise: what it resolves to)."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """The text of an element."""
        return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def press(self, key: str, repeat: bool = False) -> None:
        """Press and release a key, as a person does."""
        code = NAMED.get(key, ord(key[0].upper()))
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        down = {"key": key, "windowsVirtualKeyCode": code, **text}
        self.call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=repeat, **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def click(self, selector: str) -> None:
        """Click in the middle of an element."""
        box = (
            f"(({{x, y, width, height}}) => [x + width/2, y + height/2])({_element(selector)}.getBoundingClientRect())"
        )
        x, y = self.run(box)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        """What the tab shows, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def _element(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"


def wait_for(found: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of `found`; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"not within {seconds} s: {found}"
        time.sleep(0.05)
    return value
