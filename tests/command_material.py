"""``kconv`` as a command, hundreds of times: a process that has imported it forks for each.

To start Python and import what a command needs takes 0.4 s of a processor, most commands far less. Tests of
how the process itself starts, ends and heeds signals start one of their own. A file that uses ``kconv`` asks
for the process with ``pytestmark = pytest.mark.usefixtures("kconv_server")``.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fork_server import MODULES, Kconv

LIGHT = (*(name for name in MODULES if name.startswith(("kconv.cli.", "kconv.flows."))), "jinja2.sandbox")
"""Imported beforehand: what needs no torch, which takes 5 s and most of these commands never load."""
_servers: list[Kconv] = []


@pytest.fixture(scope="session")
def kconv_server() -> Iterator[None]:
    """The process that forks."""
    with Kconv(LIGHT) as server:
        _servers.append(server)
        yield
        _servers.clear()


def until(what: Callable[[], Any], seconds: float = 300) -> None:
    """Wait for what a process does meanwhile."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def kconv(
    *words: object,
    input: str | bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    text: bool = True,
) -> subprocess.CompletedProcess[Any]:
    """``kconv WORDS``, as subprocess.run tells it; ``text`` says whether streams are text or bytes."""
    arguments = [os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in words]
    code, *rest = _servers[-1].run_with(
        arguments,
        given=input.encode("utf-8") if isinstance(input, str) else input,
        environment=os.environ if env is None else env,
        cwd=str(cwd or Path.cwd()),
        seconds=timeout,
    )
    if code is None:
        raise subprocess.TimeoutExpired(["kconv", *arguments], timeout, *rest)
    out, err = (each.decode("utf-8").replace("\r\n", "\n") if text else each for each in rest)
    return subprocess.CompletedProcess(["kconv", *arguments], code, out, err)


def kconv_here(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``kconv WORDS`` in this very process, which has torch and transformers for other tests, too."""
    from kconv.cli.main import main

    arguments, out, err = list(map(str, words)), io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(arguments)
    return subprocess.CompletedProcess(["kconv", *arguments], code, out.getvalue(), err.getvalue())
