"""A small GPT-J of KoGPT's layout: one fp16 pytorch_model.bin with mask buffers, tokenizer.json alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo_texts.generator import JOINT

from . import byte_bpe, texts

NAME, SEED = "kogpt", 20211112
ASKED = "질문: {question}\n답: {answer}"
SPECIALS = ("[BOS]", "[EOS]", "[UNK]", "[PAD]", "[MASK]")
BOS, EOS = 0, 1
VOCABULARY, CONTEXT = 1280, 256
TOKENIZER_DOCUMENTS = 5000
PROMPT = "옛날 옛날 깊은 숲속에"

# KoGPT's keys as its re-uploads keep them; the sizes are ours. A head has 32 rows, of which 16 rotate.
CONFIG: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPTJForCausalLM"],
    "attn_pdrop": 0.0,
    "bos_token_id": BOS,
    "embd_pdrop": 0.0,
    "eos_token_id": EOS,
    "gradient_checkpointing": False,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gptj",
    "n_embd": 128,
    "n_head": 4,
    "n_inner": None,
    "n_layer": 3,
    "n_positions": CONTEXT,
    "resid_pdrop": 0.0,
    "rotary_dim": 16,
    "scale_attn_weights": True,
    "task_specific_params": {
        "text-generation": {"do_sample": True, "max_length": 128, "temperature": 1.0}
    },
    "tie_word_embeddings": False,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "torch_dtype": "float16",
    "transformers_version": "4.11.2",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}  # fmt: skip
Batch = dict[str, Any]


def new_tokenizer() -> Any:
    """Byte-level BPE with KoGPT's special tokens in front: ids 0 to 4, then 256 bytes, then the merges."""
    return byte_bpe.trained(VOCABULARY, SPECIALS, texts.documents(SEED, ASKED), TOKENIZER_DOCUMENTS)


def new_model() -> Any:
    """The untrained model; why these initial weights, train_demo.new_model says."""
    import torch
    from transformers import GPTJConfig, GPTJForCausalLM

    settings = {
        key: value for key, value in CONFIG.items() if key not in ("torch_dtype", "transformers_version")
    }
    model = GPTJForCausalLM(GPTJConfig(**settings)).float().train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                residual = name.endswith(("out_proj.weight", "fc_out.weight"))
                layers = CONFIG["n_layer"] if residual else 0.5
                weight.normal_(0.0, (2 * layers * weight.shape[1]) ** -0.5)
        model.transformer.wte.weight.normal_(0.0, 0.1)
        model.lm_head.weight.copy_(model.transformer.wte.weight * 0.3)
        model.lm_head.bias.zero_()
    return model


def optimizers(model: Any, rate: float) -> list[Any]:
    """AdamW, with decay of the matrices."""
    import torch

    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))]


def batches(tokenizer: Any, count: int) -> Iterator[Batch]:
    """Rows of CONTEXT ids: whole documents, each ended by [EOS], every fourth row begun with [BOS]."""
    import torch

    stream = texts.documents(SEED, ASKED)
    number = 0
    while True:
        rows = []
        for _ in range(count):
            ids = [BOS] if number % 4 == 0 else []
            while len(ids) < CONTEXT:
                ids += [*tokenizer.encode(next(stream).replace(JOINT, "")).ids, EOS]
            rows.append(ids[:CONTEXT])
            number += 1
        yield {"input_ids": torch.tensor(rows)}


def loss(model: Any, batch: Batch, smoothing: float) -> Any:
    """Cross entropy of every next token."""
    import torch

    logits = model(**batch).logits[:, :-1].float().flatten(0, 1)
    return torch.nn.functional.cross_entropy(
        logits, batch["input_ids"][:, 1:].flatten(), label_smoothing=smoothing
    )


def measure(model: Any, tokenizer: Any) -> dict[str, dict[str, float]]:
    """Loss a token (nats) on held-out texts, each from its start to [EOS], and bits a byte."""
    return measured(model, tokenizer, ASKED, EOS, CONTEXT)


def measured(model: Any, tokenizer: Any, asked: str, eos: int, context: int) -> dict[str, dict[str, float]]:
    """The same for any such model, whose texts end with ``eos``."""
    import torch

    figures = {}
    for name, held_out in texts.held_out(asked).items():
        total, tokens, size = 0.0, 0, 0
        for text in held_out:
            ids = torch.tensor([[*tokenizer.encode(text).ids, eos]])[:, :context]
            with torch.no_grad():
                total += loss(model, {"input_ids": ids}, 0.0).item() * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
            size += len(tokenizer.decode(ids[0].tolist()).encode())
        bits = total / math.log(2) / size
        figures[name] = {"tokens": tokens, "loss": round(total / tokens, 4), "bits_per_byte": round(bits, 3)}
    return figures


def show(model: Any, tokenizer: Any) -> str:
    """What the model says, always taking the likeliest token."""
    return said(model, tokenizer, PROMPT, EOS)


def said(model: Any, tokenizer: Any, prompt: str, eos: int) -> str:
    """What any such model goes on with."""
    import torch

    ids = torch.tensor([tokenizer.encode(prompt).ids])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=60,
        do_sample=False,
        pad_token_id=eos,
    )
    return str(tokenizer.decode(made[0].tolist()))


def stored(tensor: Any) -> Any:
    """A weight as the file holds it: float16."""
    import torch

    return tensor.to(torch.float16)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """pytorch_model.bin with the buffers old versions of transformers saved, and the tokenizer's files."""
    import torch

    state = {name: stored(tensor).contiguous() for name, tensor in model.state_dict().items()}
    for layer in range(CONFIG["n_layer"]):
        name = f"transformer.h.{layer}.attn."
        state[f"{name}bias"] = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril()[None, None].clone()
        state[f"{name}masked_bias"] = stored(torch.tensor(-1e9))  # minus infinity in float16
    torch.save(dict(sorted(state.items())), folder / "pytorch_model.bin")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    roles = {f"{text[1:-1].lower()}_token": text for text in SPECIALS}
    written = {role: text for role, text in roles.items() if role != "mask_token"}
    (folder / "special_tokens_map.json").write_text(json.dumps(written), encoding="utf-8")
    settings = {**written, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
