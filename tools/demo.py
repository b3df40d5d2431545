"""``make demo``: the embedded Korean model to f32, q8_0 and q4_0, proven, and a few sentences from each.

Everything goes through the command line a user has: kconv demo-checkpoint, to-gguf, run, verify.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

KCONV = str(Path(sys.executable).parent / "kconv")
TYPES = ("f32", "q8_0", "q4_0")
PROMPT = "옛날 어느 마을에"
REPORT = "report.html"


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
        f"{'file':<22}{'size':>10}{'bits per weight':>18}{'mean KL':>11}{'same top token':>17}"
        f"{'perplexity':>13}{'verdict':>10}"
    ]
    for output, proof in zip(result["outputs"], result["proofs"], strict=True):
        figures = proof["logits"]["figures"]
        name, megabytes = Path(output["path"]).name, output["bytes"] / 1e6
        lines.append(
            f"{name:<22}{megabytes:>7.2f} MB{output['bits_per_weight']:>18.2f}"
            f"{figures['kl_mean']:>11.2g}{figures['same_top1']:>17.1%}{figures['perplexity_file']:>13.2f}"
            f"{proof['verdict']:>10}"
        )
    reference = result["proofs"][0]["logits"]["figures"]["perplexity_reference"]
    lines.append(f"{'the checkpoint in fp32':<78}{reference:>13.2f}")
    return lines


def main(folder: Path) -> None:
    """Make ``folder`` anew with the checkpoint, the three files, their manifests and a report."""
    ours = ("42dot-demo", REPORT)
    if folder.exists() and any(not path.name.startswith(ours) for path in folder.iterdir()):
        sys.exit(f"{folder} holds files that are not the demo's; name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    checkpoint = folder / "42dot-demo"
    kconv("demo-checkpoint", "42dot", str(checkpoint))
    types = [word for name in TYPES for word in ("-q", name)]
    result: dict[str, Any] = json.loads(
        kconv("to-gguf", str(checkpoint), *types, "-o", str(folder), "--json")
    )
    tokens = result["tokens"]
    print(f"\ntokens: {tokens['equal']} of {tokens['texts']} texts equal the checkpoint's own tokenizer")
    print("\n".join(proven(result)) + "\n")
    for output in result["outputs"]:
        text = kconv("run", output["path"], "-p", PROMPT, "-n", "90", "--no-chat", "--seed", "1")
        print(f"{text.strip()}\n")
    smallest, report = result["outputs"][-1]["path"], str(folder / REPORT)
    print(kconv("verify", smallest, "--against", str(checkpoint), "--report", report))
    print(f"The files are in {folder}/, each with its manifest beside it; the proof of the last one, with")
    print(f"pictures, is {report}: open it in a browser. Try a file with your own words:")
    print(f"  {KCONV} run {result['outputs'][1]['path']} -p '{PROMPT}'")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
