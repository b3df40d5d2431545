"""make bench: kconv against llama.cpp's way and against plainly copying, on a 1.3B checkpoint.

One run: a bf16 checkpoint of 1.36 billion random weights with a sentencepiece vocabulary (which llama.cpp's
converter accepts), in the page cache, the median of three of each:

  kconv       kconv to-gguf CHECKPOINT -q TYPE --no-verify
  llama.cpp   convert_hf_to_gguf.py --outtype f16, then llama_model_quantize with two threads, then a sync of
              the file, as kconv does it
              q4_0 and q8_0 once more with --rehash: without a receipt for the SHA-256 of the source
  floor       reading the checkpoint and writing as many bytes as the file has, in pieces of 64 MiB, synced
              as kconv's files are; beside it the same with a SHA-256 of every piece, on all cores, and, for
              the curious, without fsync, and through one small buffer that never leaves the processor's cache

What is aimed at stands under the table with the ratios reached: q4_0 and q8_0 8 times as fast as llama.cpp's
way; q4_K_M 10 times as fast as llama_model_quantize alone, from its f16 file; q4_0 and q8_0 within 1.5 times
the floor, without a receipt 1.5 times the floor with hashing; at most 120 MiB of private memory. They are
figures to read, not checks: the exit code is 0 either way. Memory is watched in a run of its own.

    python bench/bench.py [--repeat N] [--only-kconv] [--small]

``--small`` is a model of 0.3B weights, for a machine that has other things to do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import material
from memory import INTERVAL, Run, measure

ROOT = Path(__file__).resolve().parent.parent
KCONV = str(Path(sys.executable).parent / "kconv")
PIECE = 64 << 20
HASHED = ("q4_0", "q8_0")
SMALL = 1 << 20
MEMORY = 120 << 20


@dataclass(frozen=True)
class Floor:
    """How to read and write plainly: so many bytes at once, with fsync, with SHA-256 of what is read."""

    piece: int = PIECE
    sync: bool = True
    hashed: bool = False


FLOORS = {
    "floor": Floor(),
    "floor, hashed": Floor(hashed=True),
    "floor, no fsync": Floor(sync=False),
    "floor, small buffer, no fsync": Floor(SMALL, sync=False),
}
SMALLER = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16} | {
    "num_key_value_heads": 16
}

QUANTIZE = """
import ctypes, os, sys
import llama_cpp
source, target, type_name = sys.argv[1:]
quiet = llama_cpp.llama_log_callback(lambda *arguments: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + type_name)
params.nthread = 2
if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
    sys.exit("llama_model_quantize failed")
with open(target, "rb") as file:
    os.fsync(file.fileno())
