"""Which matrices of a file compute in half precision, and whether what flows there fits into it.

ggml-cpu makes halves of what an F16 matrix is multiplied by, and the products are float32. In ONNX both are
FLOAT16. Half precision ends at 65,504: beyond it numbers are infinite, and NaN soon after.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..converters.family import AnyFamily
from ..converters.mapping import sources_of
from ..core.checkpoint import Checkpoint
from ..core.gguf_file import GgufHeader
from ..core.language import phrase
from ..quant.formats import F16, format_of_type
from ..quant.parts import EMBEDDING, HEAD
from ..reference import magnitudes
from ..reference.magnitudes import Flow, Peak, joined
from .onnx_folder import OnnxFolder

LARGEST = 65504.0
"""The largest number in half precision."""
NEAR = LARGEST / 4
"""From here on another text may well go beyond."""

_LAYER = re.compile(r"(?:^|\.)(?:blk|layers|block|h)\.(\d+)\.")
_ENCODER = phrase("encoder layer {layer}, {matrix}")
_DECODER = phrase("decoder layer {layer}, {matrix}")
_SIDES = {"enc": _ENCODER, "encoder": _ENCODER, "dec": _DECODER, "decoder": _DECODER}
_FIRST_EXPERT = re.compile(r"(.+\.experts\.)0(\..+)")
_FLOAT16 = 10  # onnx.proto, TensorProto.DataType

Modules = Mapping[str, Sequence[str]]
"""By a matrix's name in the file, the modules of the reference whose flow is its own."""


@dataclass(frozen=True)
class Extreme:
    """The largest magnitude into or out of a matrix: ``window`` and ``position`` count from 0."""

    matrix: str
    way: Literal["into", "out of"]
    value: float
    window: int
    position: int

    @property
    def fits(self) -> bool:
        """Whether it is a number in half precision."""
        return self.value <= LARGEST

    def told(self, hides: bool) -> str:
        """In a sentence; ``hides`` where the runtime here computes in float32 what others do in halves."""
        layer = _LAYER.search(self.matrix)
        side = _SIDES.get(self.matrix.partition(".")[0], phrase("layer {layer}, {matrix}"))
        place = side.of(layer=layer[1], matrix=self.matrix) if layer else self.matrix
        what = phrase("what flows into it reaches {value}")
        if self.way != "into":
            what = phrase("what flows out of it reaches {value}")
        what = what.of(value=f"{self.value:,.0f}")
        where = phrase("(window {window}, position {position})")
        where = where.of(window=self.window + 1, position=self.position + 1)
        if self.fits:
            return phrase("{place}: {what} {where}, not far from 65,504, where half precision ends").of(
                place=place, what=what, where=where
            )
        told = phrase(
            "{place}: {what} {where}, but half precision, in which it is computed, ends at 65,504"
        ).of(place=place, what=what, where=where)
        if not hides:
            return told
        return phrase("{told}; onnxruntime on x86 hides it, GPUs, browsers and ARM processors give NaN").of(
            told=told
        )


@dataclass(frozen=True)
class HalfPrecision:
    """What flows through the ``matrices`` (how many) of a file that compute in half precision, and into its
    norms where all that flows is in halves.

    ``into`` and ``out`` are the largest magnitudes of all; ``out`` None where it is not rounded. ``near`` are
    those from a quarter of half precision's range on, the largest of each matrix and way, largest first.
    """

    matrices: int
    into: Extreme
    out: Extreme | None
    near: tuple[Extreme, ...]


def halves_of_gguf(header: GgufHeader, family: AnyFamily, checkpoint: Checkpoint) -> Modules:
    """The matrices of a GGUF stored as F16."""
    names = {info.name for info in header.tensors if format_of_type(info.ggml_type) == F16}
    return halves_by_name(names, family, checkpoint, tied=all(info.name != HEAD for info in header.tensors))


