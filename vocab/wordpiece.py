"""WordPiece vocabularies, BERT's: as a folder has them, and as llama.cpp wants them (tokenizer model bert).

llama.cpp puts U+2581 before every word and looks for the longest token at each place (src/llama-vocab.cpp,
llm_tokenizer_wpm_session). So a token that begins a word is written with U+2581, and one that goes on within
a word, ``##s``, without its sign. Of BertNormalizer it has lower case and accents as settings, and does the
rest always. A few odd words it reads otherwise (``ordinary``).
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import VocabError
from ..core.input_files import quoted, read_json, read_text
from ..core.vocabulary import WORDPIECE, TokenType, Vocab
from .token_settings import ROLES, TokenSettings
from .tokenizer import META_SPACE, Source, WordPiece, added_pattern, cut_at

_SIGN = "##"
_LONGEST = 100
_RARE = ("\ua66e", "\u2c76", "\u0800", "\U00010380", "\U00010400")
# BertNormalizer's (tokenizers, normalizers/bert.rs), but for its one range that ends elsewhere than
# Unicode's.
_CHINESE = re.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f]"
)
_ROLES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def word_pieces(spec: Mapping[str, Any], normalizers: list[Mapping[str, Any]]) -> WordPiece:
    """What a tokenizer.json says of its WordPiece model; ``normalizers`` are its normalizer's steps."""
    model = spec["model"]
    bert = next((step for step in normalizers if step.get("type") == "BertNormalizer"), {})
    kinds = {step.get("type") for step in normalizers}
    lowercase = bool(bert.get("lowercase")) or "Lowercase" in kinds
    strips = bert.get("strip_accents")
    longest = model.get("max_input_chars_per_word")
    return WordPiece(
        sign=str(model.get("continuing_subword_prefix", _SIGN)),
        lowercase=lowercase,
        strip_accents="StripAccents" in kinds
        or (bool(bert.get("lowercase")) if strips is None else bool(strips)),
        longest=longest if isinstance(longest, int) else _LONGEST,
    )


def as_llama_cpp_has_it(base: Vocab, source: Source) -> Vocab:
    """``base`` with its words' beginnings marked, and what llama.cpp puts around a text."""
    pieces = source.pieces
    assert pieces is not None
    tokens = list(base.tokens)
    for index, (text, kind) in enumerate(zip(base.tokens, base.types, strict=True)):
        if kind is TokenType.NORMAL and text:
            begins = not text.startswith(pieces.sign)
            tokens[index] = META_SPACE + text if begins else text.removeprefix(pieces.sign)
    special = dict(base.special)
    first, last = special.get("cls", special.get("bos")), special.get("seperator", special.get("eos"))
    if not base.add_bos or not base.add_eos or first is None or last is None:
        raise VocabError(
            "the tokenizer does not put a token before and after each text, which llama.cpp always does for "
            "WordPiece vocabularies",
            hint="kconv to-onnx converts it",
        )
    special.pop("cls", None)  # no key llama.cpp reads
    special.update(bos=first, seperator=last)
    return replace(
        base,
        model=WORDPIECE,
        tokens=tuple(tokens),
        special=special,
        add_bos=True,
        add_eos=False,
        lowercase=pieces.lowercase,
        strip_accents=pieces.strip_accents,
    )


def ordinary(source: Source) -> Callable[[str, bool], str] | None:
    """What makes of a text (and whether special tokens are parsed) one that llama.cpp reads as the tokenizer
    reads the first; None for other kinds of tokenizers, and where no character is unknown.

    llama.cpp cuts words the tokenizer calls unknown as a whole: those of more than 100 characters, and those
    with U+2581, which it takes for its own sign. These become an unknown character. Control characters, which
    the tokenizer drops, are left out: llama.cpp takes some for white space. Of the letters whose lower case
    is two characters llama.cpp lowers none.
    """
    pieces, unknown = source.pieces, source.special.get("unknown")
    if pieces is None or unknown is None:
        return None
    rare = next((each for each in _RARE if source.encode(each, False) == [unknown]), None)
    if rare is None:
        return None
    return partial(_ordinary, source, pieces, rare)


def _ordinary(source: Source, pieces: WordPiece, rare: str, text: str, parse_special: bool) -> str:
    made = cut_at(added_pattern(source.added, parse_special), text)
    made[::2] = [_stretch(stretch, pieces, rare) for stretch in made[::2]]
    return "".join(made)


def _stretch(text: str, pieces: WordPiece, rare: str) -> str:
    kept = "".join(each for each in text if each in "\t\n\r" or unicodedata.category(each) != "Cc")
    if pieces.lowercase:
        kept = "".join(each.lower() if len(each.lower()) > 1 else each for each in kept)
    groups = itertools.groupby(enumerate(kept), lambda item: _place(*item))
    words = ("".join(each for _, each in group) for _, group in groups)
    return "".join(rare if len(word) > pieces.longest or META_SPACE in word else word for word in words)


def _place(index: int, character: str) -> int:
    """Equal for the neighbours of a word: what stands alone has a number of its own."""
    category = unicodedata.category(character)
    alone = character.isspace() or category.startswith("P") or _CHINESE.match(character) is not None
    return index if alone or (character.isascii() and category.startswith("S")) else -1


def vocab_txt_as_json(checkpoint: Checkpoint, settings: TokenSettings) -> dict[str, Any]:
    """A tokenizer.json for vocab.txt, one token a line, as transformers' BertTokenizer reads it.

    Raises VocabError for a token that stands there twice or a special token that is not there.
    """
    text = read_text(checkpoint.folder, "vocab.txt") or ""
    where = str(checkpoint.folder / "vocab.txt")
    lines = text.removesuffix("\n").split("\n")
    vocab = {line.rstrip("\r"): index for index, line in enumerate(lines)}
    if len(vocab) != len(lines):
        raise VocabError(f"{where} has tokens that stand there more than once", hint="download it again")
    config = read_json(checkpoint.folder, "tokenizer_config.json") or {}
    defaults = {key: f"[{key[:-6].upper()}]" for key in _ROLES}
    special = {key: settings.roles.get(ROLES[key], defaults[key]) for key in _ROLES}
    missing = [token for key, token in special.items() if token not in vocab and key != "mask_token"]
    if missing:
        raise VocabError(f"{where} lacks {quoted(missing[0])}, which a BERT tokenizer needs")
    around = {key: (special[key], vocab[special[key]]) for key in ("cls_token", "sep_token")}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = sorted((vocab[token], token) for token in special.values() if token in vocab)
    return {
        "version": "1.0",
        "added_tokens": [{"id": index, "content": token, **flags} for index, token in added],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True) is not False,
            "strip_accents": config.get("strip_accents"),
            "lowercase": config.get("do_lower_case", True) is not False,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing",
            "sep": list(around["sep_token"]),
            "cls": list(around["cls_token"]),
        },
        "decoder": {"type": "WordPiece", "prefix": _SIGN, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": special["unk_token"],
            "continuing_subword_prefix": _SIGN,
            "max_input_chars_per_word": _LONGEST,
            "vocab": vocab,
        },
    }


def vocab_txt_text(checkpoint: Checkpoint, settings: TokenSettings) -> str:
    """``vocab_txt_as_json`` as text."""
    return json.dumps(vocab_txt_as_json(checkpoint, settings), ensure_ascii=False, indent=2) + "\n"