"""


@dataclass(frozen=True)
class Cost:
    """Medians of one thing measured; ``peak_private`` in bytes, 0 where it is of no interest."""

    seconds: float
    peak_private: int
    runs: tuple[float, ...]


@dataclass(frozen=True)
class Bound:
    """A promise: ``ratio`` is at least (or, with ``at_most``, at most) ``limit``."""

    what: str
    ratio: float
    limit: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        """Whether it is kept."""
        return self.ratio <= self.limit if self.at_most else self.ratio >= self.limit


def main() -> int:
    """Measure, print a table, write bench/results/bench.json."""
    parser = argparse.ArgumentParser(description="Compare kconv with llama.cpp's converter and quantizer.")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--only-kconv", action="store_true", help="leave llama.cpp's way out")
    parser.add_argument("--small", action="store_true", help="0.3B weights")
    options = parser.parse_args()
    shape = material.SENTENCEPIECE_1_3B
    if options.small:
        shape = replace(shape, name="llama-0.3b-sentencepiece", config={**shape.config, **SMALLER})
    checkpoint = material.prepared(shape)
    out = material.scratch() / "out"
    out.mkdir(exist_ok=True)
    loads = [os.getloadavg()]
    costs = kconv_costs(checkpoint, out, options.repeat)
    if not options.only_kconv:
        costs |= llama_cpp_costs(checkpoint, out, options.repeat)
    loads.append(os.getloadavg())
    bounds = judge(costs)
    print(report(costs, bounds, loads))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "bench.json").write_text(json.dumps(as_json(costs, bounds, loads), indent=2) + "\n", "utf-8")
    return 0


def kconv_costs(checkpoint: Path, out: Path, repeat: int) -> dict[str, Cost]:
    """Our conversions, each with its floors right after, while the machine is in the same mood."""
    costs, target = {}, out / "kconv.gguf"
    for label, type_, extra in (
        ("q4_0", "q4_0", ()),
        ("q8_0", "q8_0", ()),
        ("q4_K_M", "q4_K_M", ()),
        ("pure q4_0", "q4_0", ("--pure",)),
    ):
        command = [KCONV, "to-gguf", str(checkpoint), "-q", type_, *extra, "-o", str(target), "--no-verify"]
        if label in HASHED:
            costs[f"{label}: kconv --rehash"] = median(
                repeat, target, partial(checked, [*command, "--rehash"])
            )
            remove(target)
        checked(command)  # leaves a receipt
        timed = median(repeat, target, partial(checked, command))
        remove(target)
        costs[f"{label}: kconv"] = replace(timed, peak_private=checked(command, watched=True).peak_private)
        size = target.stat().st_size
        remove(target)
        for name, how in FLOORS.items():
            costs[f"{label}: {name}"] = median(repeat, target, partial(floor, checkpoint, target, size, how))
        remove(target)
    return costs


def llama_cpp_costs(checkpoint: Path, out: Path, repeat: int) -> dict[str, Cost]:
    """llama.cpp's converter to f16, and llama_model_quantize from its file."""
    fetched = [sys.executable, str(ROOT / "tools" / "fetch_llama_cpp.py")]
    folder = Path(subprocess.run(fetched, check=True, capture_output=True, text=True).stdout.strip())
    f16, target = out / "llama-cpp-f16.gguf", out / "llama-cpp.gguf"
    convert = [sys.executable, str(folder / "convert_hf_to_gguf.py"), str(checkpoint)]
    convert += ["--outfile", str(f16), "--outtype", "f16"]
    costs = {}
    for label, type_ in (("q4_0", "Q4_0"), ("q8_0", "Q8_0"), ("q4_K_M", "Q4_K_M")):
        quantize = [sys.executable, "-c", QUANTIZE, str(f16), str(target), type_]
        firsts, seconds = [], []
        for turn in range(repeat + 1):
            remove(f16)
            remove(target)
            os.sync()
            firsts.append(checked(convert, watched=turn == repeat))
            seconds.append(checked(quantize, watched=turn == repeat))
        both = list(map(one_after_the_other, firsts, seconds))
        for name, runs in (("converter to f16", firsts), ("llama_model_quantize", seconds), ("both", both)):
            peak = runs[-1].peak_private
            costs[f"{label}: llama.cpp, {name}"] = replace(medians(runs[:-1]), peak_private=peak)
    remove(f16)
    remove(target)
    return costs


def median(repeat: int, target: Path, run: Callable[[], Run]) -> Cost:
    """Run several times, each on a quiet disk and without the target, and take the medians."""
    runs = []
    for _ in range(repeat):
        remove(target)
        os.sync()
        runs.append(run())
    return medians(runs)


def medians(runs: Iterable[Run]) -> Cost:
    """The median seconds, and the median of the peaks as far as anybody looked."""
    runs = list(runs)
    seconds = tuple(round(run.seconds, 2) for run in runs)
    return Cost(statistics.median(seconds), int(statistics.median(run.peak_private for run in runs)), seconds)


def one_after_the_other(first: Run, second: Run) -> Run:
    """Two runs as one."""
    peak = max(first.peak_private, second.peak_private)
    return replace(second, seconds=first.seconds + second.seconds, peak_private=peak)


