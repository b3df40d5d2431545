"""Byte-fallback BPE: two ways to say it to llama.cpp.

``SPM``: llama.cpp's SentencePiece tokenizer joins neighbours whose joint text is a token, the highest score
first, the leftmost of equal ones (src/llama-vocab.cpp, llm_tokenizer_spm_session). With score = minus the
rank of the merge that makes the token it takes the same steps as the merge list, but for tokens the original
can never make: the pre-tokenizer cuts through them ("▁1" where digits stand alone) or no merge leads to them.
They keep their place and lose their text.

``raw BPE``: the pre-tokenizer names ``sarvam-moe`` and ``gemma4`` run the merge list itself over UTF-8 with
spaces as U+2581 and fall back to ``<0xXX>``; they add no leading space, and gemma4 always adds BOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..core.vocabulary import BPE, SPM, TokenType, Vocab
from .tokenizer import Source


def unreachable(source: Source) -> frozenset[int]:
    """Ids of normal tokens the tokenizer never gives.

    A token appears in some text only if its own text, taken alone, is encoded as that token: inside it the
    merges run as they would anywhere, since none may cross its borders.
    """
    if source.encode_pieces is None:
        return frozenset()
    normal = [
        (token_id, text)
        for token_id, (text, kind) in enumerate(zip(source.tokens, source.types, strict=True))
        if text is not None and kind is TokenType.NORMAL
    ]
    encoded = source.encode_pieces([text for _, text in normal], False)
    return frozenset(
        token_id
        for (token_id, _), ids in zip(normal, encoded, strict=True)
        if len(ids) != 1 or ids[0] != token_id
    )


def spm(base: Vocab, source: Source, *, add_space_prefix: bool, silenced: frozenset[int]) -> Vocab:
    """A SentencePiece vocabulary with scores from the merges; ``silenced`` tokens can no longer match."""
    rank: dict[str, int] = {}
    for index, merge in enumerate(source.merges):
        rank.setdefault(merge.replace(" ", "", 1), index)
    last = float(-len(source.merges) - 1)
    scores = tuple(
        0.0 if kind is not TokenType.NORMAL else float(-rank[text]) if text in rank else last
        for text, kind in zip(base.tokens, base.types, strict=True)
    )
    vocab = replace(base, model=SPM, scores=scores, add_space_prefix=add_space_prefix)
    return _silence(vocab, silenced)


def _silence(vocab: Vocab, ids: frozenset[int]) -> Vocab:
    if not ids:
        return vocab
    # llama.cpp turns every space of a text into U+2581 before it looks for tokens, so a token with a space in
    # it is never found, whatever the text.
    tokens, types = list(vocab.tokens), list(vocab.types)
    for token_id in ids:
        tokens[token_id] = f"[unreachable {token_id}]"
        types[token_id] = TokenType.UNUSED
    return replace(vocab, tokens=tuple(tokens), types=tuple(types))


def raw_bpe(base: Vocab, source: Source, *, pre: str, silenced: frozenset[int]) -> Vocab:
    """The merge list itself, without the merges that make ``silenced`` tokens."""
    never = {base.tokens[token_id] for token_id in silenced}
    merges: Sequence[str] = source.merges
    if never:
        merges = [merge for merge in merges if merge.replace(" ", "", 1) not in never]
    return replace(base, model=BPE, pre=pre, merges=tuple(merges))
