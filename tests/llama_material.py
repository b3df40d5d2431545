"""Random Llama checkpoints, and the logits transformers and llama.cpp make of them."""

from __future__ import annotations

import ctypes
import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def random_llama(folder: Path, tokenizer: Path, dtype: str = "float32", **config: Any) -> Path:
    """Save a small random LlamaForCausalLM with the tokenizer files of ``tokenizer``; returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # initialized to constants, which would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.mul_(6)  # initialized too small for attention to matter
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)
    return folder


def transformers_logits(folder: Path, ids: list[int]) -> Floats:
    """Logits (tokens, vocabulary) of the checkpoint in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits: Floats = model(torch.tensor([ids])).logits[0].numpy()
    return logits


@functools.cache
def _quiet() -> Any:
    """A log that drops all: llama-cpp-python's own fails at tokens that llama.cpp cuts within a letter."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def llama_cpp_logits(path: Path, ids: list[int]) -> Floats:
    """Logits (tokens, vocabulary) of a GGUF on the CPU, with an f32 cache and without flash attention."""
    import llama_cpp

    llama_cpp.llama_log_set(_quiet(), ctypes.c_void_p(0))
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    assert model, f"llama.cpp does not load {path}"
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads = params.n_threads_batch = 2
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, params)
    assert context
    try:
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = 1
        assert llama_cpp.llama_decode(context, batch) == 0
        size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        rows = [llama_cpp.llama_get_logits_ith(context, position) for position in range(len(ids))]
        logits = [np.array(ctypes.cast(row, ctypes.POINTER(ctypes.c_float * size)).contents) for row in rows]
        llama_cpp.llama_batch_free(batch)
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
    return np.stack(logits)


def nmse(actual: Floats, expected: Floats) -> float:
    """Squared error over the squared deviation of the expected values from their mean."""
    return float(((actual - expected) ** 2).mean() / expected.var())
