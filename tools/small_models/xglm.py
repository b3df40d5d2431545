"""A small XGLM: sinusoids for positions, scaled embeddings that are the head, too, unigram pieces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo_texts.generator import JOINT

from . import causal, texts

NAME, SEED = "xglm", 20211220
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
FIRST = 2  # </s>, in front of every text
MADE_UP = 7  # <madeupword0> and so on, behind the pieces
VOCABULARY, CONTEXT = 1112, 256
DOCUMENTS = 5000

# Keys and values as facebook/xglm-1.7B has them; the sizes are ours.
CONFIG: dict[str, Any] = {
    "activation_dropout": 0,
    "activation_function": "gelu",
    "architectures": ["XGLMForCausalLM"],
    "attention_dropout": 0.0,
    "attention_heads": 4,
    "bos_token_id": 0,
    "d_model": 128,
    "decoder_start_token_id": 2,
    "dropout": 0.0,
    "eos_token_id": 2,
    "ffn_dim": 512,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": CONTEXT,
    "model_type": "xglm",
    "num_layers": 3,
    "pad_token_id": 1,
    "scale_embedding": True,
    "torch_dtype": "float16",
    "transformers_version": "4.15.0.dev0",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


def new_tokenizer() -> Any:
    """Four special tokens, unigram pieces, seven made-up words; </s> in front of every text."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    pieces = VOCABULARY - MADE_UP
    trainer = trainers.UnigramTrainer(
        vocab_size=pieces, special_tokens=list(SPECIALS), unk_token="<unk>", show_progress=False
    )
    stream = (text.replace(JOINT, "\n") for text in texts.documents(SEED, causal.ASKED))
    tokenizer.train_from_iterator(
        (line for text in itertools.islice(stream, DOCUMENTS) for line in text.split("\n")), trainer
    )
    whole = json.loads(tokenizer.to_str())
    vocab = whole["model"]["vocab"][:pieces]
    vocab += [[f"<madeupword{number}>", 0.0] for number in range(VOCABULARY - len(vocab))]
    whole["model"] |= {"vocab": vocab, "unk_id": SPECIALS.index("<unk>")}
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> </s> $B", special_tokens=[("</s>", FIRST)]
    )
    return tokenizer


def new_model() -> Any:
    """The untrained model."""
    import torch
    from transformers import XGLMConfig, XGLMForCausalLM

    settings = {
        key: value for key, value in CONFIG.items() if key not in ("torch_dtype", "transformers_version")
    }
    model = XGLMForCausalLM(XGLMConfig(**settings)).float().train()
    causal.initialize(model, ("out_proj.weight", "fc2.weight"), CONFIG["num_layers"])
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, 0.05)
    return model


optimizers = causal.optimizers
loss = causal.loss


def batches(tokenizer: Any, count: int) -> Iterator[dict[str, Any]]:
    """Rows of CONTEXT ids."""
    return causal.batches(lambda text: _ids(tokenizer, text), SEED, CONTEXT, count, FIRST)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def measure(model: Any, tokenizer: Any) -> dict[str, dict[str, float]]:
    """Loss on held-out texts."""
    return causal.measure(model, lambda text: _ids(tokenizer, text), CONTEXT, FIRST)


def show(model: Any, tokenizer: Any) -> str:
    """What the model says to the prompt."""
    return causal.show(model, tokenizer, FIRST)


def stored(tensor: Any) -> Any:
    """A weight as the file holds it: float16."""
    import torch

    return tensor.to(torch.float16)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """pytorch_model.bin, in which the head repeats the embedding, and the tokenizer's files."""
    import torch

    state = {name: stored(tensor).contiguous() for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]  # one storage, written once
    torch.save(dict(sorted(state.items())), folder / "pytorch_model.bin")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    roles = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"}
    roles |= {"pad_token": "<pad>", "unk_token": "<unk>"}
    more = {"additional_special_tokens": [f"<madeupword{number}>" for number in range(MADE_UP)]}
    (folder / "special_tokens_map.json").write_text(json.dumps({**roles, **more}), encoding="utf-8")
    settings = {**roles, **more, "tokenizer_class": "XGLMTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
