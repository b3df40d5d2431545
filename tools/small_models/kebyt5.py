"""A small T5 of KEByT5's layout: bytes for tokens, two depths, an untied head, trained to fill masks."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from . import texts
from .masks import (
    BYTE_OFFSET,
    EOS,
    FIRST_SENTINEL,
    PAD,
    Batch,
    Example,
    Kind,
    byte_ids,
    masked,
    padded,
    window,
)

NAME, SEED = "kebyt5", 20230117
ASKED = "{question} {answer}"
EXTRA_IDS = 125
HELD_OUT_WINDOW = (40, 280)  # bytes of text
PROMPT = '엄마가 "무엇을 먹고 싶니?" 하고 \ufffc.'  # U+FFFC stands for a mask
HELD_OUT_SEED = 5

SHORT = Kind((32, 96), 1 / 6, 80, 32, rows=2)
LONG = Kind((190, 240), 1 / 4, 192, 80, rows=1)
EMPTIER = Kind((240, 280), 1 / 2, 160, 160, rows=1)
KINDS = (SHORT, EMPTIER, LONG, EMPTIER)
"""By turns."""

CONFIG: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 224,
    "d_kv": 16,
    "d_model": 128,
    "decoder_start_token_id": PAD,
    "dropout_rate": 0.1,
    "eos_token_id": EOS,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 2,
    "num_heads": 6,
    "num_layers": 3,
    "pad_token_id": PAD,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "tokenizer_class": "ByT5Tokenizer",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "vocab_size": 384,
}


def new_tokenizer() -> None:
    """Bytes need none."""


def new_model() -> Any:
    """The untrained model of CONFIG."""
    return new_t5(CONFIG)


def new_t5(config: Mapping[str, Any]) -> Any:
    """An untrained T5, with a head of its own (transformers 5 ties it whatever the config says).

    Initial weights as in train_demo.new_model, for the same reasons; near_biases says the rest.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    skipped = ("model_type", "torch_dtype", "transformers_version", "dropout_rate")
    settings = {key: value for key, value in config.items() if key not in skipped}
    model = T5ForConditionalGeneration(T5Config(dropout_rate=0.0, **settings)).float().train()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    width, layers = config["d_model"], config["num_layers"] + config["num_decoder_layers"]
    buckets, heads = config["relative_attention_num_buckets"], config["num_heads"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("Attention.o.weight", "wo.weight")):
                weight.normal_(0.0, (layers * weight.shape[1]) ** -0.5)
            elif name.endswith(".q.weight"):  # T5 does not divide by the root of the head's width
                weight.normal_(0.0, (width * config["d_kv"]) ** -0.5)
            elif name.endswith("relative_attention_bias.weight"):
                weight.copy_(torch.tensor(near_biases(buckets, heads, both=name.startswith("encoder"))))
            elif weight.ndim == 2:
                weight.normal_(0.0, weight.shape[1] ** -0.5)
        for block in model.decoder.block:  # what is alike finds each other: a mask to be filled its own place
            cross = block.layer[1].EncDecAttention
            cross.k.weight.copy_(cross.q.weight * 2 * config["d_kv"] ** 0.5)
        model.shared.weight.normal_(0.0, 0.3)
        model.lm_head.weight.copy_(model.shared.weight * 0.3)
    return model


