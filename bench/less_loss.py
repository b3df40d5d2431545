"""What --optimize gains: KL of the same types with an imatrix and optimized, paired over windows.

python bench/less_loss.py CHECKPOINT --calibrate TEXT --test TEXT -q q3_k,q4_0 [--chunks N] [--whole]

Without --whole head and embedding stay in F32, so that only layers lose anything. Logits are llama.cpp's,
against the checkpoint's in fp32. Prints a row of Markdown for each type.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.tokenizer import read_tokenizer
from kconv.core.reading import open_checkpoint
from kconv.core.text_files import read_text
from kconv.flows.convert import to_gguf
from kconv.flows.full_statistics import collecting
from kconv.flows.importance import gather
from kconv.reference.model import Reference
from kconv.runtimes.llama_reader import LlamaReader
from kconv.verify.inputs import Expected, text_windows
from kconv.verify.logits import compare
from kconv.vocab.selection import select_vocab


def main() -> None:
    """Measure every type asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibrate", type=Path, action="append", default=[])
    parser.add_argument("--statistics", type=Path, help="made before, of the same texts")
    parser.add_argument("--test", type=Path, action="append", required=True)
    parser.add_argument("-q", "--types", required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    checkpoint = open_checkpoint(asked.checkpoint)
    family = family_for(checkpoint.config)
    tokenizer = read_tokenizer(checkpoint)
    model, _ = select_vocab(build(family, checkpoint), checkpoint, tokenizer)
    expected = Expected(checkpoint, family, model, tokenizer)
    windows = []
    for path in asked.test:
        windows += text_windows(expected, [read_text(path)], tokens=asked.tokens, window=None)
    reference = Reference(checkpoint, family, threads=asked.threads)
    read = partial(_read, reference, {})
    with tempfile.TemporaryDirectory() as folder:
        statistics = asked.statistics or Path(folder) / "statistics.gguf"
        if asked.statistics is None:
            _gather(asked, statistics)
        print("| type | imatrix | optimized | ratio | paired difference | strengths | rounding, s |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for name in asked.types.split(","):
            kls, note, seconds = [], "", 0.0
            for optimize in (False, True):
                path = Path(folder) / f"{name}-{optimize}.gguf"
                begun = time.monotonic()
                keep = {} if asked.whole else {"output_type": "f32", "embedding_type": "f32"}
                made = to_gguf(
                    asked.checkpoint, path, types=(name,), imatrix=statistics, optimize=optimize,
                    verify="off", threads=asked.threads, **keep,
                )  # fmt: skip
                seconds = time.monotonic() - begun
                note = next((n.message for n in made.notes if "optimized" in n.name), "")
                kls.append(_kl_by_window(path, read, windows, asked.threads))
                path.unlink()
            print(_row(name, *kls, note, seconds), flush=True)


def _gather(asked, statistics):
    texts = {path.name: read_text(path) for path in asked.calibrate}
    begun = time.monotonic()
    with collecting(statistics) as collected:
        activations, arch = gather(
            asked.checkpoint, texts, chunks=asked.chunks, threads=asked.threads, collected=collected
        )
        collected.write(statistics, activations, arch=arch, texts=texts, force=False)
    print(f"statistics: {statistics.stat().st_size / 2**20:.0f} MiB, {time.monotonic() - begun:.0f} s")


def _read(reference, known, group):
    key = tuple(group)
    if key not in known:
        known[key] = reference.read(key, by_layer=True)
    return known[key]


def _kl_by_window(path, read, windows, threads):
    with LlamaReader(path, threads=threads) as reader:
        measure = compare(read, reader, windows)
    positions = measure.positions()
    kl, window = np.asarray(positions.kl), np.asarray(positions.window)
    return np.array([kl[window == number].mean() for number in range(len(windows))])


def _row(name, plain, optimized, note, seconds):
    difference = optimized - plain
    error = difference.std(ddof=1) / len(difference) ** 0.5
    ratio = optimized.mean() / plain.mean()
    return (
        f"| {name} | {plain.mean():.5f} | {optimized.mean():.5f} | {ratio:.3f} | "
        f"{difference.mean():+.5f} ± {error:.5f} | {note[:60]} | {seconds:.1f} |"
    )


if __name__ == "__main__":
    main()
