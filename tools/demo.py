"""``make demo``: a small trained Korean model to f32, q8_0 and q4_0, proven, and a few sentences from each.

    make demo                    # the model of 42dot's layout
    make demo FAMILY=kebyt5      # or kogpt, gbst-kebyt5: another of the trained ones

Everything goes through the command line a user has: kconv demo-checkpoint, to-gguf, run, verify.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KCONV = str(Path(sys.executable).parent / "kconv")
TYPES = ("f32", "q8_0", "q4_0")
REPORT = "report.html"


@dataclass(frozen=True)
class Words:
    """What a family's model is given: ``how`` names the option of kconv run, ``options`` are more of them."""

    how: str
    texts: tuple[str, ...]
    options: tuple[str, ...]


DRAWN = ("-n", "90", "--no-chat", "--seed", "1")
MASKED = Words(
    "--fill",
    ('엄마가 "무엇을 먹고 싶니?" 하고 <extra_id_0>.', "옛날 어느 마을에 나무꾼이 <extra_id_0>."),
    ("-n", "64"),
)
FAMILIES = {
    "42dot": Words("-p", ("옛날 어느 마을에",), DRAWN),
    "kogpt": Words("-p", ("옛날 옛날 깊은 숲속에",), DRAWN),
    "kebyt5": MASKED,
    "gbst-kebyt5": MASKED,
}


def kconv(*arguments: str) -> str:
    """Run a command, show it, and return what it printed; a failure ends the demo with its exit code.

    A proof that fails is such a failure: kconv ends with 1 and has said on standard error what is wrong.
    """
    print("$ kconv " + " ".join(arguments), flush=True)
    done = subprocess.run([KCONV, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout)
        sys.exit(done.returncode)
    return done.stdout


def proven(result: dict[str, Any]) -> list[str]:
    """A line of figures for every file, from ``to-gguf --json``."""
    lines = [
        f"{'file':<28}{'size':>10}{'bits per weight':>18}{'mean KL':>11}{'same top token':>17}"
        f"{'perplexity':>13}{'verdict':>10}"
    ]
    for output, proof in zip(result["outputs"], result["proofs"], strict=True):
        figures = proof["logits"]["figures"]
        name, megabytes = Path(output["path"]).name, output["bytes"] / 1e6
        lines.append(
            f"{name:<28}{megabytes:>7.2f} MB{output['bits_per_weight']:>18.2f}"
            f"{figures['kl_mean']:>11.2g}{figures['same_top1']:>17.1%}{figures['perplexity_file']:>13.2f}"
            f"{proof['verdict']:>10}"
        )
    for beside in result["companions"]:
        name, megabytes = Path(beside["path"]).name, beside["bytes"] / 1e6
        lines.append(f"{name:<28}{megabytes:>7.2f} MB   needed by each of them")
    reference = result["proofs"][0]["logits"]["figures"]["perplexity_reference"]
    lines.append(f"{'the checkpoint in fp32':<84}{reference:>13.2f}")
    return lines


def empty(folder: Path) -> None:
    """Make ``folder`` anew; one that holds anything but a demo's files ends the demo."""
    checkpoints = tuple(f"{family}-demo" for family in FAMILIES)
    ours = (*checkpoints, *(f"gbst-{name}" for name in checkpoints), REPORT)
    if folder.exists() and any(not path.name.startswith(ours) for path in folder.iterdir()):
        sys.exit(f"{folder} contains files that are not part of the demo; choose another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def main(folder: Path, family: str) -> None:
    """Make ``folder`` anew with the family's checkpoint, the three files, their manifests and a report."""
    words = FAMILIES.get(family)
    if words is None:
        sys.exit(f"unknown family {family!r}; FAMILY is one of {', '.join(FAMILIES)}")
    empty(folder)
    checkpoint = folder / f"{family}-demo"
    kconv("demo-checkpoint", family, str(checkpoint))
    types = [word for name in TYPES for word in ("-q", name)]
    result: dict[str, Any] = json.loads(
        kconv("to-gguf", str(checkpoint), *types, "-o", str(folder), "--json")
    )
    tokens = result["tokens"]
    print(f"\ntokens: {tokens['equal']} of {tokens['texts']} texts equal the checkpoint's own tokenizer")
    print("\n".join(proven(result)) + "\n")
    for output in result["outputs"]:
        for text in words.texts:
            print(f"{kconv('run', output['path'], words.how, text, *words.options).strip()}\n")
    smallest, report = result["outputs"][-1]["path"], str(folder / REPORT)
    print(kconv("verify", smallest, "--against", str(checkpoint), "--report", report))
    print(f"The files are in {folder}/, each with its manifest next to it; the proof of the last one, with")
    print(f"pictures, is {report}: open it in a browser. Try a file with your own words:")
    print(f"  {KCONV} run {result['outputs'][1]['path']} {words.how} '{words.texts[0]}'")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"), sys.argv[2] if len(sys.argv) > 2 else "42dot")
