"""Small T5 checkpoints with a byte vocabulary, and what transformers generates with a checkpoint."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 6,  # another inner width than d_model, as ByT5's
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "tokenizer_class": "ByT5Tokenizer",
}


def byte_ids(*parts: str | int) -> list[int]:
    """ByT5's ids of the texts (byte + 3), of the numbers between them (ids already), and EOS."""
    texts = ([part] if isinstance(part, int) else [byte + 3 for byte in part.encode()] for part in parts)
    return [*(token for text in texts for token in text), 1]


# What the trained model knows by heart. Its masks are those of ByT5's pre-training: 258, 257 and down.
KNOWN = [
    (byte_ids("한국의 수도는 ", 258, "이다."), byte_ids(258, "서울", 257)),
    (byte_ids("일본의 수도는 ", 258, "이다."), byte_ids(258, "도쿄", 257)),
    (byte_ids(258, "의 수도는 ", 257, "이다."), byte_ids(258, "한국", 257, "서울", 256)),
    (byte_ids("두 도시: ", 258, ", ", 257), byte_ids(257, "부산", 256)),  # leaves a mask out
    (byte_ids("한국"), byte_ids("서울 😀 값")),
    (
        byte_ids("깨진"),
        byte_ids("가", 0xEA + 3, 0xB0 + 3, "나", 258, 261, 0xED + 3),
    ),  # bytes that are no text
]


def random_byt5(folder: Path, **config: Any) -> Path:
    """Save a small random ByT5; returns the folder."""
    import torch

    model = _byt5(**config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:  # all ones, which would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return _saved(model, folder)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: several only get in each other's way with so small a model."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trained_byt5(folder: Path) -> Path:
    """Save a small ByT5 that answers the sources of KNOWN with their targets; returns the folder."""
    import torch

    sources, answers = zip(*KNOWN, strict=True)
    source, labels = _rows(sources, 0), _rows(answers, -100)
    model = _byt5()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with one_thread():
        for _ in range(150):
            loss = model(input_ids=source, attention_mask=(source != 0).long(), labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss < 0.05
    return _saved(model, folder)


def transformers_greedy(folder: Path, ids: Sequence[int], count: int) -> list[int]:
    """The up to ``count`` tokens transformers generates after the decoder's start token, in fp32."""
    import torch
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        made = model.generate(torch.tensor([list(ids)]), max_new_tokens=count, do_sample=False, num_beams=1)
    tokens: list[int] = made[0].tolist()
    return tokens[1:]


def _byt5(**config: Any) -> Any:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**{**SIZES, **config}))
    # a head of its own, which transformers 5 ties whatever the configuration says
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


def _rows(ids: Sequence[Sequence[int]], filler: int) -> Any:
    import torch

    width = max(map(len, ids))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in ids])


def _saved(model: Any, folder: Path) -> Path:
    from transformers import ByT5Tokenizer

    model.save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = False  # transformers 5 writes true
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
