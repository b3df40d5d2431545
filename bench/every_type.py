"""Every type against llama_model_quantize, in one run, and several types in one read against one by one.

Both sides make a type from the same F16 file on two threads and sync it; what they make is compared tensor by
tensor. Random weights in the shape of a 1.3B Llama, in the page cache; the iq types, of which ggml makes few
million weights a second, from a file with the same matrices but two layers. Types llama.cpp makes only with
importance data are given ones. Peaks are private memory (memory.py).

    python bench/every_type.py [--small] [TYPE]...      --small: a shape that takes minutes, to try it

Exit code 1 where a type's bytes are not llama.cpp's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import material
import numpy as np
from memory import Run, measure
from timing import KCONV, checked, remove, save, workplace

from kconv.core.gguf_file import GgufHeader, read_header
from kconv.flows.plan import plan
from kconv.quant.imatrix_file import ActivationSums, write_imatrix
from kconv.quant.policy import POLICIES

TOGETHER = ("q8_0", "q5_0", "q4_0", "q6_K")
SLOW = "iq"
SAMPLED = 0.05  # seconds between looks at the memory
SMALL = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}

LLAMA_CPP = """
import ctypes, os, sys
import llama_cpp
import numpy as np
source, target, number, imatrix = sys.argv[1:]
quiet = llama_cpp.llama_log_callback(lambda *arguments: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = int(number), 2
if imatrix:
    held = dict(np.load(imatrix).items())
    entries = (llama_cpp.llama_model_imatrix_data * (len(held) + 1))()
    for entry, (name, values) in zip(entries, held.items()):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params.imatrix = entries
if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
    sys.exit("llama_model_quantize failed")
with open(target, "rb") as file:
    os.fsync(file.fileno())
"""


@dataclass(frozen=True)
class Row:
    """One type on both sides: seconds, peak private bytes, and whether the bytes of all tensors are equal."""

    type: str
    weights: int
    importance: bool
    seconds: float
    peak: int
    llama_cpp_seconds: float
    llama_cpp_peak: int
    equal: bool

    @property
    def line(self) -> str:
        """A row of the table."""
        millions = self.weights / 1e6
        cells = [f"{self.type} (imatrix)" if self.importance else self.type, f"{millions:.0f}"]
        for seconds, peak in ((self.seconds, self.peak), (self.llama_cpp_seconds, self.llama_cpp_peak)):
            cells += [f"{seconds:.1f}", f"{millions / seconds:.3g}", f"{peak / 2**20:.0f}"]
        cells += [f"{self.llama_cpp_seconds / self.seconds:.2f}", "yes" if self.equal else "NO"]
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Source:
    """An F16 file, importance data of ones beside it in both forms, and which types need them."""

    checkpoint: Path
    f16: Path
    imatrix: Path
    arrays: Path
    weights: int
    types: frozenset[str]
    needing: frozenset[str]


def main() -> int:
    """Measure, print the tables as they grow, keep them in .dev/bench-results."""
    parser = argparse.ArgumentParser(description="Compare every type with llama_model_quantize.")
    parser.add_argument("types", nargs="*", metavar="TYPE", help="only these")
    parser.add_argument("--small", action="store_true", help="a shape that takes minutes")
    options = parser.parse_args()
    full = material.SENTENCEPIECE_1_3B
    if options.small:
        full = replace(full, name="llama-small", config={**full.config, **SMALL, "num_hidden_layers": 3})
    short = replace(full, name=f"{full.name}-2-layers", config={**full.config, "num_hidden_layers": 2})
    sources = {slow: prepared(shape) for slow, shape in ((False, full), (True, short))}
    wanted = [name for name in POLICIES if not options.types or name.lower() in map(str.lower, options.types)]
    print(f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.2f}\n")
    print("| type | million weights | kconv, s | M/s | MiB | llama.cpp, s | M/s | MiB | times | same bytes |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---|", flush=True)
    rows = []
    with workplace("every-type") as out:
        for name in wanted:
            source = sources[name.startswith(SLOW)]
            if name in source.types:
                rows.append(measured(source, name, out))
                print(rows[-1].line, flush=True)
                save("every_type", {"types": [asdict(row) for row in rows]})
        together = one_read(sources[False].checkpoint, out / "together")
    save("every_type", {"types": [asdict(row) for row in rows], "together": together})
    return 0 if all(row.equal for row in rows) else 1


def prepared(shape: material.Shape) -> Source:
    """The checkpoint, its F16 file and importance data, made unless they are there."""
    checkpoint = material.prepared(shape)
    f16 = material.scratch() / f"{shape.name}-F16.gguf"
    if not f16.is_file():
        checked([KCONV, "to-gguf", str(checkpoint), "-q", "f16", "-o", str(f16), "--no-verify"])
    planned = plan(checkpoint)
    columns = {info.name: info.shape[-1] for info in read_header(f16).tensors if info.name.startswith("blk.")}
    ones = {name: np.ones(count, np.float32) for name, count in columns.items() if name.endswith("weight")}
    arrays, imatrix = f16.with_suffix(".npz"), f16.with_suffix(".imatrix.gguf")
    np.savez(arrays, **ones)  # type: ignore[arg-type]
    counts = {name: np.ones(1, np.int64) for name in ones}
    write_imatrix(imatrix, ActivationSums(ones, counts, ("ones",), 1, 1), force=True)
    return Source(
        checkpoint,
        f16,
        imatrix,
        arrays,
        shape.weights,
        frozenset(each.type for each in planned.types),
        frozenset(each.type for each in planned.types if each.needs_imatrix),
    )


def measured(source: Source, name: str, out: Path) -> Row:
    """One type by both, one after the other."""
    ours, theirs = (out / f"{side}.gguf" for side in ("kconv", "llama-cpp"))
    importance = name in source.needing
    words = [KCONV, "quantize", str(source.f16), "-q", name, "-o", str(ours), "--threads", "2"]
    number = str(POLICIES[name].file_type)
    other = [sys.executable, "-c", LLAMA_CPP, str(source.f16), str(theirs), number]
    runs = []
    for target, command in (
        (ours, [*words, *(["--imatrix", str(source.imatrix)] if importance else [])]),
        (theirs, [*other, str(source.arrays) if importance else ""]),
    ):
        remove(target)
        os.sync()
        runs.append(watched(command))
    equal = same_tensors(ours, theirs)
    for target in (ours, theirs):
        remove(target)
    mine, its = runs
    return Row(
        name,
        source.weights,
        importance,
        round(mine.seconds, 2),
        mine.peak_private,
        round(its.seconds, 2),
        its.peak_private,
        equal,
    )


def watched(command: Sequence[str]) -> Run:
    """A command that must succeed, with seconds and memory from one run."""
    run = measure(command, interval=SAMPLED)
    if run.code:
        raise SystemExit(f"bench: {' '.join(command[:4])} … ended with {run.code}:\n{run.stderr[-2000:]}")
    return run


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two files hold the same tensors with the same bytes, in whatever order."""
    first, second = read_header(one), read_header(other)
    tensors = {info.name: info for info in second.tensors}
    if {info.name for info in first.tensors} != set(tensors):
        return False
    data, others = np.memmap(one, np.uint8, "r"), np.memmap(other, np.uint8, "r")
    for info in first.tensors:
        mine, its = place(first, info.name), place(second, info.name)
        if info.ggml_type != tensors[info.name].ggml_type or not np.array_equal(data[mine], others[its]):
            return False
    return True


def place(header: GgufHeader, name: str) -> slice:
    """Where a tensor's bytes lie."""
    info = next(info for info in header.tensors if info.name == name)
    begin = header.data_offset + info.offset
    return slice(begin, begin + info.nbytes)


def one_read(checkpoint: Path, out: Path) -> dict[str, float]:
    """Seconds to convert a checkpoint to several types one by one, and all from one read."""
    seconds = {}
    for types in (*((each,) for each in TOGETHER), TOGETHER):
        words = [KCONV, "to-gguf", str(checkpoint), "-q", ",".join(types), "-o", str(out), "--no-verify"]
        os.sync()
        run = watched([*words, "--threads", "2"])
        seconds[",".join(types)] = round(run.seconds, 2)
        for path in out.iterdir():
            path.unlink()
    out.rmdir()
    alone, together = sum(list(seconds.values())[:-1]), seconds[",".join(TOGETHER)]
    print(f"\n{', '.join(TOGETHER)} one by one: {alone:.1f} s; from one read: {together:.1f} s", flush=True)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
