"""The last two parts of the proof of an encoder's ONNX folder: what is computed, and the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..converters.pooling import pooling_of
from ..core.errors import ChildDied
from ..core.language import phrase
from ..core.windows import Window
from ..runtimes.onnx_child import PADDING
from ..runtimes.onnx_folder import OnnxFolder
from ..runtimes.onnx_process import OnnxProcess
from ..runtimes.reader import Floats, RuntimeFailure
from .cosine_gates import cosine_gate, cosine_text, stricter
from .embeddings import broken_embeddings, compare_embeddings, judged_embeddings
from .embeddings_part import EmbeddingsPart
from .inputs import Expected, VerifyOptions
from .logits import Read
from .onnx_recomputed import check_folder_runtime
from .proof import Finding, RuntimePart, verdict_of

_PADDED = 6
"""Texts that are read in batches of two, too."""
_MORE = 3  # tokens of padding at least
_OTHER_WAY = 3.0  # times the loss
_ARITHMETIC = 1e-6  # of a cosine: sums in another order


@dataclass
class _Reader:
    """See ``embeddings.EncoderReader``; ``padding`` is the id a graph gets where a text has ended."""

    process: OnnxProcess
    padding: int
    last: tuple[Window, Floats, Floats | None] | None = None

    def states(self, window: Window) -> Floats:
        return self._read(window)[0]

    def embedding(self, window: Window) -> Floats | None:
        return self._read(window)[1]

    def _read(self, window: Window) -> tuple[Floats, Floats | None]:
        if self.last is None or self.last[0] is not window:
            states, embeddings = self.process.embed(window.ids, self.padding)
            self.last = (window, states[0], None if embeddings is None else embeddings[0])
        return self.last[1:]


@dataclass
class _PaddedReader(_Reader):
    """The same with each text in a batch behind another that is longer."""

    longer: Window | None = None

    def _read(self, window: Window) -> tuple[Floats, Floats | None]:
        if self.last is None or self.last[0] is not window:
            assert self.longer is not None
            matrix = np.full((2, len(self.longer.ids) + _MORE), PADDING, np.int64)
            for row, ids in zip(matrix, (self.longer.ids, window.ids), strict=True):
                row[: len(ids)] = ids
            states, embeddings = self.process.embed(matrix, self.padding)
            pooled = None if embeddings is None else embeddings[1]
            self.last = (window, states[1, : len(window.ids)], pooled)
        return self.last[1:]


def check_encoder_folder(
    folder: OnnxFolder, expected: Expected, read: Read, windows: Sequence[Window], options: VerifyOptions
) -> tuple[RuntimePart, EmbeddingsPart]:
    """Compute a text again, then compare all embeddings, some of them in batches with padding, too.

    There a loss beyond three times that of a text alone fails, whatever the gate: a mask is wrong.
    """
    runtime = RuntimePart("not run")
    gate = cosine_gate(folder.type, gelu=False, least=options.min_cosine)
    pooling = pooling_of(expected.checkpoint)
    padding = expected.vocab.special.get("padding", 0)
    try:
        longest = max(windows, key=lambda window: len(window.ids))
        runtime, _ = check_folder_runtime(folder, expected, longest, options)
        with OnnxProcess(folder, threads=options.threads) as process:
            measure = compare_embeddings(read, _Reader(process, padding), windows, pooling, options.progress)
            if runtime.verdict == "not run":  # then only the embeddings show a wrong graph
                gate = stricter(gate)
            part = judged_embeddings(measure, gate, windows, expected.source)
            few = sorted(windows, key=lambda window: len(window.ids))[:_PADDED]
            few = [window for window in few if len(window.ids) + _MORE <= expected.context]
            room = expected.context - _MORE
            longer = replace(longest, ids=longest.ids[:room])
            other = _PaddedReader(process, padding, longer=longer)
            padded = compare_embeddings(read, other, few, pooling, options.progress).figures()
    except (RuntimeFailure, ChildDied) as failure:
        part = broken_embeddings(failure, "onnxruntime")
        return (runtime if runtime.positions else RuntimePart(part.verdict)), part
    usual = 0.0 if part.figures is None else 1 - part.figures.cosine_least
    most = max(_OTHER_WAY * max(usual, 1 - gate.least), _ARITHMETIC)
    findings = part.findings
    if not 1 - padded.cosine_least <= most:
        message = phrase("in a padded batch the least cosine is {value}, and {alone} for a text alone")
        alone = cosine_text(1 - usual)
        message = message.of(value=cosine_text(padded.cosine_least), alone=alone)
        findings = (*findings, Finding("onnxruntime", message))
    return runtime, replace(part, padded=padded.cosine_least, findings=findings, verdict=verdict_of(findings))
