"""What the layer check adds to a quick proof, and a K-quant to ``kconv verify``, at full size.

Checkpoints of random weights in the shapes of 42dot 1.3B and Llama-3-8B are converted to q8_0 and q4_0 with
the quick proof, with the layer check (the runtime part) and without it, in turns in one run: it may make the
proof take 1.3 times as long and the command 1.1 times the memory. Then ``kconv verify`` of a q4_K_M file
may take 1.5 times as long as of the q8_0 file. Children included; of ``--repeat`` turns the fastest counts.

    python bench/quick_proof.py [--keep] [--repeat N] [--no-verify] [NAME]...

KCONV_SCRATCH (default .dev/bench) needs 7 GB for the 1.3B shape, 35 GB for that of 8B. Ends with 1
where a limit is broken.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
from dataclasses import astuple, dataclass
from pathlib import Path

import material
from memory import measure

from kconv.core.cores import available_cores

MIB = 2**20
TYPES = ("q8_0", "q4_0")
TIME, MEMORY, K_QUANT = 1.3, 1.1, 1.5
TOKENS = "128"
THREADS = str(available_cores())
SHAPES = {shape.name: shape for shape in (material.DOT42_BF16, material.LLAMA_3_8B)}
INTERVAL = 0.2  # seconds between looks at the memory, which take time from what is measured

_CONVERT = """
import json, os, sys
from pathlib import Path
from kconv.flows import prove as flow
from kconv.flows.convert import to_gguf
from kconv.verify import gguf_artifact
from kconv.verify.proof import RuntimePart
checkpoint, out, check, threads, *types = sys.argv[1:]
if check == "without":
    gguf_artifact.check_runtime = lambda *arguments: (RuntimePart("not run"), None)
seconds, prove = [], flow.prove_new_files
def timed(*arguments, **more):
    before = os.times()
    proofs = prove(*arguments, **more)
    spent = [after - start for start, after in zip(before, os.times())]
    seconds.extend((spent[4], sum(spent[:4])))
    return proofs
flow.prove_new_files = timed
made = to_gguf(Path(checkpoint), Path(out), types=types, verify="quick", force=True, threads=int(threads))
print(json.dumps([[proof.right for proof in made.proofs], *seconds]))
"""


@dataclass(frozen=True)
class Cost:
    """Of the proofs alone, or of a command: seconds, processor seconds, and peak private memory in bytes.

    Where other programs share the machine, the processors' seconds are what can be compared.
    """

    seconds: float
    busy: float
    memory: int


def main() -> int:
    """Measure every shape named; print rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints for the next time")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument(
        "--threads",
        default=THREADS,
        help="of the conversions; with 1, processor seconds mean something\n"
        "where the machine is shared: threads that wait for each other wait busily",
    )
    parser.add_argument("--no-verify", action="store_true", help="only the quick proof")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(SHAPES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    print(
        "| shape | what | seconds | of processors | peak private MiB |\n|---|---|---:|---:|---:|", flush=True
    )
    broken: list[str] = []
    for name in asked.names or SHAPES:
        checkpoint = material.prepared(SHAPES[name])
        out = material.scratch() / "quick-proof"
        out.mkdir(parents=True, exist_ok=True)
        broken += _layer_check(name, checkpoint, out, asked.repeat, asked.threads)
        if not asked.no_verify:
            broken += _k_quant(name, checkpoint, out, asked.repeat)
        shutil.rmtree(out)
        if not asked.keep:
            shutil.rmtree(checkpoint)
    print("\n".join(broken))
    return int(bool(broken))


def _layer_check(name: str, checkpoint: Path, out: Path, repeat: int, threads: str) -> list[str]:
    costs: dict[str, Cost] = {}
    for _ in range(repeat):
        for check in ("without", "with"):
            cost = _converted(checkpoint, out, check, threads)
            _show(name, f"quick proof of {' and '.join(TYPES)}, {check} the layer check", cost)
            costs[check] = _less(costs.get(check), cost)
    before, after = costs["without"], costs["with"]
    return _judged(name, "layer check", after, before, TIME) + (
        [f"{name}: {after.memory / before.memory:.2f} times the memory"]
        if after.memory > MEMORY * before.memory
        else []
    )


def _k_quant(name: str, checkpoint: Path, out: Path, repeat: int) -> list[str]:
    code = _CONVERT.replace('"quick"', "False")
    command = [sys.executable, "-c", code, str(checkpoint), str(out), "with", THREADS, "q4_k_m"]
    made = measure(command, interval=INTERVAL)
    if made.code:
        raise SystemExit(made.stderr[-3000:])
    costs: dict[str, Cost] = {}
    for _ in range(repeat):
        for type_ in ("Q8_0", "Q4_K_M"):
            (path,) = out.glob(f"*-{type_}.gguf")
            command = [str(Path(sys.executable).parent / "kconv"), "verify", str(path)]
            before = _busy()
            run = measure([*command, "--against", str(checkpoint), "--tokens", TOKENS], interval=INTERVAL)
            if run.code:
                raise SystemExit(f"kconv verify {path} ended with {run.code}:\n{run.stdout}\n{run.stderr}")
            cost = Cost(run.seconds, _busy() - before, run.peak_private)
            _show(name, f"kconv verify of {type_}, {TOKENS} tokens a text", cost)
            costs[type_] = _less(costs.get(type_), cost)
    return _judged(name, "verify of q4_K_M against q8_0", costs["Q4_K_M"], costs["Q8_0"], K_QUANT)


def _converted(checkpoint: Path, out: Path, check: str, threads: str) -> Cost:
    """The seconds of both proofs, the memory of the whole conversion."""
    for earlier in out.iterdir():  # or the disk would hold them twice
        earlier.unlink()
    command = [sys.executable, "-c", _CONVERT, str(checkpoint), str(out), check, threads, *TYPES]
    run = measure(command, interval=INTERVAL)
    if run.code:
        raise SystemExit(run.stderr[-3000:])
    right, seconds, busy = json.loads(run.stdout.splitlines()[-1])
    if set(right) != {"passed"}:
        raise SystemExit(f"{checkpoint}: {right}")
    return Cost(seconds, busy, run.peak_private)


def _busy() -> float:
    """Processor seconds of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _less(one: Cost | None, other: Cost) -> Cost:
    return other if one is None else Cost(*map(min, zip(astuple(one), astuple(other), strict=True)))


def _judged(name: str, what: str, after: Cost, before: Cost, limit: float) -> list[str]:
    pairs = zip(astuple(after), astuple(before), strict=True)
    ratio, *others = (value / base for value, base in pairs)
    cells = " | ".join(f"**{each:.2f} times**" for each in (ratio, *others))
    print(f"| {name} | **{what}** | {cells} |", flush=True)
    return [f"{name}: {what}: {ratio:.2f} times the seconds, more than {limit}"] if ratio > limit else []


def _show(name: str, what: str, cost: Cost) -> None:
    cells = f"{cost.seconds:.1f} | {cost.busy:.1f} | {cost.memory / MIB:.0f}"
    print(f"| {name} | {what} | {cells} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
