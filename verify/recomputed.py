"""Whether llama.cpp computes what the file contains: what enters every matrix, computed again.

The limits. On samples of all families, in f32, f16, bf16, q8_0, q4_0, q4_1, q5_1, q4_K, q2_K, iq4_nl and
iq4_xs, no input differed by more than an NMSE of 6e-13, on SmolLM2-135M (30 layers) by 2.4e-12: that is the
order of float32 sums. Behind a GELU, which llama.cpp reads from a table of half floats, single numbers fall
on the other side of a rounding, and the largest was 2.3e-9. An epsilon twice as large makes 3e-9 in the
smallest sample, a rotary base 1 % off 1e-6, one twice as large 5e-3.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core import errors
from ..core.language import phrase
from ..core.windows import Window
from ..quant.gguf_weights import GgufFile
from ..reference.reading import Reading
from ..reference.recompute import LOGITS, STATES, Recomputation, Recomputed
from ..runtimes.llama_reader import LlamaReader
from ..runtimes.reader import Floats
from .inputs import Expected, VerifyOptions
from .measurements import MatrixInputError, Shares
from .proof import Finding, RuntimePart, verdict_of

Shape = tuple[int, ...]
LIMIT = 1e-9
LIMIT_BEHIND_GELU = 1e-7
_BEHIND_GELU = ".ffn_down"  # all graphs of llama.cpp have their GELU in the feed-forward layer
QUICK = 32
"""Positions of the first window that a quick proof computes again."""
_MOST_BYTES = 256 << 20  # of inputs in memory
_WORST = 12


@dataclass(frozen=True)
class Sample:
    """The beginning of the first window, and the logits ``(positions, vocabulary)`` there in three ways.

    ``weights_only`` are those of the file's weights in fp32, ``rounded`` those with inputs rounded as
    llama.cpp rounds them, ``file`` llama.cpp's own.
    """

    weights_only: Floats
    rounded: Floats
    file: Floats


def check_runtime(
    file: GgufFile,
    expected: Expected,
    reader: LlamaReader,
    window: Window,
    options: VerifyOptions,
    positions: int | None,
) -> tuple[RuntimePart, Sample | None]:
    """Compute the first ``positions`` of a window again (None: as many as memory allows, and a sample, too).

    ``options.part`` is told what was found. Raises RuntimeFailure where llama.cpp cannot read the file, and
    ChildDied, which says nothing about it.
    """
    options.progress("starting the reference", 0, 0)
    try:
        recomputation = Recomputation.of_gguf(
            expected.checkpoint, expected.family, file, threads=options.threads
        )
    except errors.InputError as error:
        return RuntimePart("failed", findings=(Finding("file", error.message),)), None
    window = first_positions([info.shape for info in file.header.tensors], window, positions)
    inputs, logits = reader.matrix_inputs(window)
    try:
        computed = recomputation.compute(window, inputs, logits, options.progress, free=positions is None)
    except errors.UnsupportedModel as error:
        return RuntimePart("not run", findings=(Finding("file", error.message, grave=False),)), None
    part = runtime_part(computed, len(window.ids), gelu=expected.family.gelu)
    options.part("runtime", part)
    return part, sample_of(computed, logits)


def sample_of(computed: Recomputed, logits: Floats) -> Sample | None:
    """What the loss consists of can be told by; None where no copies ran freely."""
    if computed.weights_only is None or computed.rounded is None:
        return None
    return Sample(computed.weights_only, computed.rounded, logits)


def shares_of(sample: Sample, reading: Reading) -> Shares:
    """What the divergence from the checkpoint consists of; ``reading``'s first window is the sample's."""
    count = len(sample.file)
    expected = reading.logits(0, 0, count)
    ways = (sample.weights_only, sample.rounded, sample.file)
    return Shares(count, *(_mean_divergence(expected, way) for way in ways))


@np.errstate(all="ignore")  # what is not finite is NaN
def _mean_divergence(reference: Floats, other: Floats) -> float:
    """Mean KL divergence in nats of logits ``(positions, vocabulary)``."""
    total = 0.0
    for one, two in zip(reference.astype(np.float64), other.astype(np.float64), strict=True):
        expected, found = (row - row.max() - math.log(np.exp(row - row.max()).sum()) for row in (one, two))
        total += float((np.exp(expected) * (expected - found)).sum())
    return total / len(reference)


def first_positions(shapes: Sequence[Shape], window: Window, positions: int | None) -> Window:
    """The beginning of a window that is computed again, of a file with tensors of those ``shapes``."""
    most = max(QUICK, _MOST_BYTES // bytes_of_a_position(shapes))
    return replace(window, ids=window.ids[: min(positions or most, most)], scored_from=0)


def bytes_of_a_position(shapes: Sequence[Shape]) -> int:
    """An upper bound of what the inputs of all matrices take: some share one."""
    return 4 * max(1, sum(shape[-1] for shape in shapes if len(shape) > 1))


def limit_of(matrix: str, *, gelu: bool) -> float:
    """The largest NMSE of what enters a matrix."""
    return LIMIT_BEHIND_GELU if gelu and _BEHIND_GELU in matrix else LIMIT


def runtime_part(
    computed: Recomputed, positions: int, *, gelu: bool, runtime: str = "llama.cpp", limit: float = LIMIT
) -> RuntimePart:
    """What was computed against the limits; the first departure names the place."""
    errors = [
        MatrixInputError(each.matrix, each.nmse, max(limit, limit_of(each.matrix, gelu=gelu)))
        for each in computed.errors
    ]
    wrong = [each for each in errors if not each.nmse <= each.limit]
    findings = [
        Finding(name, phrase("{runtime} does not use {name}").of(runtime=runtime, name=name))
        for name in computed.unused[:_WORST]
    ]
    findings += [_finding(wrong, runtime)] if wrong else []
    worst = sorted(errors, key=lambda each: each.nmse / each.limit, reverse=True)[:_WORST]
    verdict = verdict_of(tuple(findings))
    return RuntimePart(verdict, positions, len(errors), tuple(worst), tuple(findings))


def _finding(wrong: Sequence[MatrixInputError], runtime: str) -> Finding:
    """What comes after the first departure may differ for that reason alone."""
    first = wrong[0]
    place = phrase("its hidden states") if first.matrix == STATES else phrase("its logits")
    if first.matrix not in (LOGITS, STATES):
        place = phrase("what enters {matrix}").of(matrix=first.matrix)
    size = f"NMSE {first.nmse:.2g}" if first.nmse < sys.float_info.max else phrase("beyond all numbers")
    template = phrase(
        "llama.cpp does not compute the checkpoint's architecture with the file's weights: {place} "
        "is the first to differ ({size}, limit {limit:g}); check the metadata"
    )
    if runtime != "llama.cpp":
        template = phrase(
            "onnxruntime does not compute the checkpoint's architecture with the folder's weights: {place} "
            "is the first to differ ({size}, limit {limit:g}); check the graph"
        )
    message = template.of(place=place, size=size, limit=first.limit)
    return Finding(
        first.matrix, message, phrase("at most {limit}").of(limit=f"{first.limit:g}"), f"{first.nmse:.3g}"
    )
