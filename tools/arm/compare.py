"""Hold the kernels, compiled for ARM, against libggml of this x86-64 machine.

    python tools/arm/compare.py PROGRAM [FORMAT]...

PROGRAM is tools/arm/encode.c with the kernels, for aarch64 and linked statically; qemu-aarch64 runs it.
Every kind of block of tests/kernel_material.py, with every kind of importance, as far as formats on grids
allow, for where sums overflow, NaNs have the other sign on ARM. Prints a line for each format; exit code 1 at
a difference.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from kernel_material import (
    BLOCKS,
    IMPORTANCE,
    Floats,
    blocks,
    different,
    encodable,
    importance,
    libggml,
    mixture,
)

from kconv.quant import native
from kconv.quant.formats import ENCODABLE, GRIDS, Format, parse_format
from kconv.quant.ggml import Bytes
from kconv.quant.grids import DISTANCES, grid_codes

EMULATOR = "qemu-aarch64"


def encode(program: str, format: Format, rows: Floats, weights: Floats | None) -> tuple[Bytes, Bytes]:
    """The bytes of ``rows`` and, for each row, whether it was left to libggml."""
    dims, codes, distances = 0, np.empty(0, np.uint16), 0
    if format.name in DISTANCES:
        (dims, codes), distances = grid_codes(format), DISTANCES[format.name]
    size = format.tensor_bytes(rows.shape)
    weighed = weights is not None
    head = np.array([format.ggml_type, *rows.shape, weighed, dims, codes.size, distances, size], np.int64)
    given = b"".join(each.tobytes() for each in (head, codes, rows, *([weights] if weighed else [])))
    done = subprocess.run([EMULATOR, program], input=given, capture_output=True, check=True)
    made = np.frombuffer(done.stdout, np.uint8)
    assert made.size == size + len(rows)
    return made[:size], made[size:]


def material(format: Format, weighed: bool) -> tuple[Floats, Floats | None]:
    """Rows of every kind of block, and importance of every kind one after the other, or none."""
    rng = np.random.default_rng(format.ggml_type)
    kinds = list(IMPORTANCE)
    columns = 256 * len(kinds)
    rows = [blocks(kind, rng, 2 * len(kinds), 256).reshape(2, columns) for kind in BLOCKS]
    rows.append(mixture(rng, 16, columns, format.block_size))
    weights = np.concatenate([importance(kind, rng, 256) for kind in kinds]) if weighed else None
    return encodable(GRIDS[0], np.concatenate(rows), weights)


def main() -> int:
    """Compare all."""
    program, *names = sys.argv[1:]
    worst = 0
    for format in [parse_format(name) for name in names] or ENCODABLE:
        for weighed in (False, True):
            if not native.has_kernel("baseline", format, weighed=weighed):
                continue
            rows, weights = material(format, weighed)
            made, left = encode(program, format, rows, weights)
            in_row = rows.shape[1] // format.block_size
            places = different(format, made, libggml(format, rows, weights))
            wrong = [place for place in places.tolist() if not left[place // in_row]]
            worst = max(worst, len(wrong))
            what = f"{format.name}{', importance' if weighed else ''}: {len(rows) * in_row} blocks"
            rest = f"{int(left.sum())} of {len(rows)} rows left to libggml"
            print(f"{what}, {len(wrong)} different; {rest}", *wrong[:1], flush=True)
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
