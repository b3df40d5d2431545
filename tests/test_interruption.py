"""Signals at any moment: while kconv is imported, and when all is done, too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

KCONV = [str(Path(sys.executable).parent / "kconv")]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

# Sends the process a signal when it begins to import KCONV_TEST_MODULE, or as the interpreter ends.
CUSTOM = """
import atexit, os, signal, sys
number, module = int(os.environ["KCONV_TEST_SIGNAL"]), os.environ["KCONV_TEST_MODULE"]
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), number)
if module == "the end":
    atexit.register(os.kill, os.getpid(), number)  # the first that is registered is called last
else:
    sys.meta_path.insert(0, Finder)
"""


def heeding_signals() -> None:
    """Undo what a parent (nohup) may have said; run in the child."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def struck(
    folder: Path, number: signal.Signals, module: str, *words: str, command: list[str] = KCONV, **how: Any
) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(CUSTOM)
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "KCONV_TEST_SIGNAL": str(int(number)),
        "KCONV_TEST_MODULE": module,
    }
    return subprocess.run(
        [*command, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        preexec_fn=how.get("preexec_fn", heeding_signals),
    )


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: str(number.name))
@pytest.mark.parametrize(
    "module", ["kconv.cli.commands", "click", "click.core", "kconv.cli.console", "kconv.cli.models", "numpy"]
)
def test_a_signal_while_something_is_imported(number: signal.Signals, module: str, tmp_path: Path) -> None:
    done = struck(tmp_path, number, module, "models")
    assert done.returncode == 130, done.stderr
    assert done.stderr == "\nkconv: interrupted\n"
    assert done.stdout == ""


@pytest.mark.parametrize("module", ["kconv.cli.commands", "kconv.cli.errors", "kconv.quant.policy"])
def test_one_object_tells_it(module: str, tmp_path: Path) -> None:
    done = struck(tmp_path, signal.SIGINT, module, "models", "--json")
    assert done.returncode == 130, done.stderr
    error = {"type": "Interrupted", "message": "interrupted", "hint": None}
    assert json.loads(done.stdout) == {"error": error, "exit_code": 130}


def test_as_a_module_of_python(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kconv.cli.main"]
    done = struck(tmp_path, signal.SIGINT, "click", "models", command=command)
    assert (done.returncode, done.stderr) == (130, "\nkconv: interrupted\n")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: str(number.name))
@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["inspect", "/nowhere"], 3)])
def test_when_all_is_done_it_is_done(
    number: signal.Signals, words: list[str], code: int, tmp_path: Path
) -> None:
    done = struck(tmp_path, number, "the end", *words)
    assert done.returncode == code, done.stderr
    assert "interrupted" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    def ignoring() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    done = struck(tmp_path, signal.SIGINT, "click", "--help", preexec_fn=ignoring)
    assert done.returncode == 0, done.stderr


SWALLOWED = """
import os, signal, sys
from kconv.cli import commands

def work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
    except BaseException as error:
        raise RuntimeError("Failed to import transformers") from error

commands.cli.get_command = lambda context, name: commands.click.Command("models", callback=work)
sys.exit(commands.run(["models"]))
"""


def test_what_a_library_makes_of_an_interrupt_is_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=heeding_signals,
    )
    assert (done.returncode, done.stderr) == (130, "\nkconv: interrupted\n")


def test_at_any_moment_of_a_run() -> None:
    """Before kconv's first line Python answers as it likes; the window that is left is a millisecond."""
    for hundredths in range(4, 40, 4):
        child = subprocess.Popen(
            [*KCONV, "models"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heeding_signals,
        )
        time.sleep(hundredths / 100)
        child.send_signal(signal.SIGINT)
        _, output = child.communicate(timeout=60)
        if "kconv/cli" not in output and "kconv: " not in output and child.returncode in (1, -2):
            continue
        assert child.returncode in (0, 130), output
        assert "Traceback" not in output
