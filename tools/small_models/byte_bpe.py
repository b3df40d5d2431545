"""Byte-level BPE trained on the demo texts, and GPT-2's files of one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demo_texts.generator import JOINT


def trained(size: int, specials: Sequence[str], stream: Iterator[str], documents: int) -> Any:
    """Of ``size`` tokens: ``specials`` first, then 256 bytes, then merges learned from so many documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # A line break between a word and its particle keeps each in tokens of its own.
    tokenizer.train_from_iterator((next(stream).replace(JOINT, "\n") for _ in range(documents)), trainer)
    if tokenizer.get_vocab_size() != size:
        sys.exit(f"the texts gave {tokenizer.get_vocab_size()} tokens, expected {size}")
    return tokenizer


def save(tokenizer: Any, folder: Path) -> None:
    """vocab.json and merges.txt."""
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda entry: entry[1]))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")
