"""A step of make bench: a conversion against plainly copying as many bytes, on 1.36 billion weights in bf16.

  kconv           kconv to-gguf CHECKPOINT -q TYPE --no-verify, the SHA-256 of the source known by a receipt
  kconv, hashing  the same without receipts: the SHA-256 of pieces of the source, on all cores
  floor           reading the checkpoint and writing as many bytes as the file has, in pieces of 64 MiB,
                  synced as kconv's files are
  floor, hashed   the same with a SHA-256 of every piece read, on all cores

q4_0 and q8_0 are to stay within 1.5 times their floor, and no conversion above 120 MiB of private memory,
which is watched in a run of its own. With --more two further floors, for q4_0 alone (--pure): without fsync,
and through one small buffer that never leaves the processor's cache.

    python bench/copying.py [--repeat N] [--small] [--more]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import material
from memory import Run
from timing import KCONV, Results, checked, elapsed, in_turns, medians, remove, workplace

from kconv.core.receipts import FOLDER

STEP = "copying"
PIECE, SMALL = 64 << 20, 1 << 20
MEMORY = 120 << 20
HELD = ("q4_0", "q8_0")
LIMIT = 1.5


@dataclass(frozen=True)
class Floor:
    """How to read and write plainly: so many bytes at once, with fsync, with SHA-256 of what is read."""

    piece: int = PIECE
    sync: bool = True
    hashed: bool = False


FLOORS = {"floor": Floor(), "floor, hashed": Floor(hashed=True)}
MORE = {"floor, no fsync": Floor(sync=False), "floor, small buffer, no fsync": Floor(SMALL, sync=False)}


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--small", action="store_true", help="0.3 billion weights")
    parser.add_argument("--more", action="store_true", help="the floors that nothing is held to")
    options = parser.parse_args()
    checkpoint = material.prepared(material.sentencepiece(small=options.small))
    results = Results(STEP, small=options.small)
    results.head()
    with workplace(STEP) as out:
        for type_ in HELD:
            _held(results, checkpoint, out / "kconv.gguf", type_, options.repeat)
        peak = checked(_command(checkpoint, out / "kconv.gguf", "q4_K_M"), watched=True).peak_private
        results.aim("q4_K_M: peak private memory / 120 MiB", peak / MEMORY, 1.0, at_most=True)
        if options.more:
            _more(results, checkpoint, out / "kconv.gguf", options.repeat)
    results.tail()
    return 0


def _command(checkpoint: Path, target: Path, type_: str, *extra: str) -> list[str]:
    return [KCONV, "to-gguf", str(checkpoint), "-q", type_, *extra, "-o", str(target), "--no-verify"]


def _held(results: Results, checkpoint: Path, target: Path, type_: str, repeat: int) -> None:
    """A type with and without a receipt and its floors, in turns; then its memory."""
    command = _command(checkpoint, target, type_)
    remove(target)
    peak = checked(command, watched=True).peak_private  # leaves a receipt
    size = target.stat().st_size
    hashing = partial(checked, command, variables={FOLDER: ""})
    ways = {"kconv": partial(checked, command), "kconv, hashing": hashing}
    ways |= {name: partial(floor, checkpoint, target, size, how) for name, how in FLOORS.items()}
    costs = {name: medians(runs) for name, runs in in_turns(repeat, ways, target).items()}
    remove(target)
    costs["kconv"] = replace(costs["kconv"], peak_private=peak)
    for name, cost in costs.items():
        results.cost(f"{type_}: {name}", cost)
    for ours, plain in (("kconv", "floor"), ("kconv, hashing", "floor, hashed")):
        ratio = costs[ours].seconds / costs[plain].seconds
        results.aim(f"{type_}: {ours} / {plain}", ratio, LIMIT, at_most=True)
    results.aim(f"{type_}: peak private memory / 120 MiB", peak / MEMORY, 1.0, at_most=True)


def _more(results: Results, checkpoint: Path, target: Path, repeat: int) -> None:
    command = _command(checkpoint, target, "q4_0", "--pure")
    remove(target)
    checked(command)
    size = target.stat().st_size
    ways = {"kconv": partial(checked, command)}
    ways |= {name: partial(floor, checkpoint, target, size, how) for name, how in MORE.items()}
    costs = {name: medians(runs) for name, runs in in_turns(repeat, ways, target).items()}
    for name, cost in costs.items():
        results.cost(f"pure q4_0: {name}", cost)
    for name in MORE:
        results.aim(f"pure q4_0: kconv / {name}", costs["kconv"].seconds / costs[name].seconds)


def floor(checkpoint: Path, target: Path, size: int, how: Floor) -> Run:
    """Read every weight file in pieces, then write ``size`` bytes in pieces."""
    return elapsed(partial(_copied, checkpoint, target, size, how))


def _copied(checkpoint: Path, target: Path, size: int, how: Floor) -> int:
    data = bytearray(how.piece)
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool:
        for path in sorted(checkpoint.glob("*.safetensors")):
            with path.open("rb", buffering=0) as file:
                if how.hashed:
                    places = range(0, path.stat().st_size, how.piece)
                    list(pool.map(partial(_hashed, file.fileno(), how.piece), places))
                elif how.piece == SMALL:
                    while file.readinto(data):
                        pass
                else:
                    while file.read(how.piece):
                        pass
    with target.open("wb", buffering=0) as file:
        left = size
        while left:
            left -= file.write(memoryview(data)[: min(left, how.piece)])
        if how.sync:
            os.fsync(file.fileno())
    return size


def _hashed(handle: int, size: int, offset: int) -> str:
    return hashlib.sha256(os.pread(handle, size, offset)).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
