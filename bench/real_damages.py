"""make test-real: the table of damages (tests/damage_material.py) on SmolLM2-135M-Instruct.

Every damage is done to a file of each type, and ``kconv verify`` must end in exit 1 by the verdict *right*:
how much a file loses fails nothing here. The runtime part judges without the others, so the same run tells
what it alone would have found: whatever llama.cpp computes otherwise than config.json says. Weights are not
its matter, since it computes with the file's own.

Prints which parts failed, the worst input of a matrix as a multiple of its limit, and the cause; ends with 1
if a damage was missed or a good file failed. Rows that are already in ``--into`` are not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kconv.cli.main import main as command
from kconv.flows.convert import to_gguf
from kconv.verify import prove
from kconv.verify.inputs import read_reference

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from damage_material import DAMAGES

CHECKPOINT = Path(__file__).parent.parent / ".dev" / "real-model" / "SmolLM2-135M-Instruct"
TYPES = ("f32", "f16", "q8_0", "q4_k_m", "q4_0", "iq4_xs", "iq2_m")
_WITH_IMPORTANCE = ("iq2_m",)  # llama.cpp refuses them without
PARTS = ("tokens", "metadata", "weights", "runtime")
COMPUTED = ("wrong rope theta", "wrong norm epsilon", "wrong head split", "rope scaling added")
"""Damages to what is computed with the weights: those the runtime part must find alone."""
_HEAD = "| type | damage | exit | failed parts | runtime: worst input | s | cause |\n" + "|---" * 7 + "|"


def main() -> int:
    """Damage, verify, add a row."""
    readings: dict[Any, Any] = {}

    def once(expected: Any, options: Any, windows: Any) -> Any:
        """What the checkpoint says, which is the same for all these files."""
        if tuple(windows) not in readings:
            readings[tuple(windows)] = read_reference(expected, options, windows)
        return readings[tuple(windows)]

    prove.read_reference = once
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("types", nargs="*", default=TYPES)
    parser.add_argument("--into", type=Path, default=CHECKPOINT.parent, help="folder of damages-TYPE.txt")
    parser.add_argument("--threads", default="2")
    asked = parser.parse_args()
    print(_HEAD)
    wrong = 0
    for type_ in asked.types:
        rows = asked.into / f"damages-{type_}.txt"
        done = rows.read_text("utf-8").splitlines() if rows.is_file() else []
        done = [line for line in done if line.endswith(" |")]  # the last one may have been cut off
        for line in _rows(type_, {line.split(" | ")[1] for line in done}, asked.threads):
            done.append(line)
            rows.write_text("\n".join(done) + "\n", "utf-8")
        print("\n".join(done), flush=True)
        wrong += sum(not _as_it_should_be(line) for line in done)
    return int(wrong > 0)


def _rows(type_: str, done: set[str], threads: str) -> Any:
    """The rows of a type that are not there yet."""
    left = [name for name in dict.fromkeys(("none", *COMPUTED, *DAMAGES)) if name not in done]
    if not left:
        return
    with tempfile.TemporaryDirectory() as folder:
        text = [Path(__file__).parent.parent / "README.md"] if type_ in _WITH_IMPORTANCE else []
        made = to_gguf(CHECKPOINT, Path(folder), types=[type_], calibrate=text, verify=False)
        (good,) = made.outputs
        for name in left:
            if name == "none":
                yield _row(type_, name, good.path, threads)
                continue
            path = DAMAGES[name].make(good.path, Path(folder) / "damaged.gguf")
            yield _row(type_, name, path, threads)
            path.unlink()


def _row(type_: str, name: str, path: Path, threads: str) -> str:
    """One verdict."""
    begun = time.monotonic()
    code, proof = _verified(path, threads)
    seconds = time.monotonic() - begun
    failed = [part for part in PARTS if proof.get(part, {}).get("verdict") == "failed"]
    worst = max(proof["runtime"].get("worst") or [{}], key=lambda each: each["nmse"] / each["limit"])
    input_ = f"{worst['nmse'] / worst['limit']:.2g} × limit ({worst['matrix']})" if worst else ""
    cause = str(proof.get("cause") or "").split("\n")[0].replace("|", "/")[:160] if name != "none" else ""
    cells = [type_, name, str(code), ", ".join(failed), input_, f"{seconds:.0f}", cause]
    return f"| {' | '.join(cells)} |"


def _as_it_should_be(line: str) -> bool:
    """Whether a row is a good file that passed, or a damaged one found by the parts that must."""
    _, name, code, failed, *_ = (cell.strip() for cell in line.strip("|").split(" | "))
    if name == "none":
        return code == "0" and not failed
    return code == "1" and bool(failed) and (name not in COMPUTED or "runtime" in failed)


def _verified(path: Path, threads: str) -> tuple[int, dict[str, Any]]:
    out = io.StringIO()
    options = ["--against", str(CHECKPOINT), "--tokens", "64", "--no-diagnose", "--threads", threads]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = command(["verify", str(path), *options, "--json"])
    return code, json.loads(out.getvalue())


if __name__ == "__main__":
    sys.exit(main())