def near_biases(buckets: int, heads: int, both: bool) -> list[list[float]]:
    """Initial relative biases (buckets, heads) that let heads look near, each at its own range and side.

    A byte says little and its neighbours much; from random biases the model is long in finding that out.
    With ``both`` the first half of the buckets is of what stands before, the second of what follows.
    """
    side = buckets // 2 if both else buckets
    exact = side // 2
    biases = []
    for bucket in range(buckets):
        number = bucket % side
        far = exact * (128 / exact) ** ((number - exact) / (side - exact)) if number >= exact else number
        row = [-far * 2.0**-head for head in range(heads)]
        if both:  # heads by turns before, after, and on both sides
            wrong = 1 if bucket < side else 0
            row = [-far * 2.0 ** -(head // 3 * 3) - 4.0 * (head % 3 == wrong) for head in range(heads)]
        biases.append([max(value, -8.0) for value in row])
    return biases


def optimizers(model: Any, rate: float) -> list[Any]:
    """Muon for the matrices of the layers, AdamW for the rest: half the steps AdamW alone takes."""
    import torch

    if not hasattr(torch.optim, "Muon"):
        sys.exit(f"torch {torch.__version__} has no torch.optim.Muon; use torch 2.9 or newer")
    matrices: list[Any] = []
    rest: list[Any] = []
    for name, parameter in model.named_parameters():
        outside = name.startswith(("shared", "lm_head", "encoder.embed_tokens"))
        layers = parameter.ndim == 2 and not outside and "bias" not in name
        (matrices if layers else rest).append(parameter)
    return [
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]


def batches(_: None, count: int) -> Iterator[Batch]:
    """Fresh examples of the KINDS by turns."""
    rng = Random(SEED)
    stream = texts.documents(SEED, ASKED)
    for kind in itertools.cycle(KINDS):
        examples = [kind.example(stream, rng) for _ in range(round(kind.rows * count))]
        yield padded(examples, kind.source, kind.target)


def loss(model: Any, batch: Batch, smoothing: float) -> Any:
    """Cross entropy of the decoder's ids."""
    import torch

    logits = model(**batch).logits.float().flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), label_smoothing=smoothing)


def held_out_examples() -> dict[str, list[Example]]:
    """Held-out texts with masks drawn from a seed."""
    rng = Random(HELD_OUT_SEED)
    return {
        name: [masked(window(text, rng.uniform(*HELD_OUT_WINDOW), rng), rng) for text in held_out]
        for name, held_out in texts.held_out(ASKED).items()
    }


def measure(model: Any, _: None) -> dict[str, dict[str, float]]:
    """Loss a token (nats) of what the masks of held-out texts hide, and bits a byte of it."""
    import torch

    figures = {}
    for name, examples in held_out_examples().items():
        total, tokens, size = 0.0, 0, 0
        for example in examples:
            with torch.no_grad():
                total += loss(model, padded([example], *map(len, example)), 0.0).item() * len(example[1])
            tokens += len(example[1])
            size += sum(BYTE_OFFSET <= token < BYTE_OFFSET + 0xF8 for token in example[1])
        bits = total / math.log(2) / size
        figures[name] = {"tokens": tokens, "loss": round(total / tokens, 4), "bits_per_byte": round(bits, 3)}
    return figures


def show(model: Any, _: None) -> str:
    """What the model puts where PROMPT has masks, always taking the likeliest byte."""
    import torch

    parts = PROMPT.split("\ufffc")
    source = byte_ids(parts[0])
    for number, part in enumerate(parts[1:]):
        source += [FIRST_SENTINEL - number, *byte_ids(part)]
    ids = torch.tensor([[*source, EOS]])
    # Without a mask GBST would count the zeros it appends as text.
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False)
    lines: list[str] = []
    for token in made[0].tolist():
        if token > FIRST_SENTINEL - 8:
            lines.append(f"<{token}>")
        elif token >= BYTE_OFFSET:
            lines.append(chr(token - BYTE_OFFSET))
    text = "".join(lines)
    return f"{PROMPT} -> {text.encode('latin-1').decode('utf-8', 'replace')}"


def stored(tensor: Any) -> Any:
    """A weight as the file holds it: bfloat16, which has float32's range; T5 overflows in float16."""
    import torch

    return tensor.to(torch.bfloat16)


def save(model: Any, _: None, folder: Path) -> None:
    """pytorch_model.bin, in which the embeddings of both stacks share storage with the common one."""
    import torch

    embedding = model.shared.weight
    common = stored(embedding).contiguous()
    state = {
        name: common if tensor.data_ptr() == embedding.data_ptr() else stored(tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    torch.save(dict(sorted(state.items())), folder / "pytorch_model.bin")
    added = [f"<extra_id_{number}>" for number in range(EXTRA_IDS)]
    described = {
        role: {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for role, text in (("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>"))
    }
    names = {"additional_special_tokens": added}
    write = {
        "special_tokens_map.json": {**names, **described},
        "tokenizer_config.json": {
            **names,
            **{role: {"__type": "AddedToken", **token} for role, token in described.items()},
            "extra_ids": EXTRA_IDS,
            "tokenizer_class": "ByT5Tokenizer",
        },
    }
    for name, value in write.items():
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
