"""make test-real: the table of damages (tests/damage_material.py) on SmolLM2-135M-Instruct.

Every damage is done to a file of each type, and ``kconv verify`` must end in exit 1 by the verdict *right*:
how much a file loses fails nothing here. Prints which parts failed, the runtime part among them, and the
cause; ends with 1 if a damage was missed or a good file failed.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from kconv.cli.main import main as command
from kconv.flows.convert import to_gguf

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from damage_material import DAMAGES

CHECKPOINT = Path(__file__).parent.parent / ".dev" / "real-model" / "SmolLM2-135M-Instruct"
TYPES = ("f32", "f16", "q8_0", "q4_k_m", "q4_0", "iq4_xs", "iq2_m")
PARTS = ("tokens", "metadata", "weights", "runtime")


def main() -> int:
    """Damage, verify, print a row."""
    missed = 0
    print("| type | damage | exit | failed parts | cause |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(__file__).parent.parent / "README.md"
        types = sys.argv[1:] or TYPES
        made = to_gguf(CHECKPOINT, Path(folder), types=types, calibrate=[text], verify=False)
        for output in made.outputs:
            missed += not _row(output.type, "none", output.path, 0)
            for name, damage in DAMAGES.items():
                path = damage.make(output.path, Path(folder) / "damaged.gguf")
                missed += not _row(output.type, name, path, 1)
                path.unlink()
    return int(missed > 0)


def _row(type_: str, name: str, path: Path, wanted: int) -> bool:
    """One verdict; whether it is the one there should be."""
    code, proof = _verified(path)
    failed = [part for part in PARTS if proof.get(part, {}).get("verdict") == "failed"]
    cause = str(proof.get("cause") or "").split("\n")[0][:100] if wanted else ""
    print(f"| {type_} | {name} | {code} | {', '.join(failed)} | {cause} |", flush=True)
    return code == wanted and proof.get("right") == ("failed" if wanted else "passed")


def _verified(path: Path) -> tuple[int, dict[str, Any]]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = command(["verify", str(path), "--against", str(CHECKPOINT), "--tokens", "64", "--json"])
    return code, json.loads(out.getvalue())


if __name__ == "__main__":
    sys.exit(main())
