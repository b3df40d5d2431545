"""What the steps of make bench share: runs timed in turns, and results that are kept as they come.

A step writes ``.dev/bench-results/STEP.json`` anew after every figure, so that a run that is interrupted
leaves what it has found (summary.py makes one table of them). Material lies in ``material.scratch()`` and is
kept for the next time; whatever else a step writes lies in ``workplace()`` and goes at its end, also where
that is Ctrl-C or a signal to terminate.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import material
from memory import INTERVAL, Run, descendants, measure

# Set in many containers: every command measured would compile all modules anew, which users' do once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

ROOT = Path(__file__).resolve().parent.parent
KCONV = str(Path(sys.executable).parent / "kconv")
RESULTS = ROOT / ".dev" / "bench-results"
SELDOM = 0.1  # seconds between looks at the memory that do not slow what is timed


@dataclass(frozen=True)
class Cost:
    """Medians of one thing measured; ``peak_private`` in bytes, 0 where it is of no interest."""

    seconds: float
    peak_private: int
    runs: tuple[float, ...]


@dataclass(frozen=True)
class Aim:
    """A ratio, the limit it is held to (None: none is set), and whether that is a maximum."""

    what: str
    ratio: float
    limit: float | None = None
    at_most: bool = False

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        if self.limit is None:
            return True
        return self.ratio <= self.limit if self.at_most else self.ratio >= self.limit

    def row(self) -> str:
        """A row of the table."""
        limit = "" if self.limit is None else f"{'≤' if self.at_most else '≥'} {self.limit:g}"
        verdict = "" if self.limit is None else "kept" if self.holds else "**short**"
        return f"| {self.what} | {self.ratio:.2f} | {limit} | {verdict} |"


@dataclass
class Results:
    """What a step has found so far; printed and written as it comes."""

    step: str
    costs: dict[str, Cost] = field(default_factory=dict)
    aims: dict[str, Aim] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    small: bool = False
    loads: list[float] = field(default_factory=lambda: [os.getloadavg()[0]])

    def head(self) -> None:
        """Begin the table of costs."""
        print(f"\n{self.step}\n\n| what | seconds (median) | runs | peak private memory |")
        print("|---|---:|---|---:|", flush=True)

    def cost(self, name: str, cost: Cost) -> None:
        """A row of costs."""
        self.costs[name] = cost
        peak = f"{cost.peak_private / 2**20:.0f} MiB" if cost.peak_private else ""
        runs = ", ".join(f"{run:.2f}" for run in cost.runs)
        print(f"| {name} | {cost.seconds:.2f} | {runs} | {peak} |", flush=True)
        self.write()

    def aim(self, what: str, ratio: float, limit: float | None = None, *, at_most: bool = False) -> None:
        """A ratio; they are printed with ``tail``."""
        self.aims[what] = Aim(what, ratio, limit, at_most)
        self.write()

    def note(self, text: str) -> None:
        """Something whoever reads the figures should know."""
        self.notes.append(text)
        print(text, flush=True)
        self.write()

    def tail(self) -> None:
        """The table of ratios."""
        print("\n| ratio | | aim | |\n|---|---:|---:|---|")
        print("\n".join(aim.row() for aim in self.aims.values()), flush=True)

    def write(self) -> None:
        """Keep all of it."""
        save(
            self.step,
            {
                "load": [*self.loads, os.getloadavg()[0]],
                "small": self.small,
                "costs": {name: asdict(cost) for name, cost in self.costs.items()},
                "aims": [asdict(aim) for aim in self.aims.values()],
                "notes": self.notes,
            },
        )


def save(step: str, found: Mapping[str, Any]) -> None:
    """Write a step's results, never half of them."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    target = RESULTS / f"{step}.json"
    written = target.with_name(f".{target.name}")
    written.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    os.replace(written, target)


@contextlib.contextmanager
def workplace(name: str) -> Iterator[Path]:
    """A folder for what a step writes, gone afterwards; a signal to terminate ends the step like Ctrl-C."""

    def ended(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    scratch = material.scratch()
    scratch.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, ended)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=scratch))
    try:
        yield folder
    except KeyboardInterrupt:
        for child in descendants():  # of a command that was just being started nobody knows yet
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        raise SystemExit(130) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def in_turns(
    repeat: int, ways: Mapping[str, Callable[[], Run]], target: Path | None = None
) -> dict[str, list[Run]]:
    """Run every way once, then every way again, so that all meet the same machine; each on a quiet disk.

    Every run is told on stderr as it ends.
    """
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, way in ways.items():
            if target is not None:
                remove(target)
            os.sync()
            runs[name].append(way())
            print(f"  {name}: {runs[name][-1].seconds:.2f} s", file=sys.stderr, flush=True)
    return runs


def medians(runs: Iterable[Run]) -> Cost:
    """The median seconds, and the median of the peaks as far as anybody looked."""
    runs = list(runs)
    seconds = tuple(round(run.seconds, 3) for run in runs)
    return Cost(statistics.median(seconds), int(statistics.median(run.peak_private for run in runs)), seconds)


def one_after_the_other(first: Run, second: Run) -> Run:
    """Two runs as one."""
    peak = max(first.peak_private, second.peak_private)
    return replace(second, seconds=first.seconds + second.seconds, peak_private=peak)


def checked(
    command: Sequence[str],
    *,
    watched: bool = False,
    seldom: bool = False,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Run:
    """Measure a command that must succeed: its seconds, or, ``watched``, its memory, or ``seldom`` both.

    ``variables`` are set in its environment.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    run = measure(command, env=environment, interval=INTERVAL if watched else SELDOM if seldom else 3600)
    if run.code:
        raise SystemExit(f"bench: {' '.join(command[:3])} … ended with {run.code}:\n{run.stderr[-2000:]}")
    return run


def elapsed(work: Callable[[], int]) -> Run:
    """Measure a function of this process that says how many bytes it wrote."""
    begun = time.perf_counter()
    written = work()
    return Run(time.perf_counter() - begun, 0, written, 0, 0, "", "")


def remove(path: Path) -> None:
    """Remove a file and its manifest."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.manifest.json").unlink(missing_ok=True)
