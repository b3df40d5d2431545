"""Small T5 checkpoints with random weights, and llama.cpp's t5 driven through its C interface.

llama-cpp-python's class Llama cannot run encoder-decoders: the text goes through llama_encode first, then
the decoder's tokens through llama_decode.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_KEPT: list[Any] = []  # what llama.cpp still calls

# d_kv * num_heads is not d_model, the decoder is shallower than the encoder, all as in ByT5.
BYT5: Mapping[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 384,
    "d_model": 96,
    "d_kv": 16,
    "d_ff": 160,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "is_encoder_decoder": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "tokenizer_class": "ByT5Tokenizer",
}


def t5_weights(config: Mapping[str, Any], seed: int = 0, *, head: bool = True) -> dict[str, Any]:
    """Random weights by the names transformers gives them; sizes such that attention and GELU matter."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    hidden, inner, ffn = config["d_model"], config["d_kv"] * config["num_heads"], config["d_ff"]
    weights: dict[str, Any] = {"shared.weight": random(config["vocab_size"], hidden, scale=1.0)}
    if head:
        weights["lm_head.weight"] = random(config["vocab_size"], hidden, scale=hidden**-0.5)
    gated = config["feed_forward_proj"].startswith("gated")
    depth = config["num_layers"]
    for side, layers in (("encoder", depth), ("decoder", config.get("num_decoder_layers", depth))):
        weights[f"{side}.final_layer_norm.weight"] = 1 + random(hidden, scale=0.1)
        for block in range(layers):
            attentions = ["SelfAttention"] + (["EncDecAttention"] if side == "decoder" else [])
            for place, name in enumerate(attentions):
                layer = f"{side}.block.{block}.layer.{place}"
                weights[f"{layer}.layer_norm.weight"] = 1 + random(hidden, scale=0.1)
                for letter in "qkv":
                    weights[f"{layer}.{name}.{letter}.weight"] = random(
                        inner, hidden, scale=0.6 * hidden**-0.5
                    )
                weights[f"{layer}.{name}.o.weight"] = random(hidden, inner, scale=inner**-0.5)
            layer = f"{side}.block.{block}.layer.{len(attentions)}"
            weights[f"{layer}.layer_norm.weight"] = 1 + random(hidden, scale=0.1)
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                weights[f"{layer}.DenseReluDense.{name}.weight"] = random(ffn, hidden, scale=hidden**-0.5)
            weights[f"{layer}.DenseReluDense.wo.weight"] = random(hidden, ffn, scale=ffn**-0.5)
        buckets = config["relative_attention_num_buckets"]
        name = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        weights[name] = random(buckets, config["num_heads"], scale=0.5)
    return weights


def write_t5(
    folder: Path, weights: Mapping[str, Any] | None = None, *, head: bool = True, **changes: Any
) -> Path:
    """A folder with config.json (BYT5 and ``changes``; None takes a key out) and model.safetensors."""
    from safetensors.torch import save_file

    config = {key: value for key, value in {**BYT5, **changes}.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(weights or t5_weights(config, head=head)), folder / "model.safetensors")
    return folder


def reference_logits(folder: Path, source: Sequence[int], target: Sequence[int]) -> Floats:
    """``(len(target), rows)`` from transformers in fp32."""
    import torch
    import transformers

    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        outputs = model.eval()(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target]))
    logits: Floats = outputs.logits[0].numpy()
    return logits


def t5_logits(path: Path, source: Sequence[int], target: Sequence[int]) -> Floats:
    """``(len(target), rows)`` from llama.cpp, with a cache of F32 and without repacked weights."""
    import llama_cpp

    # llama-cpp-python's own prints what may end in the middle of a letter
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    _KEPT.append(quiet)
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, f"llama.cpp refuses {path}"
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(256, len(source), len(target))
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    settings.flash_attn_type = 0
    settings.n_threads = settings.n_threads_batch = 2
    context = llama_cpp.llama_init_from_model(model, settings)
    try:
        for ids, run in ((source, llama_cpp.llama_encode), (target, llama_cpp.llama_decode)):
            batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
            batch.n_tokens = len(ids)
            for place, token in enumerate(ids):
                batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            assert run(context, batch) == 0
            llama_cpp.llama_batch_free(batch)
        rows = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        values = llama_cpp.llama_get_logits(context)
        return np.ctypeslib.as_array(values, shape=(len(target), rows)).copy()
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def nmse(actual: Floats, right: Floats) -> float:
    """Mean square of the difference by the variance of the right logits within each position."""
    spread = right - right.mean(-1, keepdims=True)
    return float(((actual - right) ** 2).mean() / (spread**2).mean())


def byte_ids(text: str, *, end: bool = True) -> list[int]:
    """ByT5's ids of a text."""
    return [byte + 3 for byte in text.encode()] + [1] * end
