"""Vocabularies llama.cpp might read as the checkpoint's tokenizer, the likeliest first.

Which of them is right is measured (``parity``), never assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..core.errors import VocabError
from ..core.vocabulary import TokenType, Vocab
from . import byte_fallback, pretokenizers
from .tokenizer import META_SPACE, Source


@dataclass(frozen=True)
class Candidate:
    """``name`` says in a few words how the vocabulary is put to llama.cpp."""

    name: str
    vocab: Vocab


def candidates(source: Source) -> Iterator[Candidate]:
    """Candidates for a source, made one at a time as they are asked for.

    Raises VocabError where llama.cpp has no tokenizer that comes near.
    """
    base = _base(source)
    if source.kind == "byte-level bpe":
        return _byte_level(source, base)
    if source.kind == "byte-fallback bpe":
        return _byte_fallback(source, base)
    if source.kind == "character bpe":
        if not any(text is not None and META_SPACE in text for text in source.tokens):
            raise VocabError(
                "the tokenizer is a BPE over characters without byte tokens; llama.cpp has none of that kind",
                hint="supported are byte-level BPE, byte-fallback BPE and SentencePiece BPE",
            )
        return iter(
            [
                Candidate(
                    "raw BPE", byte_fallback.raw_bpe(base, source, pre="sarvam-moe", silenced=frozenset())
                )
            ]
        )
    return _sentencepiece(source, base)


def _base(source: Source) -> Vocab:
    """What all candidates of a source share. A hole has no text; the adapter pad-rows fills it.

    llama.cpp takes a token's text to end at a NUL (llama_vocab::impl::load), and dies if two are then equal.
    """
    cut = {token_id for token_id, text in enumerate(source.tokens) if text is not None and "\0" in text}
    tokens = [text or "" for text in source.tokens]
    types = list(source.types)
    for token_id in cut:
        tokens[token_id], types[token_id] = f"[NUL {token_id}]", TokenType.UNUSED
    return Vocab(
        model="gpt2",
        tokens=tuple(tokens),
        types=tuple(types),
        special=source.special,
        add_bos=source.table.add_bos,
        add_eos=source.table.add_eos,
        chat_template=source.chat_template,
    )


def _byte_level(source: Source, base: Vocab) -> Iterator[Candidate]:
    for pre in pretokenizers.ranked(source.splits, source.ignore_merges):
        yield Candidate(f"byte-level BPE, {pre.name}", replace(base, merges=source.merges, pre=pre.name))


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
    if sum(kind is TokenType.BYTE for kind in source.types) < 256:
        raise VocabError(
            f"the tokenizer ({source.kind}) has no token for every byte; llama.cpp's tokenizer for such"
            " vocabularies stops at the first character it does not know",
            hint="supported are byte-level BPE, byte-fallback BPE and SentencePiece BPE with byte fallback",
        )
    prefix = source.prefix is not None
    own = replace(base, model="llama", scores=source.scores, add_space_prefix=prefix)

    def made() -> Iterator[Candidate]:
        yield Candidate("SPM, own scores", own)
        if prefix:
            yield Candidate("SPM, own scores, no leading space", replace(own, add_space_prefix=False))

    return made()
