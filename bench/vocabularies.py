"""Vocabularies of full size put together by rule.

No text we have is large enough to train such vocabularies, so they are built: every Hangul syllable is made
of its three bytes by two merges, words begin with a syllable behind a space, then come pairs of frequent
syllables until the number is reached. They are valid tokenizers and load in sentencepiece, tokenizers and
llama.cpp; what they lack is that nobody would choose their pieces.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kconv.converters.samples.korean_text import korean_text
from kconv.converters.samples.tokenizer_files import llama_3_json
from kconv.converters.samples.weights import write_json
from kconv.vocab.decoding import byte_symbols

SYLLABLES = tuple(chr(code) for code in range(0xAC00, 0xD7A4))
SPACE = "\u2581"


def frequent_syllables() -> list[str]:
    """All Hangul syllables: those of our own text by frequency, the rest of KS X 1001, all others."""
    counts = Counter(character for line in korean_text() for character in line if "가" <= character <= "힣")
    common = [syllable for syllable in SYLLABLES if _in_ks_x_1001(syllable)]
    ranked = [syllable for syllable, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return list(dict.fromkeys([*ranked, *common, *SYLLABLES]))


def _in_ks_x_1001(syllable: str) -> bool:
    try:
        return bool(syllable.encode("euc_kr"))
    except UnicodeEncodeError:
        return False


def syllable_pairs() -> Iterator[tuple[str, str]]:
    """Pairs of syllables, frequent ones first, without end worth mentioning."""
    ranked = frequent_syllables()
    for outer in range(len(ranked)):
        for inner in range(outer):
            yield ranked[outer], ranked[inner]
            yield ranked[inner], ranked[outer]
        yield ranked[outer], ranked[outer]


def byte_level_bpe(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE of ``size`` tokens, in GPT-2's byte symbols."""
    symbol = {byte: character for character, byte in byte_symbols().items()}

    def spelled(text: str) -> str:
        return "".join(symbol[byte] for byte in text.encode())

    vocab = {token: number for number, token in enumerate(sorted(symbol.values(), key=ord))}
    merges: list[tuple[str, str]] = []

    def add(left: str, right: str) -> None:
        if left + right not in vocab and len(vocab) < size:
            vocab[left + right] = len(vocab)
            merges.append((left, right))

    for syllable in SYLLABLES:
        first, second, _ = (symbol[byte] for byte in syllable.encode())
        add(first, second)
    for syllable in frequent_syllables():
        first, second, third = (symbol[byte] for byte in syllable.encode())
        add(first + second, third)
    for syllable in frequent_syllables():
        add(spelled(" "), spelled(syllable))
    for left, right in syllable_pairs():
        if len(vocab) == size:
            break
        add(spelled(left), spelled(right))
    assert len(vocab) == size
    return vocab, merges


def write_42dot_tokenizer(folder: Path) -> None:
    """42dot's layout: vocab.json, merges.txt and added_tokens.json, 50260 tokens."""
    vocab, merges = byte_level_bpe(50256)
    added = {"<|endoftext|>": 50256, "<||bos||>": 50257, "<||pad||>": 50258, "<||unk||>": 50259}
    end, begin, pad, unknown = added
    roles = {"bos_token": begin, "eos_token": end, "pad_token": pad, "unk_token": unknown}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    write_json(
        folder,
        {
            "added_tokens.json": added,
            "special_tokens_map.json": roles,
            "tokenizer_config.json": {
                "tokenizer_class": "GPT2Tokenizer",
                "add_bos_token": False,
                "add_prefix_space": False,
                "errors": "replace",
                "model_max_length": 8192,
                **roles,
            },
            "generation_config.json": {"bos_token_id": 50257, "eos_token_id": 50256, "pad_token_id": 50258},
        },
    )


def write_llama_3_tokenizer(folder: Path) -> None:
    """Llama 3's layout: tokenizer.json of 128000 tokens and 256 special ones."""
    vocab, merges = byte_level_bpe(128000)
    roles = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    write_json(
        folder,
        {
            "tokenizer.json": llama_3_json(vocab, merges),
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": 8192,
                **roles,
            },
            "special_tokens_map.json": roles,
            "generation_config.json": {"bos_token_id": 128000, "eos_token_id": 128001},
        },
    )


def write_sentencepiece(folder: Path, size: int = 32000) -> None:
    """Llama 2's layout: tokenizer.model, byte-fallback BPE of sentencepiece."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_bpe(size))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(
        folder,
        {
            "tokenizer_config.json": {
                "tokenizer_class": "LlamaTokenizer",
                "add_bos_token": True,
                "add_eos_token": False,
                "legacy": True,
                "model_max_length": 4096,
                **roles,
            },
            "special_tokens_map.json": roles,
            "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        },
    )


def sentencepiece_bpe(size: int) -> bytes:
    """A BPE model file of sentencepiece's (google/sentencepiece, src/sentencepiece_model.proto).

    Scores fall with the rank, as its trainer gives them: merged pieces first, then characters.
    """
    characters = [SPACE, *SYLLABLES, *(chr(code) for code in range(0x21, 0x7F))]
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    merged: dict[str, None] = {SPACE + syllable: None for syllable in frequent_syllables()[:4000]}
    wanted = size - len(pieces) - len(characters)
    for left, right in syllable_pairs():
        if len(merged) >= wanted:
            break
        merged[left + right] = None
    ranked = [*list(merged)[:wanted], *characters]
    pieces += [(piece, -float(rank), 1) for rank, piece in enumerate(ranked)]
    assert len(pieces) == size
    return _model_proto(pieces)


def _model_proto(pieces: list[tuple[str, float, int]]) -> bytes:
    """ModelProto on the wire: pieces (text, score, type), the trainer's settings, no normalization."""
    import struct

    def number(field: int, value: int) -> bytes:
        return _varint(field << 3) + _varint(value)

    def text(field: int, value: bytes) -> bytes:
        return _varint(field << 3 | 2) + _varint(len(value)) + value

    def real(field: int, value: float) -> bytes:
        return _varint(field << 3 | 5) + struct.pack("<f", value)

    parts = [
        text(1, text(1, piece.encode()) + real(2, score) + number(3, kind)) for piece, score, kind in pieces
    ]
    bpe, yes, no = 2, 1, 0
    trainer = number(3, bpe) + number(4, len(pieces)) + number(25, yes) + number(26, yes) + number(35, yes)
    normalizer = text(1, b"identity") + number(3, yes) + number(4, no) + number(5, yes)
    return b"".join([*parts, text(2, trainer), text(3, normalizer)])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
