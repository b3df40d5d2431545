"""What the small decoders that begin every text with one token have in common: batches, loss, measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from demo_texts.generator import JOINT

from . import texts

ASKED = "질문: {question}\n답: {answer}"
PROMPT = "옛날 옛날 깊은 숲속에"
Encode = Callable[[str], Sequence[int]]


def optimizers(model: Any, rate: float) -> list[Any]:
    """AdamW, with decay of the matrices."""
    import torch

    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))]


def initialize(model: Any, residual: tuple[str, ...], layers: int) -> None:
    """Small random matrices, and smaller ones, those of ``residual``, where a layer adds to the stream."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                doubled = 2 * layers if name.endswith(residual) else 1
                weight.normal_(0.0, (doubled * weight.shape[1]) ** -0.5)


def batches(encode: Encode, seed: int, length: int, count: int, first: int) -> Iterator[dict[str, Any]]:
    """Rows of ``length`` ids: whole documents, each with ``first`` before it."""
    import torch

    stream = texts.documents(seed, ASKED)
    while True:
        rows = []
        for _ in range(count):
            ids: list[int] = []
            while len(ids) < length:
                ids += [first, *encode(next(stream).replace(JOINT, ""))]
            rows.append(ids[:length])
        yield {"input_ids": torch.tensor(rows)}


def loss(model: Any, batch: dict[str, Any], smoothing: float) -> Any:
    """Cross entropy of every next token."""
    import torch

    logits = model(**batch).logits[:, :-1].float().flatten(0, 1)
    return torch.nn.functional.cross_entropy(
        logits, batch["input_ids"][:, 1:].flatten(), label_smoothing=smoothing
    )


def measure(model: Any, encode: Encode, length: int, first: int) -> dict[str, dict[str, float]]:
    """Loss a token (nats) on held-out texts, each from start to end, and bits a byte."""
    import torch

    figures = {}
    for name, held_out in texts.held_out(ASKED).items():
        total, tokens, size = 0.0, 0, 0
        for text in held_out:
            ids = torch.tensor([[first, *encode(text), first]])[:, :length]
            with torch.no_grad():
                total += loss(model, {"input_ids": ids}, 0.0).item() * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
            size += len(text.encode())
        bits = total / math.log(2) / size
        figures[name] = {"tokens": tokens, "loss": round(total / tokens, 4), "bits_per_byte": round(bits, 3)}
    return figures


def show(model: Any, tokenizer: Any, first: int) -> str:
    """What the model says, always taking the likeliest token."""
    import torch

    ids = torch.tensor([[first, *tokenizer.encode(PROMPT, add_special_tokens=False).ids]])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False, pad_token_id=1
    )
    return str(tokenizer.decode(made[0].tolist()))
