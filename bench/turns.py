"""The quick proof of this kconv against that of an older one, in turns, so that both meet the same machine.

    python bench/turns.py [OLDER] [--shape NAME] [--repeat N] [--threads N]

OLDER is a commit, or a folder of kconv with its kernels; by default the last commit before issue 20 (speed)
was worked on. A commit is unpacked and its kernels are built, into .dev/bench. A checkpoint of random weights
is converted to q8_0 and q4_0 with the quick proof, by either in turn; of each the fastest proof counts, in
seconds and in those of the processors, children included. Figures are compared to four digits, as manifests
have them. Exit code 1 where a figure or verdict differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import material
from timing import ROOT, Results, workplace

TYPES = ("q8_0", "q4_0")
BEFORE = "2ecedf5"
LIMIT = 0.6
SHAPES = {shape.name: shape for shape in (material.DOT42_SMALL, material.DOT42_BF16, material.LLAMA_3_8B)}
ROOMS = (
    *("core", "hub", "vocab", "quant", "converters", "reference", "runtimes", "verify", "flows"),
    *("report", "cli"),
)


_CONVERT = """
import json, os, sys, time
from pathlib import Path
from kconv.flows import convert, prove as flow
checkpoint, out, threads, *types = sys.argv[1:]
prove, spent = flow.prove_new_files, []
def timed(*arguments, **more):
    before, begun = os.times(), time.perf_counter()
    proofs = prove(*arguments, **more)
    after = os.times()
    spent.extend((time.perf_counter() - begun, sum(after[:4]) - sum(before[:4])))
    return proofs
flow.prove_new_files = convert.prove_new_files = timed
options = {"types": types, "verify": "quick", "force": True, "threads": int(threads)}
made = convert.to_gguf(Path(checkpoint), Path(out), **options)
told = [proof.to_manifest() for proof in made.proofs]
figures = [[proof.verdict, told["logits"]["figures"]] for proof, told in zip(made.proofs, told, strict=True)]
print(json.dumps([*spent, figures]))
"""


def main() -> int:
    """Measure both, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("older", nargs="?", default=BEFORE, help=f"a commit or a folder (default {BEFORE})")
    parser.add_argument("--shape", choices=SHAPES, default=material.DOT42_BF16.name)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    checkpoint = material.prepared(SHAPES[asked.shape])
    trees = {"this": ROOT, "older": _older(asked.older)}
    results = Results("proof", small=asked.shape == material.DOT42_SMALL.name)
    best: dict[str, list[float]] = {}
    told: dict[str, Any] = {}
    with workplace("proof") as scratch:
        for _ in range(asked.repeat):
            for name, tree in trees.items():
                *spent, told[name] = _proven(tree, checkpoint, scratch, asked.threads)
                print(f"{name}: {spent[0]:.1f} s, {spent[1]:.1f} s of the processors", flush=True)
                best[name] = [min(pair) for pair in zip(spent, best.get(name, spent), strict=True)]
            for what, this, older in zip(
                ("seconds", "processor seconds"), best["this"], best["older"], strict=True
            ):
                ratio = f"{asked.shape}: quick proof, {what}, this / {asked.older}"
                results.aim(ratio, this / older, LIMIT, at_most=True)
    different = _differences(told["this"], told["older"])
    for line in different or ["The figures are the same to four digits."]:
        results.note(line)
    results.tail()
    return int(bool(different))


def _older(named: str) -> Path:
    """The folder of that name, or that commit unpacked, with its kernels."""
    if Path(named).is_dir():
        return Path(named)
    folder = material.scratch() / f"kconv-{named}"
    if not (folder / ".complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        packed = subprocess.run(["git", "archive", named], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=packed, check=True)
        _build_kernels(folder)
        (folder / ".complete").touch()
    return folder


def _build_kernels(folder: Path) -> None:
    """The C extension, as the folder's pyproject.toml has it, beside its sources."""
    settings = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    for module in settings["tool"]["setuptools"].get("ext-modules", ()):
        *package, name = module["name"].split(".")[1:]
        target = folder.joinpath(*package, name + sysconfig.get_config_var("EXT_SUFFIX"))
        words = ["cc", "-shared", "-fPIC", "-O3", *module.get("extra-compile-args", ())]
        words += [f"-I{sysconfig.get_paths()['include']}", *module["sources"], "-o", str(target)]
        subprocess.run(words, cwd=folder, check=True)


def _proven(tree: Path, checkpoint: Path, scratch: Path, threads: int) -> list[Any]:
    """Seconds, processor seconds, and verdict and figures of each type, by the kconv in ``tree``."""
    package, out = scratch / f"package-{tree.name}" / "kconv", scratch / "out"
    if not package.exists():
        package.mkdir(parents=True)
        for path in (
            *(tree / "package").iterdir(),
            *(tree / room for room in ROOMS if (tree / room).is_dir()),
        ):
            (package / path.name).symlink_to(path.resolve())
    out.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _CONVERT, str(checkpoint), str(out), str(threads), *TYPES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    shutil.rmtree(out)
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr[-3000:]}")
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _differences(this: Any, older: Any) -> list[str]:
    """Verdicts and figures that are not the same; one that only one of them has does not count."""
    lines = []
    for type_, (verdict, figures), (before, others) in zip(TYPES, this, older, strict=True):
        if verdict != before:
            lines.append(f"{type_}: {verdict}, was {before}")
        lines += [
            f"{type_}: {name} is {figures[name]}, was {others[name]}"
            for name in figures.keys() & others.keys()
            if figures[name] != others[name]
        ]
    return lines


if __name__ == "__main__":
    sys.exit(main())
