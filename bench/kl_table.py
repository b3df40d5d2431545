"""The README's table of less loss: KL at the sizes of llama-quantize's types, four ways, as Markdown.

python bench/kl_table.py CHECKPOINT... --calibrate TEXT --test TEXT -q q3_k_m,q4_k_m [--seed N] [--lang ko]
[--layers]

For each type, with the same importance data: llama-quantize's file (kconv writes its bytes, which the tests
hold), the same --optimized, formats chosen by --target-size at its bytes, and both. Logits are llama.cpp's,
against the checkpoint's in fp32; differences from the first are paired over windows, ± a standard error.
CHECKPOINT is a folder or the name of a sample. With --layers head and embedding stay in F16.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from less_loss import Reading, calibration, checkpoint_at, gathered, paired

from kconv.flows.convert import to_gguf

_HEADS = {
    "en": "| model, type | bits | llama-quantize, imatrix | `--optimize` | `--target-size` | both |",
    "ko": "| 모델, 타입 | 비트 | llama-quantize, imatrix | `--optimize` | `--target-size` | 둘 다 |",
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--calibrate", type=Path, action="append", required=True)
    parser.add_argument("--test", type=Path, action="append", required=True)
    parser.add_argument("-q", "--types", default="q3_k_m,q4_k_m")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="other than 0: the lines in another order")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--lang", choices=sorted(_HEADS), action="append")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    rows = []
    for name in asked.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            rows += list(_rows(asked, name, Path(folder)))
    for language in asked.lang or ["en"]:
        print("\n".join([_HEADS[language], "|---|---|---|---|---|---|", *rows]))


def _rows(asked, name, folder):
    checkpoint = checkpoint_at(name, folder)
    reading = Reading(checkpoint, asked.test, asked.tokens, asked.threads)
    statistics = folder / "statistics.gguf"
    texts = calibration(asked.calibrate, asked.seed)
    gathered(checkpoint, texts, statistics, asked.chunks, asked.threads)
    shuffled = [folder / name for name in texts]
    for path, text in zip(shuffled, texts.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    keep = {"output_type": "f16", "embedding_type": "f16"} if asked.layers else {}
    common = {"verify": "off", "threads": asked.threads, "force": True, **keep}
    made = {}
    for type_name in asked.types.split(","):
        for optimize in (False, True):
            path = folder / f"{type_name}-{optimize}.gguf"
            (made[type_name, "type", optimize],) = to_gguf(
                checkpoint, path, types=(type_name,), imatrix=statistics, optimize=optimize, **common
            ).outputs
    sizes = {name: str(output.path.stat().st_size) for (name, *_), output in made.items()}
    chosen = to_gguf(
        checkpoint, folder, types=(), calibrate=shuffled, target_size=list(sizes.values()), **common
    )
    for type_name, first in zip(sizes, chosen.outputs, strict=True):
        for optimize in (False, True):  # the same formats, with the same importance data as the others
            path = folder / f"{type_name}-{optimize}-chosen.gguf"
            given = {"imatrix": statistics, "policy": first.policy, "optimize": optimize}
            (made[type_name, "chosen", optimize],) = to_gguf(
                checkpoint, path, types=(), **given, **common
            ).outputs
        yield _row(reading, name, type_name, first, made, asked)


def _row(reading, name, type_name, first, made, asked):
    """Measured of one type; says what was predicted of ``first``, and whether it is within the size."""
    files = {key[1:]: output for key, output in made.items() if key[0] == type_name}
    kls = {way: reading.kl_by_window(output.path) for way, output in files.items()}
    plain, type_size, size = (
        kls["type", False],
        *(output.path.stat().st_size for output in (files["type", False], first)),
    )
    print(
        f"{name} {type_name}: predicted {first.choice.predicted:.4g}, measured "
        f"{kls['chosen', False].mean():.4g}; {size:,} of {type_size:,} bytes",
        flush=True,
    )
    ways = [("type", True), ("chosen", False), ("chosen", True)]
    cells = [f"{plain.mean():.4f}", *(_cell(kls[way], plain) for way in ways)]
    bits = files["type", False].bits_per_weight
    label = "" if Path(name).is_dir() else f" ({'layers' if asked.layers else 'sample'})"
    return f"| {Path(name).name}{label}, {type_name} | {bits:.2f} | {' | '.join(cells)} |"


def _cell(values, plain):
    difference, error = paired(values, plain)
    return f"{values.mean():.4f} ({difference:+.4f} ± {error:.4f})"


if __name__ == "__main__":
    main()
