"""A headless Chromium, spoken to by the DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-pipe",
]  # fmt: skip


class Browser:
    """One page of it. `complaints` are what its console has said, refused requests included."""

    def __init__(self, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()
        flags = " ".join([*FLAGS, f"--user-data-dir={profile}"])
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {PROGRAM} {flags} 3<&{ours[0]} 4>&{theirs[1]} 2>/dev/null"],
            pass_fds=(ours[0], theirs[1]),
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._out, self._in = open(ours[1], "wb"), open(theirs[0], "rb")  # noqa: SIM115
        self._number, self._session = 0, ""
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._in.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What a method of the protocol returns."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            found = self._message()
            if found.get("id") == self._number:
                assert "result" in found, found
                return found["result"]
            if found.get("method") == "Log.entryAdded":
                self.complaints.append(found["params"]["entry"]["text"])
            if found.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(found["params"]["exceptionDetails"]))

    def _message(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser has ended"
            data += byte
        return json.loads(data)

    def look(self, width: int, height: int = 900, scheme: str = "light") -> None:
        """Be so wide and high, in a colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def go(self, url: str) -> None:
        """Open a page."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState == 'complete' && location.href != 'about:blank'")

    def evaluate(self, code: str) -> Any:
        """The value of an expression, or what its promise becomes."""
        found = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, condition: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        code = f"""(async () => {{
            for (const end = Date.now() + {seconds * 1000}; Date.now() < end;) {{
                if ({condition}) return true;
                await new Promise(done => setTimeout(done, 20));
            }}
            return false;
        }})()"""
        assert self.evaluate(code), condition

    def press(self, key: str, code: str = "", modifiers: int = 0) -> None:
        """Press a key; modifiers: 1 Alt, 2 Ctrl."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=code or key, modifiers=modifiers
            )

    def screenshot(self, file: Path) -> None:
        """Write a picture of the page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))
