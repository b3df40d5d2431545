"""The last table of make bench: every ratio that is aimed at, on which machine, and where it falls short.

Reads what the steps of the bench wrote to .dev/bench-results, whenever that was: most of them ratios with
their aims, kernels.json (a core against libggml) and every_type.json (each type against
llama_model_quantize, and whether the bytes are the same). A step that was not run is named, not guessed; one
that was run with small shapes is marked.

    python bench/summary.py
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from timing import RESULTS, Aim

from kconv.core.cores import available_cores
from kconv.core.machine import memory, processor
from kconv.quant import native

WEIGHED = ("q4_1", "q5_0", "q5_1", "iq3_xxs", "iq2_xs")
BY_SET = {"avx2": 6.0, "avx512": 10.0}
"""How many times as fast as libggml a core is to be, with importance data."""
PARTS = ("copying", "llama.cpp", "kernels", "growth", "proof", "peers")
OTHERS = ("every_type",)


def main() -> int:
    """Print the table; 0 whatever it says."""
    found = {
        name: RESULTS / f"{name}.json" for name in (*PARTS, *OTHERS) if (RESULTS / f"{name}.json").is_file()
    }
    read = {name: json.loads(path.read_text("utf-8")) for name, path in found.items()}
    aims = [
        *_measured(read),
        *_kernels(read),
        *_types(read),
    ]
    print(f"\n{_machine()}\n")
    for name, path in found.items():
        made = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        print(f"{name}: measured {made}{_load(read[name])}")
    print("\n| what | ratio | aim | |\n|---|---:|---:|---|")
    for aim in aims:
        print(aim.row())
    short = [aim for aim in aims if not aim.holds]
    print(f"\n{len(short)} of {sum(aim.limit is not None for aim in aims)} aims fall short", end="")
    print(":" if short else ".")
    for aim in short:
        missing = aim.ratio / (aim.limit or 1) if aim.at_most else (aim.limit or 1) / aim.ratio
        print(f"  {aim.what}: {aim.ratio:.2f}, {missing:.2f} times off")
    if missing_parts := [name for name in PARTS if name not in found]:
        print(f"Not measured: {', '.join(missing_parts)}.")
    return 0


def _machine() -> str:
    """What it was measured on."""
    total = memory().total
    room = "" if total is None else f", {total / 2**30:.0f} GiB"
    sets = ", ".join(native.available_sets()) or "no kernels"
    name = processor().model
    return (
        f"{name}: {available_cores()} cores{room}; {sets}; {platform.system()}, load {os.getloadavg()[0]:.2f}"
    )


def _load(results: Any) -> str:
    loads = results.get("load") if isinstance(results, dict) else None
    return f", load {loads[0]:.2f} before, {loads[-1]:.2f} after" if loads else ""


def _measured(read: dict[str, Any]) -> Iterator[Aim]:
    """What the steps themselves set against their aims."""
    for found in read.values():
        for aim in found.get("aims", ()) if isinstance(found, dict) else ():
            yield Aim(**{**aim, "what": f"{aim['what']} (small)" if found.get("small") else aim["what"]})


def _kernels(read: dict[str, Any]) -> Iterator[Aim]:
    """One core; those formats first that have an aim."""
    for speed in read.get("kernels", {}).get("speeds", ()):
        if speed["threads"] != 1:
            continue
        name = speed["format"].lower()
        aimed = speed["importance"] and name in WEIGHED
        for set_, limit in BY_SET.items():
            if set_ in speed["speeds"]:
                what = f"{name}{', importance' * speed['importance']}: libggml / {set_}, a core"
                ratio = speed["speeds"][set_] / speed["speeds"]["libggml"]
                yield Aim(what, ratio, limit if aimed else None)


def _types(read: dict[str, Any]) -> Iterator[Aim]:
    """Each type's conversion; the bytes have to be the same."""
    for row in read.get("every_type", {}).get("types", ()):
        ratio = row["llama_cpp_seconds"] / row["seconds"]
        yield Aim(f"{row['type']}: llama_model_quantize / kconv", ratio)
        if not row["equal"]:
            yield Aim(f"{row['type']}: the same bytes", 0.0, 1.0)


if __name__ == "__main__":
    sys.exit(main())
