"""Which tensor of a checkpoint gets which format in ONNX: what its GGUF would have, as far as ONNX has it.

onnxruntime has no q6_K, so what makes the logits is q8_0 under q4_0. Rows that are no whole blocks of 32 stay
F32, where a GGUF has F16: activations are float32 in quantized models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...core.checkpoint import Checkpoint
from ...core.errors import UsageError
from ...core.model import Model, Note
from ...quant.formats import F16, F32, Format, nearest
from ...quant.onnx_packing import PACKED
from ...quant.parts import EMBEDDING as EMBEDDING_TABLE
from ...quant.policy import choose_formats, parse_policy
from ..family import AnyFamily
from ..mapping import sources_of
from ..targets import own_type

AUTO = "auto"
HALVES = "-f16"
"""Added to a type's name where what flows is FLOAT16."""
TYPES = (AUTO, "f32", "f16", "q8_0", "q4_0")
"""What ``-q`` takes for ONNX."""


@dataclass(frozen=True)
class OnnxFormats:
    """``type`` is what was asked for or what auto means here, ``formats`` go by the checkpoint's names.

    ``fallbacks`` are tensors whose rows are no whole blocks: name, the format wanted, the one given.
    ``halves``: what flows is FLOAT16, too.
    """

    type: str
    formats: Mapping[str, Format]
    fallbacks: tuple[tuple[str, Format, Format], ...]
    notes: tuple[Note, ...]
    halves: bool = False

    @property
    def name(self) -> str:
        """What files are called after: ``q4_0``, or ``q4_0-f16`` with halves."""
        return f"{self.type}{HALVES}" if self.halves else self.type


def parse_type(text: str) -> str:
    """One of TYPES, case ignored. Raises UsageError naming them."""
    wanted = text.strip().lower()
    if wanted not in TYPES:
        raise UsageError(f"unknown type {text!r} for ONNX", hint=nearest(text, TYPES))
    return wanted


def choose_onnx_formats(
    family: AnyFamily, checkpoint: Checkpoint, model: Model, type: str, *, halves: bool = False
) -> OnnxFormats:
    """The format of every tensor of ``checkpoint``, of which ``family`` has built ``model``.

    A tensor that embeds and makes the logits, too, has the better of both formats. With ``halves`` what flows
    is FLOAT16: nothing is F32, and auto is f16. Raises UsageError for a type that is none of TYPES, for f32
    with halves, and for halves of a model that is no decoder.
    """
    name = parse_type(type)
    if halves:
        _refuse_halves(family, name)
    if name == AUTO:
        name = "f16" if halves else _automatic(model)
    policy = parse_policy(name, output_type="q8_0" if name == "q4_0" else None)
    chosen = choose_formats(model, policy)
    allowed = (F32, *(PACKED if policy.default.quantized else (F16,)))
    front = frozenset() if family.front_end is None else family.front_end.exact  # float32, as beside a GGUF
    formats: dict[str, Format] = {}
    fallbacks = []
    by_target = sources_of(family, checkpoint)
    copies = {tensor.name for tensor in model.tensors if tensor.computed}  # of the embedding, scaled
    for target, own in by_target.items():
        sources = (*own, *by_target[EMBEDDING_TABLE]) if target in copies else own
        given = chosen[target] if chosen[target] in allowed else F32
        wanted = next((wanted for each, wanted, _ in chosen.fallbacks if each == target), given)
        given = F16 if halves and given == F32 else given
        wanted = given if halves and wanted == F32 else wanted
        for source in sources:
            if given.row_bytes(32) >= formats.get(source, given).row_bytes(32):
                formats[source] = F32 if source in front else given
            if wanted != given:
                fallbacks.append((source, wanted, given))
    for alias, of in checkpoint.aliases.items():  # names of the very same bytes
        if alias in formats:
            formats.setdefault(of, formats[alias])
    formats |= {alias: formats[of] for alias, of in checkpoint.aliases.items() if of in formats}
    notes = [note for note in chosen.notes if note.name != "format-fallback"]
    notes += [_fallback_note(fallbacks, name, "F16" if halves else "F32")] if fallbacks else []
    return OnnxFormats(name, MappingProxyType(formats), tuple(fallbacks), tuple(notes), halves)


def _refuse_halves(family: AnyFamily, type: str) -> None:
    if type == "f32":
        raise UsageError(
            "f16 activations and f32 weights do not go together", hint="pass -q f16, q8_0 or q4_0"
        )
    if family.encoder_only or family.encoder_decoder:
        raise UsageError(
            f"f16 activations are for models that only decode, and {family.title} is not one",
            hint="leave out --activations f16",
        )


def _automatic(model: Model) -> str:
    """F32 for models that overflow in halves (T5) and F32 checkpoints; F16 for those of half precision."""
    return "f32" if model.wide_inputs is not None or own_type(model) == "f32" else "f16"


def _fallback_note(fallbacks: list[tuple[str, Format, Format]], type: str, given: str) -> Note:
    names = [name for name, _, _ in fallbacks]
    which = f"{names[0]} has" if len(names) == 1 else f"{len(names)} tensors ({names[0]}, …) have"
    message = (
        f"{which} rows that are not a multiple of 32 weights long: stored as {given} in the {type.upper()} "
        "folder"
    )
    return Note("format-fallback", message, warning=True)
