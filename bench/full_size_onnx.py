"""make test-full: ONNX folders at full size, their memory, disk and repeatability, on random weights.

A 42dot-shaped checkpoint (1.44 billion weights, bf16) and a GBST-KEByT5-large-shaped one (1.23 billion, f32)
must become folders of f32 and q4_0 with at most 1 GiB of private memory, child processes included; what is
written to disk is the folder and little else; a second run, on one thread, gives the same bytes. Exit code 1
when one of these is broken.

    python bench/full_size_onnx.py [--keep] [NAME]...     NAME: as in CASES

KCONV_SCRATCH (default .dev/bench) needs about 12 GB; what was made there is removed at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import full_size
import gbst
import material
from full_size import KCONV, MIB, Case, Result, digest, judge
from memory import Run, measure

CASES = (Case(material.DOT42_BF16, 1024 * MIB), Case(gbst.GBST_LARGE, 1024 * MIB))


def check(case: Case) -> list[Result]:
    """Convert to each type twice, the second time on one thread, and compare."""
    checkpoint = material.prepared(case.shape)
    results = []
    for type_ in ("f32", "q4_0"):
        run, files = convert(checkpoint, type_)
        results.append(judge(case, f"ONNX {type_}", run, files))
        digests = {name: digest(path) for name, path in files.items()}
        run, files = convert(checkpoint, type_, "--threads", "1")
        changed = [name for name, path in files.items() if digests.get(name) != digest(path)]
        broken = (f"other bytes than before: {', '.join(changed)}",) if changed else ()
        results.append(judge(case, f"ONNX {type_}, 1 thread", run, files, broken))
    shutil.rmtree(material.scratch() / "full-size-onnx")
    return results


def convert(checkpoint: Path, type_: str, *extra: str) -> tuple[Run, dict[str, Path]]:
    """Run kconv; the run and the files of the folder by name."""
    out = material.scratch() / "full-size-onnx"
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    run = measure([KCONV, "to-onnx", str(checkpoint), "-o", str(out), "-q", type_, "--no-verify", *extra])
    if run.code:
        raise SystemExit(f"full_size_onnx: kconv ended with {run.code}:\n{run.stderr[-3000:]}")
    return run, {path.name: path for path in sorted(out.iterdir())}


if __name__ == "__main__":
    try:
        sys.exit(full_size.main(CASES, check, "full_size_onnx"))
    except subprocess.SubprocessError as error:
        sys.exit(f"full_size_onnx: {error}")
