"""A GGUF file of a model without a family as something to prove; each part says what it cannot compare.

Where a weight could not be read under transformers' names, nothing says that the file is right. Then the
logits alone decide, and only against it: float types must give the checkpoint's, and a quantized file must
not lose more than anyone measured for a smaller type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..core.language import phrase, phrases
from ..core.windows import Window
from ..quant.formats import FORMATS
from ..quant.gate_table import GATES, MIXTURES
from ..runtimes.llama_reader import LlamaReader
from ..verify.departure import without_departure
from ..verify.gates import MEASURES, gate_for
from ..verify.gguf_artifact import GgufArtifact, weights_of
from ..verify.inputs import Expected, VerifyOptions
from ..verify.logits import Read
from ..verify.proof import (
    Finding,
    Gate,
    LogitsPart,
    MetadataPart,
    RuntimePart,
    TensorError,
    TokensPart,
    WeightsPart,
    verdict_of,
)
from ..verify.recomputed import Sample
from .any_model import NotCompared

_SHOWN, _KEYS_SHOWN = 4, 16
_HALVES_TIMES = 10.0


@dataclass(frozen=True)
class AnyGgufArtifact(GgufArtifact):
    """See ``GgufArtifact``; ``left`` is what could not be compared."""

    left: NotCompared = field(kw_only=True)

    def tokens(self, expected: Expected, texts: Sequence[str]) -> TokensPart:
        """The vocabulary in llama.cpp, where the checkpoint's tokenizer has a counterpart there."""
        if not self.left.vocabulary:
            return super().tokens(expected, texts)
        message = phrase("the vocabulary is not compared: {vocabulary}").of(vocabulary=self.left.vocabulary)
        return TokensPart("warned", findings=(Finding("tokenizer", message, grave=False),))

    def metadata(self, expected: Expected, options: VerifyOptions) -> MetadataPart:
        """The keys config.json tells; the others are named."""
        part, keys = super().metadata(expected, options), self.left.keys
        if not keys:
            return part
        message = phrases(
            "{count} key is not compared, since config.json does not tell what it should be: {names}",
            "{count} keys are not compared, since config.json does not tell what they should be: {names}",
            len(keys),
        ).of(names=_named(keys, _KEYS_SHOWN))
        findings = (*part.findings, Finding("metadata", message, grave=False))
        return replace(part, keys=max(0, part.keys - len(keys)), findings=findings)

    def weights(self, expected: Expected, options: VerifyOptions) -> WeightsPart:
        """Every tensor whose name tells what it is made of; the others are named."""
        names = {row.target for row in expected.family.rows}
        part = weights_of(self.file.only(names), expected, options, strict=False)
        if self.left.all_weights_read:
            return part
        findings = (self._unread(), *part.findings)
        left = (*self.left.tensors, *self.left.weights)
        return replace(part, verdict=verdict_of(findings), findings=findings, untold=left)

    def _unread(self) -> Finding:
        tensors, weights = self.left.tensors, self.left.weights
        of_file = phrases(
            "{count} tensor of the file ({names})", "{count} tensors of the file ({names})", len(tensors)
        ).of(names=_named(tensors))
        of_checkpoint = phrases(
            "{count} tensor of the checkpoint ({names})",
            "{count} tensors of the checkpoint ({names})",
            len(weights),
        ).of(names=_named(weights))
        left = of_file if tensors else of_checkpoint
        if tensors and weights:
            left = phrase("{one} and {other}").of(one=of_file, other=of_checkpoint)
        message = phrase(
            "whether the file is right is not decided: {left} are not compared, since no name tells "
            "what they are made of"
        ).of(left=left)
        return Finding("weights", message, grave=False)

    def _gate(self, expected: Expected, options: VerifyOptions) -> Gate:
        """The usual one where all weights can be read or one was given; else the one that decides."""
        gelu = expected.family.gelu
        if self.left.all_weights_read or options.gates:  # then what llama.cpp computes is recomputed
            return gate_for(self.type, gelu=gelu, overrides=options.gates)
        return deciding_gate(self.type, gelu=expected.family.gelu)

    def _runtime(
        self, reader: LlamaReader, expected: Expected, window: Window, options: VerifyOptions
    ) -> tuple[RuntimePart, Sample | None]:
        """Recomputed where all weights can be read under transformers' names."""
        if self.left.all_weights_read:
            return super()._runtime(reader, expected, window, options)
        return RuntimePart("not run"), None

    def predicted(
        self,
        expected: Expected,
        read: Read,
        windows: Sequence[Window],
        tensors: Sequence[TensorError],
        options: VerifyOptions,
    ) -> tuple[RuntimePart, LogitsPart]:
        """The logits in llama.cpp; layers are diagnosed where the reference can take the file's weights."""
        if self.left.all_weights_read:
            return super().predicted(expected, read, windows, tensors, options)
        runtime, part = super().predicted(expected, read, windows, tensors, replace(options, diagnose=False))
        gate, figures = part.gate, part.figures
        if gate is None or figures is None or not figures.positions or options.gates:
            return runtime, part
        value = getattr(without_departure(figures, expected.family.departure), gate.measure)
        kept = tuple(each for each in part.findings if each.where != "logits")
        findings = kept if gate.fails is None or value <= gate.fails else (_beyond(value, gate), *kept)
        return runtime, replace(part, findings=findings, verdict=verdict_of(findings))


