"""Which tensor gets which format, decided as llama.cpp decides it.

For F32, F16 and BF16 files that is llama.cpp's converter (conversion/base.py, prepare_tensors), for quantized
ones llama_model_quantize (src/llama-quant.cpp) fed with an F32 file. A policy is a value: a default format
and rules for tensors that play a certain part; conditions a rule may have are fields of ``Rule``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType

from ..core.errors import UsageError
from ..core.model import MetadataValue, Model, Note
from ..core.tensor import DType, Tensor
from .formats import F16, F32, FORMATS, Q6_K, Q8_0, Format

# GGML_QNT_VERSION of ggml.h: the version of the block layouts.
QUANTIZATION_VERSION = 2


class Part(Enum):
    """What a matrix is for, as far as a rule may ask (llama-quant.cpp, tensor_get_category)."""

    OUTPUT = "output"  # makes the logits: output.weight, or the token embedding where there is none
    ATTENTION_K = "attention key"
    ATTENTION_V = "attention value"
    OTHER = "other"


@dataclass(frozen=True)
class Rule:
    """Tensors of ``part`` get ``format``; with ``experts``, only in models of exactly that many experts."""

    part: Part
    format: Format
    experts: int | None = None


@dataclass(frozen=True)
class Policy:
    """A named way to choose formats.

    The first rule that applies decides, else ``default``. ``file_type`` is what the file says of itself under
    general.file_type (llama.h, enum llama_ftype). ``pure`` leaves the rules out. ``keep_wo`` leaves the
    matrices ``wide_input`` is true for in the precision they have in the checkpoint.
    """

    name: str
    default: Format
    file_type: int
    rules: tuple[Rule, ...] = ()
    pure: bool = False
    keep_wo: bool = False

    @property
    def display(self) -> str:
        """The name as it stands in file names: ``Q4_0``."""
        return self.name.upper()


@dataclass(frozen=True)
class FormatChoice:
    """The format of every tensor, by name and in the model's order, and what there is to say about it."""

    formats: Mapping[str, Format]
    notes: tuple[Note, ...]

    def __getitem__(self, name: str) -> Format:
        return self.formats[name]


# llama.cpp keeps keys and values of models with eight experts, where they are small, in q8_0.
_EIGHT_EXPERTS = (Rule(Part.ATTENTION_V, Q8_0, experts=8), Rule(Part.ATTENTION_K, Q8_0, experts=8))


def _below_q8_0(name: str, file_type: int) -> Policy:
    return Policy(name, FORMATS[name], file_type, (Rule(Part.OUTPUT, Q6_K), *_EIGHT_EXPERTS))


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            Policy("f32", F32, 0),
            Policy("f16", F16, 1),
            Policy("bf16", FORMATS["bf16"], 32),
            Policy("q8_0", Q8_0, 7, _EIGHT_EXPERTS),
            _below_q8_0("q5_1", 9),
            _below_q8_0("q5_0", 8),
            _below_q8_0("q4_1", 3),
            _below_q8_0("q4_0", 2),
        )
    }
)

# What takes the place of a format whose blocks do not fit the rows (llama-quant.cpp, tensor_type_fallback).
# Formats of blocks of 32 have no smaller relative and become F16.
_SMALLER_BLOCKS: Mapping[str, Format] = MappingProxyType({"q6_K": Q8_0})

# llama.cpp's converter keeps these in F32 in files of every type, besides vectors and norms; the relative
# biases of T5 it does not, but they are small and llama_model_quantize never touches them.
_CONVERTER_KEEPS = re.compile(
    r"(position_embd|token_types|(enc|dec)\.blk\.\d+\.attn_rel_b|blk\.\d+\.(ffn_gate_inp|ffn_gate_inp_shexp|ssm_conv1d|shortconv\.conv))\.weight"
)

# Matrices llama_model_quantize leaves as they are: parts of names and whole names. The lists there go on with
# architectures (RWKV, Mamba, vision and audio towers) that kconv does not write.
_QUANTIZER_KEEPS_PARTS = ("_norm.weight", "ffn_gate_inp.weight", "attn_rel_b.weight", "ssm_conv1d")
_QUANTIZER_KEEPS = frozenset({"position_embd.weight", "token_types.weight"})


# T5's feed-forward wo: what flows into it exceeds half precision (65,504) in models as they were trained, and
# for F16 weights ggml makes halves of that, too. transformers keeps these matrices in fp32 for that reason.
_WIDE_INPUT = re.compile(r"(enc|dec)\.blk\.\d+\.ffn_down\.weight")


def wide_input(arch: str, name: str) -> bool:
    """Whether the input of a matrix may exceed half precision, so that its weights must not be F16."""
    return arch == "t5" and _WIDE_INPUT.fullmatch(name) is not None


