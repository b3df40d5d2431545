"""A step of make bench: how a conversion's time grows with the checkpoint, to q4_0 with a receipt.

42dot's layout at 0.4, 1.4 and 3.1 billion random weights in bf16, and Llama-3-8B's where 21 GB fit on the
disk and 20 GB into the page cache; what is left out is named. Over a fixed part of at most 0.6 s
(start, vocabulary, token check) the seconds are to be proportional to the weights within 15 %: that part is
chosen between 0 and 0.6 so that seconds a weight differ least, and the ratio is the largest of them by the
smallest.

    python bench/growth.py [--repeat N] [--small]       --small: 0.1, 0.2 and 0.4 billion
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import material
from timing import KCONV, Results, checked, in_turns, medians, remove, workplace

from kconv.core.machine import memory

STEP = "growth"
FIXED, LIMIT = 0.6, 1.15
BYTES = 2.6  # of a weight: bf16, and what q4_0 makes of it
CACHED = 2.5  # bytes of free memory that a weight asks for, so that nothing is read from the disk
WHOLE = (material.DOT42_SMALL, material.DOT42_BF16, material.DOT42_3B, material.LLAMA_3_8B)


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--small", action="store_true", help="up to 0.4 billion weights")
    options = parser.parse_args()
    results = Results(STEP, small=options.small)
    shapes = fitting(results, _small() if options.small else WHOLE)
    results.head()
    seconds: dict[int, float] = {}
    with workplace(STEP) as out:
        target = out / "kconv.gguf"
        for shape in shapes:
            checkpoint = material.prepared(shape)
            command = [KCONV, "to-gguf", str(checkpoint), "-q", "q4_0", "-o", str(target), "--no-verify"]
            checked(command)  # leaves a receipt, and the source in the cache
            run = in_turns(options.repeat, {shape.name: partial(checked, command)}, target)[shape.name]
            remove(target)
            cost = medians(run)
            results.cost(f"{shape.weights / 1e9:.2f} billion weights", cost)
            seconds[shape.weights] = cost.seconds
            if len(seconds) > 1:
                fixed, ratio = spread(seconds)
                sizes = ", ".join(f"{each / 1e9:.1f}" for each in seconds)
                results.aims.clear()
                what = f"growth, {sizes} billion: seconds a weight over {fixed:.2f} s, most by least"
                results.aim(what, ratio, LIMIT, at_most=True)
    results.tail()
    return 0


def fitting(results: Results, shapes: Sequence[material.Shape]) -> list[material.Shape]:
    """Those for which there is room on the disk and in the page cache; the others are named."""
    material.scratch().mkdir(parents=True, exist_ok=True)
    cache = memory().available
    taken = []
    for shape in shapes:
        made = (material.scratch() / shape.name / ".complete").is_file()
        wanted = shape.weights * (BYTES - 2 * made)
        free = shutil.disk_usage(material.scratch()).free - (2 << 30)
        if wanted > free:
            results.note(f"{shape.name} is left out: it takes {wanted / 1e9:.0f} GB of disk.")
        elif cache is not None and shape.weights * CACHED > cache:
            results.note(f"{shape.name} is left out: it does not stay in {cache / 1e9:.0f} GB of memory.")
        else:
            taken.append(shape)
    return taken


def spread(seconds: Mapping[int, float]) -> tuple[float, float]:
    """The fixed part that fits best, and the largest by the smallest of the seconds a weight over it."""

    def ratio(fixed: float) -> float:
        rates = [(taken - fixed) / weights for weights, taken in seconds.items()]
        return max(rates) / min(rates) if min(rates) > 0 else float("inf")

    fixed = min((place * FIXED / 60 for place in range(61)), key=ratio)
    return fixed, ratio(fixed)


def _small() -> list[material.Shape]:
    """0.4 billion weights, and as much with fewer layers."""
    full = material.DOT42_SMALL
    fewer = [(6, "0.2b"), (12, "0.3b")]
    return [
        replace(full, name=f"42dot-{size}-bf16", config={**full.config, "num_hidden_layers": layers})
        for layers, size in fewer
    ] + [full]


if __name__ == "__main__":
    sys.exit(main())
