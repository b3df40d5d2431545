"""A small HyperCLOVA X of SEED Think's layout: norms behind both halves of a layer, four scalars, ChatML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo_texts.generator import JOINT

from . import byte_bpe, kogpt, texts

NAME, SEED = "hyperclovax", 20250722
ASKED = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|><|endofturn|>"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|stop|>", "<|endofturn|>")
EOS, TURN = 0, 4
VOCABULARY, CONTEXT = 512, 256
TOKENIZER_DOCUMENTS = 5000
PROMPT = "옛날 옛날 깊은 숲속에"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>"
    "{% if message['role'] == 'assistant' %}<|endofturn|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CONFIG: dict[str, Any] = {
    "architectures": ["HyperCLOVAXForCausalLM"],
    "attention_bias": False,
    "attention_multiplier": 0.03125,
    "bos_token_id": EOS,
    "embedding_multiplier": 10.0,
    "eos_token_id": EOS,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 256,
    "logits_scaling": 0.125,
    "max_position_embeddings": CONTEXT,
    "mlp_bias": False,
    "model_type": "hyperclovax",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": EOS,
    "residual_multiplier": 0.7,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_post_norm": True,
    "vocab_size": VOCABULARY,
}
Batch = dict[str, Any]
optimizers, loss, measured = kogpt.optimizers, kogpt.loss, kogpt.measured


def new_tokenizer() -> Any:
    """Byte-level BPE: five special tokens, 256 bytes, then the merges."""
    return byte_bpe.trained(VOCABULARY, SPECIALS, texts.documents(SEED, ASKED), TOKENIZER_DOCUMENTS)


def new_model() -> Any:
    """The untrained model; queries and keys begin larger, since scores are divided by 32, not its root."""
    import torch
    from transformers import HyperCLOVAXConfig, HyperCLOVAXForCausalLM

    settings = {key: value for key, value in CONFIG.items() if key != "torch_dtype"}
    model = HyperCLOVAXForCausalLM(HyperCLOVAXConfig(**settings)).float().train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                larger = 2.4 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
                weight.normal_(0.0, larger * weight.shape[1] ** -0.5)
        model.model.embed_tokens.weight.normal_(0.0, 0.1)
    return model


def batches(tokenizer: Any, count: int) -> Iterator[Batch]:
    """Rows of CONTEXT ids: whole documents, each ended by <|endoftext|>."""
    import torch

    stream = texts.documents(SEED, ASKED)
    while True:
        rows = []
        for _ in range(count):
            ids: list[int] = []
            while len(ids) < CONTEXT:
                ids += [*tokenizer.encode(next(stream).replace(JOINT, "")).ids, EOS]
            rows.append(ids[:CONTEXT])
        yield {"input_ids": torch.tensor(rows)}


def measure(model: Any, tokenizer: Any) -> dict[str, dict[str, float]]:
    """Loss a token (nats) on held-out texts, each from its start to its end, and bits a byte."""
    return measured(model, tokenizer, ASKED, EOS, CONTEXT)


def show(model: Any, tokenizer: Any) -> str:
    """What the model says, always taking the likeliest token."""
    return kogpt.said(model, tokenizer, PROMPT, EOS)


def stored(tensor: Any) -> Any:
    """A weight as the file holds it: bfloat16."""
    import torch

    return tensor.to(torch.bfloat16)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """model.safetensors, its head tied, and the tokenizer's files."""
    from safetensors.torch import save_file

    state = {name: stored(tensor).contiguous() for name, tensor in model.state_dict().items()}
    state.pop("lm_head.weight", None)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    end = SPECIALS[EOS]
    roles = {"bos_token": end, "eos_token": end, "pad_token": end}
    settings = {**roles, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    ids = {"bos_token_id": EOS, "eos_token_id": [EOS, TURN], "pad_token_id": EOS}
    written = {"special_tokens_map": roles, "tokenizer_config": settings, "generation_config": ids}
    for name, value in written.items():
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
