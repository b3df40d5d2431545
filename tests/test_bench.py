"""The bench keeps what it has found, removes what it made, and leaves nothing running when interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"

STEP = """
import sys
sys.path.insert(0, {bench!r})
import timing
from pathlib import Path
timing.RESULTS = Path({results!r})
results = timing.Results("trial")
with timing.workplace("trial") as out:
    (out / "half.gguf").write_bytes(b"0")
    results.cost("quick", timing.medians([timing.elapsed(lambda: 1)]))
    results.aim("quick / slow", 0.5, 1.0, at_most=True)
    print("begun", flush=True)
    timing.checked([sys.executable, "-c", "import time; time.sleep(600)", "of-the-bench"])
"""


def running(mark: str) -> list[int]:
    """Processes with ``mark`` as an argument."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words:
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the bench reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_an_interrupted_step_keeps_its_figures_and_nothing_else(
    number: signal.Signals, tmp_path: Path
) -> None:
    scratch, results = tmp_path / "scratch", tmp_path / "results"
    code = STEP.format(bench=str(BENCH), results=str(results))
    code = code.replace("of-the-bench", f"of-{tmp_path.name}")
    # Where the tests themselves ignore Ctrl-C, as background jobs do, the step is to take it nevertheless.
    code = f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    environment = {**os.environ, "KCONV_SCRATCH": str(scratch)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            while "begun" not in process.stdout.readline():
                assert process.poll() is None
            deadline = time.monotonic() + 60
            while not running(f"of-{tmp_path.name}"):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
            process.wait(60)
            while running(f"of-{tmp_path.name}"):
                assert time.monotonic() < deadline, "the command it measures lives on"
                time.sleep(0.02)
        finally:
            process.kill()
            for other in running(f"of-{tmp_path.name}"):
                os.kill(other, signal.SIGKILL)
    assert process.returncode == 130
    assert list(scratch.iterdir()) == []
    kept = json.loads((results / "trial.json").read_text("utf-8"))
    assert kept["aims"] == [{"what": "quick / slow", "ratio": 0.5, "limit": 1.0, "at_most": True}]
    assert list(kept["costs"]) == ["quick"]
    assert [path.name for path in results.iterdir()] == ["trial.json"]


def bench(code: str) -> str:
    """What code prints that imports the bench's modules."""
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(BENCH)!r})\n{code}"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("seconds", "fixed", "ratio"),
    [
        ({400: 0.4, 1400: 1.4, 8000: 8.0}, 0.0, 1.0),
        ({400: 1.0, 1400: 2.0, 8000: 8.6}, 0.6, 1.0),
        ({400: 1.4, 1400: 2.4, 8000: 9.0}, 0.6, 0.8 / 0.4 / (8.4 / 8)),  # a fixed part of 1 s is too much
    ],
)
def test_growth_is_judged_over_a_fixed_part(seconds: dict[int, float], fixed: float, ratio: float) -> None:
    told = bench(f"import growth; print(*growth.spread({seconds!r}))").split()
    assert [float(each) for each in told] == pytest.approx([fixed, ratio], rel=1e-6)


def test_the_table_marks_what_falls_short() -> None:
    rows = bench(
        "from timing import Aim\n"
        "for aim in (Aim('a', 8.4, 8.0), Aim('b', 7.9, 8.0), Aim('c', 1.6, 1.5, True), Aim('d', 3.0)):\n"
        "    print(aim.row())"
    ).splitlines()
    assert rows == [
        "| a | 8.40 | ≥ 8 | kept |",
        "| b | 7.90 | ≥ 8 | **short** |",
        "| c | 1.60 | ≤ 1.5 | **short** |",
        "| d | 3.00 |  |  |",
    ]


def test_steps_are_listed_and_unknown_ones_refused() -> None:
    words = [sys.executable, str(BENCH / "bench.py")]
    told = subprocess.run([*words, "--list"], check=True, capture_output=True, text=True).stdout
    assert {"copying", "llama.cpp", "kernels", "growth", "proof", "peers"} <= {
        line[:12].strip() for line in told.splitlines()
    }
    done = subprocess.run([*words, "--only", "copying,speed"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown: speed" in done.stderr
