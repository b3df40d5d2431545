"""The last two parts of the proof of an encoder's GGUF: what llama.cpp computes, and the embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from ..converters.pooling import pooling_of
from ..core.errors import ChildDied
from ..core.windows import Window
from ..quant.gguf_weights import GgufFile
from ..runtimes.llama_encoder import LlamaEncoder
from ..runtimes.reader import RuntimeFailure
from .embeddings import broken_embeddings, compare_embeddings, judged_embeddings
from .embeddings_part import CosineGate, EmbeddingsPart
from .inputs import Expected, VerifyOptions
from .logits import Read
from .proof import RuntimePart
from .recomputed import check_runtime

_MOST_POSITIONS = 256


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
        options.progress("starting the runtime", 0, 0)
        with LlamaEncoder(file.path, threads=options.threads) as reader:
            longest = max(windows, key=lambda window: len(window.ids))
            most = positions or _MOST_POSITIONS
            runtime, _ = check_runtime(file, expected, reader, longest, options, most)
            pooling = pooling_of(expected.checkpoint)
            measure = compare_embeddings(
                read, reader, windows, pooling, options.progress, same_gelu=same_gelu
            )
            return runtime, judged_embeddings(measure, gate, windows, expected.source)
    except (RuntimeFailure, ChildDied) as failure:
        part = broken_embeddings(failure)
        return (runtime if runtime.positions else RuntimePart(part.verdict)), part
