"""The suite's own rules: skips under CI, processes left behind, ignored signals, workers and threads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import skips
import workers

HERE = Path(__file__).parent


def suite(folder: Path, code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest with the suite's rules on a file with that code."""
    (folder / "test_it.py").write_text(code, "utf-8")
    (folder / "conftest.py").write_text(
        'pytest_plugins = ["workers", "skips", "leftovers", "signals_material"]'
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *options, str(folder)]
    return subprocess.run(
        command,
        cwd=folder,
        env={**clean, "PYTHONPATH": str(HERE), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def outcome(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """How many tests passed, failed, were skipped."""
    last = done.stdout.rstrip().rpartition("\n")[2]
    return {
        name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed)", last)
    }


SKIPS = """
import pytest

@pytest.fixture(scope="session")
def real():
    pytest.skip("KCONV_REAL is not set")

def test_material(real): pass
def test_the_same_again(real): pass
def test_download(): pytest.importorskip("no_such_package")

@pytest.mark.skipif(True, reason="the kernels are not built")
def test_built(): pass

@pytest.mark.skipif(True, reason="root may read everything")
def test_of_permissions(): pass

@pytest.mark.xfail(reason="known")
def test_known(): assert False
"""


def test_a_skip_is_a_failure_under_ci(tmp_path: Path) -> None:
    assert outcome(suite(tmp_path, SKIPS)) == {"skipped": 5, "xfailed": 1}
    assert outcome(suite(tmp_path, SKIPS, CI="false")) == {"skipped": 5, "xfailed": 1}
    done = suite(tmp_path, SKIPS, CI="true")
    assert outcome(done) == {"failed": 1, "skipped": 1, "xfailed": 1, "errors": 3}
    assert done.returncode == 1
    assert "where that counts as failed: KCONV_REAL is not set" in done.stdout
    assert "could not import 'no_such_package'" in done.stdout


def test_so_is_a_file_that_is_skipped(tmp_path: Path) -> None:
    code = "import pytest\npytest.importorskip('no_such_package')\ndef test_it(): pass\n"
    assert outcome(suite(tmp_path, code)) == {"skipped": 1}
    done = suite(tmp_path, code, CI="true")
    assert done.returncode == 2
    assert "could not import 'no_such_package'" in done.stdout


def test_every_reason_that_is_allowed_is_given_somewhere() -> None:
    """And none by a test that only lacks material."""
    code = "".join(path.read_text("utf-8") for path in HERE.glob("*.py") if path.name != "skips.py")
    for reason in skips.ALLOWED:
        assert reason in code, reason
        assert not re.search("KCONV_REAL|not to be had|not built|compiler", reason)


LEFT = """
import os, subprocess, sys, pytest

@pytest.fixture(scope="module")
def server():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()

def test_a_child():
    global kept
    kept = subprocess.Popen(["sleep", "987"])

def test_a_grandchild():
    subprocess.run(["sh", "-c", "sleep 986 >/dev/null 2>&1 &"], check=True)

def test_one_in_a_group_of_its_own():
    code = "import os; os.setsid(); os.execvp('sleep', ['sleep', '985'])"
    global other
    other = subprocess.Popen([sys.executable, "-c", code])

def test_one_that_takes_its_time():
    subprocess.run(["sh", "-c", "sleep 0.2 >/dev/null 2>&1 &"], check=True)

def test_one_of_a_fixture(server): pass
def test_another_of_it(server): assert server.poll() is None
def test_none(): subprocess.run(["true"], check=True)
"""


def test_what_a_test_leaves_running_is_named_and_killed(tmp_path: Path) -> None:
    done = suite(tmp_path, LEFT, KCONV_TEST_PATIENCE="0.8")
    assert outcome(done) == {"passed": 7, "errors": 3}, done.stdout
    for number in (985, 986, 987):
        assert f"sleep {number}" in done.stdout
    for process in psutil.process_iter(["cmdline"]):
        assert process.info["cmdline"] not in [["sleep", str(number)] for number in (985, 986, 987)]


INTERRUPTED = """
import signal, subprocess
from signals_material import hangups_heeded

def test_ctrl_c():
    with subprocess.Popen(["sleep", "60"]) as child:
        child.send_signal(signal.SIGINT)
    assert child.returncode == -signal.SIGINT

def test_a_hangup():
    with hangups_heeded():
        child = subprocess.Popen(["sleep", "60"])
    child.send_signal(signal.SIGHUP)
    assert child.wait() == -signal.SIGHUP
"""


@pytest.fixture
def deaf() -> Iterator[None]:
    """Ignores what nohup and the background of a script ignore."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n1"]], ids=["alone", "in a worker"])
def test_signals_reach_children_of_a_parent_that_ignores_them(options: list[str], tmp_path: Path) -> None:
    done = suite(tmp_path, INTERRUPTED, *options)
    assert outcome(done) == {"passed": 2}, done.stdout


def test_a_worker_takes_its_share_of_threads(tmp_path: Path) -> None:
    share = max(workers.cores() // 2, 1)
    code = (
        "import os, workers\ndef test_it():\n"
        f"    assert [os.environ[name] for name in workers.THREADS] == ['{share}'] * len(workers.THREADS)\n"
        f"    assert not hasattr(os, 'sched_getaffinity') or len(os.sched_getaffinity(0)) == {share}\n"
    )
    done = suite(tmp_path, code, "-p", "xdist", "-n2", **dict.fromkeys(workers.THREADS, ""))
    assert outcome(done) == {"passed": 1}, done.stdout


def test_the_long_files_are_there_and_come_first(tmp_path: Path) -> None:
    assert len(set(workers.LONG)) == len(workers.LONG)
    for name in workers.LONG:
        assert (HERE / f"test_{name}.py").is_file(), f"LONG of tests/workers.py names {name}"
    code = "def test_it(): pass\n"
    for name in ("card", workers.LONG[1], workers.LONG[0]):
        (tmp_path / f"test_{name}.py").write_text(code)
    options = ["-o", "markers=long", "-p", "xdist", "-n1", "--dist=loadscope", "--no-loadscope-reorder"]
    done = suite(tmp_path, code, "-v", *options)
    assert outcome(done) == {"passed": 4}, done.stdout
    begun = re.findall(r"PASSED (?:\S*/)?test_(\w+)\.py", done.stdout)
    assert begun[:2] == list(workers.LONG[:2])
    assert outcome(suite(tmp_path, code, "-o", "markers=long", "-m", "not long")) == {"passed": 2}


def test_as_many_workers_as_there_are_processors_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, memory, expected in [(2, 23, 2), (64, 500, workers.MOST), (16, 7, 3), (1, 1, 1)]:
        monkeypatch.setattr(workers, "cores", lambda cores=cores: cores)
        monkeypatch.setattr(workers, "memory", lambda memory=memory: memory << 30)
        assert workers.pytest_xdist_auto_num_workers() == expected
