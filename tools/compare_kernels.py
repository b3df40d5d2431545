"""Hold our kernels against libggml over many millions of blocks, on every instruction set this machine has.

Blocks of all kinds of tests/kernel_material.py, mixed, half of them with importance data. Every batch has a
seed of its own, so a run that was stopped goes on where its log ends, and a difference can be made again.

    python tools/compare_kernels.py --format q4_K --blocks 50e6 --log q4_K.log [--threads 2]

Prints (and, with --log, appends to a file) a line for every million blocks, on grids, where libggml takes
minutes for so many, for every 100,000. Exit code 1 at a difference.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from kernel_material import IMPORTANCE, different, encodable, importance, kernel, libggml, mixture

from kconv.quant import native
from kconv.quant.formats import GRIDS, Format, parse_format

WEIGHTS = 1 << 19  # in a batch
COLUMNS = (256, 768, 1024, 2048, 2816, 5632)
LINE, LINE_ON_GRIDS = 1_000_000, 100_000  # blocks from one line of progress to the next


@dataclass(frozen=True)
class Compared:
    """What came of a batch: its blocks, with importance or not, and a line for each set that differs."""

    blocks: int
    weighed: bool
    differences: tuple[str, ...]


def compare(format: Format, batch: int) -> Compared:
    """Hold every kernel against libggml on the batch of that number."""
    rng = np.random.default_rng((format.ggml_type, batch))
    columns = int(rng.choice(COLUMNS))
    rows = mixture(rng, WEIGHTS // columns, columns, format.block_size)
    plain, weighed = (native.has_kernel("baseline", format, weighed=each) for each in (False, True))
    weighed = weighed and (batch % 2 == 1 or not plain)
    weights = importance(str(rng.choice([*IMPORTANCE])), rng, columns) if weighed else None
    rows, weights = encodable(format, rows, weights)
    theirs = libggml(format, rows, weights)
    results = []
    for name in native.available_sets():
        if native.has_kernel(name, format, weighed=weighed):
            places = different(format, kernel(name, format, rows, weights), theirs)
            if len(places):
                results.append(
                    f"DIFFERENT {format.name} {name}: batch {batch}, {len(places)} blocks, first {places[0]}"
                )
    return Compared(rows.size // format.block_size, weighed, tuple(results))


def progress(log: Path | None, format: Format) -> tuple[int, int, int]:
    """Batches, blocks and blocks with importance the log of an earlier run knows to be equal."""
    lines = log.read_text("utf-8").splitlines() if log and log.exists() else []
    ours = [line.split() for line in lines if line.startswith(f"equal {format.name} ")]
    return (int(ours[-1][2]), int(ours[-1][4]), int(ours[-1][6])) if ours else (0, 0, 0)


def main() -> int:
    """Compare until there are enough blocks."""
    parser = argparse.ArgumentParser(description="Hold our kernels against libggml over many blocks.")
    parser.add_argument("--format", required=True, type=parse_format)
    parser.add_argument("--blocks", type=float, default=1e6, help="blocks in all (default 1e6)")
    parser.add_argument("--log", type=Path, help="file of progress, to append to and go on from")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    format, begun = options.format, time.monotonic()

    def say(line: str) -> None:
        print(line, flush=True)
        if options.log:
            with options.log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    line = LINE_ON_GRIDS if format in GRIDS else LINE
    batch, blocks, weighed = progress(options.log, format)
    with ThreadPoolExecutor(options.threads) as pool:
        while blocks < options.blocks:
            before = blocks
            group = range(batch, batch + 8 * options.threads)
            for done in pool.map(lambda number: compare(format, number), group):
                if done.differences:
                    say("\n".join(done.differences))
                    return 1
                blocks += done.blocks
                weighed += done.blocks if done.weighed else 0
            batch = group.stop
            if blocks // line > before // line or blocks >= options.blocks:
                sets = " ".join(native.available_sets())
                seconds = time.monotonic() - begun
                say(
                    f"equal {format.name} {batch} batches, {blocks} blocks, {weighed} with importance; "
                    f"{sets}; {seconds:.0f} s".replace(",", "")
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
