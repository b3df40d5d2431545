"""make test-full: memory, disk and repeatability at full size, on random weights.

A 42dot-shaped checkpoint (1.44 billion weights; bf16 and f32) must convert to q8_0 and q4_0 with at most
600 MiB of private memory, a Llama-3-8B-shaped one (8.03 billion, bf16, 16 GB) with at most 1 GiB, a
KoGPT-shaped one (6.17 billion, f16, one pytorch_model.bin of 12.4 GB) with at most 1.5 GiB, child processes
included; what is written to disk is the output and little else; a second run, with all types from one read
and on one thread, gives the same bytes. The quick proof of both types, and `kconv verify` of the q4_0 file,
may take 6 GiB and must pass. Exit code 1 when one of these is broken.

    python bench/full_size.py [--keep] [NAME]...     NAME: as in CASES

KCONV_SCRATCH (default .dev/bench) needs about 35 GB; what was made there is removed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import kogpt
import material
from material import Shape
from memory import Run, measure
from timing import save

KCONV = str(Path(sys.executable).parent / "kconv")
MIB = 2**20
# Vocabulary-only files for the comparison of tokens, the manifest, and blocks of the file system.
WRITTEN_BESIDES = 64 * MIB
TYPES = ("q8_0", "q4_0")
PROOF = 6 * 1024 * MIB


@dataclass(frozen=True)
class Case:
    """A checkpoint and the private memory its conversion may take, in bytes."""

    shape: Shape
    limit: int


CASES = (
    Case(material.DOT42_BF16, 600 * MIB),
    Case(material.DOT42_F32, 600 * MIB),
    Case(material.LLAMA_3_8B, 1024 * MIB),
    Case(kogpt.KOGPT_6B, 1536 * MIB),
)


@dataclass(frozen=True)
class Result:
    """What one conversion took, and what it broke."""

    checkpoint: str
    types: str
    seconds: float
    peak_private: int
    written: int
    output: int
    broken: tuple[str, ...]

    @property
    def line(self) -> str:
        """A row of the table."""
        verdict = "; ".join(self.broken) or "ok"
        return (
            f"| {self.checkpoint} | {self.types} | {self.seconds:.1f} | {self.peak_private / MIB:.0f} | "
            f"{self.output / MIB:.0f} | {self.written / MIB:.0f} | {verdict} |"
        )


def main(cases: Sequence[Case], check: Callable[[Case], list[Result]], name: str) -> int:
    """Check every case named on the command line; print a table as it grows, write results/NAME.json."""
    parser = argparse.ArgumentParser(description="Check memory, disk and repeatability at full size.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these checkpoints")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints for the next time")
    options = parser.parse_args()
    known = {case.shape.name: case for case in cases}
    unknown = set(options.names) - set(known)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    print("| checkpoint | types | seconds | peak private MiB | output MiB | written MiB | |")
    print("|---|---|---:|---:|---:|---:|---|", flush=True)
    results = []
    for checkpoint in options.names or known:
        results += check(known[checkpoint])
        if not options.keep:
            shutil.rmtree(material.scratch() / checkpoint)
    save(name, {"results": [asdict(result) for result in results]})
    return 1 if any(result.broken for result in results) else 0


def check(case: Case) -> list[Result]:
    """Convert to each type by itself, then to all from one read on one thread, and compare."""
    checkpoint = material.prepared(case.shape)
    out = material.scratch() / "full-size-out"
    results: list[Result] = []
    digests: dict[str, str] = {}
    for type_ in TYPES:
        run, files = convert(checkpoint, out, (type_,))
        results.append(judge(case, type_, run, files))
        digests |= {name: digest(path) for name, path in files.items()}
        shutil.rmtree(out)
    run, files = convert(checkpoint, out, TYPES, "--threads", "1")
    changed = [name for name, path in files.items() if digests.get(name) != digest(path)]
    broken = (f"other bytes than before: {', '.join(changed)}",) if changed else ()
    results.append(judge(case, "both, 1 thread", run, files, broken))
    run, files = convert(checkpoint, out, TYPES, proof=True)
    results.append(judge(case, "both, proven", run, files, limit=PROOF))
    smallest = min(files.values(), key=lambda path: path.stat().st_size)
    run = measure([KCONV, "verify", str(smallest), "--against", str(checkpoint), "--tokens", "128"])
    broken = (f"verify ended with {run.code}",) if run.code else ()
    results.append(judge(case, "verify q4_0", run, {}, broken, limit=PROOF))
    shutil.rmtree(out)
    return results


def convert(
    checkpoint: Path, out: Path, types: tuple[str, ...], *extra: str, proof: bool = False
) -> tuple[Run, dict[str, Path]]:
    """Run kconv into the empty folder ``out``; the run and the files by name."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    os.sync()
    command = [KCONV, "to-gguf", str(checkpoint), "-o", str(out), *extra]
    command += [] if proof else ["--no-verify"]
    for type_ in types:
        command += ["-q", type_]
    run = measure(command)
    if run.code:
        raise SystemExit(f"full_size: kconv ended with {run.code}:\n{run.stderr[-3000:]}")
    return run, {path.name: path for path in sorted(out.glob("*.gguf"))}


def judge(
    case: Case,
    types: str,
    run: Run,
    files: dict[str, Path],
    broken: tuple[str, ...] = (),
    *,
    limit: int | None = None,
) -> Result:
    """Hold the run against its limits (the case's, or ``limit`` bytes of private memory), print its row."""
    output = sum(path.stat().st_size for path in files.values())
    limit = case.limit if limit is None else limit
    if run.peak_private > limit:
        broken += (f"more than {limit / MIB:.0f} MiB",)
    if run.written > output + WRITTEN_BESIDES:
        broken += ("more written than the output",)
    result = Result(
        case.shape.name, types, round(run.seconds, 2), run.peak_private, run.written, output, broken
    )
    print(result.line, flush=True)
    return result


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    try:
        sys.exit(main(CASES, check, "full_size"))
    except subprocess.SubprocessError as error:
        sys.exit(f"full_size: {error}")
