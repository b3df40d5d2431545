"""SentencePiece: tokenizer.model read without protobuf, and the reference encoder around the library.

Field numbers are those of sentencepiece_model.proto (google/sentencepiece, src/).
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import VocabError
from ..core.input_files import quoted, read_bytes, read_json
from ..core.vocabulary import TokenType
from .describe import describe
from .token_settings import MAX_TOKENS, AddedToken, TokenSettings
from .tokenizer import Encoder, Kind, Source, SpacePrefix, TokenTable, added_pattern
from .tokenizer_process import TokenizerProcess
from .unigram import equally_good

_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"  # ModelProto: normalizer_spec = {add_dummy_prefix: false}
# transformers' classes that add EOS and no BOS
_T5_CLASSES = frozenset({"T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast"})
_EXTRA_IDS = 100
MODEL_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_KINDS: dict[int, Kind] = {1: "sentencepiece unigram", 2: "sentencepiece bpe"}


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


def read_sentencepiece(checkpoint: Checkpoint, name: str, settings: TokenSettings) -> Source:
    """The tokenizer of a SentencePiece model and the tokens added beside it.

    Special tokens are cut out of the text before SentencePiece sees it and each stretch between them is
    encoded by itself, as transformers' LlamaTokenizer does; with ``legacy`` false only the first stretch
    gets the leading space. Raises CheckpointError or VocabError where the file is not what it should be.
    """
    path = checkpoint.folder / name
    process = TokenizerProcess("sentencepiece", str(path))
    data = read_bytes(checkpoint.folder, name) or b""
    proto = parse_model(data, path)
    kind = _KINDS.get(proto.algorithm)
    if kind is None:
        raise VocabError(f"{path} is neither a BPE nor a unigram model; llama.cpp has no tokenizer for it")
    t5 = settings.tokenizer_class in _T5_CLASSES
    if t5:
        settings = _with_extra_ids(settings, len(proto.pieces), checkpoint)
    table = _table(proto, settings, path, t5=t5)
    scores = tuple(piece.score for piece in proto.pieces) + (0.0,) * (len(table.tokens) - len(proto.pieces))
    return Source(
        kind=kind,
        table=table,
        description=describe(kind, (name, *settings.files), _spec(proto), table, 0, settings.chat_template),
        encode_batch=_encoder(process, data, proto, table.added, each=settings.legacy),
        scores=scores,
        normalizers=() if proto.normalizer == "identity" else (proto.normalizer,),
        charsmap=proto.charsmap,
        prefix=SpacePrefix(each=settings.legacy, doubled=True) if proto.add_dummy_prefix else None,
        collapses_spaces=proto.remove_extra_whitespaces,
        equally_good=equally_good(table, scores) if kind == "sentencepiece unigram" else None,
        chat_template=settings.chat_template,
        notes=settings.notes,
    )


def _roles(proto: ModelProto) -> dict[str, int]:
    """Ids of the tokens the trainer gave a role."""
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    return {
        role: token_id
        for role, token_id in proto.roles.items()
        if 0 <= token_id < len(proto.pieces) and proto.pieces[token_id].kind in special
    }


def _with_extra_ids(settings: TokenSettings, pieces: int, checkpoint: Checkpoint) -> TokenSettings:
    """The settings with ids for ``<extra_id_N>``: T5Tokenizer counts them down from the last id.

    There are ``extra_ids`` of them (tokenizer_config.json, 100 by default), as far as the embedding's rows
    reach. Those whose ids a file gives keep them.
    """
    config = read_json(checkpoint.folder, "tokenizer_config.json") or {}
    count = config.get("extra_ids", _EXTRA_IDS)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < MAX_TOKENS:
        raise VocabError(f"tokenizer_config.json: extra_ids is {quoted(count)}, expected a number of tokens")
    rows = checkpoint.config.get("vocab_size")
    if isinstance(rows, int) and pieces + count > rows:
        count = 0
    ids = {f"<extra_id_{number}>": pieces + count - 1 - number for number in range(count)}
    known = {token.text for token in settings.added if token.id is not None}
    if any(text in known for text in ids):
        return settings
    others = tuple(token for token in settings.added if token.text not in ids)
    extra = tuple(AddedToken(text, token_id) for text, token_id in reversed(ids.items()))
    return replace(settings, added=(*others, *extra))


def _table(proto: ModelProto, settings: TokenSettings, path: Path, *, t5: bool) -> TokenTable:
    """The pieces and the tokens added to them; all that is cut out of the text first counts as added.

    BOS and EOS are added as tokenizer_config.json says, else as LlamaTokenizer does (BOS yes, EOS no) or, of
    ``t5``, T5Tokenizer (BOS no, EOS yes).
    """
    tokens: list[str | None] = [piece.text for piece in proto.pieces]
    types = [piece.kind for piece in proto.pieces]
    ids = {text: token_id for token_id, text in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise VocabError(f"{path} contains the same piece twice")
    added: dict[str, AddedToken] = {
        piece.text: AddedToken(piece.text, token_id)
        for token_id, piece in enumerate(proto.pieces)
        if piece.kind in (TokenType.CONTROL, TokenType.UNKNOWN)
    }
    for token in settings.added:
        token_id = ids.get(token.text, token.id)
        if token_id is None:
            continue
        if token.id is not None and token.id != token_id:
            raise VocabError(
                f"{quoted(token.text)} has the id {token_id} in {path.name}, but {token.id} in"
                " added_tokens.json or tokenizer_config.json"
            )
        if token.text not in ids and token_id < len(tokens) and tokens[token_id] is not None:
            raise VocabError(
                f"{quoted(token.text)} is given the id {token_id}, which is {quoted(tokens[token_id])} in"
                f" {path.name}"
            )
        grow = token_id + 1 - len(tokens)
        tokens += [None] * grow
        types += [TokenType.UNUSED] * grow
        tokens[token_id] = token.text
        if types[token_id] is not TokenType.UNKNOWN:
            types[token_id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        added[token.text] = replace(token, id=token_id)
    ids = {text: token_id for token_id, text in enumerate(tokens) if text is not None}
    return TokenTable(
        tokens=tuple(tokens),
        types=tuple(types),
        added=tuple(sorted(added.values(), key=lambda token: token.id or 0)),
        special=_roles(proto) | {role: ids[text] for role, text in settings.roles.items() if text in ids},
        add_bos=not t5 if settings.add_bos is None else settings.add_bos,
        add_eos=t5 if settings.add_eos is None else settings.add_eos,
    )


def _spec(proto: ModelProto) -> dict[str, Any]:
    """The parts in the shape of tokenizer.json, for the description."""
    name = "BPE" if proto.algorithm == 2 else "Unigram"
    normalizer = {
        "type": proto.normalizer,
        "add_dummy_prefix": proto.add_dummy_prefix,
        "remove_extra_whitespaces": proto.remove_extra_whitespaces,
    }
    return {
        "model": {"type": f"SentencePiece {name}", "byte_fallback": proto.byte_fallback},
        "normalizer": normalizer,
    }


def _encoder(
    process: TokenizerProcess, data: bytes, proto: ModelProto, added: Sequence[AddedToken], *, each: bool
) -> Encoder:
    process.open(data)
    later = int(proto.add_dummy_prefix and not each)
    if later:
        # A second normalizer_spec is merged into the first (protobuf's encoding, "last one wins").
        process.open(data + _NO_DUMMY_PREFIX)
    patterns = {parse: added_pattern(added, parse) for parse in (True, False)}
    ids = {token.text: token.id or 0 for token in added}

    def encode(texts: Sequence[str], parse_special: bool) -> list[array[int]]:
        cut = [_cut(text, patterns[parse_special]) for text in texts]
        first = iter(process.encode([pieces[0] for pieces in cut if pieces[0]]))
        rest = iter(process.encode([each for pieces in cut for each in pieces[2::2] if each], which=later))
        found = []
        for pieces in cut:
            encoded = array("i", next(first) if pieces[0] else ())
            for token, stretch in zip(pieces[1::2], pieces[2::2], strict=True):
                encoded.append(ids[token])
                encoded.extend(next(rest) if stretch else ())
            found.append(encoded)
        return found

    return encode


def _cut(text: str, pattern: re.Pattern[str] | None) -> list[str]:
    """Stretches of text and, between them, the tokens found."""
    pieces, end = [], 0
    for match in pattern.finditer(text) if pattern else ():
        pieces += [text[end : match.start()], match.group()]
        end = match.end()
    return [*pieces, text[end:]]


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
