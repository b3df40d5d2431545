"""Importance from the checkpoint itself: mean squared inputs of every matrix, counted in the fp32 reference.

llama.cpp counts them while a GGUF runs (tools/imatrix), for decoders alone. Here transformers' model runs,
streamed, so that no file has to be made first and encoder-decoders are counted, too: encoder, decoder and
cross-attention, on the same pairs a proof reads. Which matrix of the file a module's input belongs to follows
from the family's rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..converters.intake import open_model
from ..converters.manifest import versions
from ..converters.mapping import build, sources_of
from ..converters.tokenizer import read_tokenizer
from ..core.cores import available_cores
from ..core.errors import InputError
from ..core.progress import Progress, silent
from ..core.text_files import read_text
from ..core.windows import Window, evenly
from ..quant.imatrix_file import ActivationSums
from ..quant.importance import SPARED
from ..reference.heap import kept_when_freed
from ..reference.model import Floats, Reference
from ..reference.reading import Reading
from ..reference.statistics import Gathered, Squares, SumOfSquares
from ..reference.watching import Watch
from ..verify.cost import estimated_time
from ..verify.inputs import Expected, VerifyOptions, text_windows
from ..vocab.selection import select_vocab
from .full_statistics import Collected

CHUNKS = 128
"""Windows read where nobody says; 1.3 billion weights keep two cores busy with them some twenty minutes."""
FEWEST = 128
"""Tokens of text that importance data can be measured on at all."""


FEW = 1024
"""Tokens below which a user is told that the text is short: llama-imatrix refuses less than two chunks."""


def named_texts(paths: Sequence[Path]) -> dict[str, str]:
    """The texts of UTF-8 files by the files' names; of equal names the later get a number."""
    named: dict[str, str] = {}
    for path in paths:
        name = path.name if path.name not in named else f"{path.name} ({len(named) + 1})"
        named[name] = read_text(path)
    return named


def gather(
    source: str | Path,
    texts: Mapping[str, str],
    *,
    chunks: int = CHUNKS,
    window: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
    announce: Callable[[str], None] = lambda text: None,
    collected: Collected | None = None,
) -> tuple[ActivationSums, str]:
    """The activations of a checkpoint over ``texts`` (name -> text), and its GGUF architecture.

    At most ``chunks`` windows of ``window`` tokens are read, spread evenly over the texts; ``collected``
    gathers full statistics meanwhile. Raises what
    opening the checkpoint raises, and InputError for texts too short.
    """
    from ..hub.checkpoint import local_checkpoint  # conversions that calibrate come with an open one

    progress("opening", 0, 0)
    checkpoint, family = open_model(local_checkpoint(source, progress))
    for note in checkpoint.notes:
        announce(f"{'warning' if note.warning else 'note'}: {note.message}")
    progress("tokenizer", 0, 0)
    model, tokenizer = build(family, checkpoint), read_tokenizer(checkpoint)
    model, _ = select_vocab(model, checkpoint, tokenizer, allow_mismatch=True, progress=progress)
    expected = Expected(checkpoint, family, model, tokenizer)
    options = VerifyOptions(threads=threads or available_cores(), progress=progress, announce=announce)
    activations, _ = measure_activations(
        expected, texts, (), options, chunks=chunks, window=window, collected=collected
    )
    return activations, model.arch


def measure_activations(
    expected: Expected,
    texts: Mapping[str, str],
    windows: Sequence[Window],
    options: VerifyOptions,
    *,
    chunks: int = CHUNKS,
    window: int | None = None,
    collected: Collected | None = None,
) -> tuple[ActivationSums, Reading | None]:
    """The activations over ``texts`` and, from the same passes, the checkpoint's reading of ``windows``.

    ``collected`` gathers full statistics meanwhile. Where it goes on with an ended pass there is no reading:
    what flowed through the first layers has been seen by another process.
    """
    every = text_windows(expected, list(texts.values()), tokens=None, window=window)
    _refuse_little(sum(len(each.ids) for each in every))
    chosen = evenly(every, chunks)
    options.announce(_cost(expected, chosen, len(every)))
    if collected is not None and collected.full:
        options.announce(collected.cost(expected.model, sum(window.tokens for window in chosen)))
    modules = _modules(expected)
    gathered, learned = Gathered(SumOfSquares), dict[str, Squares]()
    full = None if collected is None else collected.begin(chosen)

    def observe(name: str, window: int, values: Floats) -> None:
        gathered.add(name, window, values)
        if full is not None:
            full.add(name, window, values)

    def finished(name: str) -> None:
        learned[name] = gathered.finish(name)
        if full is not None:
            full.finish(name)

    watch = Watch(chosen, frozenset(modules), observe, finished)
    saved = None
    if collected is not None and collected.stays:
        saved = collected.saving(_asked(expected, [*windows, *chosen]), learned, options.announce)
    if saved is not None and saved.layers:
        options.announce(f"resumed: the first {saved.layers} layers have been measured already")
    ended = saved is not None and saved.layers > 0
    options.progress("starting the reference", 0, 0)
    with kept_when_freed():
        reading = Reference(expected.checkpoint, expected.family, threads=options.threads).read(
            windows, watch=watch, by_layer=True, saved=saved, progress=options.progress
        )
    if collected is not None:
        members = {name: [(place.target, place.expert) for place in modules[name]] for name in modules}
        collected.end(members)
    size = max(len(window.source or window.ids) for window in chosen)
    found = _activations(learned, modules, tuple(texts), len(chosen), size)
    return found, None if ended else reading


