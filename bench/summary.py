"""The last table of make bench: every ratio that is aimed at, on which machine, and where it falls short.

Reads what the parts of the bench wrote to bench/results: bench.json (conversions against llama.cpp's way and
against plainly copying), kernels.json (a core against libggml), every_type.json (each type against
llama_model_quantize, and whether the bytes are the same) and turns.json (two versions of kconv in turns).
A part that was not run is named, not guessed.

    python bench/summary.py
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kconv.core.cores import available_cores
from kconv.core.machine import memory, processor
from kconv.quant import native

RESULTS = Path(__file__).parent / "results"
WEIGHED = ("q4_1", "q5_0", "q5_1", "iq3_xxs", "iq2_xs")
BY_SET = {"avx2": 6.0, "avx512": 10.0}
"""How many times as fast as libggml a core is to be, with importance data."""
PARTS = ("bench", "kernels", "every_type", "turns")


@dataclass(frozen=True)
class Aim:
    """A ratio that was measured, the limit it is held to (None: none is set), and whether it is a maximum."""

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


def main() -> int:
    """Print the table; 0 whatever it says."""
    found = {name: RESULTS / f"{name}.json" for name in PARTS if (RESULTS / f"{name}.json").is_file()}
    read = {name: json.loads(path.read_text("utf-8")) for name, path in found.items()}
    aims = [*_conversions(read), *_kernels(read), *_types(read), *_turns(read)]
    print(f"\n{_machine()}\n")
    for name, path in found.items():
        made = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        print(f"{name}: measured {made}{_load(read[name])}")
    print("\n| what | ratio | aim | |\n|---|---:|---:|---|")
    for aim in aims:
        print(aim.row())
    short = [aim for aim in aims if not aim.holds]
    print(f"\n{len(short)} of {sum(aim.limit is not None for aim in aims)} aims fall short", end="")
    print(":" if short else ".")
    for aim in short:
        missing = aim.ratio / (aim.limit or 1) if aim.at_most else (aim.limit or 1) / aim.ratio
        print(f"  {aim.what}: {aim.ratio:.2f}, {missing:.2f} times off")
    if missing_parts := [name for name in PARTS if name not in found]:
        print(f"Not measured: {', '.join(missing_parts)}.")
    return 0


def _machine() -> str:
    """What it was measured on."""
    total = memory().total
    room = "" if total is None else f", {total / 2**30:.0f} GiB"
    sets = ", ".join(native.available_sets()) or "no kernels"
    name = processor().model
    return (
        f"{name}: {available_cores()} cores{room}; {sets}; {platform.system()}, load {os.getloadavg()[0]:.2f}"
    )


def _load(results: Any) -> str:
    loads = results.get("load") if isinstance(results, dict) else None
    return f", load {loads[0][0]:.2f} before, {loads[-1][0]:.2f} after" if loads else ""


def _conversions(read: dict[str, Any]) -> Iterator[Aim]:
    for bound in read.get("bench", {}).get("bounds", ()):
        yield Aim(bound["what"], bound["ratio"], bound["limit"], bound["at_most"])


def _kernels(read: dict[str, Any]) -> Iterator[Aim]:
    """One core; those formats first that have an aim."""
    for speed in read.get("kernels", ()):
        if speed["threads"] != 1:
            continue
        name = speed["format"].lower()
        aimed = speed["importance"] and name in WEIGHED
        for set_, limit in BY_SET.items():
            if set_ in speed["speeds"]:
                what = f"{name}{', importance' * speed['importance']}: libggml / {set_}, a core"
                ratio = speed["speeds"][set_] / speed["speeds"]["libggml"]
                yield Aim(what, ratio, limit if aimed else None)


def _types(read: dict[str, Any]) -> Iterator[Aim]:
    """Each type's conversion; the bytes have to be the same."""
    for row in read.get("every_type", {}).get("types", ()):
        ratio = row["llama_cpp_seconds"] / row["seconds"]
        yield Aim(f"{row['type']}: llama_model_quantize / kconv", ratio)
        if not row["equal"]:
            yield Aim(f"{row['type']}: the same bytes", 0.0, 1.0)


def _turns(read: dict[str, Any]) -> Iterator[Aim]:
    for turn in read.get("turns", {}).get("ratios", ()):
        yield Aim(turn["what"], turn["ratio"], turn["limit"], at_most=True)


if __name__ == "__main__":
    sys.exit(main())
