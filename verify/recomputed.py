"""Whether llama.cpp computes what the file contains: every input of every matrix, computed again.

The limits. On eleven samples of all families, in f32, f16, bf16, q8_0, q4_0, q4_1, q5_1, q4_K, q2_K, iq4_nl
and iq4_xs, no input differed by more than an NMSE of 6e-13, on SmolLM2-135M (30 layers) by 2.4e-12: that is
the order of float32 sums. Behind a GELU, which llama.cpp reads from a table of half floats, single numbers
fall on the other side of a rounding and the largest was 2.3e-9. An epsilon of twice the size makes 3e-9 in
the smallest sample, a rotary base 1 % off 1e-6, one twice the size 5e-3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.errors import ChildDied, InputError
from ..core.progress import Progress
from ..core.windows import Window
from ..quant.gguf_weights import GgufFile
from ..reference.recompute import InputError as MatrixError
from ..reference.recompute import Recomputation, Recomputed
from ..runtimes.llama_reader import LlamaReader
from .inputs import Expected
from .proof import Finding, RuntimePart

LIMIT = 1e-9
LIMIT_BEHIND_GELU = 1e-7
_BEHIND_GELU = ".ffn_down"  # all graphs of llama.cpp have their GELU in the feed-forward layer
QUICK = 32
"""Positions of the first window that a quick proof computes again."""
_MOST_BYTES = 256 << 20  # of inputs in memory
_WORST = 12


@dataclass(frozen=True)
class Sample:
    """The beginning of the first window, and the logits of its positions in three ways.

    ``weights_only``: the file's weights in fp32; ``rounded``: with inputs rounded as llama.cpp rounds them;
    ``file``: llama.cpp's own. All ``(positions, vocabulary)``.
    """

    positions: int
    weights_only: Floats
    rounded: Floats
    file: Floats


def check_runtime(
    file: GgufFile,
    expected: Expected,
    reader: LlamaReader,
    window: Window,
    *,
    positions: int | None,
    threads: int,
    progress: Progress,
) -> tuple[RuntimePart, Sample | None]:
    """Compute the first ``positions`` of a window again (None: as many as memory allows).

    Raises RuntimeFailure where llama.cpp cannot read the file, and ChildDied, which says nothing about it.
    """
    try:
        recomputation = Recomputation(expected.checkpoint, expected.family, file, threads=threads)
    except InputError as error:
        return RuntimePart("failed", findings=(Finding("file", error.message),)), None
    count = min(len(window.ids), positions or max(QUICK, _MOST_BYTES // _bytes_of_a_position(file)))
    window = replace(window, ids=window.ids[:count], scored_from=0)
    inputs, logits = reader.matrix_inputs(window)
    computed = recomputation.compute(window, inputs, logits, progress)
    part = _part(computed, expected.family.gelu, count)
    return part, Sample(count, computed.weights_only, computed.rounded, logits)


def _bytes_of_a_position(file: GgufFile) -> int:
    """An upper bound of what the inputs of all matrices take: some share one."""
    return 4 * sum(info.shape[-1] for info in file.header.tensors if len(info.shape) > 1)


def limit_of(matrix: str, *, gelu: bool) -> float:
    """The largest NMSE of what enters a matrix."""
    return LIMIT_BEHIND_GELU if gelu and _BEHIND_GELU in matrix else LIMIT


def _part(computed: Recomputed, gelu: bool, positions: int) -> RuntimePart:
    errors = [MatrixInputError(each.matrix, each.nmse, limit_of(each.matrix, gelu=gelu)) for each in computed.errors]
    wrong = [each for each in errors if not each.nmse <= each.limit]
    findings = [Finding(name, f"llama.cpp does not use {name}") for name in computed.unused[:_WORST]]
    if wrong:
        findings.append(_finding(wrong))
    worst = sorted(errors, key=lambda each: each.nmse / each.limit, reverse=True)[:_WORST]
    return RuntimePart(verdict_of(tuple(findings)), positions, len(errors), tuple(worst), tuple(findings))


def _finding(wrong: Sequence[MatrixInputError]) -> Finding:
    """The first departure names the place; what is behind it may be wrong for that reason alone."""
    first = wrong[0]
    place = "the logits" if first.matrix == LOGITS else f"what enters {first.matrix}"
    size = f"NMSE {first.nmse:.2g}" if first.nmse < _LARGEST else "beyond all numbers"
    more = f", as do {len(wrong) - 1} of the inputs after it" if len(wrong) > 1 else ""
    return Finding(
        first.matrix,
        f"llama.cpp computes something else than the checkpoint's architecture with the same weights: {place} "
        f"differs ({size}, limit {first.limit:g}){more}; look at the metadata",
    )