def checked(command: Sequence[str], *, watched: bool = False) -> Run:
    """Measure a command that must succeed: its seconds, or, ``watched``, its memory."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = measure(command, env=environment, interval=INTERVAL if watched else 3600)
    if run.code:
        raise SystemExit(f"bench: {' '.join(command[:3])} … ended with {run.code}:\n{run.stderr[-2000:]}")
    return run


def floor(checkpoint: Path, target: Path, size: int, how: Floor) -> Run:
    """Read every weight file in pieces, then write ``size`` bytes in pieces."""
    begun = time.perf_counter()
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
    return Run(time.perf_counter() - begun, 0, size, 0, 0, "", "")


def _hashed(handle: int, size: int, offset: int) -> str:
    return hashlib.sha256(os.pread(handle, size, offset)).hexdigest()


def remove(path: Path) -> None:
    """Remove a file and its manifest."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.manifest.json").unlink(missing_ok=True)


def judge(costs: dict[str, Cost]) -> list[Bound]:
    """What is aimed at, as far as it was measured."""
    bounds = []
    for label in HASHED:
        other = costs.get(f"{label}: llama.cpp, both")
        if other:
            ratio = other.seconds / costs[f"{label}: kconv"].seconds
            bounds.append(Bound(f"{label}: llama.cpp's way / kconv", ratio, 8.0))
    alone = costs.get("q4_K_M: llama.cpp, llama_model_quantize")
    if alone:
        ratio = alone.seconds / costs["q4_K_M: kconv"].seconds
        bounds.append(Bound("q4_K_M: llama_model_quantize alone / kconv", ratio, 10.0))
    for label in HASHED:
        for kconv, name in (("kconv", "floor"), ("kconv --rehash", "floor, hashed")):
            ratio = costs[f"{label}: {kconv}"].seconds / costs[f"{label}: {name}"].seconds
            bounds.append(Bound(f"{label}: {kconv} / {name}", ratio, 1.5, at_most=True))
    for label in ("q4_0", "q8_0", "q4_K_M"):
        ratio = costs[f"{label}: kconv"].peak_private / MEMORY
        bounds.append(Bound(f"{label}: peak private memory / 120 MiB", ratio, 1.0, at_most=True))
    return bounds


def report(costs: dict[str, Cost], bounds: Sequence[Bound], loads: Sequence[tuple[float, ...]]) -> str:
    """A markdown table of the costs and the ratios."""
    lines = ["", "| what | seconds (median) | runs | peak private memory |", "|---|---:|---|---:|"]
    for name, cost in costs.items():
        peak = f"{cost.peak_private / 2**20:.0f} MiB" if cost.peak_private else ""
        lines.append(f"| {name} | {cost.seconds:.2f} | {', '.join(map(str, cost.runs))} | {peak} |")
    lines += ["", "| aim | ratio | limit | |", "|---|---:|---:|---|"]
    for bound in bounds:
        sign = "≤" if bound.at_most else "≥"
        kept = "kept" if bound.holds else "NOT REACHED"
        lines.append(f"| {bound.what} | {bound.ratio:.2f} | {sign} {bound.limit:g} | {kept} |")
    for name in [*FLOORS][2:]:
        ratio = costs["pure q4_0: kconv"].seconds / costs[f"pure q4_0: {name}"].seconds
        lines.append(f"| pure q4_0: kconv / {name} | {ratio:.2f} | | |")
    begun, ended = (load[0] for load in loads)
    lines += ["", f"{os.cpu_count()} cores; load {begun:.2f} before, {ended:.2f} after."]
    return "\n".join(lines)


def as_json(costs: dict[str, Cost], bounds: Sequence[Bound], loads: Sequence[Any]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "machine": {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "load": loads,
        "costs": {name: asdict(cost) for name, cost in costs.items()},
        "bounds": [{**asdict(bound), "holds": bound.holds} for bound in bounds],
    }


if __name__ == "__main__":
    sys.exit(main())
