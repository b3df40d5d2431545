"""llama-quantize's named types as tables: which part of a model gets which format.

They say what llama_tensor_get_type_impl of src/llama-quant.cpp decides, one line a rule; the first rule that
applies to a tensor decides, else the recipe's own format. Names, their order and numbers are those of
tools/quantize/quantize.cpp and include/llama.h (enum llama_ftype).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from .formats import FORMATS, Format
from .parts import Kind, Part


class Layers(Enum):
    """Which matrices of a part a rule is for."""

    ALL = "all"
    FIRST_TWO = "the first two"
    FIRST_FOUR = "the first four"
    FIRST_SIXTEENTH = "the first sixteenth"
    FIRST_EIGHTH = "the first eighth"
    FIRST_EIGHTH_COUNTED = "the first eighth, counted as they come even where there are experts"
    MIDDLE = "all but the first and last eighth"
    MORE_BITS = "the first and last eighth, and every third between"


@dataclass(frozen=True)
class Place:
    """A matrix as rules see it: its part, its place among the ``count`` of that part, its shape.

    ``whole``: its rows are whole blocks of the recipe's own format; ``stacked``: it has an axis of experts.
    """

    part: Part
    counted: int
    layer: int
    count: int
    whole: bool
    stacked: bool

    def among(self, layers: Layers) -> bool:
        """Whether it is one of those."""
        i, n = self.layer, self.count
        match layers:
            case Layers.ALL:
                return True
            case Layers.FIRST_TWO:
                return i < 2
            case Layers.FIRST_FOUR:
                return i < 4
            case Layers.FIRST_SIXTEENTH:
                return i < n // 16
            case Layers.FIRST_EIGHTH:
                return i < n // 8
            case Layers.FIRST_EIGHTH_COUNTED:
                return self.counted < n // 8
            case Layers.MIDDLE:
                return n // 8 <= i < 7 * n // 8
            case Layers.MORE_BITS:
                return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


@dataclass(frozen=True)
class Rule:
    """Matrices of ``part`` get ``format`` under all conditions given.

    None is any part, and the recipe's own format. ``shared``: at least four queries share a key
    (grouped-query attention), or not; ``imatrix``: there is importance data, or not; ``experts``: how many
    the model has; ``large``: it is a 70B; ``whole``, ``stacked``: see ``Place``.
    """

    part: Part | None
    format: Format | None
    layers: Layers = Layers.ALL
    shared: bool | None = None
    imatrix: bool | None = None
    experts: range | None = None
    arch: str | None = None
    large: bool | None = None
    whole: bool | None = None
    stacked: bool | None = None

    def applies(self, place: Place, kind: Kind, *, imatrix: bool) -> bool:
        """Whether it is a rule for that matrix of such a model."""
        return (
            self.part in (None, place.part)
            and place.among(self.layers)
            and self.shared in (None, kind.gqa >= 4)
            and self.imatrix in (None, imatrix)
            and (self.experts is None or kind.experts in self.experts)
            and self.arch in (None, kind.arch)
            and self.large in (None, kind.large)
            and self.whole in (None, place.whole)
            and self.stacked in (None, place.stacked)
        )


@dataclass(frozen=True)
class Policy:
    """A way to choose formats: one of llama-quantize's recipes and what was asked for besides.

    The first rule that applies decides, else ``default``. ``file_type`` is what the file says of itself under
    general.file_type. ``pure`` leaves the rules out. ``keep_wo`` leaves the matrices
    ``policy.wide_input`` is true for in the precision they have in the checkpoint. ``overrides`` are
    (regular expression, format), the first that is found in a tensor's name decides before any rule;
    ``output_type`` and ``embedding_type`` decide for the output matrix and the token embedding. ``exact`` are
    formats by the names of tensors; they come after what was asked for and before the rules.
    """

    name: str
    default: Format
    file_type: int
    rules: tuple[Rule, ...] = ()
    pure: bool = False
    keep_wo: bool = False
    overrides: tuple[tuple[str, Format], ...] = ()
    output_type: Format | None = None
    embedding_type: Format | None = None
    exact: Mapping[str, Format] = field(default_factory=dict, hash=False)

    @property
    def display(self) -> str:
        """The name as used in file names: ``Q4_K_M``."""
        return self.name.upper()

    @property
    def quantizes(self) -> bool:
        """Whether it may make quantized matrices, which importance data serve."""
        named = (*(each for _, each in self.overrides), *self.exact.values())
        asked = (self.default, self.output_type, self.embedding_type, *named)
        return any(format is not None and format.quantized for format in asked)


Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = (FORMATS[name] for name in ("q2_K", "q3_K", "q4_K", "q5_K", "q6_K"))
Q4_1, Q5_1, Q8_0, MXFP4 = (FORMATS[name] for name in ("q4_1", "q5_1", "q8_0", "mxfp4"))
IQ2_XXS, IQ2_S, IQ3_XXS, IQ3_S = (FORMATS[name] for name in ("iq2_xxs", "iq2_s", "iq3_xxs", "iq3_s"))

OUTPUT, EMBEDDING = Part.OUTPUT, Part.EMBEDDING
Q, K, V, ATTN = Part.ATTENTION_Q, Part.ATTENTION_K, Part.ATTENTION_V, Part.ATTENTION_OUTPUT
UP, GATE, DOWN = Part.FFN_UP, Part.FFN_GATE, Part.FFN_DOWN

EIGHT = range(8, 9)
FOUR_OR_MORE = range(4, 2**31)
FALCON = "falcon"

# The matrix that makes the logits is the most delicate: q6_K at least, q5_K in the smallest types.
_HEAD_FALLS_BACK = (Rule(OUTPUT, Q8_0, whole=False), Rule(OUTPUT, Q8_0, arch=FALCON))
_HEAD = (*_HEAD_FALLS_BACK, Rule(OUTPUT, Q6_K))
_SMALL_HEAD = (*_HEAD_FALLS_BACK, Rule(OUTPUT, Q5_K))

# Where eight experts share them, keys and values are small; so is the attention output.
_EIGHT_EXPERTS = (Rule(V, Q8_0, experts=EIGHT), Rule(K, Q8_0, experts=EIGHT))
_OUTPUT_OF_EIGHT = (Rule(ATTN, None, arch=FALCON), Rule(ATTN, Q5_K, experts=EIGHT))

# Values of the 70B that would be q3_K or q4_K: eight queries share them, so they are small.
_LARGE = Rule(V, Q5_K, large=True)
_LARGE_SHARED = Rule(V, Q5_K, shared=True, large=True)

_LEGACY = (*_HEAD, *_EIGHT_EXPERTS)
_TERNARY = (*_HEAD, Rule(EMBEDDING, Q4_K), *_EIGHT_EXPERTS)


def _smallest(embedding: Format, better: Format, *more: Rule) -> tuple[Rule, ...]:
    """The rules of types of some two bits; ``better`` are values and the first matrices down."""
    return (
        *_SMALL_HEAD,
        Rule(EMBEDDING, embedding),
        Rule(V, Q4_K, shared=True),
        Rule(V, Q4_K, experts=FOUR_OR_MORE),
        Rule(V, better),
        Rule(K, Q4_K, experts=EIGHT),
        Rule(DOWN, better, Layers.FIRST_EIGHTH_COUNTED),
        Rule(ATTN, Q5_K, experts=EIGHT),
        *more,
    )


def _recipe(name: str, format: str, file_type: int, *rules: Rule) -> Policy:
    return Policy(name, FORMATS[format], file_type, rules)


# fmt: off
_RECIPES: tuple[Policy, ...] = (
    _recipe("q1_0", "q1_0", 40, *_LEGACY),
    _recipe("q2_0", "q2_0", 41, *_TERNARY),
    _recipe("q4_0", "q4_0", 2, *_LEGACY, Rule(DOWN, Q4_1, Layers.FIRST_EIGHTH, imatrix=True)),
    _recipe("q4_1", "q4_1", 3, *_LEGACY),
    _recipe("mxfp4_moe", "mxfp4", 38,
            Rule(OUTPUT, Q8_0),
            Rule(None, MXFP4, stacked=True),
            Rule(None, Q8_0)),
    _recipe("q5_0", "q5_0", 8, *_LEGACY, Rule(DOWN, Q5_1, Layers.FIRST_EIGHTH, imatrix=True)),
    _recipe("q5_1", "q5_1", 9, *_LEGACY),
    _recipe("iq2_xxs", "iq2_xxs", 19, *_smallest(Q2_K, Q2_K)),
    _recipe("iq2_xs", "iq2_xs", 20, *_smallest(Q2_K, Q2_K)),
    _recipe("iq2_s", "iq2_xs", 28, *_smallest(IQ3_S, IQ3_S, Rule(ATTN, IQ3_S))),
    _recipe("iq2_m", "iq2_s", 29, *_smallest(IQ3_S, IQ3_S, Rule(ATTN, IQ3_S))),
    _recipe("iq1_s", "iq1_s", 24, *_smallest(Q2_K, Q2_K, Rule(ATTN, IQ2_XXS))),
    _recipe("iq1_m", "iq1_m", 31, *_smallest(Q2_K, Q2_K, Rule(ATTN, IQ2_XXS))),
    _recipe("tq1_0", "tq1_0", 36, *_TERNARY),
    _recipe("tq2_0", "tq2_0", 37, *_TERNARY),
    _recipe("q2_K", "q2_K", 10, *_HEAD, *_EIGHT_EXPERTS, *_OUTPUT_OF_EIGHT,
            _LARGE, Rule(V, Q4_K, shared=True), Rule(V, Q3_K),
            Rule(DOWN, Q3_K),
            Rule(ATTN, Q3_K)),
    _recipe("q2_K_S", "q2_K", 21, *_HEAD, *_EIGHT_EXPERTS,
            _LARGE_SHARED, Rule(V, Q4_K, shared=True),
            Rule(DOWN, Q4_K, Layers.FIRST_EIGHTH)),
    _recipe("iq3_xxs", "iq3_xxs", 23, *_SMALL_HEAD, *_EIGHT_EXPERTS, *_OUTPUT_OF_EIGHT,
            Rule(EMBEDDING, IQ3_S),
            _LARGE_SHARED, Rule(V, Q4_K, shared=True), Rule(V, IQ3_S, imatrix=False),
            Rule(K, IQ2_S),
            Rule(Q, IQ2_S),
            Rule(DOWN, Q4_K, Layers.FIRST_EIGHTH, imatrix=False), Rule(DOWN, Q3_K, imatrix=False),
            Rule(ATTN, IQ3_S)),
    _recipe("iq3_s", "iq3_s", 26, *_HEAD, *_EIGHT_EXPERTS, *_OUTPUT_OF_EIGHT,
            _LARGE_SHARED, Rule(V, Q4_K, shared=True)),
    _recipe("iq3_m", "iq3_s", 27, *_HEAD, *_EIGHT_EXPERTS, *_OUTPUT_OF_EIGHT,
            _LARGE, Rule(V, Q4_K),
            Rule(DOWN, Q4_K, Layers.FIRST_EIGHTH), Rule(DOWN, Q4_K, Layers.MORE_BITS, experts=EIGHT),
            Rule(ATTN, Q4_K)),
    _recipe("iq3_xs", "iq3_s", 22, *_HEAD, *_EIGHT_EXPERTS, *_OUTPUT_OF_EIGHT,
            _LARGE_SHARED, Rule(V, Q4_K, shared=True),
            Rule(K, IQ3_XXS),
            Rule(Q, IQ3_XXS),
            Rule(UP, IQ3_XXS, Layers.MIDDLE), Rule(GATE, IQ3_XXS, Layers.MIDDLE)),
    _recipe("q3_K_S", "q3_K", 11, *_HEAD, *_EIGHT_EXPERTS, *_OUTPUT_OF_EIGHT, _LARGE),
    _recipe("q3_K_M", "q3_K", 12, *_HEAD, *_EIGHT_EXPERTS, *_OUTPUT_OF_EIGHT,
            _LARGE, Rule(V, Q5_K, Layers.FIRST_TWO), Rule(V, Q4_K),
            Rule(DOWN, Q5_K, Layers.FIRST_SIXTEENTH),
            Rule(DOWN, Q4_K, Layers.MORE_BITS), Rule(DOWN, None, arch=FALCON), Rule(DOWN, Q4_K),
            Rule(ATTN, Q4_K)),
    _recipe("q3_K_L", "q3_K", 13, *_HEAD, *_EIGHT_EXPERTS,
            Rule(V, Q5_K),
            Rule(DOWN, Q4_K, arch=FALCON), Rule(DOWN, Q5_K),
            Rule(ATTN, Q4_K, arch=FALCON), Rule(ATTN, None, experts=EIGHT), Rule(ATTN, Q5_K)),
    _recipe("iq4_nl", "iq4_nl", 25, *_HEAD, *_EIGHT_EXPERTS, *_OUTPUT_OF_EIGHT,
            Rule(V, Q5_K, shared=True),
            Rule(DOWN, Q5_K, Layers.FIRST_EIGHTH, imatrix=False)),
    _recipe("iq4_xs", "iq4_xs", 30, *_HEAD, *_EIGHT_EXPERTS, *_OUTPUT_OF_EIGHT,
            Rule(V, Q5_K, shared=True),
            Rule(DOWN, Q5_K, Layers.FIRST_EIGHTH, imatrix=False)),
    _recipe("q4_K_S", "q4_K", 14, *_HEAD, *_EIGHT_EXPERTS, *_OUTPUT_OF_EIGHT,
            Rule(V, Q5_K, Layers.FIRST_FOUR), _LARGE,
            Rule(DOWN, None, arch=FALCON), Rule(DOWN, Q5_K, Layers.FIRST_EIGHTH)),
    _recipe("q4_K_M", "q4_K", 15, *_HEAD, *_EIGHT_EXPERTS, *_OUTPUT_OF_EIGHT,
            Rule(V, Q6_K, Layers.MORE_BITS), _LARGE,
            Rule(DOWN, Q6_K, Layers.FIRST_SIXTEENTH, arch=FALCON),
            Rule(DOWN, Q5_K, Layers.MORE_BITS, arch=FALCON), Rule(DOWN, None, arch=FALCON),
            Rule(DOWN, Q6_K, Layers.MORE_BITS)),
    _recipe("q5_K_S", "q5_K", 16, *_LEGACY),
    _recipe("q5_K_M", "q5_K", 17, *_HEAD, *_EIGHT_EXPERTS,
            Rule(V, Q6_K, Layers.MORE_BITS),
            Rule(DOWN, Q6_K, Layers.MORE_BITS)),
    _recipe("q6_K", "q6_K", 18, *_LEGACY),
    _recipe("q8_0", "q8_0", 7, *_EIGHT_EXPERTS),
    _recipe("f16", "f16", 1),
    _recipe("bf16", "bf16", 32),
    _recipe("f32", "f32", 0),
)
# fmt: on

POLICIES: Mapping[str, Policy] = MappingProxyType({policy.name: policy for policy in _RECIPES})
"""Every named recipe, in llama-quantize's order."""

ALIASES: Mapping[str, str] = MappingProxyType({"q3_k": "q3_K_M", "q4_k": "q4_K_M", "q5_k": "q5_K_M"})
"""Other names llama-quantize knows, in lower case."""