def deciding_gate(type_: str, *, gelu: bool) -> Gate:
    """The gate of a type where the logits alone decide whether the file is wrong.

    f32 must meet its NMSE, f16 and bf16 ten times the published loss, a quantized type the worst figure
    published for the next smaller one that loses more than itself; the smallest have none.
    """
    usual = gate_for(type_, gelu=gelu)
    if usual.measure == "nmse":
        return usual
    name = MIXTURES.get(usual.type, usual.type)
    own = _worst_published(name)
    if not FORMATS[name].quantized:
        limit: float | None = _HALVES_TIMES * own
        source: str = phrase("ten times the published loss of {type}").of(type=name)
    else:
        limit, source = _of_smaller(name, own)
    return replace(usual, warns=limit or usual.warns, fails=limit, source=source)


def _of_smaller(name: str, own: float) -> tuple[float | None, str]:
    bits = {each: FORMATS[each].block_bytes / FORMATS[each].block_size for each in GATES if each in FORMATS}
    smaller = [each for each in bits if bits[each] < bits[name] and _worst_published(each) > own]
    if not smaller:
        return None, phrase("no smaller type has published figures")
    largest = max(bits[each] for each in smaller)
    other = max((each for each in smaller if bits[each] == largest), key=_worst_published)
    source = phrase("the worst published figure of {type}, the next smaller type").of(type=other)
    return _worst_published(other), source


def _worst_published(name: str) -> float:
    return max((each.kl_mean for each in GATES[name].published), default=0.0)


def _beyond(value: float, gate: Gate) -> Finding:
    limit = f"{gate.fails:.3g}"
    if gate.measure == "nmse" or "ten times" in gate.source:
        verdict = phrase("the file is wrong")
    else:
        verdict = phrase("the file is wrong or very lossy: which of the two cannot be told")
    message = phrase("{verdict}; {measured} {value:.3g} is above {limit} ({source})").of(
        verdict=verdict, measured=MEASURES[gate.measure], value=value, limit=limit, source=gate.source
    )
    return Finding("logits", message, phrase("at most {limit}").of(limit=limit), f"{value:.3g}")


def _named(names: Sequence[str], most: int = _SHOWN) -> str:
    shown, more = ", ".join(name[:80] for name in names[:most]), len(names) - most
    return phrase("{names} and {count} more").of(names=shown, count=more) if more > 0 else shown