def _asked(expected: Expected, windows: Sequence[Window]) -> dict[str, Any]:
    """What a measurement depends on: the checkpoint's files, what is read, what computes."""
    status = {path.name: os.stat(path) for path in expected.checkpoint.weight_files}
    return {
        "files": {name: [each.st_size, each.st_mtime_ns] for name, each in status.items()},
        "windows": hashlib.sha256(repr([(each.ids, each.source) for each in windows]).encode()).hexdigest(),
        "versions": versions(("torch", "transformers")),
    }


def _refuse_little(tokens: int) -> None:
    """Raise InputError where hardly any column of a matrix would have been measured more than by accident."""
    if tokens < FEWEST:
        raise InputError(
            f"the calibration text has {tokens} tokens, too few to measure by: at least {FEWEST} are needed",
            hint="give more text of the kind the model will read; 20,000 to 100,000 tokens are usual",
        )


@dataclass(frozen=True)
class _Place:
    """A matrix of the file: a tensor's name, and of a stack of experts' matrices which one of how many."""

    target: str
    expert: int = 0
    experts: int = 1


def _modules(expected: Expected) -> dict[str, tuple[_Place, ...]]:
    """By the name of a module of transformers' model, the matrices of the file its input flows into."""
    shapes = {tensor.name: tensor.shape for tensor in expected.model.tensors}
    modules: dict[str, tuple[_Place, ...]] = {}
    for target, sources in sources_of(expected.family, expected.checkpoint).items():
        if len(shapes[target]) not in (2, 3) or not sources[0].endswith(".weight") or target in SPARED:
            continue
        # of matrices that are joined the first will do: what flows into them is the same
        experts = len(sources) if len(shapes[target]) == 3 else 1
        for expert, source in enumerate(sources[:experts]):
            module = expected.family.reference.module(source)
            modules[module] = (*modules.get(module, ()), _Place(target, expert, experts))
    return modules


def _activations(
    learned: Mapping[str, Squares],
    modules: Mapping[str, Sequence[_Place]],
    datasets: tuple[str, ...],
    chunks: int,
    size: int,
) -> ActivationSums:
    """Under the names of the file; what nothing ever flowed into says nothing and is left out.

    Experts lie one after the other, each with the number of tokens it saw (llama.cpp, tools/imatrix).
    """
    squares: dict[str, Floats] = {}
    counts: dict[str, npt.NDArray[np.int64]] = {}
    for name, squared in learned.items():
        values = squared.sums
        if not np.isfinite(values).all() or values.max() > np.finfo(np.float32).max:
            raise InputError(
                f"the inputs of {name} are partly NaN or infinite: no importance data can be computed",
                hint="the checkpoint is damaged, or its training diverged; kconv to-gguf shows where",
            )
        if not values.any():
            continue
        for place in modules[name]:
            whole = squares.setdefault(place.target, np.zeros(place.experts * len(values), np.float32))
            whole[place.expert * len(values) : (place.expert + 1) * len(values)] = values
            seen = counts.setdefault(place.target, np.zeros(place.experts, np.int64))
            seen[place.expert] = squared.count
    return ActivationSums(squares, counts, datasets, chunks, size)


def _cost(expected: Expected, windows: Sequence[Window], there: int) -> str:
    tokens = sum(window.tokens for window in windows)
    about = estimated_time(expected.model, windows, 0)
    chunks = "1 chunk" if len(windows) == 1 else f"{len(windows):,} chunks"
    part = "" if there == len(windows) else f" (of {there:,} in the text)"
    few = "; this is little text, give a few thousand tokens or more" if tokens < FEW else ""
    return f"importance: {tokens:,} tokens in {chunks}{part} in fp32, about {about}{few}"
