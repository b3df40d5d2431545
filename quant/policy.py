"""Which tensor gets which format, decided as llama.cpp decides it.

For F32, F16 and BF16 files that is llama.cpp's converter (conversion/base.py, prepare_tensors), for quantized
ones llama_model_quantize (src/llama-quant.cpp) fed with an F32 file: what was asked for by name, then the
rules of the recipe, then what takes the place of a format that does not fit the rows.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from ..core.errors import InputError, UsageError
from ..core.gguf_file import shown
from ..core.model import MetadataValue, Model, Note
from ..core.tensor import DType, Tensor
from .formats import F16, F32, FORMATS, Format, format_of_type, nearest, parse_format
from .importance import Importance, importance_metadata, importance_notes, refuse_other_model
from .named_recipes import ALIASES, POLICIES, Place, Policy
from .parts import (
    EMBEDDING,
    FOREIGN,
    HEAD,
    Kind,
    Part,
    Places,
    is_embedding,
    kind_of,
    llama_cpp_order,
    may_be_quantized,
    part_of,
)
from .requirements import check_importance, fitting

# GGML_QNT_VERSION of ggml.h: the version of the block layouts.
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class FormatChoice:
    """The format of every tensor, by name and in the model's order, and what there is to say about it.

    ``fallbacks`` are tensors whose rows are no whole blocks: name, the format wanted, the one given.
    """

    formats: Mapping[str, Format]
    notes: tuple[Note, ...]
    fallbacks: tuple[tuple[str, Format, Format], ...] = ()

    def __getitem__(self, name: str) -> Format:
        return self.formats[name]


# llama.cpp's converter keeps these in F32 in files of every type, besides vectors and norms; the relative
# biases of T5 it does not, but they are small and llama_model_quantize never touches them.
_CONVERTER_KEEPS = re.compile(
    r"(position_embd|token_types|(enc|dec)\.blk\.\d+\.attn_rel_b|blk\.\d+\.(ffn_gate_inp|ffn_gate_inp_shexp|ssm_conv1d|shortconv\.conv))\.weight"
)


def parse_policy(
    text: str,
    *,
    pure: bool = False,
    keep_wo: bool = False,
    tensor_types: Sequence[str] = (),
    output_type: str | None = None,
    embedding_type: str | None = None,
) -> Policy:
    """The policy of that name, case ignored, with what is asked for besides.

    ``tensor_types`` are ``PATTERN=TYPE``: a regular expression to be found in tensors' names, and a format.
    Raises UsageError naming what there is.
    """
    wanted = text.strip().lower()
    wanted = ALIASES.get(wanted, wanted).lower()
    for policy in POLICIES.values():
        if policy.name.lower() == wanted:
            return replace(
                policy,
                pure=pure,
                keep_wo=keep_wo,
                overrides=tuple(_parse_override(each) for each in tensor_types),
                output_type=None if output_type is None else parse_format(output_type),
                embedding_type=None if embedding_type is None else parse_format(embedding_type),
            )
    raise UsageError(f"unknown type {text!r}", hint=_meant(text))


def _meant(text: str) -> str:
    """What to write in place of what is no type."""
    wanted = text.strip().lower()
    if len(wanted.split()) > 1:
        return f"several types are written with commas: -q {','.join(wanted.split())}"
    if wanted == "copy":
        return "auto keeps the weights of a checkpoint as they are; copy is for kconv quantize"
    if wanted == "auto":
        return "copy keeps the weights of a GGUF file as they are; auto is for kconv to-gguf"
    return nearest(text, list(POLICIES))


def _parse_override(text: str) -> tuple[str, Format]:
    """``PATTERN=TYPE``; llama-quantize, too, makes small letters of the pattern."""
    pattern, equals, format = text.rpartition("=")
    if not (pattern and equals and format):
        raise UsageError(
            f"{text!r} is not of the form PATTERN=TYPE",
            hint="for example ffn_down=q6_K; after a colon of -q also pure",
        )
    try:
        with warnings.catch_warnings(action="error"):  # [[:digit:]], which Python does not know
            re.compile(pattern.lower())
    except (re.error, RecursionError, OverflowError, Warning) as error:
        raise UsageError(
            f"{shown(pattern)} is not a valid Python regular expression: {error}",
            hint="for example --tensor-type 'blk\\.[0-3]\\.ffn_down=q6_K'",
        ) from error
    return pattern.lower(), parse_format(format)


def quantization_metadata(policy: Policy, importance: Importance | None = None) -> dict[str, MetadataValue]:
    """The keys a file says its formats with, and the importance data; llama-quantize writes the same."""
    return {
        "general.quantization_version": QUANTIZATION_VERSION,
        "general.file_type": policy.file_type,
        **importance_metadata(importance if policy.quantizes else None),
    }


def choose_formats(model: Model, policy: Policy, importance: Importance | None = None) -> FormatChoice:
    """The format of each tensor of ``model`` under ``policy``, with notes where one does not fit.

    Raises InputError where llama.cpp refuses too: a format that needs importance data and has none, data of
    another model, or rows that nothing fits; UsageError for a pattern that matches nothing.
    """
    _check_asked(model, policy)
    if importance is not None:
        refuse_other_model(importance, model.tensors)
    wanted = _wanted_formats(model, policy, imatrix=importance is not None)
    formats: dict[str, Format] = {}
    fallbacks: dict[tuple[Format, Format], list[str]] = {}
    spared: list[str] = []
    for tensor in model.tensors:
        name, first = tensor.name, wanted[tensor.name]
        given = fitting(first, tensor.shape[-1] if tensor.shape else 1, name)
        if model.has_wide_input(name) and (policy.keep_wo or given == F16):
            given = FORMATS["bf16"] if policy.keep_wo and tensor.dtype is DType.BF16 else F32
            spared.append(name)
        elif given != first:
            fallbacks.setdefault((first, given), []).append(name)
        formats[name] = given
        check_importance(tensor, given, policy, importance)
    notes = [_fallback_note(*formats, names, policy) for formats, names in fallbacks.items()]
    notes += [_spared_note(spared, policy)] if spared else []
    notes += _unchosen_notes(model, policy, formats)
    if policy.name == "mxfp4_moe" and not policy.pure and not kind_of(model).experts:
        notes.append(_NO_EXPERTS)
    notes += importance_notes(importance, model.tensors, formats, policy.display)
    each = tuple((name, *pair) for pair, names in fallbacks.items() for name in names)
    return FormatChoice(MappingProxyType(formats), tuple(notes), each)


def _wanted_formats(model: Model, policy: Policy, *, imatrix: bool) -> dict[str, Format]:
    """What is wanted of each tensor, whether or not its rows fit; decided in llama.cpp's order.

    What is not quantized becomes F32, or stays as it is where the model comes from a GGUF.
    """
    kind = kind_of(model)
    places = Places(kind)
    wanted = {}
    for tensor in sorted(model.tensors, key=lambda tensor: llama_cpp_order(tensor.name)):
        own = None if tensor.stored is None else format_of_type(tensor.stored.ggml_type)
        quantizable = may_be_quantized(tensor.name, tensor.shape)
        asked = asked_format(tensor.name, policy, kind) or policy.exact.get(tensor.name)
        asked = asked if quantizable else None
        if asked is not None:
            wanted[tensor.name] = asked
        elif own is None and not policy.default.quantized:
            wanted[tensor.name] = _converter_format(tensor, policy)
        elif not quantizable:
            wanted[tensor.name] = own or F32
        else:
            wanted[tensor.name] = _by_rules(tensor, policy, kind, places, imatrix=imatrix)
    return wanted


def asked_format(name: str, policy: Policy, kind: Kind) -> Format | None:
    """The format asked for by name, if any (llama_tensor_get_type)."""
    if policy.embedding_type is not None and name == EMBEDDING:
        return policy.embedding_type
    if policy.output_type is not None and name == HEAD:
        return policy.output_type
    for pattern, format in policy.overrides:
        if re.search(pattern, name):
            return format
    if policy.embedding_type is not None and is_embedding(name):
        return policy.embedding_type
    return policy.output_type if part_of(name, tied=kind.tied) is Part.OUTPUT else None


def _by_rules(tensor: Tensor, policy: Policy, kind: Kind, places: Places, *, imatrix: bool) -> Format:
    """llama_tensor_get_type_impl."""
    if policy.pure:
        return policy.default
    part = part_of(tensor.name, tied=kind.tied)
    counted, layer = places.next(part, tensor.name)
    place = Place(
        part,
        counted,
        layer,
        kind.values if part is Part.ATTENTION_V else kind.layers,
        policy.default.fits(tensor.shape[-1]),
        len(tensor.shape) > 2,
    )
    rule = next((rule for rule in policy.rules if rule.applies(place, kind, imatrix=imatrix)), None)
    return policy.default if rule is None or rule.format is None else rule.format


def _converter_format(tensor: Tensor, policy: Policy) -> Format:
    """conversion/base.py, prepare_tensors."""
    name = tensor.name
    if len(tensor.shape) <= 1 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return F32
    return F32 if _CONVERTER_KEEPS.fullmatch(name) else policy.default


def _check_asked(model: Model, policy: Policy) -> None:
    """Refuse what was asked for and would have no effect, and architectures with rules of their own."""
    if policy.default.quantized and model.arch in FOREIGN:
        raise InputError(
            f"llama-quantize has rules for {model.arch} that kconv does not know", hint="use llama-quantize"
        )
    names = [tensor.name for tensor in model.tensors if may_be_quantized(tensor.name, tensor.shape)]
    for pattern, format in policy.overrides:
        if not any(re.search(pattern, name) for name in names):
            some = ", ".join(sorted({re.sub(r"\d+", "0", name) for name in names})[:12])
            raise UsageError(
                f"--tensor-type {pattern}={format.name} matches no matrix of this model",
                hint=f"matrices of this model have names such as {some}",
            )


def _fallback_note(wanted: Format, given: Format, names: Sequence[str], policy: Policy) -> Note:
    which = names[0] if len(names) == 1 else f"{len(names)} tensors ({names[0]}, …)"
    verb = "has" if len(names) == 1 else "have"
    return Note(
        "format-fallback",
        f"{which} {verb} rows that are not a multiple of {wanted.block_size} weights long: stored as "
        f"{given.display} instead of {wanted.display} in the {policy.display} file, as in llama.cpp",
        warning=True,
    )


_NO_EXPERTS = Note(
    "no-experts",
    "MXFP4_MOE stores only expert matrices as MXFP4; this model has none, so it becomes Q8_0 (use "
    "--pure to store everything as MXFP4)",
    warning=True,
)


def _unchosen_notes(model: Model, policy: Policy, formats: Mapping[str, Format]) -> list[Note]:
    """Where a policy file does not name every matrix: which the recipe decides for, and what it says."""
    kind = kind_of(model)
    names = [
        tensor.name
        for tensor in model.tensors
        if policy.exact
        and tensor.name not in policy.exact
        and may_be_quantized(tensor.name, tensor.shape)
        and asked_format(tensor.name, policy, kind) is None
        and not (policy.keep_wo and model.has_wide_input(tensor.name))
    ]
    if not names:
        return []
    given, which = ", ".join(dict.fromkeys(formats[name].name for name in names)), ", ".join(names[:3])
    told = (
        f"the policy file has no format for {which}; the recipe of most of its formats gives {given}"
        if len(names) <= 3
        else f"the policy file has no format for {len(names)} matrices, {which} among them; the recipe of "
        f"most of its formats gives {given}"
    )
    return [Note("not-in-policy", told)]


def _spared_note(names: Sequence[str], policy: Policy) -> Note:
    which = names[0] if len(names) == 1 else f"{len(names)} tensors ({names[0]}, …)"
    why = (
        "in the checkpoint's precision, as requested"
        if policy.keep_wo
        else f"in F32 in the {policy.display} file: their inputs may exceed the range of half precision"
    )
    return Note("feed-forward-wo", f"the feed-forward output matrices of T5, {which}, are written {why}")


__all__ = [
    "POLICIES",
    "FormatChoice",
    "Policy",
    "choose_formats",
    "parse_policy",
    "quantization_metadata",
]
