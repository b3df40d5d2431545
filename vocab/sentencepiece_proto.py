"""SentencePiece's ModelProto, read and written without protobuf.

Field numbers are those of sentencepiece_model.proto (google/sentencepiece, src/).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import VocabError
from ..core.vocabulary import TokenType
from .token_settings import MAX_TOKENS


@dataclass(frozen=True)
class Piece:
    """One entry. ``kind`` is SentencePiece's type, numbered like TokenType."""

    text: str
    score: float = 0.0
    kind: TokenType = TokenType.NORMAL


@dataclass(frozen=True)
class ModelProto:
    """What a tokenizer.model says. ``algorithm`` is 1 unigram, 2 BPE, 3 word, 4 char."""

    pieces: tuple[Piece, ...]
    algorithm: int = 1
    byte_fallback: bool = False
    normalizer: str = "identity"
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    charsmap: bytes = b""
    roles: dict[str, int] = field(default_factory=dict)


def parse_model(data: bytes, path: Path) -> ModelProto:
    """Read the fields of a ModelProto kconv needs; every length is checked.

    Raises VocabError where the data is no such message.
    """
    try:
        return _parse(data)
    except (ValueError, struct.error, IndexError, UnicodeDecodeError) as error:
        raise VocabError(f"{path} is not a SentencePiece model: {error}") from error


def _parse(data: bytes) -> ModelProto:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_message(value)))
        elif number == 2:
            trainer = _message(value)
        elif number == 3:
            normalizer = _message(value)
        if len(pieces) > MAX_TOKENS:
            raise ValueError(f"more than {MAX_TOKENS} pieces")
    if not pieces:
        raise ValueError("it contains no pieces")
    # Negative ids, written as 64 bits, say that a role has no token.
    numbers = {"unknown": (40, 0), "bos": (41, 1), "eos": (42, 2), "padding": (43, -1)}
    roles = {
        role: int(trainer.get(field_number, default)) for role, (field_number, default) in numbers.items()
    }
    name, charsmap = normalizer.get(1, b"identity"), normalizer.get(2, b"")
    return ModelProto(
        pieces=tuple(pieces),
        algorithm=int(trainer.get(3, 1)),
        byte_fallback=bool(trainer.get(35, 0)),
        normalizer=name.decode("utf-8") if isinstance(name, bytes) and name else "identity",
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        roles=roles,
    )


def _piece(fields: dict[int, Any]) -> Piece:
    text, score, kind = fields.get(1, b""), fields.get(2, b"\0\0\0\0"), fields.get(3, 1)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise ValueError("a piece has fields of the wrong type")
    return Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], TokenType(kind))


def _message(value: Any) -> dict[int, Any]:
    if not isinstance(value, bytes):
        raise ValueError("found a number where a message is expected")
    return dict(_fields(value))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of one message in protobuf's wire format: numbers as int, the rest as bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value if value < 1 << 63 else value - (1 << 64)
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if size > len(data) - position:
            raise ValueError(f"a field of {size} bytes begins at byte {position} of {len(data)}")
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("it ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number of more than 10 bytes before byte {position}")


def unigram_model(pieces: Sequence[Piece], charsmap: bytes, *, add_dummy_prefix: bool) -> bytes:
    """A unigram model of these pieces, one of them unknown, that normalizes by ``charsmap``."""
    written = bytearray()
    for piece in pieces:
        text = piece.text.encode("utf-8", "replace")
        fields = _sized(1, text) + b"\x15" + struct.pack("<f", piece.score) + _number(3, piece.kind)
        written += _sized(1, fields)
    unknown = next(at for at, piece in enumerate(pieces) if piece.kind is TokenType.UNKNOWN)
    trainer = _number(3, 1) + _number(40, unknown)
    normalizer = _sized(2, charsmap) + _number(3, add_dummy_prefix)
    return bytes(written) + _sized(2, trainer) + _sized(3, normalizer)


def _sized(number: int, data: bytes) -> bytes:
    return _as_varint(number << 3 | 2) + _as_varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _as_varint(number << 3) + _as_varint(value)


def _as_varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*written, value))
