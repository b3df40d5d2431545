"""make bench: what is aimed at in speed and memory, step by step, with one table at the end.

    python bench/bench.py [--only STEP[,STEP]...] [--all] [--small] [--repeat N] [--older COMMIT] [--list]

Every step is a program of its own that prints its figures as they come and keeps them in .dev/bench-results;
summary.py makes the table of them. Ctrl-C or a signal to terminate ends the step that runs, and the table
shows what there is. Material (checkpoints of random weights, llama.cpp's programs) is made before the step
that needs it, lies in .dev/bench (KCONV_SCRATCH) and is kept; all else is removed. A step that fails is named
at the end, and the others run; exit code 0 unless one did.

--small takes small shapes, for a machine that has other things to do: it shows that all works, its ratios say
little.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import summary

BENCH = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Step:
    """A program of the bench, what it measures, and how many minutes it takes on two quiet cores.

    ``small`` is what makes it small, ``repeated`` whether it takes --repeat, ``usual`` whether it is run
    without being asked for.
    """

    program: str
    what: str
    minutes: int
    arguments: tuple[str, ...] = ()
    small: tuple[str, ...] = ("--small",)
    repeated: bool = True
    usual: bool = True


STEPS = {
    "copying": Step("copying.py", "q4_0, q8_0 against plainly copying, with and without hashing; memory", 2),
    "llama.cpp": Step(
        "llama_cpp_way.py", "q4_0, q8_0, q4_K_M against llama.cpp's converter and quantizer", 4
    ),
    "kernels": Step(
        "kernels.py",
        "a core against libggml, with importance: the formats that have an aim",
        1,
        ("--weighed", "--threads", "1", *summary.WEIGHED),
        ("--turns", "2"),
        repeated=False,
    ),
    "growth": Step("growth.py", "how time grows with the checkpoint", 2),
    "proof": Step(
        "turns.py",
        "the quick proof against an older kconv's (--older), in turns",
        4,
        small=("--shape", "42dot-0.4b-bf16"),
        repeated=False,
    ),
    "peers": Step("peers.py", "imatrix and verify against llama-imatrix and llama-perplexity", 5),
    "types": Step(
        "every_type.py", "every type against llama_model_quantize", 40, repeated=False, usual=False
    ),
    "all-kernels": Step(
        "kernels.py", "every format against libggml", 10, small=("--turns", "2"), repeated=False, usual=False
    ),
    "onnx": Step("onnx_folders.py", "ONNX folders: made and run", 8, small=("--small",), usual=False),
}


def main() -> int:
    """Run the steps, print the table whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", metavar="STEP", help="only these, separated by commas")
    parser.add_argument("--all", action="store_true", help="also the steps that take long")
    parser.add_argument("--small", action="store_true", help="small shapes")
    parser.add_argument("--repeat", type=int, help="runs of each (default 3)")
    parser.add_argument("--older", metavar="COMMIT", help="whose quick proof this one's is compared with")
    parser.add_argument("--list", action="store_true", help="say what the steps are, and how long they take")
    options = parser.parse_args()
    if options.list:
        for name, step in STEPS.items():
            usual = "" if step.usual else "  (with --all or --only)"
            print(f"{name:12} {step.minutes:3} min  {step.what}{usual}")
        return 0
    names = (
        options.only.split(",")
        if options.only
        else [name for name, step in STEPS.items() if step.usual or options.all]
    )
    if unknown := [name for name in names if name not in STEPS]:
        parser.error(f"unknown: {', '.join(unknown)}; steps are {', '.join(STEPS)}")
    signal.signal(signal.SIGTERM, _interrupt)
    failed: list[str] = []
    interrupted = False
    for name in names:
        begun = time.monotonic()
        try:
            code = run(command(STEPS[name], options))
        except KeyboardInterrupt:
            interrupted = True
            break
        print(f"\n{name} took {(time.monotonic() - begun) / 60:.1f} minutes.", flush=True)
        if code:
            failed.append(name)
    summary.main()
    if interrupted:
        print(f"\nInterrupted at {name}.")
        return 130
    if failed:
        print(f"\nThese steps failed: {', '.join(failed)}.")
    return int(bool(failed))


def command(step: Step, options: argparse.Namespace) -> list[str]:
    """The words of a step."""
    words = [sys.executable, str(BENCH / step.program), *step.arguments]
    words += step.small if options.small else ()
    words += ["--repeat", str(options.repeat)] if step.repeated and options.repeat else []
    words += [options.older] if step.program == "turns.py" and options.older else []
    return words


def run(words: Sequence[str]) -> int:
    """A step to its end. If this process is interrupted, so is the step, which then removes what it made."""
    print(f"\n$ {' '.join(Path(word).name if '/' in word else word for word in words)}", flush=True)
    process = subprocess.Popen(words, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
