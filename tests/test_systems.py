"""core/system_files.py and core/system_processes.py: the only places that ask which system this is.

What other systems lack is left out here, too, one thing at a time, so that the ways around it run.
"""

from __future__ import annotations

import ast
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_house import ROOMS, ROOT

from kconv.core import system_files as files
from kconv.core import system_processes as processes
from kconv.core.children import Child, ChildRefused
from kconv.core.claims import claim, claimed_folder, locked_folder, reclaim
from kconv.core.folders import atomic_folder
from kconv.core.leftovers import remove

HOMES = {"core/system_files.py", "core/system_processes.py", "core/win32.py"}
# Modules not every system has, or that do another thing on each.
MODULES = {
    *("fcntl", "grp", "mmap", "msvcrt", "posix", "pty", "pwd", "resource", "select", "selectors", "termios"),
    *("tty", "winreg"),
}
# Of os: what is not on all three systems, and what does not do the same there.
CALLS = {
    *(
        "O_BINARY",
        "O_CLOEXEC",
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_NONBLOCK",
        "copy_file_range",
        "fchmod",
        "fork",
    ),
    *(
        "fsync",
        "getegid",
        "geteuid",
        "getgid",
        "getuid",
        "getxattr",
        "killpg",
        "lockf",
        "memfd_create",
        "mkfifo",
    ),
    *(
        "nice",
        "pipe2",
        "posix_fadvise",
        "posix_fallocate",
        "posix_spawn",
        "pread",
        "preadv",
        "pwrite",
        "pwritev",
    ),
    *("readv", "rename", "replace", "sched_getaffinity", "sendfile", "set_blocking", "setpgid", "setsid"),
    *("statvfs", "sysconf", "uname", "waitid", "writev"),
}
SIGNALS = {
    "ITIMER_PROF",
    "SIGALRM",
    "SIGBUS",
    "SIGKILL",
    "SIGPROF",
    "SIGUSR1",
    "alarm",
    "setitimer",
    "sigwait",
}
STATUS = {"st_blocks", "st_uid"}
# What reads Linux's own folders beside them: each goes on without where they are not there (test_machine).
LINUX = {*HOMES, "core/machine.py", "core/child.py"}


def _breaches(path: Path) -> set[str]:
    """What a file asks of the system by itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module or ""} & MODULES
            if node.module == "os":
                found |= {alias.name for alias in node.names} & CALLS
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            names = {"os": CALLS, "signal": SIGNALS}.get(owner, STATUS)
            found |= {node.attr} & names
        elif isinstance(node, ast.keyword):
            found |= {node.arg or ""} & {"preexec_fn", "start_new_session", "creationflags", "process_group"}
        elif isinstance(node, ast.Constant) and str(node.value).startswith(("/proc/", "/sys/")):
            found.add(str(node.value))
    return found


def test_nothing_but_two_modules_asks_which_system_this_is() -> None:
    here: dict[str, list[str]] = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            breaches = set() if name in HOMES else _breaches(path)
            if name in LINUX:
                breaches = {each for each in breaches if not each.startswith("/")}
            if breaches:
                here[name] = sorted(breaches)
    assert not here, "core/system_files.py and core/system_processes.py are for that"


@pytest.mark.parametrize("system", ["win32", "darwin"])
@pytest.mark.long
def test_types_hold_on_other_systems(system: str, tmp_path: Path) -> None:
    """A type checker knows which functions and constants of the standard library a system has not."""
    command = [sys.executable, "-m", "mypy", "--platform", system, "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(params=["of its own", "by seeking"])
def positioned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "by seeking":
        monkeypatch.setattr(files, "POSITIONED", False)
        monkeypatch.delattr(os, "preadv")
        for name in ("pread", "pwrite"):
            monkeypatch.delattr(os, name)


@pytest.mark.usefixtures("positioned")
def test_many_threads_read_and_write_one_file(tmp_path: Path) -> None:
    path, block, count, workers = tmp_path / "file", 4096, 64, 8
    contents = [random.Random(number).randbytes(block) for number in range(count)]
    handle = files.open_to_write(path, new=True)
    wrong: list[int] = []

    def work(first: int) -> None:
        for number in range(first, count, workers):
            files.write_at(handle, contents[number], number * block)
        for number in range(first, count, workers):
            view = memoryview(bytearray(block))
            if files.read_at(handle, view, number * block) != block or view != contents[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert path.read_bytes() == b"".join(contents)
    assert files.bytes_at(handle, 10, count * block) == b""
    assert files.bytes_at(handle, 10, count * block - 4) == contents[-1][-4:]
    os.close(handle)


def test_what_is_opened_is_what_was_asked_for(tmp_path: Path) -> None:
    there, link, fifo = tmp_path / "there", tmp_path / "link", tmp_path / "fifo"
    there.write_bytes(b"one")
    link.symlink_to(there)
    os.mkfifo(fifo)
    began = time.monotonic()
    os.close(files.open_to_read(fifo))
    assert time.monotonic() - began < 5
    with pytest.raises(FileExistsError):
        files.open_to_write(there, new=True)
    with pytest.raises(FileNotFoundError):
        files.open_to_write(tmp_path / "none")
    for opened in (files.open_to_read, files.open_to_write):
        os.close(opened(link))
        with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
            opened(link, follow=False)
    handle = files.open_to_write(there, append=True)
    files.append(handle, b" and two")
    os.close(handle)
    assert there.read_bytes() == b"one and two"


def test_links_are_refused_where_no_flag_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_NO_LINK", 0)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there").touch()
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        files.open_to_read(tmp_path / "link", follow=False)


@pytest.fixture(params=["of its own", "beside it"])
def folders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "beside it":
        monkeypatch.setattr(files, "FOLDERS_OPEN", False)


_HOLDING = """
import sys
from pathlib import Path
from kconv.core import system_files
from kconv.core.claims import claimed_folder
system_files.FOLDERS_OPEN = sys.argv[2] == "True"
with claimed_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.usefixtures("folders")
def test_a_folder_is_locked_while_a_process_lives(tmp_path: Path) -> None:
    path = tmp_path / f".out.kconv-{'0' * 16}.partial"
    command = [sys.executable, "-c", _HOLDING, str(path), str(files.FOLDERS_OPEN)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(BlockingIOError):
                reclaim(path)
            assert remove(path) is None
        finally:
            process.kill()
    assert path.is_dir()
    with claimed_folder(path):  # killed: the lock is gone
        assert path.is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("folders")
def test_a_folder_appears_whole_and_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for content in ("one", "two"):
        with atomic_folder(path, mark="mark", force=True) as temporary:
            (temporary / "mark").write_text(content)
        assert (path / "mark").read_text() == content
    with locked_folder(path), pytest.raises(BlockingIOError):
        reclaim(path)
    files.release(claim(tmp_path / "other", folder=True))
    files.synced(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "out"]


def test_a_rename_is_tried_again_where_somebody_has_the_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_text("new")
    refusals = [PermissionError(13, "in use")] * 3
    real = os.replace

    def replace(old: Path, new: Path) -> None:
        if refusals:
            raise refusals.pop()
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):  # here that is no reason
        files.rename(tmp_path / "old", tmp_path / "name")
    monkeypatch.setattr(files, "RENAMES_OPEN", False)
    files.rename(tmp_path / "old", tmp_path / "name")
    assert (tmp_path / "name").read_text() == "new"


