"""Which tensor gets which format, where llama.cpp's own tables can be asked."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from kconv.core.errors import UsageError
from kconv.core.model import Model
from kconv.core.tensor import DType, Tensor
from kconv.quant.formats import BF16, F16, F32, FORMATS, Q6_K, Q8_0
from kconv.quant.policy import POLICIES, choose_formats, fitting, parse_policy, quantization_metadata


def model(**shapes: tuple[int, ...]) -> Model:
    tensors = tuple(
        Tensor(name.replace("__", "."), shape, DType.BF16, lambda start, stop: np.empty(0, np.uint16))
        for name, shape in shapes.items()
    )
    return Model(arch="llama", hparams={}, tensors=tensors)


def chosen(tensors: Model, policy: str, *, pure: bool = False) -> dict[str, str]:
    choice = choose_formats(tensors, parse_policy(policy, pure=pure))
    return {name: format.name for name, format in choice.formats.items()}


def test_file_types_are_llama_cpps() -> None:
    names = {"f32": "ALL_F32"}
    for policy in POLICIES.values():
        expected = gguf.LlamaFileType[names.get(policy.name, f"MOSTLY_{policy.display}")]
        assert quantization_metadata(policy) == {
            "general.quantization_version": gguf.GGML_QUANT_VERSION,
            "general.file_type": int(expected),
        }


def test_parse_policy() -> None:
    assert parse_policy("Q4_0") == POLICIES["q4_0"]
    assert parse_policy("q4_0", pure=True).pure
    with pytest.raises(UsageError, match="unknown type 'q4_k_z'") as caught:
        parse_policy("q4_k_z")
    assert all(name in str(caught.value) for name in POLICIES)


def test_converter_keeps_what_llama_cpp_keeps() -> None:
    """conversion/base.py, prepare_tensors, by the names gguf-py gives."""
    kept = ("FFN_GATE_INP", "FFN_GATE_INP_SHEXP", "POS_EMBD", "TOKEN_TYPES", "SSM_CONV1D", "SHORTCONV_CONV")
    names = [gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[name]].format(bid=3) + ".weight" for name in kept]
    names += ["blk.0.attn_norm.weight", "blk.0.attn_q_norm.weight", "blk.0.attn_q.bias", "rope_freqs.weight"]
    vectors = {"rope_freqs.weight"}
    tensors = tuple(
        Tensor(name, (64,) if name in vectors else (4, 64), DType.F16, lambda a, b: np.empty(0, np.float16))
        for name in (
            *names,
            "token_embd.weight",
            "output.weight",
            "blk.3.attn_q.weight",
            "blk.3.ffn_gate.weight",
        )
    )
    for policy in (F16, BF16, F32):
        made = choose_formats(Model("llama", {}, tensors), POLICIES[policy.name])
        assert all(made[name] == F32 for name in names)
        assert [made[tensor.name] for tensor in tensors[-4:]] == [policy] * 4
        assert made.notes == ()


def test_recipes() -> None:
    llama = model(
        token_embd__weight=(100, 256),
        output__weight=(100, 256),
        output_norm__weight=(256,),
        blk__0__attn_k__weight=(64, 256),
        blk__0__ffn_down__weight=(256, 40),
    )
    recipe = chosen(llama, "q4_0")
    assert list(recipe.values()) == ["q4_0", "q6_K", "f32", "q4_0", "f16"]
    assert list(chosen(llama, "q4_0", pure=True).values()) == ["q4_0", "q4_0", "f32", "q4_0", "f16"]
    assert list(chosen(llama, "q8_0").values()) == ["q8_0", "q8_0", "f32", "q8_0", "f16"]
    tied = model(token_embd__weight=(100, 160), blk__0__attn_q__weight=(160, 160))
    assert list(chosen(tied, "q5_1").values()) == ["q8_0", "q5_1"]


def test_fallbacks_are_told() -> None:
    narrow = model(
        token_embd__weight=(9, 160), blk__0__ffn_up__weight=(40, 160), blk__0__ffn_down__weight=(160, 40)
    )
    notes = choose_formats(narrow, parse_policy("q4_0")).notes
    assert [(note.name, note.warning) for note in notes] == [("format-fallback", True)] * 2
    assert "token_embd.weight has rows that are not whole blocks of 256" in notes[0].message
    assert "Q8_0 instead of Q6_K" in notes[0].message
    assert "F16 instead of Q4_0" in notes[1].message
    assert choose_formats(narrow, parse_policy("f16")).notes == ()


def test_fitting() -> None:
    assert fitting(Q6_K, 512) == Q6_K
    assert fitting(Q6_K, 288) == Q8_0
    assert fitting(Q6_K, 40) == F16
    assert fitting(FORMATS["q4_0"], 1) == F16


def test_axes_are_counted_as_ggml_counts_them() -> None:
    """A matrix of one row is a vector to ggml and stays F32; the converter does make it F16."""
    row = model(blk__0__score__weight=(1, 256), blk__0__column__weight=(256, 1), scalar=())
    assert list(chosen(row, "q4_0").values()) == ["f32", "f16", "f32"]
    assert list(chosen(row, "f16").values()) == ["f16", "f16", "f32"]
