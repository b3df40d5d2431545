"""No process outlives the test that started it.

A process found alive after its test is killed, and the test fails with its command line. Processes are known
by a variable of the environment that everything started here inherits, so that grandchildren whose parent is
gone are found, too.
"""

from __future__ import annotations

import gc
import os
import shlex
import time
from collections.abc import Iterator, Set

import psutil
import pytest

_MARK = "KCONV_TEST_SESSION"
_TOKENIZER = "kconv.vocab.tokenizer_child"
# Seconds for a child whose parent was killed to notice, on a machine with other work to do.
_PATIENCE = float(os.environ.get("KCONV_TEST_PATIENCE", "20"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """Mark what this process is going to start; every worker has a mark of its own."""
    os.environ[_MARK] = f"{os.getpid()}-{time.time_ns()}"


@pytest.fixture(autouse=True)
def _no_process_stays() -> Iterator[None]:
    """Fails a test that leaves a process behind; what fixtures of wider scope started before may stay."""
    before = frozenset(psutil.pids())
    yield
    _end(before, tokenizers_stay=True)


@pytest.fixture(autouse=True, scope="session")
def _no_process_stays_at_the_end() -> Iterator[None]:
    """The same once more when the fixtures of files and of the session are gone."""
    before = frozenset(psutil.pids())
    yield
    _end(before)


def _end(before: Set[int], *, tokenizers_stay: bool = False) -> None:
    """``tokenizers_stay``: a tokenizer's process may stay, which ends with what a fixture read of it."""
    left = _started(before, tokenizers_stay=tokenizers_stay)
    if not left:
        return
    begun, collected = time.monotonic(), False
    while (
        left := _started(before, tokenizers_stay=tokenizers_stay)
    ) and time.monotonic() < begun + _PATIENCE:
        if not collected and time.monotonic() > begun + 0.1:  # most end by themselves, and this takes as long
            gc.collect()  # an object in a cycle may hold it
            collected = True
        time.sleep(0.01)
    if not left:
        return
    named = [f"{process.pid}: {_command(process)}" for process in left]
    for process in left:
        process.kill()
    psutil.wait_procs(left, 5)
    pytest.fail(
        "processes this test started were still running, and were killed:\n" + "\n".join(named), False
    )


def _started(before: Set[int], *, tokenizers_stay: bool) -> list[psutil.Process]:
    """Those of the processes that were not there before which this one, or one of its children, started."""
    processes = []
    for pid in set(psutil.pids()) - before:
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if tokenizers_stay and process.ppid() == os.getpid() and _TOKENIZER in process.cmdline():
                continue
            if process.ppid() == os.getpid() or process.environ().get(_MARK) == os.environ[_MARK]:
                processes.append(process)
        except psutil.Error:  # gone meanwhile, or somebody else's
            continue
    return processes


def _command(process: psutil.Process) -> str:
    try:
        return shlex.join(process.cmdline())
    except psutil.Error:
        return "(gone meanwhile)"