def test_a_file_of_bytes_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        with files.file_of(b"content", "kconv-try", ".gguf") as path:
            assert Path(path).read_bytes() == b"content"
        assert not os.path.exists(path)
        monkeypatch.delattr(os, "memfd_create", raising=False)


@pytest.fixture(params=["polled", "by threads"])
def answers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "POLLS", request.param == "polled")


def _child(code: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


@pytest.mark.usefixtures("answers")
def test_answers_come_whole_and_their_end_is_seen() -> None:
    code = "import sys; sys.stdin.buffer.read(1); sys.stdout.buffer.write(bytes(range(256)) * 50_000)"
    with _child(code) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        pipe = processes.answers_of(process.stdout)
        assert not pipe.wait(0.05)
        process.stdin.write(b"x")
        data, view = bytearray(), memoryview(bytearray(1_000_003))
        while count := pipe.read_into(view):
            data += view[:count]
        assert data == bytes(range(256)) * 50_000
        assert pipe.wait(0)
        pipe.close()


@pytest.mark.usefixtures("answers")
def test_the_first_of_several_answers_is_found() -> None:
    code = "import sys; sys.stdin.buffer.read(1); print('answer')"
    with _child(code) as one, _child(code) as two:
        children = (one, two)
        pipes = [processes.answers_of(each.stdout) for each in children if each.stdout is not None]
        assert processes.with_answers(pipes, 0.05) == []
        assert two.stdin is not None
        two.stdin.write(b"x")
        assert processes.with_answers(pipes, 60) == [1]
        view = memoryview(bytearray(100))
        assert bytes(view[: pipes[1].read_into(view)]).startswith(b"answer")
        assert processes.with_answers(pipes) == [1]  # its end
        one.kill()
        assert one.wait() == -signal.SIGKILL
        assert processes.with_answers(pipes[:1]) == [0]
        for pipe in pipes:
            pipe.close()


@pytest.mark.usefixtures("answers")
def test_a_child_can_be_given_up_before_it_answers() -> None:
    with Child("kconv.runtimes.llama_test_child", library="llama.cpp") as child:
        pass
    assert child.closed
    assert not [each for each in threading.enumerate() if each.name == "answers" and _outlives(each)]


def _outlives(thread: threading.Thread) -> bool:
    thread.join(10)
    return thread.is_alive()


def test_a_limit_of_time_ends_a_process_without_signals() -> None:
    code = (
        "from kconv.core import system_processes as system; system.SIGNALS_TIME = False\n"
        "system.limit_time(60); system.limit_time(0); system.limit_time(0.2)\n"
        "while True: pass"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == processes.TIME_IS_UP


def test_both_ends_over_time_are_findings() -> None:
    for code in (processes.TIME_IS_UP, -signal.SIGPROF):
        child = Child("kconv.runtimes.llama_test_child", library="llama.cpp")
        number = processes.ending_signal(code)
        found = child._by_code(code, []) if number is None else child._by_signal(number, [])
        child.close()
        assert isinstance(found, ChildRefused)
        assert found.limit == "time"


@pytest.mark.parametrize(
    ("code", "number"),
    [(0, None), (1, None), (-11, 11), (-4, 4), (0xC000001D, 4), (0xC0000005, 11), (-1073741819, 11)],
)
def test_how_a_process_ended_is_read_from_its_code(code: int, number: int | None) -> None:
    """3221225501 is how Windows' exit status says that an instruction was illegal."""
    if code < -64:
        code &= 0xFFFFFFFF
    assert processes.ending_signal(code) == number
    if number is not None:
        assert number in processes.CRASHES


def test_libraries_are_called_as_on_each_system(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"linux": "libggml-base.so", "darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}
    for system, name in expected.items():
        monkeypatch.setattr(sys, "platform", system)
        assert processes.library_names("ggml-base")[0] == name
