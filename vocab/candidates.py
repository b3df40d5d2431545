"""Vocabularies llama.cpp might read as the checkpoint's tokenizer, the likeliest first.

Which of them is right is measured (``parity``), never assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..core.errors import VocabError
from ..core.vocabulary import BPE, SPM, UNIGRAM, TokenType, Vocab
from . import byte_fallback, pretokenizers
from .byte_vocabulary import NEVER_FIRES
from .end_of_turn import KNOWN_END_OF_GENERATION
from .tokenizer import Source
from .wordpiece import as_llama_cpp_has_it

TO_ONNX = "kconv to-onnx converts it, with its own tokenizer beside the model"
_NEVER = -10000.0
_SPACE = "\u0120"  # as byte-level BPE spells it


@dataclass(frozen=True)
class Candidate:
    """``name`` says in a few words how the vocabulary is put to llama.cpp."""

    name: str
    vocab: Vocab


def candidates(source: Source) -> Iterator[Candidate]:
    """Candidates for a source, made one at a time as they are asked for.

    Raises VocabError where llama.cpp has no tokenizer that comes near.
    """
    base = base_vocab(source)
    if source.kind == "utf-8 bytes":
        # Of the pre-tokenizers one after which llama_detokenize gives back every space as it was.
        bytewise = replace(base, merges=(NEVER_FIRES,), pre="qwen2")
        return iter([Candidate("bytes, as byte-level BPE without merges", bytewise)])
    if source.kind == "byte-level bpe":
        return _byte_level(source, base)
    if source.kind == "byte-fallback bpe":
        return _byte_fallback(source, base)
    if source.kind == "wordpiece":
        return iter([Candidate("WordPiece", as_llama_cpp_has_it(base, source))])
    if source.kind == "character bpe":
        raw = byte_fallback.raw_bpe(base, source, pre="sarvam-moe", silenced=frozenset())
        return iter([Candidate("raw BPE", raw)])
    if source.kind == "sentencepiece bpe" and sum(kind is TokenType.BYTE for kind in source.types) < 256:
        raise VocabError(
            f"the tokenizer ({source.kind}) has no token for every byte; llama.cpp's tokenizer for "
            "such vocabularies aborts at the first unknown character",
            hint=f"{TO_ONNX}; GGUF has byte-level BPE, byte-fallback BPE, SentencePiece unigram, and "
            "SentencePiece BPE with byte fallback",
        )
    return _sentencepiece(source, base)


def unsupported_reason(source: Source) -> str | None:
    """Why no vocabulary of llama.cpp can be equal to a tokenizer of this kind; None where one may be.

    A BPE over characters gives its unknown token for a character it does not have. llama.cpp's BPE leaves
    such a character out where no byte tokens stand for it (src/llama-vocab.cpp, llm_tokenizer_bpe_session).
    """
    if source.kind != "character bpe":
        return None
    return (
        "the tokenizer is a character BPE without byte tokens, which llama.cpp does not support: it "
        "would drop characters that are not in the vocabulary"
    )


def base_vocab(source: Source, model: str = BPE) -> Vocab:
    """What all candidates of a source share. A hole has no text; the adapter pad-rows fills it.

    llama.cpp takes a token's text to end at a NUL (llama_vocab::impl::load), and dies if two are then equal.
    """
    tokens = [text or "" for text in source.tokens]
    types = list(source.types)
    for token_id in [token_id for token_id, text in enumerate(tokens) if "\0" in text]:
        tokens[token_id], types[token_id] = f"[NUL {token_id}]", TokenType.UNUSED
    return Vocab(
        model=model,
        tokens=tuple(tokens),
        types=tuple(types),
        special=source.special,
        add_bos=source.table.add_bos,
        add_eos=source.table.add_eos,
        chat_template=source.chat_template,
    )


def _byte_level(source: Source, base: Vocab) -> Iterator[Candidate]:
    disguised, count = _disguised(base)
    for pre in pretokenizers.ranked(source.splits, source.ignore_merges):
        yield Candidate(f"byte-level BPE, {pre.name}", replace(base, merges=source.merges, pre=pre.name))
        if count:
            name = f"byte-level BPE, {pre.name}, {count} ordinary tokens that look like ends respelled"
            yield Candidate(name, replace(disguised, merges=source.merges, pre=pre.name))


def _disguised(base: Vocab) -> tuple[Vocab, int]:
    """Ordinary tokens that are spelled like the end of a text, with a space behind; how many there are.

    llama.cpp makes special tokens of them, whatever their type (src/llama-vocab.cpp, "control-looking"), and
    finds them in texts. Qwen's vocabulary has such a ``</s>``, which no text reaches: its pattern divides it.
    """
    ids = base.ids_of(KNOWN_END_OF_GENERATION).values()
    alike = sorted(index for index in ids if base.types[index] is TokenType.NORMAL)
    if not alike:
        return base, 0
    tokens, taken = list(base.tokens), set(base.tokens)
    for index in alike:
        text = base.tokens[index]
        while text in taken:
            text += _SPACE
        taken.add(text)
        tokens[index] = text
    return replace(base, tokens=tuple(tokens)), len(alike)


def _byte_fallback(source: Source, base: Vocab) -> Iterator[Candidate]:
    silenced = byte_fallback.unreachable(source)
    scored = "SPM, scores from merges"
    name = f"{scored}, {len(silenced)} unreachable tokens silenced" if silenced else scored
    prefix = source.prefix is not None
    first = byte_fallback.spm(base, source, add_space_prefix=prefix, silenced=silenced)
    yield Candidate(name, first)
    if prefix:
        yield Candidate(f"{name}, no leading space", replace(first, add_space_prefix=False))
    raw = byte_fallback.raw_bpe(base, source, pre="sarvam-moe", silenced=silenced)
    yield Candidate("raw BPE", raw)
    if base.add_bos:
        yield Candidate("raw BPE, gemma4", replace(raw, pre="gemma4"))
    if silenced:
        yield Candidate(
            scored, byte_fallback.spm(base, source, add_space_prefix=prefix, silenced=frozenset())
        )


def _sentencepiece(source: Source, base: Vocab) -> Iterator[Candidate]:
    prefix = source.prefix is not None
    if source.kind == "sentencepiece unigram":
        yield from _unigram(source, base)
    if sum(kind is TokenType.BYTE for kind in source.types) < 256:
        return  # llama.cpp's SPM stops at the first character it does not know
    own = replace(base, model=SPM, scores=source.scores, add_space_prefix=prefix)
    yield Candidate("SPM, own scores", own)
    if prefix:
        yield Candidate("SPM, own scores, no leading space", replace(own, add_space_prefix=False))


def _unigram(source: Source, base: Vocab) -> Iterator[Candidate]:
    """llama.cpp's UGM. Tokens that are not used it would use, but for a score nothing can be as bad as."""
    scores = [
        _NEVER if kind is TokenType.UNUSED else score
        for score, kind in zip(source.scores, source.types, strict=True)
    ]
    own = replace(
        base,
        model=UNIGRAM,
        scores=tuple(scores),
        add_space_prefix=source.prefix is not None,
        charsmap=source.charsmap,
    )
    yield Candidate("unigram, surplus spaces removed", replace(own, remove_extra_whitespaces=True))
    yield Candidate("unigram, spaces kept", own)
