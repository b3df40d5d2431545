"""A step of make bench: kconv against llama.cpp's converter and llama_model_quantize, 1.36 billion weights.

  kconv       kconv to-gguf CHECKPOINT -q TYPE --no-verify, with a receipt, as whoever converts again has it
  converter   convert_hf_to_gguf.py --outtype f16 (from tools/fetch_llama_cpp.py); one file for all types
  quantize    llama_model_quantize of that file with two threads, then a sync of the file, as kconv does it

The checkpoint has a sentencepiece vocabulary, which llama.cpp's converter accepts. q4_0 and q8_0 are to be 8
times as fast as both of llama.cpp's steps together, q4_K_M 10 times as fast as the second alone. On two quiet
cores the converter takes about 8 s, the quantizer 3 s for q4_0 and q8_0 and 30 s for q4_K_M.

    python bench/llama_cpp_way.py [--repeat N] [--small] [TYPE]...
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

import material
from memory import Run
from timing import (
    KCONV,
    ROOT,
    Cost,
    Results,
    checked,
    in_turns,
    medians,
    one_after_the_other,
    remove,
    workplace,
)

STEP = "llama.cpp"
BOTH, ALONE = 8.0, 10.0
TYPES = {"q4_0": BOTH, "q8_0": BOTH, "q4_K_M": ALONE}

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


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help=f"of {', '.join(TYPES)}")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--small", action="store_true", help="0.3 billion weights")
    options = parser.parse_args()
    if unknown := set(options.types) - set(TYPES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    checkpoint = material.prepared(material.sentencepiece(small=options.small))
    results = Results(STEP, small=options.small)
    results.head()
    with workplace("llama-cpp") as out:
        f16 = out / "llama-cpp-f16.gguf"
        converted = _converted(checkpoint, f16, options.repeat)
        results.cost("llama.cpp, converter to f16", medians(converted))
        for type_ in options.types or TYPES:
            _quantized(results, checkpoint, f16, type_, converted)
    results.tail()
    return 0


def _converted(checkpoint: Path, f16: Path, repeat: int) -> list[Run]:
    """llama.cpp's converter, several times; the last file stays."""
    fetched = [sys.executable, str(ROOT / "tools" / "fetch_llama_cpp.py")]
    folder = Path(subprocess.run(fetched, check=True, capture_output=True, text=True).stdout.strip())
    command = [sys.executable, str(folder / "convert_hf_to_gguf.py"), str(checkpoint)]
    command += ["--outfile", str(f16), "--outtype", "f16"]
    return in_turns(repeat, {"converter": partial(checked, command, seldom=True)}, f16)["converter"]


def _quantized(results: Results, checkpoint: Path, f16: Path, type_: str, converted: list[Run]) -> None:
    """A type by kconv from the checkpoint and by llama.cpp from its f16 file, in turns."""
    target = f16.with_name("made.gguf")
    ours = [KCONV, "to-gguf", str(checkpoint), "-q", type_, "-o", str(target), "--no-verify"]
    theirs = [sys.executable, "-c", QUANTIZE, str(f16), str(target), type_.upper()]
    remove(target)
    checked(ours)  # leaves a receipt
    ways = {"kconv": partial(checked, ours), "quantize": partial(checked, theirs, seldom=True)}
    runs = in_turns(len(converted), ways, target)
    remove(target)
    both = medians(map(one_after_the_other, converted, runs["quantize"]))
    costs: dict[str, Cost] = {name: medians(each) for name, each in runs.items()}
    results.cost(f"{type_}: kconv", costs["kconv"])
    results.cost(f"{type_}: llama.cpp, llama_model_quantize", costs["quantize"])
    results.cost(f"{type_}: llama.cpp, both", both)
    limit = TYPES[type_]
    ours_in = costs["kconv"].seconds
    results.aim(
        f"{type_}: llama.cpp's two steps / kconv", both.seconds / ours_in, BOTH if limit == BOTH else None
    )
    results.aim(
        f"{type_}: llama_model_quantize alone / kconv",
        costs["quantize"].seconds / ours_in,
        ALONE if limit == ALONE else None,
    )


if __name__ == "__main__":
    sys.exit(main())
