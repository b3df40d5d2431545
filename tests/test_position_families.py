"""GPT-2, OPT, XGLM, MPT: logits of llama.cpp and onnxruntime against transformers in fp32, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_material import llama_cpp_logits, nmse, transformers_logits
from onnx_causal_material import run, session, write

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.mapping import build, unmapped
from kconv.converters.samples.positioned import write_gpt2, write_mpt, write_opt, write_xglm
from kconv.core.errors import InputError
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import DType

IDS = [int(i) for i in np.random.default_rng(7).integers(4, 1000, 160)]
ROUNDED_GELU = 1e-6  # measured: 1e-7 to 2e-7; llama.cpp's GELU is the tanh form through a table of halves

Writer = Callable[..., Path]
CASES: dict[str, tuple[Writer, dict[str, Any], float]] = {
    "gpt2": (write_gpt2, {}, ROUNDED_GELU),
    "gpt2, untied, the exact GELU": (
        write_gpt2,
        {"tie_word_embeddings": False, "activation_function": "gelu"},
        ROUNDED_GELU,
    ),
    "gpt2 like PolyLM": (
        write_gpt2,
        {"n_inner": None, "n_ctx": None, "activation_function": "gelu_fast"},
        ROUNDED_GELU,
    ),
    "opt": (write_opt, {}, 1e-10),
    "opt without biases": (write_opt, {"enable_bias": False}, 1e-10),
    "mpt": (write_mpt, {}, ROUNDED_GELU),
    "mpt, nothing clipped, eight heads": (write_mpt, {"attn_config": {}, "n_heads": 8}, ROUNDED_GELU),
    "xglm": (write_xglm, {}, ROUNDED_GELU),
    "xglm, nothing scaled": (write_xglm, {"scale_embedding": False}, ROUNDED_GELU),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    write_checkpoint, changes, bound = CASES[case]
    folder = write_checkpoint(tmp_path / "checkpoint", dtype=DType.F32, **changes)
    (made,) = to_gguf(folder, tmp_path / "out.gguf", verify=False).outputs
    expected = transformers_logits(folder, IDS)
    found = nmse(llama_cpp_logits(made.path, IDS), expected)
    print(case, found)
    assert found < bound
    model = session(write(folder, tmp_path / "onnx"))
    logits, _ = run(model, np.array([IDS], np.int64))
    assert nmse(logits[0], expected) < 1e-9


@pytest.mark.parametrize("case", CASES)
def test_weights_come_back(case: str, tmp_path: Path) -> None:
    write_checkpoint, changes, _ = CASES[case]
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "checkpoint", dtype=DType.F32, **changes))
    family = family_for(checkpoint.config)
    model = build(family, checkpoint)
    back = unmapped(family, checkpoint, {tensor.name: tensor for tensor in model.tensors})
    for name, tensor in back.items():
        if name not in checkpoint.tensors:
            continue
        original = checkpoint.tensors[name]
        assert tensor.shape == original.shape
        first = 2 if "embed_positions" in name else 0
        whole = tensor.read(first, tensor.rows)
        assert np.allclose(whole, original.read(first, original.rows), rtol=1e-6, atol=0), name
        assert (tensor.read(3, 5) == whole[3 - first : 5 - first]).all() or tensor.rows < 5, name


@pytest.mark.parametrize(
    ("write_checkpoint", "changes", "message"),
    [
        (write_gpt2, {"scale_attn_by_inverse_layer_idx": True}, "scales all layers alike"),
        (write_gpt2, {"scale_attn_weights": False}, "the root of the head's size"),
        (write_gpt2, {"activation_function": "relu"}, "supports only GELU"),
        (write_opt, {"do_layer_norm_before": False}, "OPT-350m"),
        (write_opt, {"word_embed_proj_dim": 96}, "another width"),
        (write_opt, {"activation_function": "gelu"}, "supports only relu"),
        (write_mpt, {"attn_config": {"qk_ln": True}}, "does not compute that"),
        (write_mpt, {"attn_config": {"alibi": False}}, "does not compute that"),
        (write_mpt, {"architectures": ["MosaicGPT"]}, "code of the checkpoint's own"),
        (write_xglm, {"activation_function": "relu"}, "supports only GELU"),
        (write_xglm, {"pad_token_id": 7}, "no sinusoid"),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(
    write_checkpoint: Writer, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", **changes)
    with pytest.raises(InputError, match=message):
        to_gguf(folder, tmp_path / "out.gguf", verify=False)


def _kl(reference: Any, found: Any) -> float:
    import torch

    p, q = (torch.log_softmax(torch.tensor(each, dtype=torch.float64), -1) for each in (reference, found))
    return float((p.exp() * (p - q)).sum(-1).mean())


def _logits_with(folder: Path, weights: Any, ids: list[int]) -> Any:
    """What transformers computes with those weights, under the checkpoint's names."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    state = {name: torch.from_numpy(_floats(each)) for name, each in weights.items()}
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def _floats(tensor: Any) -> Any:
    from kconv.quant.ggml import to_float32

    out = np.empty(tensor.shape, np.float32)
    to_float32(np.ascontiguousarray(tensor.read(0, tensor.rows)), tensor.dtype, out)
    return out


def test_a_trained_opt_loses_what_the_type_costs_and_no_more(tmp_path: Path) -> None:
    """Mean KL against that of transformers computing with the file's weights, and what activations cost."""
    from transformers import AutoTokenizer

    from kconv.converters.samples import write_sample
    from kconv.quant.gguf_weights import open_gguf

    folder = write_sample("opt", tmp_path / "opt")
    made = to_gguf(folder, tmp_path, types=("f32", "q8_0", "q4_0", "q4_k_m"), verify=False).outputs
    text = (folder / "README.md").read_text("utf-8")
    ids = [2, *AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)][:250]
    checkpoint = open_checkpoint(folder)
    family = family_for(checkpoint.config)
    expected = transformers_logits(folder, ids)
    activations = 0.0
    for output in made:
        found = llama_cpp_logits(output.path, ids)
        if output.type == "f32":
            assert nmse(found, expected) < 1e-9
            assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.99
            continue
        with open_gguf(output.path) as file:
            tensors = {info.name: file.tensor(info) for info in file.header.tensors}
            alone = _kl(expected, _logits_with(folder, unmapped(family, checkpoint, tensors), ids))
        kl = _kl(expected, found)
        print(output.type, "KL", kl, "weights alone", alone)
        if output.type == "q8_0":
            # inputs are rounded to the same format as the weights, so they cost about as much again
            assert kl < 2.5 * alone
            activations = kl
        else:
            assert kl < 1.1 * alone + activations
