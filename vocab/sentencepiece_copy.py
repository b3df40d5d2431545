"""A tokenizer.json of a SentencePiece unigram model, read as SentencePiece itself would.

The tokenizers library looks up letters with their marks as a whole, SentencePiece and llama.cpp the longest
match: decomposed Hangul is a syllable to these and unknown letters to the former. Where the model lies beside
the file it is the truth (``sources``); without it this shows that what llama.cpp makes of such texts is what
the model was trained with.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from ..core.vocabulary import TokenType
from .sentencepiece_model import encoder
from .sentencepiece_proto import ModelProto, Piece, unigram_model
from .tokenizer import Encoder, Source
from .tokenizer_process import TokenizerProcess


def as_sentencepiece(copy: Source) -> Encoder | None:
    """What SentencePiece makes of texts with the pieces and the normalization of ``copy``.

    None for a vocabulary without an unknown token, which no SentencePiece model is. The process starts with
    the first text; the library may refuse what it is given then (VocabError).
    """
    unknown = copy.special.get("unknown")
    if copy.kind != "sentencepiece unigram" or unknown is None:
        return None
    cut_out = {token.id for token in copy.added}
    pieces = [
        Piece(text or f"[{index}]", score, _kind(index == unknown, index in cut_out or text is None))
        for index, (text, score) in enumerate(zip(copy.tokens, copy.scores, strict=True))
    ]
    prefix = copy.prefix is not None
    each = copy.prefix is not None and copy.prefix.each
    made: list[Encoder] = []

    def encode(texts: Sequence[str], parse_special: bool) -> list[array[int]]:
        if not made:
            data = unigram_model(pieces, copy.charsmap, add_dummy_prefix=prefix)
            process = TokenizerProcess("sentencepiece", copy.description.files[0])
            proto = ModelProto((), add_dummy_prefix=prefix)
            made.append(encoder(process, data, proto, copy.added, each=each))
        return made[0](texts, parse_special)

    return encode


def _kind(unknown: bool, never: bool) -> TokenType:
    """What is cut out of texts before is never found in them, nor is a place without a token."""
    if unknown:
        return TokenType.UNKNOWN
    return TokenType.CONTROL if never else TokenType.NORMAL
