"""``make demo``: the embedded Korean model to f32, q8_0 and q4_0, proven, and a few sentences from each.

Everything goes through the command line a user has: kconv demo-checkpoint, to-gguf, run.
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


def kconv(*arguments: str) -> str:
    """Run a command, show it, and return what it printed; a failure ends the demo with its exit code."""
    print("$ kconv " + " ".join(arguments), flush=True)
    done = subprocess.run([KCONV, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main(folder: Path) -> None:
    """Make ``folder`` anew with the checkpoint, the three files and their manifests."""
    if folder.exists() and any(not path.name.startswith("42dot-demo") for path in folder.iterdir()):
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
    print(f"\ntokens: {tokens['equal']} of {tokens['texts']} texts equal the checkpoint's own tokenizer\n")
    for output in result["outputs"]:
        text = kconv("run", output["path"], "-p", PROMPT, "-n", "90", "--no-chat", "--seed", "1")
        print(f"{text.strip()}\n")
    print(f"{'file':<28}{'size':>10}{'bits per weight':>18}{'tokens':>14}")
    for output in result["outputs"]:
        name, size = Path(output["path"]).name, f"{output['bytes'] / 1e6:.2f} MB"
        equal = f"{tokens['equal']}/{tokens['texts']}"
        print(f"{name:<28}{size:>10}{output['bits_per_weight']:>18.2f}{equal:>14}")
    print(f"\nThe files are in {folder}/, each with its manifest beside it. Try one with your own words:")
    print(f"  {KCONV} run {result['outputs'][1]['path']} -p '{PROMPT}'")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