def parse_policy(text: str, *, pure: bool = False, keep_wo: bool = False) -> Policy:
    """The policy of that name, case ignored. Raises UsageError naming all there are."""
    for policy in POLICIES.values():
        if policy.name.lower() == text.strip().lower():
            return replace(policy, pure=pure, keep_wo=keep_wo)
    raise UsageError(f"unknown type {text!r}", hint=f"choose one of {', '.join(POLICIES)}")


def quantization_metadata(policy: Policy) -> dict[str, MetadataValue]:
    """The keys a file says its formats with; converter and llama_model_quantize write both, as uint32."""
    return {
        "general.quantization_version": QUANTIZATION_VERSION,
        "general.file_type": policy.file_type,
    }


def choose_formats(model: Model, policy: Policy) -> FormatChoice:
    """The format of each tensor of ``model`` under ``policy``; notes tell where one does not fit."""
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    experts = _experts(model)
    formats: dict[str, Format] = {}
    fallbacks: dict[tuple[Format, Format], list[str]] = {}
    spared: list[str] = []
    for tensor in model.tensors:
        wanted = _wanted_format(tensor, policy, experts, tied=tied)
        given = fitting(wanted, tensor.shape[-1] if tensor.shape else 1)
        if wide_input(model.arch, tensor.name) and (policy.keep_wo or given == F16):
            given = FORMATS["bf16"] if policy.keep_wo and tensor.dtype is DType.BF16 else F32
            spared.append(tensor.name)
        elif given != wanted:
            fallbacks.setdefault((wanted, given), []).append(tensor.name)
        formats[tensor.name] = given
    notes = [_fallback_note(*formats, names, policy) for formats, names in fallbacks.items()]
    notes += [_spared_note(spared, policy)] if spared else []
    return FormatChoice(MappingProxyType(formats), tuple(notes))


def _wanted_format(tensor: Tensor, policy: Policy, experts: int, *, tied: bool) -> Format:
    if not policy.default.quantized:
        return _converter_format(tensor, policy)
    if not _is_quantized(tensor):
        return F32
    return _wanted(_part(tensor.name, tied=tied), experts, policy)


def fitting(wanted: Format, columns: int) -> Format:
    """``wanted``, or what llama.cpp takes instead where rows of ``columns`` are not whole blocks of it."""
    if wanted.fits(columns):
        return wanted
    smaller = _SMALLER_BLOCKS.get(wanted.name, F16)
    return smaller if smaller.fits(columns) else F16


def _converter_format(tensor: Tensor, policy: Policy) -> Format:
    """conversion/base.py, prepare_tensors."""
    name = tensor.name
    if len(tensor.shape) <= 1 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return F32
    return F32 if _CONVERTER_KEEPS.fullmatch(name) else policy.default


def _is_quantized(tensor: Tensor) -> bool:
    """llama-quant.cpp, tensor_allows_quantization."""
    name = tensor.name
    return (
        _axes(tensor.shape) >= 2
        and name.endswith("weight")
        and name not in _QUANTIZER_KEEPS
        and not any(part in name for part in _QUANTIZER_KEEPS_PARTS)
    )


def _axes(shape: Sequence[int]) -> int:
    """Axes as ggml counts them: the slowest ones do not count while they have length 1."""
    axes = len(shape)
    while axes > 1 and shape[-axes] == 1:
        axes -= 1
    return axes


def _part(name: str, *, tied: bool) -> Part:
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return Part.OUTPUT
    if "attn_v.weight" in name or "attn_qkv.weight" in name or "attn_kv_b.weight" in name:
        return Part.ATTENTION_V
    return Part.ATTENTION_K if "attn_k.weight" in name else Part.OTHER


def _wanted(part: Part, experts: int, policy: Policy) -> Format:
    if not policy.pure:
        for rule in policy.rules:
            if rule.part is part and rule.experts in (None, experts):
                return rule.format
    return policy.default


def _experts(model: Model) -> int:
    count = model.hparams.get(f"{model.arch}.expert_count", 0)
    return count if isinstance(count, int) else 0


def _fallback_note(wanted: Format, given: Format, names: Sequence[str], policy: Policy) -> Note:
    which = names[0] if len(names) == 1 else f"{len(names)} tensors ({names[0]}, …)"
    verb = "has" if len(names) == 1 else "have"
    return Note(
        "format-fallback",
        f"{which} {verb} rows that are not whole blocks of {wanted.block_size} weights: "
        f"{given.display} instead of {wanted.display} in the {policy.display} file, as llama.cpp does",
        warning=True,
    )


def _spared_note(names: Sequence[str], policy: Policy) -> Note:
    which = names[0] if len(names) == 1 else f"{len(names)} tensors ({names[0]}, …)"
    why = (
        "in the checkpoint's precision, as asked"
        if policy.keep_wo
        else f"in F32 in the {policy.display} file: what flows into them may exceed half precision"
    )
    return Note("feed-forward-wo", f"the feed-forward output matrices of T5, {which}, are written {why}")
