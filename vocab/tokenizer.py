"""A checkpoint's own tokenizer: what it says of itself, and the truth its copies are measured against."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..core.model import Note
from ..core.vocabulary import TokenType
from .token_settings import AddedToken
from .tokenizer_process import TextsRefused

Kind = Literal[
    "byte-level bpe",
    "byte-fallback bpe",
    "character bpe",
    "sentencepiece bpe",
    "sentencepiece unigram",
    "wordpiece",
    "utf-8 bytes",
]
Encoder = Callable[[Sequence[str], bool], list["array[int]"]]
META_SPACE = "\u2581"


def added_pattern(added: Sequence[AddedToken], parse_special: bool) -> re.Pattern[str] | None:
    """What finds added tokens in a text, the longest at each place; None if there are none to find."""
    texts = [token.text for token in added if token.text and (parse_special or not token.special)]
    if not texts:
        return None
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))


def cut_at(pattern: re.Pattern[str] | None, text: str) -> list[str]:
    """Stretches of ``text`` (``[::2]``) and, between each two of them, the token found there (``[1::2]``)."""
    pieces, end = [], 0
    for match in pattern.finditer(text) if pattern else ():
        pieces += [text[end : match.start()], match.group()]
        end = match.end()
    return [*pieces, text[end:]]


def composed(text: str, kept: Sequence[AddedToken], parse_special: bool) -> str:
    """``text`` in NFC between the tokens of ``kept``, which are matched before a tokenizer normalizes."""
    if unicodedata.is_normalized("NFC", text):
        return text
    pieces = cut_at(added_pattern(kept, parse_special), text)
    pieces[::2] = [unicodedata.normalize("NFC", stretch) for stretch in pieces[::2]]
    return "".join(pieces)


@dataclass(frozen=True)
class SpacePrefix:
    """The space a tokenizer puts before text by itself.

    ``each``: before every stretch of text between special tokens, otherwise only at the very start.
    ``doubled``: also before text that begins with a space already.
    """

    each: bool = True
    doubled: bool = True


@dataclass(frozen=True)
class WordPiece:
    """A WordPiece model: the ``sign`` of tokens within a word, what is done to text, and the ``longest`` word
    in characters that is cut; a longer one is unknown.
    """

    sign: str
    lowercase: bool
    strip_accents: bool
    longest: int


@dataclass(frozen=True)
class Description:
    """A tokenizer in words, for ``kconv inspect``. ``specials`` maps a role to ``(id, text)``.

    ``sentinels`` says which ids stand for masks where a tokenizer has any.
    """

    kind: str
    files: tuple[str, ...]
    model: str
    normalizer: str
    pre_tokenizer: str
    decoder: str
    post_processor: str
    size: int
    added: int
    specials: Mapping[str, tuple[int, str]]
    add_bos: bool
    add_eos: bool
    chat_template: bool
    sentinels: str = ""


@dataclass(frozen=True)
class TokenTable:
    """Tokens and types by id (a hole is None), added tokens, ids by role, and what surrounds a text."""

    tokens: tuple[str | None, ...]
    types: tuple[TokenType, ...]
    added: tuple[AddedToken, ...]
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Source:
    """The tokenizer of a checkpoint.

    ``scores`` run by id where the model has them. ``merges`` are pairs joined by a space, in order of rank.
    ``splits`` is the pre-tokenizer's structure (``pretokenizers.structure``). ``collapses_spaces``: of
    several spaces one stays, at the ends of a stretch of text none. ``charsmap`` is SentencePiece's compiled
    normalization (precompiled_charsmap), empty where there is none. ``encode_batch(texts, parse_special)``
    gives the ids without BOS and EOS; ``encode_pieces(pieces, False)`` those of raw vocabulary entries, past
    the normalizer and added tokens. ``equally_good`` says of two cuts of a text whether the model finds them
    equally good (unigram models, where rounding then decides). ``original`` is what SentencePiece makes of
    texts where this is a tokenizer.json of one of its models, ``copy`` what a tokenizer.json makes of them
    where this is the model beside it. ``rough`` is what it would make of texts with llama.cpp's classes of
    letters where its pattern has Unicode's (``letter_classes``).
    """

    kind: Kind
    table: TokenTable
    description: Description
    encode_batch: Encoder
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    ignore_merges: bool = False
    normalizers: tuple[str, ...] = ()
    charsmap: bytes = b""
    prefix: SpacePrefix | None = None
    pieces: WordPiece | None = None
    collapses_spaces: bool = False
    chat_template: str | None = None
    encode_pieces: Encoder | None = None
    equally_good: Callable[[Sequence[int], Sequence[int]], bool] | None = None
    original: Encoder | None = None
    copy: Encoder | None = None
    rough: Encoder | None = None
    notes: tuple[Note, ...] = ()

    @property
    def tokens(self) -> tuple[str | None, ...]:
        """Texts by id; a hole is None."""
        return self.table.tokens

    @property
    def types(self) -> tuple[TokenType, ...]:
        """Types by id."""
        return self.table.types

    @property
    def added(self) -> tuple[AddedToken, ...]:
        """Tokens matched in the text before the model sees it."""
        return self.table.added

    @property
    def special(self) -> Mapping[str, int]:
        """Ids by role."""
        return self.table.special

    @property
    def normalizes_to_nfc(self) -> bool:
        """Whether text is brought into Unicode's composed form before the model sees it."""
        return "NFC" in self.normalizers

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return len(self.tokens)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Token ids of ``text`` without BOS and EOS."""
        return list(self.encode_batch([text], parse_special)[0])

    def encode_lines(self, lines: Sequence[str]) -> list[int]:
        """Ids of lines, special tokens as plain text, but of those that hold what the tokenizer cannot read.

        A unigram model without an unknown token reads nothing with a character it lacks. Raises TextsRefused
        where that is every line.
        """
        with contextlib.suppress(TextsRefused):
            return self.encode("\n".join(lines), False)
        readable = self._readable([line for line in lines if line])
        with contextlib.suppress(TextsRefused):
            return self.encode("\n".join(readable), False)
        return self.encode(" ".join(readable), False)  # there is no line end in such a vocabulary

    def _readable(self, lines: Sequence[str]) -> list[str]:
        try:
            self.encode_batch(lines, False)
        except TextsRefused as refused:
            return [line for at, line in enumerate(lines) if at not in set(refused.indices)]
        return list(lines)

    def written_out(self, text: str, parse_special: bool, *, adds_space: bool) -> str | None:
        """The text to give to a llama.cpp that leaves spaces alone, for what the tokenizer makes of ``text``.

        With ``adds_space`` that llama.cpp puts a space before every stretch of text between special tokens;
        then there is none for a stretch that is to become one single space: None.
        """
        pieces = cut_at(added_pattern(self.added, parse_special), text)
        for at in range(0, len(pieces), 2):
            stretch = self._spaced(pieces[at], at == 0)
            if adds_space and stretch[:1] in (" ", META_SPACE):  # elsewhere llama.cpp's is one too many
                stretch = stretch[1:]
                if not stretch:
                    return None
            pieces[at] = stretch
        return "".join(pieces)

    def composed(self, text: str, parse_special: bool) -> str:
        """``text`` in NFC between added tokens, as a tokenizer with that normalizer reads it."""
        return composed(text, [token for token in self.added if not token.normalized], parse_special)

    def _spaced(self, stretch: str, first: bool) -> str:
        if self.collapses_spaces:
            stretch = re.sub(" +", " ", stretch).lstrip(" ").rstrip(" " + META_SPACE)
        prefix = self.prefix if first or (self.prefix is not None and self.prefix.each) else None
        # Metaspace and ByteLevel leave text alone that begins with a space; Prepend does not look.
        # To ByteLevel Metaspace's sign for a space is a character like any other.
        spaces = " " if self.kind == "byte-level bpe" else " " + META_SPACE
        if stretch and prefix is not None and (prefix.doubled or stretch[0] not in spaces):
            return " " + stretch
        return stretch
