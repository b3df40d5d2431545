"""Chromium without a screen, told what to do through a pair of pipes (Chrome DevTools Protocol)."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Page:
    """The one page of a browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._numbers, self._held = itertools.count(1), b""
        self._session: str | None = None
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.command("Page.enable")

    def command(self, method: str, **parameters: Any) -> Any:
        """Have the browser do something, and return what it answers."""
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": parameters}
        asked |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(asked).encode() + b"\0")
        end = time.monotonic() + 120
        while True:
            while b"\0" not in self._held:
                assert select.select([self._from], [], [], end - time.monotonic())[0], (
                    f"no answer to {method}"
                )
                piece = os.read(self._from, 1 << 16)
                assert piece, "the browser has ended"
                self._held += piece
            line, _, self._held = self._held.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, script: str) -> Any:
        """What an expression in JavaScript comes to, promises awaited."""
        done = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> Any:
        """The first value of an expression that is true."""
        end = time.monotonic() + seconds
        while True:
            found = self.value(script)
            if found:
                return found
            assert time.monotonic() < end, (
                f"{script} did not come true: {self.value('document.body.innerText')}"
            )
            time.sleep(0.02)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page in Chromium, whose profile lies in ``folder``; without Chromium the test is skipped."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium here")
    theirs, ours = zip(os.pipe(), reversed(os.pipe()), strict=True)  # (reads, writes), (writes, reads)
    high = [fcntl.fcntl(each, fcntl.F_DUPFD, 20) for each in theirs]

    def take() -> None:  # the browser reads from 3 and writes to 4
        for number, each in zip((3, 4), high, strict=True):
            os.dup2(each, number)

    words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    words += [f"--user-data-dir={folder}", "--lang=en-US", "about:blank"]
    child = subprocess.Popen(
        words, stderr=subprocess.DEVNULL, pass_fds=(3, 4), preexec_fn=take, start_new_session=True
    )
    for each in (*theirs, *high):
        os.close(each)
    try:
        page = Page(*ours)
        yield page
        with contextlib.suppress(AssertionError, OSError):
            page._session = None
            page.command("Browser.close")
        child.wait(30)
    finally:
        for each in ours:
            os.close(each)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 9)
        child.wait()
