"""What the end of a child process means: a finding about its input, or nothing at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from kconv.core.children import Child, ChildRefused, retry_once
from kconv.core.errors import ChildDied

# The module of each test's child: what it does with one byte that says what.
BEHAVIOUR = '''
import os, signal, sys, time
from kconv.core import child

def fill():
    held = []
    while True:
        held.append(bytearray(1 << 24))

def spin():
    child.limit_time(0.3)
    while True:
        pass

def main(arguments):
    what = child.take(1)
    if what == b"a":
        child.write(b"answer" + child.take(4))
        child.take(1)
    if what == b"c":
        raise child.Stop(9, "no such thing")
    if what == b"g":
        os.write(2, b"x.c:1: GGML_ASSERT(n > 0) failed\\n")
        os.abort()
    if what == b"q":
        os.abort()
    if what == b"k":
        os.kill(os.getpid(), int(arguments[0]))
    if what == b"t":
        spin()
    if what == b"m":
        child.limit_memory(1 << 28)
        fill()
    if what == b"b":
        raise RuntimeError("a slip of ours")
    if what == b"i":
        import no_such_library
    if what == b"s":
        time.sleep(60)
    return 0
'''  # fmt: skip

Starter = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Starter:
    (tmp_path / "behaviour.py").write_text(BEHAVIOUR)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda *arguments, **more: Child("behaviour", *arguments, library="the library", **more)


def end_of(child: Child, what: bytes) -> ChildRefused | ChildDied:
    with child:
        child.send(what)
        with pytest.raises((ChildRefused, ChildDied)) as caught:
            child.receive(1)
    assert isinstance(caught.value, (ChildRefused, ChildDied))
    return caught.value


def test_requests_and_answers(start: Starter) -> None:
    with start() as child:
        child.send(b"awords")
        assert child.receive(10) == b"answerword"


def test_its_own_exit_code_is_a_finding(start: Starter) -> None:
    ending = end_of(start(), b"c")
    assert isinstance(ending, ChildRefused)
    assert (ending.code, ending.words, ending.limit) == (9, ("no such thing",), None)


def test_a_check_of_the_library_is_a_finding(start: Starter) -> None:
    ending = end_of(start(), b"g")
    assert isinstance(ending, ChildRefused)
    assert (ending.code, ending.words) == (None, ("x.c:1: GGML_ASSERT(n > 0) failed",))


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGILL, signal.SIGXCPU]
)
def test_a_signal_is_no_finding(start: Starter, number: signal.Signals) -> None:
    ending = end_of(start(str(int(number))), b"k")
    assert isinstance(ending, ChildDied)
    assert f"signal {int(number)}" in ending.message
    assert number.name in ending.message
    assert ending.exit_code == 4


@pytest.mark.parametrize("what", [b"q", b"b", b"i"])
def test_nor_is_a_silent_abort_or_a_bug_or_a_missing_package(start: Starter, what: bytes) -> None:
    assert isinstance(end_of(start(), what), ChildDied)


def test_processor_time_that_kconv_gave_is_a_finding(start: Starter) -> None:
    ending = end_of(start(), b"t")
    assert isinstance(ending, ChildRefused)
    assert ending.limit == "time"


def test_memory_that_kconv_gave_is_a_finding(start: Starter) -> None:
    ending = end_of(start(), b"m")
    assert isinstance(ending, ChildRefused)
    assert ending.limit == "memory"
    assert ending.words == ("out of memory",)


def test_memory_that_the_machine_lacks_is_none(start: Starter, tmp_path: Path) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))\n"
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from kconv.core.children import Child\n"
        "child = Child('behaviour', library='the library')\n"
        "child.send(b'm')\n"
        "try:\n    child.receive(1)\nexcept Exception as error:\n    print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ChildDied"]


def test_a_wall_clock_is_none(start: Starter) -> None:
    with start(patience=0.2) as child:
        child.send(b"s")
        with pytest.raises(ChildDied, match="did not answer"):
            child.receive(1)


def test_a_second_try(start: Starter) -> None:
    tries: list[bytes] = []

    def attempt() -> bytes:
        tries.append(b"k" if not tries else b"a")
        with start(str(int(signal.SIGKILL))) as child:
            child.send(tries[-1] + b"word")
            return bytes(child.receive(10))

    assert retry_once(attempt) == b"answerword"
    tries.clear()

    def hopeless() -> None:
        tries.append(b"k")
        end = end_of(start(str(int(signal.SIGKILL))), b"k")
        raise end

    with pytest.raises(ChildDied):
        retry_once(hopeless)
    assert len(tries) == 2


def test_the_child_of_a_parent_that_is_killed_ends(start: Starter, tmp_path: Path) -> None:
    code = (
        f"import sys, time; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from kconv.core.children import Child\n"
        "child = Child('behaviour', library='the library')\n"
        "child.send(b's')\nprint(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.01)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_it_imports_nothing_of_kconv_but_its_side(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "behaviour.py").write_text(
        "import sys\nfrom kconv.core import child\ndef main(arguments):\n"
        "    child.write(repr(sorted(n for n in sys.modules if n.startswith(('kconv', 'numpy', 'click'))))"
        ".ljust(200).encode())\n    child.take(1)\n    return 0\n"
    )
    with start() as child:
        assert (
            child.receive(200).decode().strip()
            == "['kconv', 'kconv.core', 'kconv.core.child', 'kconv.core.system_processes']"
        )