def halves_by_name(names: Iterable[str], family: AnyFamily, checkpoint: Checkpoint, *, tied: bool) -> Modules:
    """Those of the GGUF names that are multiplied; a ``tied`` embedding makes the logits, too."""
    sources, head = sources_of(family, checkpoint), EMBEDDING if tied else HEAD
    module = family.reference.module
    return {
        name: (magnitudes.HEAD,) if name == head else [module(source) for source in sources[name]]
        for name in sources
        if name in set(names)
    }


def halves_of_folder(folder: OnnxFolder, family: AnyFamily, checkpoint: Checkpoint) -> Modules:
    """The matrices an ONNX folder computes in FLOAT16, by the checkpoint's names.

    Those it stores so under these names; where it takes or gives FLOAT16, or stores matrices so under names
    of its own, all but those it stores as something else under the checkpoint's.
    """
    stored = {name: each.element for model in folder.models for name, each in model.initializers.items()}
    values = [value for model in folder.models for value in (*model.inputs, *model.outputs)]
    names = _by_source(family, checkpoint)
    own = {name for name in names if stored.get(name) == _FLOAT16}
    everywhere = any(value.type == F16.name.lower() for value in values)
    everywhere |= not own and any(model.weights["f16"] for model in folder.models)
    wanted = {name for name in names if name not in stored} | own if everywhere else own
    return {name: (names[name],) for name in names if name in wanted}


def halves_by_source(names: Iterable[str], family: AnyFamily, checkpoint: Checkpoint) -> Modules:
    """Those of the checkpoint's names that are multiplied."""
    modules = _by_source(family, checkpoint)
    return {name: (modules[name],) for name in names if name in modules}


def _by_source(family: AnyFamily, checkpoint: Checkpoint) -> dict[str, str]:
    """By the checkpoint's names the modules of the reference; a tied embedding's is the output matrix."""
    sources, module = sources_of(family, checkpoint), family.reference.module
    head = [name for name in sources.get(HEAD, ()) if name in checkpoint.tensors] or sources[EMBEDDING]
    names = {source: module(source) for each in sources.values() for source in each}
    names |= dict.fromkeys(head, magnitudes.HEAD)
    return names | {of: names[alias] for alias, of in checkpoint.aliases.items() if alias in head}


def flowing(modules: Modules, flows: Mapping[str, Flow], *, out: bool) -> HalfPrecision | None:
    """What flows through those matrices; None where nothing does. ``out``: what comes out is rounded, too."""
    every = {name: _with_all_experts(own, flows) for name, own in modules.items()}
    found = {
        name: joined([flows[each] for each in own if each in flows])
        for name, own in every.items()
        if any(each in flows for each in own)
    }
    if not found:
        return None
    entering = [_extreme(name, "into", flow.into) for name, flow in found.items()]
    leaving = [_extreme(name, "out of", flow.out) for name, flow in found.items()] if out else []
    both = sorted((*entering, *leaving), key=lambda each: -each.value)
    near = tuple(each for each in both if each.value >= NEAR)
    matrices = sum(flow.out != Peak() for flow in found.values())  # nothing is gathered of what norms give
    return HalfPrecision(matrices, _largest(entering), _largest(leaving) if out else None, near)


def _with_all_experts(own: Sequence[str], flows: Mapping[str, Flow]) -> Sequence[str]:
    """The modules; where the first expert stands for a checkpoint's own stack of them, all of its experts."""
    match = _FIRST_EXPERT.fullmatch(own[0]) if len(own) == 1 else None
    if match is None:
        return own
    one = re.compile(re.escape(match[1]) + r"\d+" + re.escape(match[2]))
    return [name for name in flows if one.fullmatch(name)]


def _extreme(name: str, way: Literal["into", "out of"], peak: Peak) -> Extreme:
    return Extreme(name, way, peak.value, peak.window, peak.position)


def _largest(extremes: Sequence[Extreme]) -> Extreme:
    return max(extremes, key=lambda each: each.value)
