"""tokenizer.json in the shape of a family's, and SentencePiece's models, trained on the spot."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .korean_text import korean_text

_SPACE = "\u2581"  # sentencepiece's visible space

# tiktoken's pattern as Llama 3 publishes it (llama-models, tokenizer.py, pat_str).
LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_fallback_tokenizer(vocab_size: int) -> dict[str, Any]:
    """A tokenizer.json with byte fallback: spaces become U+2581, one stands in front, digits are split.

    The vocabulary also holds ``U+2581 0`` to ``U+2581 9`` with their merges, which no text can reach since
    the digits are split off first; vocabularies exported from sentencepiece have such pieces.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_SPACE, "merged_with_next"), pre_tokenizers.Digits(individual_digits=True)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 10,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        limit_alphabet=1500,
        show_progress=False,
    )
    lines = (_SPACE + line.replace(" ", _SPACE) for line in korean_text())
    trained.train_from_iterator(lines, trainer)
    result: dict[str, Any] = json.loads(trained.to_str())
    model = result["model"]
    model["merges"][100:100] = [[_SPACE, digit] for digit in "0123456789"]
    for digit in "0123456789":
        model["vocab"][_SPACE + digit] = len(model["vocab"])
    result["added_tokens"] = [added(number, text) for number, text in enumerate(("<unk>", "<s>", "</s>"))]
    result["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": _SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        ],
    }
    result["pre_tokenizer"] = {"type": "Digits", "individual_digits": True}
    result["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return result


def tiktoken_style_tokenizer(base_vocab: int, *, pairs: bool = True) -> dict[str, Any]:
    """A tokenizer.json as Llama 3's: its pattern, byte-level BPE, ``ignore_merges``, 256 special tokens.

    The special tokens follow the base vocabulary, the first of them ``<|begin_of_text|>``, which is put in
    front of every text. A few whole words are in the vocabulary that no merge makes; ``ignore_merges``
    reaches them.
    """
    from tokenizers import Tokenizer, pre_tokenizers, trainers

    words = ["안녕하세요", " 대한민국의", " tokenizer"]
    trained = Tokenizer.from_str(json.dumps(llama_3_json({}, [])))
    trainer = trainers.BpeTrainer(
        vocab_size=base_vocab - len(words),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(korean_text(), trainer)
    model = json.loads(trained.to_str())["model"]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for word in words:
        ((symbols, _),) = level.pre_tokenize_str(word)
        model["vocab"].setdefault(symbols, len(model["vocab"]))
    return llama_3_json(model["vocab"], [_pair(merge) for merge in model["merges"]], pairs=pairs)


def llama_3_json(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, pairs: bool = True
) -> dict[str, Any]:
    """The tokenizer.json of a Llama 3 with that base vocabulary, whose ids run from 0 without a gap.

    An empty one is made without special tokens, as something to train.
    """
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    outer = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": LLAMA_3_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    first = len(vocab)
    begin = _begin_with("<|begin_of_text|>", first)
    specials = _llama_3_specials() if vocab else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(first + number, text) for number, text in enumerate(specials)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": {"type": "Sequence", "processors": [{**outer, "trim_offsets": False}, begin]},
        "decoder": outer,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": dict(vocab),
            "merges": [list(pair) if pairs else " ".join(pair) for pair in merges],
        },
    }


def _llama_3_specials() -> list[str]:
    """The 256 special tokens of Llama 3, in order of id (llama-models, tokenizer.py)."""
    named = {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        9: "<|eot_id|>",
    }
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(256))
    return [named.get(position) or next(reserved) for position in range(256)]


def _begin_with(token: str, number: int) -> dict[str, Any]:
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    second = {"SpecialToken": {"id": token, "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            first,
            {"Sequence": {"id": "A", "type_id": 0}},
            second,
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def unigram_sentencepiece(vocab_size: int, **options: Any) -> bytes:
    """A SentencePiece model of about that many unigram pieces, trained on Korean."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(korean_text()),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def added(number: int, text: str, *, special: bool = True) -> dict[str, Any]:
    """An entry of a tokenizer.json's added_tokens."""
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """A merge as a pair; before tokenizers 0.20 they were strings with one space."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
