"""Tokenizers trained for the tests, of the kinds the supported checkpoints have, as folders.

Trained on the Universal Declaration of Human Rights and the project's own texts, so they are small but real:
their merges, byte fallback and special tokens work like those of the models they stand for.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from kconv.core.checkpoint import Checkpoint
from kconv.core.model import Model
from kconv.core.tensor import DType, Tensor
from kconv.vocab.pretokenizers import LLAMA_3
from kconv.vocab.texts import built_in, udhr

DOT42_SPECIALS = ("<|endoftext|>", "<||bos||>", "<||pad||>", "<||unk||>")
LLAMA_3_REGEX = LLAMA_3 + r"|\s+"


def corpus() -> list[str]:
    """Training text: four languages, the project's texts, and words that checkpoints are known to hold."""
    lines = [line for language in ("kor", "eng", "jpn", "cmn_hans") for line in udhr(language)]
    words = ["model (model) and the model"] * 40 + ["2024년 12월 31일 100명 1000원"] * 20
    texts = [text for text in built_in()[:1200] if "\0" not in text]
    return [*lines, *lines, *words, *texts]


def checkpoint(folder: Path, **config: Any) -> Checkpoint:
    """The folder as a checkpoint without tensors."""
    return Checkpoint(folder, config, {}, ())


def model(rows: int, arch: str = "llama") -> Model:
    """A model that has nothing but the embedding, which nobody may read."""

    def refuse(start: int, stop: int) -> Any:
        raise AssertionError("a weight was read while the vocabulary was settled")

    return Model(arch, {}, (Tensor("token_embd.weight", (rows, 8), DType.F32, refuse),))


def _write(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return folder


@functools.cache
def _byte_level(regex: str | None, size: int) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE; ``regex`` splits before it, None for GPT-2's own."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    tokenizer.pre_tokenizer = byte_level
    if regex is not None:
        from tokenizers import Regex

        split = pre_tokenizers.Split(Regex(regex), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    return spec


def pairs(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a tokenizer.json as pairs, whichever way it writes them."""
    merges = spec["model"]["merges"]
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]


def dot42_like(folder: Path, size: int = 2000) -> int:
    """A folder as 42dot's: vocab.json and merges.txt alone, specials as its files have them; its rows."""
    spec = _byte_level(None, size)
    vocab = spec["model"]["vocab"]
    assert "model" in vocab, "the training text shall make the word a token"
    first = len(vocab)
    ids = {text: first + at for at, text in enumerate(DOT42_SPECIALS)}
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    end = {"content": DOT42_SPECIALS[0], "normalized": True, **flags}
    bos, pad, unk = ({"content": text, "normalized": False, **flags} for text in DOT42_SPECIALS[1:])
    _write(
        folder,
        {
            "vocab.json": vocab,
            "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs(spec)),
            "added_tokens.json": ids,
            "special_tokens_map.json": {
                "bos_token": bos,
                "eos_token": end,
                "pad_token": pad,
                "unk_token": unk,
            },
            "tokenizer_config.json": {
                "add_bos_token": False,
                "add_prefix_space": False,
                "bos_token": {"__type": "AddedToken", **bos},
                "eos_token": {"__type": "AddedToken", **end},
                "errors": "replace",
                "model_max_length": 8192,
                "tokenizer_class": "GPT2Tokenizer",
            },
        },
    )
    return first + len(DOT42_SPECIALS) + 44


def llama3_like(
    folder: Path, *, merges_as: str = "pairs", ignore_merges: bool = True, size: int = 2500
) -> int:
    """A tokenizer.json as Llama 3's, its special tokens behind the vocabulary; its rows."""
    spec = json.loads(json.dumps(_byte_level(LLAMA_3_REGEX, size)))
    merges = pairs(spec)
    vocab = spec["model"]["vocab"]
    if ignore_merges:  # words that only ignore_merges finds, as Llama 3's vocabulary has them
        for word in ("ĠkconvĠ", "zqxj", "Ġzqxjk", "íĴīíĴī"):
            vocab.setdefault(word, len(vocab))
    first = len(vocab)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    names += [f"<|reserved_special_token_{at}|>" for at in range(27)]
    spec["model"]["ignore_merges"] = ignore_merges
    spec["model"]["merges"] = [list(pair) if merges_as == "pairs" else " ".join(pair) for pair in merges]
    spec["added_tokens"] = [
        {
            "id": first + at,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for at, name in enumerate(names)
    ]
    bos = {"id": names[0], "ids": [first], "tokens": [names[0]]}
    spec["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": names[0], "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {names[0]: bos},
            },
        ],
    }
    config = {"bos_token": names[0], "eos_token": names[1], "tokenizer_class": "PreTrainedTokenizerFast"}
    _write(folder, {"tokenizer.json": spec, "tokenizer_config.json": config})
    return first + len(names)


@functools.cache
def _byte_fallback(size: int, newlines: bool) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Vocabulary and merges of a BPE over characters with byte tokens, trained without splitting digits.

    Without ``newlines`` no token holds one, as in vocabularies trained line by line by SentencePiece.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    specials = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, limit_alphabet=900, show_progress=False
    )
    lines = corpus() if newlines else [line for text in corpus() for line in text.split("\n")]
    tokenizer.train_from_iterator(lines, trainer)
    spec = json.loads(tokenizer.to_str())
    return spec["model"]["vocab"], tuple(pairs(spec))


def every_pair(vocab: dict[str, int], merges: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """All pairs the vocabulary implies, ordered by the token they make: how SentencePiece models export."""
    rank = {left + right: at for at, (left, right) in enumerate(merges)}
    splits = [
        (rank[text], vocab[text[:at]], vocab[text[at:]], text[:at], text[at:])
        for text in rank
        for at in range(1, len(text))
        if text[:at] in vocab and text[at:] in vocab
    ]
    return [(left, right) for *_, left, right in sorted(splits)]


def eagle_like(
    folder: Path,
    *,
    all_pairs: bool = False,
    metaspace: str | None = None,
    digits: bool = True,
    newlines: bool = True,
    size: int = 2900,
) -> int:
    """A byte-fallback BPE with digits apart, BOS and EOS both ``</s>``, as EAGLE's card says; its rows."""
    vocab, merges = _byte_fallback(size, newlines)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=every_pair(vocab, merges) if all_pairs else list(merges),
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    before: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if metaspace is None:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        before = [pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False), *before]
    if before:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(before)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    config = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write(folder, {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": config})
    return len(vocab)


@functools.cache
def _trained_by_sentencepiece(size: int, written: str) -> bytes:
    """The model's bytes; the same settings, as JSON, are asked for by many tests."""
    import sentencepiece

    options: dict[str, Any] = json.loads(written)

    defaults: dict[str, Any] = {
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "character_coverage": 0.995,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "num_threads": 2,
        "minloglevel": 2,
        "max_sentence_length": 20000,
    }
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "corpus.txt")
        text.write_text("\n".join(line for line in corpus() if line.strip()), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=f"{folder}/tokenizer", vocab_size=size, **{**defaults, **options}
        )
        return Path(folder, "tokenizer.model").read_bytes()


def sentencepiece_like(folder: Path, *, size: int = 2200, **options: Any) -> int:
    """tokenizer.model trained as Llama's was: BPE with byte fallback, digits apart; its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(_trained_by_sentencepiece(size, json.dumps(options)))
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "LlamaTokenizer",
    }
    _write(folder, {"tokenizer_config.json": config})
    return size
