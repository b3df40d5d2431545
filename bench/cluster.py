"""What a cluster costs and gives: one conversion alone and by 1, 2, … Dask workers, all on this machine.

    python bench/cluster.py [--workers 1 2] [--rounds 3] [--types q8_0 q4_k_m] [--threads N]

Real ``dask scheduler`` and ``dask worker`` processes on loopback, a random checkpoint of 0.4 billion weights
(bench/material.py), ``kconv to-gguf --no-verify`` in turn alone and with ``--scheduler``. Prints the least
seconds of each, the processor's seconds beside them (on a busy machine these tell more), and whether the
files are equal. Workers share the processors here, so more of them cannot be quicker: it is the overhead that
is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from material import DOT42_SMALL, prepared

KCONV = [sys.executable, "-m", "kconv"]


@contextlib.contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[str, list[psutil.Process]]]:
    """The address of a scheduler with so many workers of one thread, and the workers."""
    known = folder / "scheduler.json"
    known.unlink(missing_ok=True)
    dask = [sys.executable, "-m"]
    place = ["--host", "127.0.0.1", "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    with contextlib.ExitStack() as stack:

        def start(*words: str) -> psutil.Process:
            process = subprocess.Popen([*dask, *words, *place], **quiet)  # type: ignore[call-overload]
            stack.callback(process.wait)
            stack.callback(process.kill)
            return psutil.Process(process.pid)

        start("distributed.cli.dask_scheduler", "--port", "0", "--scheduler-file", str(known))
        while not (known.exists() and known.read_text().endswith("\n}")):  # it is there before it is whole
            time.sleep(0.05)
        address = json.loads(known.read_text())["address"]
        words = ("distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny")
        started = [start(*words, "--local-directory", str(folder / f"{n}")) for n in range(workers)]
        time.sleep(5)
        yield address, started


def converted(checkpoint: Path, folder: Path, words: Sequence[str]) -> tuple[float, float, dict[str, str]]:
    """Seconds, the processor's seconds without workers', and the files' SHA-256."""
    before, begun = os.times(), time.monotonic()
    command = [*KCONV, "to-gguf", str(checkpoint), "-o", str(folder), "--no-verify", "--force", *words]
    subprocess.run(command, check=True, capture_output=True)
    seconds, after = time.monotonic() - begun, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.gguf")}
    return seconds, used, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--types", nargs="+", default=["q8_0", "q4_k_m"])
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    checkpoint = prepared(DOT42_SMALL)
    words = [word for name in asked.types for word in ("-q", name)]
    words += [] if asked.threads is None else ["--threads", str(asked.threads)]
    least: dict[int, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as temporary:
        folder = Path(temporary)
        right: dict[str, str] = {}
        for count in [0, *asked.workers] * asked.rounds:
            if not count:
                seconds, used, files = converted(checkpoint, folder / "out", words)
            else:
                with cluster(folder, count) as (address, workers):
                    idle = sum(sum(each.cpu_times()[:2]) for each in workers)
                    spread = [*words, "--scheduler", address]
                    seconds, used, files = converted(checkpoint, folder / "out", spread)
                    used += sum(sum(each.cpu_times()[:2]) for each in workers) - idle
            right = right or files
            print(f"{count} workers: {seconds:.1f} s, {used:.1f} s of processors", flush=True)
            assert files == right, "the files differ"
            known = least.get(count, (seconds, used))
            least[count] = (min(known[0], seconds), min(known[1], used))
    for count, (seconds, used) in least.items():
        more, work = (100 * (each / base - 1) for each, base in zip((seconds, used), least[0], strict=True))
        print(f"{count} workers: {seconds:.1f} s ({more:+.0f} %), processors {used:.1f} s ({work:+.0f} %)")


if __name__ == "__main__":
    main()
