"""What --optimize gains: KL of the same types with an imatrix and optimized, paired over windows.

python bench/less_loss.py CHECKPOINT... --calibrate TEXT --test TEXT -q q3_k_s:pure,q4_0:pure [--seeds N]

CHECKPOINT is a folder or the name of a sample (kconv demo-checkpoint). Without --whole head and embedding
stay in F32, so that only layers lose anything. Logits are llama.cpp's, against the checkpoint's in fp32. With
--seeds statistics are measured N times, on other parts of the text (its lines shuffled). Prints a row of
Markdown for each type and seed, and in the end which are above 1.00 by more than two standard errors, with
exit code 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from kconv.converters.families import FRONT_ENDS
from kconv.converters.front_end import front_end_of
from kconv.converters.intake import open_model
from kconv.converters.mapping import build
from kconv.converters.samples import SAMPLES, write_sample
from kconv.converters.tokenizer import read_tokenizer
from kconv.core.errors import InputError
from kconv.core.text_files import read_text
from kconv.flows.convert import to_gguf
from kconv.flows.full_statistics import collecting
from kconv.flows.importance import gather
from kconv.quant.gguf_weights import open_gguf
from kconv.reference.model import Reference
from kconv.runtimes.llama_reader import LlamaReader
from kconv.verify.front_end import embed_of
from kconv.verify.inputs import Expected, text_windows
from kconv.verify.logits import compare
from kconv.vocab.selection import select_vocab


def main() -> int:
    """Measure every type asked for; 1 if one is worse than with an imatrix alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--calibrate", type=Path, action="append", default=[])
    parser.add_argument("--statistics", type=Path, help="made before, of the same texts")
    parser.add_argument("--test", type=Path, action="append", required=True)
    parser.add_argument("-q", "--types", required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0, help="go on where an earlier run has ended")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    print("| model | type | seed | imatrix | optimized | ratio | paired difference | seconds | codes |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    worse = []
    for name in asked.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = checkpoint_at(name, Path(folder))
            reading = Reading(checkpoint, asked.test, asked.tokens, asked.threads)
            for seed in range(asked.first_seed, asked.seeds):
                worse += measured(asked, name, checkpoint, reading, seed, Path(folder))
    print(f"worse beyond two standard errors: {', '.join(worse) or 'none'}")
    return 1 if worse else 0


def measured(asked, name, checkpoint, reading, seed, folder):
    """Print a row for each type; returns what is worse."""
    statistics = asked.statistics or folder / f"statistics-{seed}.gguf"
    if asked.statistics is None:
        gathered(checkpoint, calibration(asked.calibrate, seed), statistics, asked.chunks, asked.threads)
    worse = []
    keep = {} if asked.whole else {"output_type": "f32", "embedding_type": "f32"}
    for type_name in asked.types.split(","):
        kls, note = [], ""
        try:
            for optimize in (False, True):
                path, begun = folder / f"{type_name.replace(':', '-')}-{optimize}.gguf", time.monotonic()
                made = to_gguf(
                    checkpoint, path, types=(type_name,), imatrix=statistics, optimize=optimize,
                    verify="off", threads=asked.threads, force=True, **keep,
                )  # fmt: skip
                seconds = time.monotonic() - begun
                note = next((n.message for n in made.notes if "optimized" in n.name), "")
                kls.append(reading.kl_by_window(path))
                path.unlink()
        except InputError as error:  # a format the rows of this model do not take
            print(f"| {name} | {type_name} | {seed} | {error.message[:80]} | | | | | |", flush=True)
            continue
        plain, optimized = kls
        difference, error = paired(optimized, plain)
        ratio = optimized.mean() / plain.mean()
        print(
            f"| {name} | {type_name} | {seed} | {plain.mean():.5f} | {optimized.mean():.5f} | {ratio:.3f} | "
            f"{difference:+.5f} ± {error:.5f} | {seconds:.1f} | {note[:32]} |",
            flush=True,
        )
        if difference > 2 * error:
            worse.append(f"{name} {type_name} seed {seed}")
    return worse


class Reading:
    """A checkpoint's logits on texts, and how far files' are from them."""

    def __init__(self, checkpoint, texts, tokens, threads):
        self.checkpoint, self.family = open_model(checkpoint)
        tokenizer = read_tokenizer(self.checkpoint)
        model, _ = select_vocab(
            build(self.family, self.checkpoint), self.checkpoint, tokenizer, allow_mismatch=True
        )
        self.expected = Expected(self.checkpoint, self.family, model, tokenizer)
        self.windows = []
        for path in texts:
            self.windows += text_windows(self.expected, [read_text(path)], tokens=tokens, window=None)
        self.threads = threads
        self._read = partial(_read, Reference(self.checkpoint, self.family, threads=threads), {})

    def kl_by_window(self, path):
        """The mean divergence of a GGUF in each window."""
        with open_gguf(path) as file:  # a GBST model is read behind its front end, which lies beside it
            front = front_end_of(FRONT_ENDS, path, file.header.metadata, None)
        front = embed_of(front, self.family)
        with LlamaReader(path, threads=self.threads, front=front) as reader:
            positions = compare(self._read, reader, self.windows).positions()
        kl, window = np.asarray(positions.kl), np.asarray(positions.window)
        return np.array([kl[window == number].mean() for number in range(len(self.windows))])


def _read(reference, known, group):
    key = tuple(group)
    if key not in known:
        known[key] = reference.read(key, by_layer=True)
    return known[key]


def checkpoint_at(name, folder):
    """A checkpoint's folder; samples are written first."""
    return write_sample(name, folder / name) if name in SAMPLES else Path(name)


def calibration(paths, seed):
    """The texts by name; with a seed other than 0 their lines in another order, so that others are read."""
    texts = {path.name: read_text(path) for path in paths}
    if seed:
        for name, text in texts.items():
            lines = text.splitlines()
            random.Random(seed).shuffle(lines)
            texts[name] = "\n".join(lines)
    return texts


def gathered(checkpoint, texts, path, chunks, threads):
    """Full statistics of these texts, in a file."""
    with collecting(path) as collected:
        activations, arch = gather(checkpoint, texts, chunks=chunks, threads=threads, collected=collected)
        collected.write(path, activations, arch=arch, texts=texts, force=True)


def paired(one, other):
    """The mean difference over windows, and its standard error."""
    difference = one - other
    return difference.mean(), difference.std(ddof=1) / len(difference) ** 0.5


if __name__ == "__main__":
    sys.exit(main())
