"""A step of make bench: kconv imatrix and verify against llama-imatrix and llama-perplexity --kl-divergence.

The same text (the English docs of this clone, cut to whole windows of 512 tokens), the same model
(SmolLM2-135M, see tools/real_model.py, or --checkpoint), two threads, one run each in turns; seconds and peak
private memory, children included.

  kconv imatrix      of the checkpoint, in fp32
  llama-imatrix      of its F16 file, --output-format gguf
  kconv verify       of the Q4_K_M file against the checkpoint in fp32: also its tokens, metadata, weights
                     and, matrix by matrix, what llama.cpp computes
  llama-perplexity   --kl-divergence of the Q4_K_M file; its first pass, over the F16 file, which writes the
                     logits to compare with to the disk, is counted, since verify has no such file either

The two mean KL divergences stand beside each other. They are not quite the same figure: llama-perplexity
counts the second half of every window and stores the base's logits in 16 bits, kconv counts every position.
Nothing is aimed at: these are figures to read.

    python bench/peers.py [--repeat N] [--windows N] [--small] [--checkpoint FOLDER] [--programs FOLDER]

The programs are built by tools/build_llama_programs.py unless their folder is named.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from memory import Run
from timing import KCONV, ROOT, Results, checked, in_turns, medians, one_after_the_other, remove, workplace

STEP = "peers"
WINDOW, WINDOWS, FEW = 512, 32, 3
THREADS = "2"
TYPE = "q4_K_M"


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeat", type=int, default=1, help="runs of each (default 1)")
    parser.add_argument(
        "--windows", type=int, default=WINDOWS, help=f"of {WINDOW} tokens (default {WINDOWS})"
    )
    parser.add_argument("--small", action="store_true", help=f"{FEW} windows")
    parser.add_argument("--checkpoint", type=Path, help="a Llama with tokenizer.json")
    parser.add_argument("--programs", type=Path, help="the folder of llama-imatrix and llama-perplexity")
    options = parser.parse_args()
    windows = FEW if options.small else options.windows
    checkpoint = options.checkpoint or _made("real_model.py")
    programs = options.programs or _made("build_llama_programs.py")
    results = Results(STEP, small=options.small)
    results.head()
    with workplace(STEP) as out:
        text = out / "text.txt"
        text.write_text(text_of(checkpoint, windows), "utf-8")
        for type_ in ("f16", TYPE):
            checked(
                [
                    KCONV,
                    "to-gguf",
                    str(checkpoint),
                    "-q",
                    type_,
                    "-o",
                    str(out / f"{type_}.gguf"),
                    "--no-verify",
                ]
            )
        _imatrix(results, checkpoint, programs, out, windows, options.repeat)
        _verify(results, checkpoint, programs, out, windows, options.repeat)
    results.tail()
    return 0


def _made(tool: str) -> Path:
    """What a tool prints: the folder it has made, unless it was there."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"bench: tools/{tool} ended with {done.returncode}")
    return Path(done.stdout.strip().splitlines()[-1])


def text_of(checkpoint: Path, windows: int) -> str:
    """The English docs as far as they fill so many windows, and a few tokens more."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    text = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "docs" / "en").glob("*.md")))
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    wanted = windows * WINDOW + 8
    if len(offsets) < wanted:
        raise SystemExit(f"bench: the docs have {len(offsets)} tokens, {windows} windows take {wanted}")
    return text[: offsets[wanted][0]]


def _imatrix(
    results: Results, checkpoint: Path, programs: Path, out: Path, windows: int, repeat: int
) -> None:
    text = ["--chunks", str(windows)]
    ours = [KCONV, "imatrix", str(checkpoint), "--text", str(out / "text.txt"), *text]
    ours += ["--window", str(WINDOW), "--threads", THREADS, "-o", str(out / "kconv.gguf"), "--force"]
    theirs = [
        str(programs / "llama-imatrix"),
        "-m",
        str(out / "f16.gguf"),
        "-f",
        str(out / "text.txt"),
        *text,
    ]
    theirs += ["-c", str(WINDOW), "-t", THREADS, "-o", str(out / "theirs.gguf"), "--no-ppl"]
    names = ("kconv imatrix", "llama-imatrix")
    ways = {
        name: partial(checked, words, seldom=True) for name, words in zip(names, (ours, theirs), strict=True)
    }
    _compared(results, in_turns(repeat, ways), *names)


def _verify(results: Results, checkpoint: Path, programs: Path, out: Path, windows: int, repeat: int) -> None:
    file, text, base = out / f"{TYPE}.gguf", out / "text.txt", out / "base.kld"
    ours = [KCONV, "verify", str(file), "--against", str(checkpoint), "--text", str(text), "--json"]
    ours += ["--tokens", str(windows * WINDOW), "--window", str(WINDOW), "--threads", THREADS]
    common = ["-f", str(text), "-c", str(WINDOW), "-t", THREADS, "--chunks", str(windows)]
    common += ["--kl-divergence-base", str(base)]
    program = str(programs / "llama-perplexity")
    first = [program, "-m", str(out / "f16.gguf"), *common]
    second = [program, "-m", str(file), *common, "--kl-divergence"]
    names = ("kconv verify", "llama-perplexity, both passes")
    seen: dict[str, Run] = {}

    def kconv() -> Run:
        seen["kconv"] = checked(ours, seldom=True)
        return seen["kconv"]

    def perplexity() -> Run:
        remove(base)
        before = checked(first, seldom=True)
        seen["theirs"] = checked(second, seldom=True)
        return one_after_the_other(before, seen["theirs"])

    _compared(results, in_turns(repeat, {names[0]: kconv, names[1]: perplexity}), *names)
    size = base.stat().st_size / 2**20
    results.note(f"llama-perplexity keeps the base's logits in a file of {size:.0f} MiB.")
    found = re.search(r"Mean\s+KLD:\s+([0-9.]+)", seen["theirs"].stdout + seen["theirs"].stderr)
    told = json.loads(seen["kconv"].stdout)
    results.note(
        f"Mean KL divergence, {windows} windows: kconv {_kl(told):.5f}, llama-perplexity "
        f"{found[1] if found else 'not printed'}."
    )


def _kl(told: object) -> float:
    """The mean KL divergence in what ``kconv verify --json`` prints, wherever it stands."""
    if isinstance(told, dict):
        if isinstance(found := told.get("kl_mean"), float):
            return found
        told = list(told.values())
    if isinstance(told, list):
        for each in told:
            if (found := _kl(each)) == found:
                return found
    return float("nan")


def _compared(results: Results, runs: dict[str, list[Run]], ours: str, theirs: str) -> None:
    costs = {name: medians(each) for name, each in runs.items()}
    for name, cost in costs.items():
        results.cost(name, replace(cost))
    results.aim(f"{theirs} / {ours}, seconds", costs[theirs].seconds / costs[ours].seconds)
    results.aim(f"{theirs} / {ours}, private memory", costs[theirs].peak_private / costs[ours].peak_private)


if __name__ == "__main__":
    sys.exit(main())
