"""The last two parts of the proof of an encoder's GGUF: what llama.cpp computes, and the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..converters.pooling import pooling_of
from ..core.errors import ChildDied, InputError
from ..core.windows import Window
from ..quant.gguf_weights import GgufFile
from ..reference.recompute import Recomputation
from ..runtimes.llama_encoder import LlamaEncoder
from ..runtimes.reader import RuntimeFailure
from .cosine_gates import cosine_gate
from .embeddings import broken_embeddings, compare_embeddings, judged_embeddings
from .embeddings_part import CosineGate, EmbeddingsPart
from .inputs import Expected, VerifyOptions
from .logits import Read
from .proof import Finding, RuntimePart
from .recomputed import runtime_part

_MOST_POSITIONS = 256


def gate_of(type_name: str, expected: Expected, options: VerifyOptions) -> CosineGate:
    """The gate of an encoder's file. Raises UsageError for an unknown type."""
    return cosine_gate(type_name, gelu=expected.family.gelu, least=options.min_cosine)


def check_encoder(
    file: GgufFile,
    gate: CosineGate,
    expected: Expected,
    read: Read,
    windows: Sequence[Window],
    options: VerifyOptions,
    *,
    positions: int | None,
    same_gelu: Read | None,
) -> tuple[RuntimePart, EmbeddingsPart]:
    """Compute a text again, then compare all embeddings; ``positions`` as of ``recomputed.check_runtime``."""
    runtime = RuntimePart("not run")
    try:
        with LlamaEncoder(file.path, threads=options.threads) as reader:
            runtime = _recomputed(
                file, expected, reader, _long(windows), options, positions or _MOST_POSITIONS
            )
            pooling = pooling_of(expected.checkpoint)
            measure = compare_embeddings(
                read, reader, windows, pooling, options.progress, same_gelu=same_gelu
            )
            return runtime, judged_embeddings(measure, gate, windows, expected.source)
    except (RuntimeFailure, ChildDied) as failure:
        part = broken_embeddings(failure)
        return (runtime if runtime.positions else RuntimePart(part.verdict)), part


def _long(windows: Sequence[Window]) -> Window:
    return max(windows, key=lambda window: len(window.ids))


def _recomputed(
    file: GgufFile,
    expected: Expected,
    reader: LlamaEncoder,
    window: Window,
    options: VerifyOptions,
    positions: int,
) -> RuntimePart:
    try:
        recomputation = Recomputation.of_gguf(
            expected.checkpoint, expected.family, file, threads=options.threads
        )
    except InputError as error:
        return RuntimePart("failed", findings=(Finding("file", error.message),))
    window = replace(window, ids=window.ids[:positions])
    inputs, states = reader.state_inputs(window)
    computed = recomputation.compute(window, inputs, states, options.progress)
    return runtime_part(computed, len(window.ids), gelu=expected.family.gelu)
