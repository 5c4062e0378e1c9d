# SPDX-FileCopyrightText: Backstep contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real browser without a window: opens a page from a file, measures it and takes pictures of it.

It is spoken to over a pipe, in the DevTools protocol: JSON texts that end in a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 30.0
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
# What the page itself may ask for: its own file, and nothing else.
_COMPLAINTS = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")


class Chromium:
    """One browser; a context manager that ends it."""

    def __init__(self, folder: Path) -> None:
        """:param folder: an empty one, for its own files."""
        down_read, self._down = os.pipe()
        self._up, up_write = os.pipe()

        def on_three_and_four() -> None:
            # Out of the way first: one of them may be the number that another one is to have.
            read, write = os.dup(down_read), os.dup(up_write)
            os.dup2(read, 3)
            os.dup2(write, 4)

        with (folder / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["chromium", *_OPTIONS, f"--user-data-dir={folder / 'profile'}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                close_fds=False,
                preexec_fn=on_three_and_four,  # noqa: PLW1509  # no threads here; the protocol wants these two numbers
            )
        os.close(down_read)
        os.close(up_write)
        self._buffer = b""
        self._number = 0
        self.heard: list[dict[str, Any]] = []
        """What it has told without being asked."""

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        os.close(self._down)
        os.close(self._up)

    def ask(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """The answer to one question.

        :raises AssertionError: it was refused, or took too long.
        """
        self._number += 1
        number = self._number
        text = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._down, json.dumps(text).encode() + b"\0")
        for message in self._messages(method):
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self.heard.append(message)
        raise AssertionError(f"no answer to {method}")

    def hear(self, method: str, session: str) -> None:
        """Wait until it tells something."""
        if any((one.get("method"), one.get("sessionId")) == (method, session) for one in self.heard):
            return
        for message in self._messages(method):
            self.heard.append(message)
            if (message.get("method"), message.get("sessionId")) == (method, session):
                return

    def _messages(self, waits_for: str) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + SECONDS
        while True:
            while b"\0" in self._buffer:
                raw, _zero, self._buffer = self._buffer.partition(b"\0")
                yield json.loads(raw)
            left = deadline - time.monotonic()
            assert left > 0, f"Chromium has not answered in {SECONDS:.0f} s to {waits_for}"
            if select.select([self._up], [], [], left)[0]:
                found = os.read(self._up, 1 << 20)
                assert found, f"Chromium has ended; see {self._process.args!r}"
                self._buffer += found

    @contextmanager
    def page(self, file: Path, *, width: int = 1100, dark: bool = False, media: str = "") -> Iterator[Page]:
        """A page from a file, as it is on a screen of this width (pixels)."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.heard.clear()
        page = Page(self, session)
        for domain in ("Page", "Network", "Log", "Runtime"):
            page.ask(f"{domain}.enable")
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        page.ask("Emulation.setEmulatedMedia", media=media, features=features)
        phone = width < 600
        page.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        page.ask("Page.navigate", url=file.absolute().as_uri())
        self.hear("Page.loadEventFired", session)
        try:
            yield page
        finally:
            self.ask("Target.closeTarget", targetId=target)


class Page:
    """One page that is open."""

    def __init__(self, chromium: Chromium, session: str) -> None:
        self._chromium = chromium
        self._session = session

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One question about this page."""
        return self._chromium.ask(method, self._session, **params)

    def value(self, script: str) -> Any:
        """What an expression is in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """What stands in its console."""
        return [json.dumps(one["params"]) for one in self._chromium.heard if one.get("method") in _COMPLAINTS]

    def requests(self) -> list[str]:
        """Every URL that it has asked for."""
        sent = [one for one in self._chromium.heard if one.get("method") == "Network.requestWillBeSent"]
        return [str(one["params"]["request"]["url"]) for one in sent]

    def picture(self, path: Path, most: float = 0) -> None:
        """The page as PNG: as a whole, or so many pixels of its upper end."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"] if most else {}
        clip = {"clip": {**size, "height": min(most, size["height"]), "scale": 1}} if most else {}
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, **clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def printed(self, path: Path) -> None:
        """The page as it is printed, as PDF."""
        path.write_bytes(base64.b64decode(self.ask("Page.printToPDF", printBackground=False)["data"]))
