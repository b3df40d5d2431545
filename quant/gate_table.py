"""Limits by type, their sources, and what others measured: the one table of gates.

Published figures: tools/perplexity/README.md of llama.cpp (Wikitext-2; Llama-3-8B, and Llama-2-7B where it is
there). A gate is about twice the figure of Llama-3-8B, which suffers more from rounding than older and
smaller models do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ..core.language import phrase

_TWICE = phrase("about twice the published Llama-3-8B figure (llama.cpp, tools/perplexity/README.md)")
_ARITHMETIC = phrase(
    "fp32 sums in another order: measured 1e-13 to 1e-11 on small trained models, more in larger ones"
)
_HALF = phrase("about twice what llama.cpp's perplexity tool shows for f16, most of which is its own storage")
_LIKE_Q8_0 = phrase("no published figure; its blocks are as fine as those of q8_0, whose gate is used")
_SCALED = phrase(
    "no published figure; the gate of q4_0 times the squared error of the format beside q4_0's on normal "
    "weights ({error} and 0.086)"
)
_TERNARY = phrase("no published figure; meant for models trained with such weights, it warns like q2_K")


@dataclass(frozen=True)
class Published:
    """Figures someone measured of a type: mean KL in nats, RMS Δp from 0 to 1, increase of the perplexity."""

    type: str
    kl_mean: float
    dp_rms: float
    perplexity_increase: float
    same_top1: float | None = None
    model: str = "Llama-3-8B"

    @property
    def whose(self) -> str:
        """Model and type: ``Llama-3-8B q4_K_M``."""
        return f"{self.model} {self.type}".strip()

    @property
    def figures(self) -> dict[str, float]:
        """By the names of ``proof.Figures``, and the increase; the log ratio follows from the increase."""
        figures = {
            "kl_mean": self.kl_mean,
            "dp_rms": self.dp_rms,
            "log_ratio": math.log1p(self.perplexity_increase / _PERPLEXITY[self.model]),
            "perplexity_increase": self.perplexity_increase,
        }
        return figures if self.same_top1 is None else {**figures, "same_top1": self.same_top1}


@dataclass(frozen=True)
class Row:
    """The gate of a format."""

    limit: float
    source: str = _TWICE
    published: tuple[Published, ...] = ()
    measure: Literal["nmse", "kl_mean"] = "kl_mean"


_LLAMA_2 = "Llama-2-7B"
_WITH_IMATRIX = "Llama-3-8B with importance data"
_F16_BF16 = "Llama-3-8B f16 against bf16"
_PERPLEXITY = {"Llama-3-8B": 6.2316, _LLAMA_2: 5.7946, _WITH_IMATRIX: 6.2316, _F16_BF16: 6.2252}

# By format. Of every type the figures without importance data, where there are any.
GATES: Mapping[str, Row] = MappingProxyType(
    {
        "f32": Row(1e-6, _ARITHMETIC, measure="nmse"),
        "f64": Row(1e-6, _ARITHMETIC, measure="nmse"),
        "f16": Row(1e-3, _HALF, (Published("", 0.000025, 0.00150, 0.0025, 0.99739, _F16_BF16),)),
        "bf16": Row(1e-3, _HALF, (Published("", 0.000025, 0.00150, 0.0025, 0.99739, _F16_BF16),)),
        "q8_0": Row(
            5e-3,
            phrase(
                "about four times the published Llama-3-8B figure (llama.cpp, tools/perplexity/README.md)"
            ),
            (
                Published("q8_0", 0.001355, 0.01198, 0.0027, 0.97674),
                Published("q8_0", 0.000369, 0.00618, 0.0040, 0.98846, _LLAMA_2),
            ),
        ),
        "q8_1": Row(5e-3, _LIKE_Q8_0),
        "q8_K": Row(5e-3, _LIKE_Q8_0),
        "q6_K": Row(
            0.015,
            published=(
                Published("q6_K", 0.005452, 0.02295, 0.0217, 0.96031),
                Published("q6_K", 0.002098, 0.01339, 0.0139, 0.97520, _LLAMA_2),
            ),
        ),
        "q5_K": Row(
            0.03,
            published=(
                Published("q5_K_M", 0.010762, 0.03160, 0.0570),
                Published("q5_K_S", 0.016595, 0.03918, 0.1050),
            ),
        ),
        "q5_1": Row(0.05, published=(Published("q5_1", 0.018045, 0.04123, 0.1062),)),
        "q5_0": Row(0.05, published=(Published("q5_0", 0.022239, 0.04634, 0.1316),)),
        "q4_K": Row(
            0.08,
            published=(
                Published("q4_K_M", 0.031273, 0.05519, 0.1755, 0.91901),
                Published("q4_K_M", 0.012686, 0.03252, 0.0825, 0.94665, _LLAMA_2),
                Published("q4_K_S", 0.043136, 0.06562, 0.2689),
            ),
        ),
        "iq4_nl": Row(0.08, published=(Published("iq4_nl", 0.035742, 0.05998, 0.2240, None, _WITH_IMATRIX),)),
        "iq4_xs": Row(0.08, published=(Published("iq4_xs", 0.036334, 0.06044, 0.2281, None, _WITH_IMATRIX),)),
        "q4_1": Row(0.15, published=(Published("q4_1", 0.071683, 0.08512, 0.4511),)),
        "q4_0": Row(0.15, published=(Published("q4_0", 0.071940, 0.08434, 0.4685),)),
        "nvfp4": Row(0.2, _SCALED.of(error="0.103")),
        "mxfp4": Row(0.25, _SCALED.of(error="0.114")),
        "q3_K": Row(
            0.25,
            published=(
                Published("q3_K_M", 0.101913, 0.10203, 0.6569),
                Published("q3_K_L", 0.087176, 0.09432, 0.5562),
                Published("q3_K_S", 0.228217, 0.15541, 1.6322),
            ),
        ),
        "iq3_s": Row(
            0.25,
            published=(
                Published("iq3_s", 0.111278, 0.10845, 0.7339, None, _WITH_IMATRIX),
                Published("iq3_m", 0.102534, 0.10513, 0.6667, None, _WITH_IMATRIX),
                Published("iq3_xs", 0.138693, 0.12148, 0.9314, None, _WITH_IMATRIX),
            ),
        ),
        "iq3_xxs": Row(
            0.4,
            published=(Published("iq3_xxs", 0.183625, 0.13836, 1.2268, None, _WITH_IMATRIX),),
        ),
        "iq2_s": Row(
            0.9,
            published=(
                Published("iq2_s", 0.439197, 0.21491, 3.4191, None, _WITH_IMATRIX),
                Published("iq2_m", 0.325989, 0.18519, 2.3692, None, _WITH_IMATRIX),
            ),
        ),
        "q2_K": Row(
            0.9,
            published=(
                Published("q2_K", 0.445132, 0.21421, 3.5199, 0.71138),
                Published("q2_K", 0.108903, 0.09762, 0.6256, 0.85584, _LLAMA_2),
                Published("q2_K_S", 0.403360, 0.20050, 3.0921, None, _WITH_IMATRIX),
            ),
        ),
        "q2_0": Row(0.9, _TERNARY),
        "tq2_0": Row(0.9, _TERNARY),
        "tq1_0": Row(0.9, _TERNARY),
        "q1_0": Row(0.9, _TERNARY),
        "iq2_xs": Row(
            1.1,
            published=(Published("iq2_xs", 0.546290, 0.23872, 4.5298, None, _WITH_IMATRIX),),
        ),
        "iq2_xxs": Row(
            1.6,
            published=(Published("iq2_xxs", 0.812022, 0.28576, 7.8601, None, _WITH_IMATRIX),),
        ),
        "iq1_m": Row(
            2.8,
            published=(Published("iq1_m", 1.393084, 0.38287, 19.2621, None, _WITH_IMATRIX),),
        ),
        "iq1_s": Row(
            4.5,
            published=(Published("iq1_s", 2.254554, 0.46271, 54.4630, None, _WITH_IMATRIX),),
        ),
    }
)

# Types a file says it is (llama.h, enum llama_ftype), and the format of a mixture whose name is no format's
# (llama-quant.cpp, llama_ftype_get_default_type).
FILE_TYPES: Mapping[int, str] = MappingProxyType(
    {
        0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_K", 11: "q3_K_S",
        12: "q3_K_M", 13: "q3_K_L", 14: "q4_K_S", 15: "q4_K_M", 16: "q5_K_S", 17: "q5_K_M", 18: "q6_K",
        19: "iq2_xxs", 20: "iq2_xs", 21: "q2_K_S", 22: "iq3_xs", 23: "iq3_xxs", 24: "iq1_s", 25: "iq4_nl",
        26: "iq3_s", 27: "iq3_m", 28: "iq2_s", 29: "iq2_m", 30: "iq4_xs", 31: "iq1_m", 32: "bf16",
        36: "tq1_0", 37: "tq2_0", 38: "mxfp4_moe", 39: "nvfp4", 40: "q1_0", 41: "q2_0",
    }
)  # fmt: skip
MIXTURES: Mapping[str, str] = MappingProxyType(
    {
        "q2_K_S": "q2_K", "q3_K_S": "q3_K", "q3_K_M": "q3_K", "q3_K_L": "q3_K", "q4_K_S": "q4_K",
        "q4_K_M": "q4_K", "q5_K_S": "q5_K", "q5_K_M": "q5_K", "iq3_xs": "iq3_s", "iq3_m": "iq3_s",
        "iq2_m": "iq2_s", "mxfp4_moe": "mxfp4",
    }
)  # fmt: skip
