"""Every format our kernels make: libggml against each instruction set, on one thread and on two.

Half a million normal weights, exact in bf16, with and without importance data. libggml and the kernels take
turns, so that what else the machine does meets them alike, and the best of several turns counts, in seconds
of the processor: of one thread, or of the slower of two that encode as much each at the same time.

    python bench/kernels.py [--turns N] [--threads 1|2] [--weighed] [FORMAT]...

Prints a table in millions of weights a second and keeps it in .dev/bench-results/kernels.json. Exit code 1
where bytes differ.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from kernel_material import blocks, importance, kernel, libggml
from timing import save

from kconv.quant import native
from kconv.quant.formats import ENCODABLE, parse_format

LIBGGML = "libggml"
ROWS, COLUMNS = 128, 4096


@dataclass(frozen=True)
class Speed:
    """Weights a second, in millions, by who encodes."""

    format: str
    importance: bool
    threads: int
    speeds: dict[str, float]

    def row(self) -> str:
        """A row of the table."""
        kind = f"{self.format}, importance" if self.importance else self.format
        theirs = self.speeds[LIBGGML]
        cells = [f"{theirs:,.1f}"]
        for name in native.available_sets():
            cells.append(f"{self.speeds[name]:,.0f} ({self.speeds[name] / theirs:.1f} ×)")
        return f"| {kind} | {self.threads} | {' | '.join(cells)} |"


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="libggml against our kernels.")
    parser.add_argument("formats", nargs="*", type=parse_format)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, choices=(1, 2), help="only on one thread, or on two")
    parser.add_argument("--weighed", action="store_true", help="only with importance data")
    options = parser.parse_args()
    sets = native.available_sets()
    rng = np.random.default_rng(0)
    rows = blocks("bf16", rng, ROWS, COLUMNS)
    weights = importance("squares", rng, COLUMNS)
    print(f"\n| format | threads | libggml | {' | '.join(sets)} |\n|---|---:|{'---:|' * (1 + len(sets))}")
    measured: list[Speed] = []
    loads = [os.getloadavg()[0]]
    ways_to_time = {1: one_thread, 2: two_threads}
    if options.threads:
        ways_to_time = {options.threads: ways_to_time[options.threads]}
    for format in options.formats or ENCODABLE:
        for weighed in (weights,) if options.weighed else (None, weights):
            if not all(native.has_kernel(name, format, weighed=weighed is not None) for name in sets):
                continue
            ways = {LIBGGML: partial(libggml, format, rows, weighed)}
            ways |= {name: partial(kernel, name, format, rows, weighed) for name in sets}
            expected = ways[LIBGGML]()
            if not all(np.array_equal(way(), expected) for way in ways.values()):
                print(f"{format.display}: the bytes differ")
                return 1
            for threads, timed in ways_to_time.items():
                seconds = best(ways, timed, options.turns)
                speeds = {name: threads * rows.size / taken / 1e6 for name, taken in seconds.items()}
                measured.append(Speed(format.display, weighed is not None, threads, speeds))
                print(measured[-1].row(), flush=True)
                speeds_so_far = [asdict(speed) for speed in measured]
                save("kernels", {"load": [*loads, os.getloadavg()[0]], "speeds": speeds_so_far})
    print(f"\nMillions of weights a second; load at the end {os.getloadavg()[0]:.2f}.")
    return 0


def best(
    ways: dict[str, Callable[[], object]], timed: Callable[[Callable[[], object]], float], turns: int
) -> dict[str, float]:
    """The fewest seconds each way took; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            taken[name].append(timed(way))
    return {name: min(seconds) for name, seconds in taken.items()}


def one_thread(way: Callable[[], object]) -> float:
    """Seconds of the processor."""
    begun = time.thread_time()
    way()
    return time.thread_time() - begun


def two_threads(way: Callable[[], object]) -> float:
    """Seconds of the processor of the slower of two threads that do the same."""
    with ThreadPoolExecutor(2) as pool:
        return max(pool.map(one_thread, [way, way]))


if __name__ == "__main__":
    sys.exit(main())
