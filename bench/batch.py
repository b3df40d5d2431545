"""A shelf of 200 small checkpoints, every tenth broken, by ``kconv batch``: killed twice, watched, timed.

    python bench/batch.py [--models 200] [--jobs 1] [--prove] [--alone 20]

Prints what was done and what was repeated, memory and descriptors of the batch and its processes along the
way, and conversions a minute against as many runs of ``kconv to-gguf`` one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from kconv.converters.samples.synthetic import write_eagle

KCONV = [sys.executable, "-m", "kconv"]


@dataclass(frozen=True)
class Sample:
    """Resident MiB and descriptors of the batch itself (own) and of the process that converts (worker)."""

    made: int
    own: float
    own_files: int
    worker: float
    worker_files: int


def write_models(folder: Path, count: int) -> int:
    """Checkpoints of the same weights (hard links), every tenth with a file that ends early; how many are."""
    write_eagle(folder / "pattern", vocab_size=600)
    broken = 0
    for number in range(count):
        place = folder / "models" / f"model-{number:03d}"
        place.mkdir(parents=True)
        for path in (folder / "pattern").iterdir():
            if path.suffix != ".safetensors":
                shutil.copy(path, place)
            elif number % 10 == 9:
                broken += 1
                (place / path.name).write_bytes(path.read_bytes()[:-1000])
            else:
                os.link(path, place / path.name)
    return broken


def write_jobs(folder: Path, prove: bool) -> Path:
    """All of them, two types each."""
    lines = [
        "[defaults]",
        'types = ["q8_0", "q4_0"]',
        'output = "dist"',
        f"no-verify = {str(not prove).lower()}",
    ]
    for path in sorted((folder / "models").iterdir()):
        lines += ["[[jobs]]", f"source = 'models/{path.name}'"]
    (folder / "jobs.toml").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "jobs.toml"


def records(folder: Path) -> list[dict[str, Any]]:
    """The journal, but for a line that is being written."""
    path = folder / "jobs.journal.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def run(jobs: Path, slots: int, until: int | None = None) -> tuple[int | None, list[Sample]]:
    """``kconv batch``, killed once so many outputs are made; its exit code and samples along the way."""
    with (jobs.parent / "log").open("ab") as log:
        words = [*KCONV, "batch", str(jobs), "--jobs", str(slots)]
        process = psutil.Popen(words, stdout=subprocess.DEVNULL, stderr=log)
    samples: list[Sample] = []
    while process.poll() is None:
        made = sum(record["event"] == "made" for record in records(jobs.parent))
        if until is not None and made >= until:
            process.kill()
            process.wait()
            return None, samples
        try:
            workers = [each for each in process.children() if "executor_child" in " ".join(each.cmdline())]
            if workers and (not samples or made >= samples[-1].made + 10):
                largest = max(workers, key=lambda each: int(each.memory_info().rss))
                samples.append(Sample(made, *(figure for each in (process, largest) for figure in _of(each))))
        except psutil.Error:
            pass
        time.sleep(0.2)
    return process.returncode, samples


def _of(process: psutil.Process) -> tuple[float, int]:
    return process.memory_info().rss / 2**20, process.num_fds()


def main() -> None:
    """Run it all in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--alone", type=int, default=20)
    parser.add_argument("--prove", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kconv-bench-batch-") as name:
        folder = Path(name)
        broken = write_models(folder, asked.models)
        jobs = write_jobs(folder, asked.prove)
        whole = 2 * (asked.models - broken)
        begun, samples = time.monotonic(), []
        for until in (whole // 3, whole * 2 // 3, None):
            code, more = run(jobs, asked.jobs, until)
            samples += more
        seconds = time.monotonic() - begun
        report(folder, code, whole, samples)
        print(f"{seconds:.0f} s in all, {60 * (asked.models - broken) / seconds:.1f} checkpoints a minute")
        models = [path for path in sorted((folder / "models").iterdir()) if int(path.name[-3:]) % 10 != 9]
        begun = time.monotonic()
        for path in models[: asked.alone]:
            proof = [] if asked.prove else ["--no-verify"]
            words = ["to-gguf", str(path), "-q", "q8_0,q4_0", "-o", str(folder / "alone"), *proof]
            subprocess.run([*KCONV, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        seconds = time.monotonic() - begun
        print(f"one by one: {60 * len(models[: asked.alone]) / seconds:.1f} checkpoints a minute")


def report(folder: Path, code: int | None, whole: int, samples: list[Sample]) -> None:
    """What there is, what was made twice, and whether memory and descriptors stay."""
    events = Counter(record["event"] for record in records(folder))
    made = Counter(record["key"] for record in records(folder) if record["event"] == "made")
    begun = Counter(key for record in records(folder) if record["event"] == "began" for key in record["keys"])
    print(f"exit code {code}; {dict(events)}")
    print(f"outputs made: {len(made)} of {whole}; made twice: {sum(count > 1 for count in made.values())}")
    print(f"begun again after a kill: {sum(count > 1 for count in begun.values())}")
    deaths = (folder / "log").read_text("utf-8").count("it is tried once more")
    print(f"processes that died under a conversion: {deaths}")
    print("made   own MiB  files   worker MiB  files")
    for each in samples:
        print(
            f"{each.made:4}  {each.own:8.0f}  {each.own_files:5}  {each.worker:11.0f}  {each.worker_files:5}"
        )


if __name__ == "__main__":
    main()
