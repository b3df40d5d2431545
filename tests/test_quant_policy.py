"""Which tensor gets which format, where llama.cpp's own tables can be asked."""

from __future__ import annotations

import gguf
import llama_cpp
import numpy as np
import pytest

from kconv.core.errors import InputError, UsageError
from kconv.core.model import Model
from kconv.core.tensor import DType, StoredBytes, Tensor
from kconv.quant.formats import BF16, F16, F32, FORMATS, Q6_K, Q8_0
from kconv.quant.policy import POLICIES, choose_formats, parse_policy, quantization_metadata
from kconv.quant.requirements import fitting


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
    numbers = {name.upper(): number for name, number in vars(llama_cpp).items() if "LLAMA_FTYPE_" in name}
    for policy in POLICIES.values():
        known = "ALL_F32" if policy.name == "f32" else f"MOSTLY_{policy.display}"
        assert quantization_metadata(policy) == {
            "general.quantization_version": gguf.GGML_QUANT_VERSION,
            "general.file_type": numbers.pop(f"LLAMA_FTYPE_{known}"),
        }
    assert set(numbers) == {"LLAMA_FTYPE_GUESSED", "LLAMA_FTYPE_MOSTLY_NVFP4"}  # llama-quantize has no nvfp4


def test_parse_policy() -> None:
    assert parse_policy("Q4_0") == POLICIES["q4_0"]
    assert parse_policy("q4_0", pure=True).pure
    with pytest.raises(UsageError, match="unknown type 'q4_k_z'") as caught:
        parse_policy("q4_k_z")
    assert all(name in str(caught.value) for name in POLICIES)
    assert "did you mean q4_K_" in str(caught.value)


def test_llama_quantizes_other_names() -> None:
    """tools/quantize/quantize.cpp has three more names, each for the middle size."""
    names = {"Q3_K": "q3_K_M", "q4_k": "q4_K_M", "Q5_k": "q5_K_M", " Q6_K ": "q6_K", "Mxfp4_MoE": "mxfp4_moe"}
    assert {text: parse_policy(text).name for text in names} == names


def test_requests_that_make_no_sense() -> None:
    for text, message in {
        "ffn_down": "is not of the form PATTERN=TYPE",
        "=q8_0": "is not of the form PATTERN=TYPE",
        "ffn=": "is not of the form PATTERN=TYPE",
        "ffn(=q8_0": "is not a valid Python regular expression",
        "blk.{99999999999}=q8_0": "is not a valid Python regular expression",
        "(" * 3000 + ")" * 3000 + "=q8_0": "is not a valid Python regular expression",
        "[[:digit:]].ffn=q8_0": "is not a valid Python regular expression",  # but of llama-quantize
        "ffn=q8_K": "unknown format 'q8_K'",
        "ffn=i32": "unknown format 'i32'",
    }.items():
        with pytest.raises(UsageError, match=message):
            parse_policy("q4_0", tensor_types=[text])
    assert parse_policy("q4_0", tensor_types=["(?=blk).*_q=f16"]).overrides == (("(?=blk).*_q", F16),)
    with pytest.raises(UsageError, match="did you mean q5_K"):
        parse_policy("q4_0", output_type="q5_KK")
    policy = parse_policy("q4_0", tensor_types=["FFN_down=Q6_k"], output_type="F16", embedding_type="q8_0")
    assert (policy.overrides, policy.output_type) == ((("ffn_down", Q6_K),), F16)
    with pytest.raises(
        UsageError, match="--tensor-type ffn_down=q6_K matches no matrix of this model"
    ) as caught:
        choose_formats(model(token_embd__weight=(9, 256), blk__7__attn_q__weight=(256, 256)), policy)
    assert "blk.0.attn_q.weight" in str(caught.value)


def test_a_tied_embedding_is_the_output_even_in_a_pure_file() -> None:
    """llama-quantize ignores --output-tensor-type there; kconv does what it is asked."""
    tied = model(token_embd__weight=(100, 256), blk__0__attn_q__weight=(256, 256))
    made = choose_formats(tied, parse_policy("q4_K_S", pure=True, output_type="q8_0"))
    assert [format.name for format in made.formats.values()] == ["q8_0", "q4_K"]


def test_requests_hold_for_float_files_too() -> None:
    """llama-quantize ignores --tensor-type there; kconv does what it is asked."""
    plain = model(token_embd__weight=(100, 256), blk__0__attn_v__weight=(256, 256), output__weight=(100, 256))
    made = choose_formats(plain, parse_policy("f16", tensor_types=["attn_v=q8_0"], output_type="bf16"))
    assert [format.name for format in made.formats.values()] == ["f16", "q8_0", "bf16"]


def test_what_is_not_quantized_stays_as_a_gguf_has_it() -> None:
    def stored_types(name: str, shape: tuple[int, ...]) -> Tensor:
        stored = StoredBytes(F16.ggml_type, lambda start, stop: np.empty(0, np.uint8))
        return Tensor(name, shape, DType.F16, lambda start, stop: np.empty(0, np.float16), stored=stored)

    names = ("position_embd.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight")
    tensors = tuple(stored_types(name, (256,) if "norm" in name else (8, 256)) for name in names)
    for name, expected in {"q4_0": ["f16", "f16", "q4_0"], "f32": ["f16", "f16", "f32"]}.items():
        made = choose_formats(Model("bert", {}, tensors), POLICIES[name])
        assert [format.name for format in made.formats.values()] == expected


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
    assert "token_embd.weight has rows that are not a multiple of 256" in notes[0].message
    assert "Q8_0 instead of Q6_K" in notes[0].message
    assert "F16 instead of Q4_0" in notes[1].message
    assert choose_formats(narrow, parse_policy("f16")).notes == ()


def test_mxfp4_says_that_it_is_for_experts() -> None:
    dense = model(token_embd__weight=(100, 256), blk__0__attn_q__weight=(256, 256))
    (note,) = choose_formats(dense, POLICIES["mxfp4_moe"]).notes
    assert "this model has none, so it becomes Q8_0" in note.message
    pure = choose_formats(dense, parse_policy("mxfp4_moe", pure=True))
    assert (pure.notes, pure["blk.0.attn_q.weight"].name) == ((), "mxfp4")


def test_fitting() -> None:
    assert fitting(Q6_K, 512) == Q6_K
    assert fitting(Q6_K, 288) == Q8_0
    assert fitting(Q6_K, 40) == F16
    assert fitting(FORMATS["q4_0"], 1) == F16
    assert fitting(FORMATS["iq1_s"], 32) == FORMATS["iq4_nl"]
    assert fitting(FORMATS["q2_0"], 96) == FORMATS["q4_0"]
    with pytest.raises(
        InputError, match="has rows of 64 weights, not a multiple of the block size 128 of Q1_0"
    ):
        fitting(FORMATS["q1_0"], 64)


def test_axes_are_counted_as_ggml_counts_them() -> None:
    """A matrix of one row is a vector to ggml and stays F32; the converter does make it F16."""
    row = model(blk__0__score__weight=(1, 256), blk__0__column__weight=(256, 1), scalar=())
    assert list(chosen(row, "q4_0").values()) == ["f32", "f16", "f32"]
    assert list(chosen(row, "f16").values()) == ["f16", "f16", "f32"]
