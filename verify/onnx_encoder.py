"""The last two parts of the proof of an encoder's ONNX folder: what is computed, and the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..converters.pooling import pooling_of
from ..core.errors import ChildDied
from ..core.language import phrase
from ..core.windows import Window
from ..reference.magnitudes import Magnitudes
from ..reference.reading import Reading
from ..runtimes.onnx_child import PADDING
from ..runtimes.onnx_folder import OnnxFolder
from ..runtimes.onnx_process import OnnxProcess
from ..runtimes.reader import Floats, RuntimeFailure
from .cosine_gates import cosine_gate, cosine_text, stricter
from .embeddings import broken_embeddings, compare_embeddings, judged_embeddings
from .embeddings_part import CosineGate, EmbeddingsPart
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


@dataclass
class _Kept:
    """Reads as ``read`` does, and keeps the hidden states of ``windows`` to give them ``again``."""

    read: Read
    windows: Sequence[Window]
    states: dict[Window, Floats] = field(default_factory=dict)

    def __call__(self, asked: tuple[Window, ...]) -> Reading:
        reading = self.read(asked)
        pairs = zip(asked, reading.hidden, strict=True)
        self.states.update((window, values) for window, values in pairs if window in self.windows)
        return reading

    def again(self, asked: tuple[Window, ...]) -> Reading:
        return Reading([self.states[window] for window in asked], [], None, Magnitudes(len(asked)))


def check_encoder_folder(
    folder: OnnxFolder, expected: Expected, read: Read, windows: Sequence[Window], options: VerifyOptions
) -> tuple[RuntimePart, EmbeddingsPart]:
    """Compute a text again, then compare all embeddings, some of them in batches with padding, too.

    There a loss beyond three times that of a text alone fails, whatever the gate: a mask is wrong. A text
    that fills the context has no room for padding.
    """
    runtime = RuntimePart("not run")
    gate = cosine_gate(folder.type, gelu=False, least=options.min_cosine)
    pooling = pooling_of(expected.checkpoint)
    padding, room = expected.vocab.special.get("padding", 0), expected.context - _MORE
    order = sorted(windows, key=lambda window: len(window.ids))
    few = [window for window in order[:_PADDED] if len(window.ids) <= room]
    kept, longest = _Kept(read, few), order[-1]
    try:
        runtime, _ = check_folder_runtime(folder, expected, longest, options)
        with OnnxProcess(folder, threads=options.threads) as process:
            measure = compare_embeddings(kept, _Reader(process, padding), windows, pooling, options.progress)
            if runtime.verdict == "not compared":  # then only the embeddings show a wrong graph
                gate = stricter(gate)
            part = judged_embeddings(measure, gate, windows, expected.source)
            if not few:
                return runtime, part
            other = _PaddedReader(process, padding, longer=replace(longest, ids=longest.ids[:room]))
            padded = compare_embeddings(kept.again, other, few, pooling, options.progress).figures()
    except (RuntimeFailure, ChildDied) as failure:
        part = broken_embeddings(failure, "onnxruntime")
        return (runtime if runtime.positions else RuntimePart(part.verdict)), part
    return runtime, _with_padded(part, padded.cosine_least, gate)


def _with_padded(part: EmbeddingsPart, least: float, gate: CosineGate) -> EmbeddingsPart:
    """The part with the ``least`` cosine in padded batches."""
    usual = 0.0 if part.figures is None else 1 - part.figures.cosine_least
    most = max(_OTHER_WAY * max(usual, 1 - gate.least), _ARITHMETIC)
    findings = part.findings
    if not 1 - least <= most:
        message = phrase("in a padded batch the least cosine is {value}, and {alone} for a text alone")
        message = message.of(value=cosine_text(least), alone=cosine_text(1 - usual))
        findings = (*findings, Finding("onnxruntime", message))
    return replace(part, padded=least, findings=findings, verdict=verdict_of(findings))
