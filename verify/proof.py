"""What a verification found: plain values, the same in Python, ``--json``, the manifest and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..converters.circumstances import Circumstances
from ..core.language import Phrase, phrase
from ..runtimes.half_precision import HalfPrecision
from ..vocab.parity import Parity
from .embeddings_part import EmbeddingsPart
from .findings import LIMIT, Finding, Verdict, undecided, verdict_of, worst
from .loss import Loss, loss_of
from .measurements import Figures, MatrixInputError, Positions, Shares, WorstToken

__all__ = [
    "LIMIT", "Diagnosis", "EmbeddingsPart", "Finding", "Gate", "LayerError", "LogitsPart", "MetadataPart",
    "Part", "Proof", "RuntimePart", "TensorError", "TensorState", "TokensPart", "Verdict", "WeightsPart",
    "layer_name", "undecided", "verdict_of", "worst",
]  # fmt: skip

_TELLING = ("warned", "not decided", "failed")


_COSINES = {"cosine_mean", "cosine_least", "states_mean", "states_least", "least", "padded"}


def _plain(value: Any, digits: int = 17, key: object = None) -> Any:
    """JSON's values: lists for tuples, null for numbers that are not finite, floats of so many digits.

    Of a cosine, by its ``key``, those are the digits of what it lacks of one: 0.99996 is not 1.
    """
    if isinstance(value, float):
        if digits < 17 and key in _COSINES and math.isfinite(value):
            return float(f"{1 - float(f'{1 - value:.{digits}g}'):.12f}")
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item, digits, key) for key, item in value.items()}
    return [_plain(item, digits) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class TokensPart:
    """Token ids of the file's vocabulary in llama.cpp against the checkpoint's tokenizer.

    ``parity`` counts the built-in texts and the user's together; ``entries`` is the number of vocabulary
    entries compared one by one (text, type, score, merges).
    """

    verdict: Verdict
    parity: Parity | None = None
    entries: int = 0
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class MetadataPart:
    """Keys llama.cpp reads against those the family derives; ``keys`` is how many were compared."""

    verdict: Verdict
    keys: int = 0
    findings: tuple[Finding, ...] = ()


TensorState = Literal["identical", "within", "not compared", "differs"]


@dataclass(frozen=True)
class TensorError:
    """One tensor of the file against the checkpoint's weights, mapped.

    ``state``: ``identical`` bytes to encoding the original anew; ``within`` the format's error, though other
    bytes; ``not compared`` byte by byte, but within that error; ``differs``. ``error`` is ‖ŵ − w‖ / ‖w‖ over
    the whole tensor, ``own_error`` that of encoding it anew (the part of it that is the format's),
    ``worst_row`` the row with the largest relative error and ``worst_row_error`` that error, ``slope`` the
    least-squares factor of ŵ on w (1.01: scaled by 1.01).
    ``layer`` is None outside the layers.
    """

    name: str
    format: str
    layer: int | None
    state: TensorState
    error: float
    own_error: float
    worst_row: int
    worst_row_error: float
    slope: float


@dataclass(frozen=True)
class WeightsPart:
    """Every tensor of the file; ``not_compared`` counts those whose bytes were not all encoded anew.

    Of those ``untold`` nobody can say what they are made of, so without them nothing is decided but what is
    wrong.
    """

    verdict: Verdict
    tensors: tuple[TensorError, ...] = ()
    findings: tuple[Finding, ...] = ()
    not_compared: int = 0
    untold: tuple[str, ...] = ()


@dataclass(frozen=True)
class RuntimePart:
    """Whether the runtime computes what the file contains, at the first ``positions`` of the first text.

    ``matrices`` is how many inputs were compared, the logits among them, ``worst`` those closest to their
    limit or farthest beyond it.
    """

    verdict: Verdict
    positions: int = 0
    matrices: int = 0
    worst: tuple[MatrixInputError, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Gate:
    """The limit for a type: ``measure`` warns above ``warns`` and fails above ``fails``.

    ``fails`` is None for types that only warn. ``source`` says where the number comes from. ``published`` has
    the figures others measured for the type, by what they are called.
    """

    type: str
    measure: Literal["nmse", "kl_mean"]
    warns: float
    fails: float | None
    source: str
    published: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerError:
    """The output of one layer, over one window, as NMSE (squared difference over the variance).

    ``layer`` counts an encoder's layers first and the decoder's after them.
    ``weights``: fp32 arithmetic with the file's weights against the checkpoint's (quantization or damage);
    ``runtime``: the file in its runtime against fp32 arithmetic with the same weights.
    """

    layer: int
    weights: float
    runtime: float


def layer_name(layer: int, encoder_layers: int) -> Phrase:
    """A layer of a LayerError in words, as the file's tensors count it."""
    if layer < encoder_layers:
        return phrase("encoder layer {layer}").of(layer=layer)
    name = phrase("decoder layer {layer}") if encoder_layers else phrase("layer {layer}")
    return name.of(layer=layer - encoder_layers)


@dataclass(frozen=True)
class Diagnosis:
    """Where it went wrong: the error by layer, that of the logits, and what follows from it in a sentence.

    ``first`` is the first layer whose output departs, None if none stands out. Of an encoder-decoder's layers
    the first ``encoder_layers`` are the encoder's. ``logits_same_gelu`` is what is left of ``logits_runtime``
    where fp32 arithmetic takes llama.cpp's table for GELU, in families with that activation.
    """

    layers: tuple[LayerError, ...]
    logits_weights: float
    logits_runtime: float
    first: int | None
    worst_tensors: tuple[str, ...]
    conclusion: str
    encoder_layers: int = 0
    logits_same_gelu: float | None = None


@dataclass(frozen=True)
class LogitsPart:
    """The file's CPU logits against fp32.

    ``stepwise`` are the figures where the tokens were read one by one, through the cache, ``padded`` those of
    batches with padding, as an ONNX folder's are (None: not done). ``half_precision`` says how large what is
    computed in it gets, ``shares`` what the divergence consists of.
    """

    verdict: Verdict
    figures: Figures | None = None
    gate: Gate | None = None
    findings: tuple[Finding, ...] = ()
    positions: Positions = field(default_factory=Positions)
    worst: tuple[WorstToken, ...] = ()
    diagnosis: Diagnosis | None = None
    stepwise: Figures | None = None
    padded: Figures | None = None
    half_precision: HalfPrecision | None = None
    shares: Shares | None = None

    @property
    def loss(self) -> Loss | None:
        """How much that is, in words; None where nothing was measured."""
        if self.figures is None or not self.figures.positions or self.gate is None:
            return None
        return loss_of(self.figures.kl_mean, self.gate.type)


Part = TokensPart | MetadataPart | WeightsPart | RuntimePart | LogitsPart | EmbeddingsPart


@dataclass(frozen=True)
class Proof:
    """The verdict on one file. ``type`` is the file's (``q4_0``), ``scope`` how much was looked at.

    ``provenance`` says what was compared and with what: files with SHA-256, versions, texts. ``notes`` are
    remarks for people. An encoder has ``embeddings`` in the place of ``logits``, which were not run.
    ``circumstances`` and ``seconds`` depend on clock and machine; manifests lack them.
    """

    artifact: Path
    checkpoint: Path
    type: str
    arch: str
    parameters: int
    tokens: TokensPart
    metadata: MetadataPart
    weights: WeightsPart
    logits: LogitsPart
    runtime: RuntimePart = field(default_factory=lambda: RuntimePart("not run"))
    embeddings: EmbeddingsPart | None = None
    scope: Literal["quick", "full"] = "full"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    circumstances: Circumstances = field(default_factory=Circumstances, compare=False)

    @property
    def verdict(self) -> Verdict:
        """The gravest of the parts."""
        return worst([part.verdict for part in self.parts.values()])

    @property
    def right(self) -> Verdict:
        """Whether the file is right, however much it loses: a loss above a given limit does not count."""
        last = self.measured
        verdicts = [part.verdict for part in self.parts.values() if part is not last]
        grave = [finding for finding in last.findings if finding.grave and finding.where != LIMIT]
        return worst([*verdicts, "failed" if grave else "not run"])

    @property
    def measured(self) -> LogitsPart | EmbeddingsPart:
        """The part that measures what is lost."""
        return self.logits if self.embeddings is None else self.embeddings

    @property
    def parts(self) -> dict[str, Part]:
        """The parts by name, cheapest first."""
        return {
            "tokens": self.tokens,
            "metadata": self.metadata,
            "weights": self.weights,
            "runtime": self.runtime,
            "logits" if self.embeddings is None else "embeddings": self.measured,
        }

    @property
    def cause(self) -> str | None:
        """``part: sentence``, of the telling finding; None if all passed."""
        return None if self.telling is None else f"{self.telling[0]}: {self.telling[1].message}"

    @property
    def telling(self) -> tuple[str, Finding] | None:
        """Part and finding: the first grave one, else of what is not decided, else of what warns."""
        parts = {name: part for name, part in self.parts.items() if part.verdict in _TELLING}
        causes = [(name, part.verdict, finding) for name, part in parts.items() for finding in part.findings]
        first = "weights" if self.weights.untold else ""
        causes.sort(key=lambda item: (not item[2].grave, item[1] != "not decided", item[0] != first))
        return (causes[0][0], causes[0][2]) if causes else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; the lists by position are left to the report."""
        values = asdict(self)
        values["artifact"], values["checkpoint"] = str(self.artifact), str(self.checkpoint)
        parity = self.tokens.parity
        values["tokens"]["parity"] = None if parity is None else parity.to_json()
        del values["logits"]["positions"]
        loss = self.logits.loss
        values["logits"]["loss"] = None if loss is None else asdict(loss)
        if self.embeddings is None:
            del values["embeddings"]
        else:
            del values["logits"]
            values["embeddings"]["loss"] = self.embeddings.grade
        answers = {"verdict": self.verdict, "right": self.right, "cause": self.cause}
        plain: dict[str, Any] = _plain({**answers, **values})
        return plain

    def to_manifest(self) -> dict[str, Any]:
        """The evidence as it stands in a manifest: no paths, no clock, figures to four digits (``_plain``).

        The last digits of a sum depend on the number of threads, and what is below four proves nothing.
        """
        values = self.to_json()
        for key in ("artifact", "checkpoint", "seconds", "circumstances", "arch", "parameters"):
            del values[key]
        del values["runtime"]["worst"]
        for part in ("logits", "embeddings"):
            for key in ("worst", "shares") if part in values else ():
                values[part].pop(key, None)
        rounded: dict[str, Any] = _plain(values, 4)
        return rounded
