"""fairseq's ids around a SentencePiece model, as XLM-RoBERTa and XGLM have them.

| ids | 0 | 1 | 2 | 3 | from 4 on | behind them |
|---|---|---|---|---|---|---|
| SentencePiece | <unk> | <s> | </s> | pieces | pieces | |
| fairseq | <s> | <pad> | </s> | <unk> | SentencePiece's pieces from 3 on | words no model holds |

(transformers 4, models/xlm_roberta/tokenization_xlm_roberta.py and models/xglm/tokenization_xglm.py)
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import VocabError
from ..core.vocabulary import TokenType
from .sentencepiece_proto import ModelProto, Piece
from .token_settings import AddedToken, TokenSettings
from .tokenizer import TokenTable

BOS, PADDING, EOS, UNKNOWN = range(4)
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_TYPES = (TokenType.CONTROL, TokenType.CONTROL, TokenType.CONTROL, TokenType.UNKNOWN)
_OFFSET = 1


@dataclass(frozen=True)
class Layout:
    """``words`` stand behind the pieces, ``first`` before every text; ``add_eos``: </s> follows it."""

    words: tuple[str, ...]
    first: int
    add_eos: bool


_LAYOUTS = {
    "XLMRobertaTokenizer": Layout(("<mask>",), BOS, add_eos=True),
    "XGLMTokenizer": Layout(tuple(f"<madeupword{number}>" for number in range(7)), EOS, add_eos=False),
}


def layout_of(tokenizer_class: str) -> Layout | None:
    """That of a class of transformers, None for classes with other ids."""
    return _LAYOUTS.get(tokenizer_class.removesuffix("Fast"))


def are_those(copy: TokenTable, proto: ModelProto) -> bool:
    """Whether the tokens of ``copy`` are the pieces of a model with fairseq's ids, and added ones behind."""
    pieces = [piece.text for piece in proto.pieces[3:]]
    end = len(SPECIALS) + len(pieces)
    same = copy.tokens[: len(SPECIALS)] == SPECIALS and list(copy.tokens[len(SPECIALS) : end]) == pieces
    return same and TokenType.NORMAL not in copy.types[end:]


def shifted(ids: array[int]) -> array[int]:
    """SentencePiece's ids of a text as fairseq's."""
    return array("i", [each + _OFFSET if each else UNKNOWN for each in ids])


def ordered(proto: ModelProto, settings: TokenSettings, path: Path) -> ModelProto:
    """The model with its pieces in the order of fairseq's ids.

    Raises VocabError for a model whose first pieces are other ones.
    """
    kinds = tuple(piece.kind for piece in proto.pieces[:3])
    if kinds != (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL):
        raise VocabError(
            f"the first pieces of {path} are not <unk>, <s> and </s>, as in every model of "
            f"{settings.tokenizer_class or 'XLMRobertaTokenizer'}",
            hint="compare tokenizer_class in tokenizer_config.json with the published file",
        )
    first = [Piece(text, 0.0, kind) for text, kind in zip(SPECIALS, _TYPES, strict=True)]
    return replace(proto, pieces=(*first, *proto.pieces[3:]))


def table(proto: ModelProto, settings: TokenSettings, layout: Layout) -> TokenTable:
    """The tokens of a class, of a model that is ``ordered``."""
    tokens = (*(piece.text for piece in proto.pieces), *layout.words)
    types = (*(piece.kind for piece in proto.pieces), *(TokenType.CONTROL for _ in layout.words))
    ids = {text: index for index, text in enumerate(tokens)}
    known = {token.text: token for token in settings.added if token.text in ids}
    cut_out = [*SPECIALS, *layout.words, *(text for text in known if ids[text] >= len(SPECIALS))]
    added = {text: replace(known.get(text, AddedToken(text)), id=ids[text]) for text in cut_out}
    special = {"bos": BOS, "eos": EOS, "unknown": UNKNOWN, "padding": PADDING}
    special |= {role: ids[text] for role, text in settings.roles.items() if text in ids}
    special["bos"] = layout.first
    return TokenTable(
        tokens=tokens,
        types=types,
        added=tuple(sorted(added.values(), key=lambda token: token.id or 0)),
        special=special,
        add_bos=True if settings.add_bos is None else settings.add_bos,
        add_eos=layout.add_eos if settings.add_eos is None else settings.add_eos,
    )
