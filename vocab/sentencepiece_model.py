"""SentencePiece: the tokens of a tokenizer.model, and the reference encoder around the library."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import VocabError
from ..core.input_files import quoted, read_bytes, read_json
from ..core.vocabulary import TokenType
from . import fairseq_ids
from .describe import describe
from .sentencepiece_proto import ModelProto, parse_model
from .token_settings import MAX_TOKENS, AddedToken, TokenSettings
from .tokenizer import Encoder, Kind, Source, SpacePrefix, TokenTable, added_pattern, cut_at
from .tokenizer_process import TokenizerProcess
from .unigram import equally_good

_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"  # ModelProto: normalizer_spec = {add_dummy_prefix: false}
# transformers' classes that add EOS and no BOS
_T5_CLASSES = frozenset({"T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast"})
_EXTRA_IDS = 100
MODEL_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_KINDS: dict[int, Kind] = {1: "sentencepiece unigram", 2: "sentencepiece bpe"}


def read_sentencepiece(
    checkpoint: Checkpoint, name: str, settings: TokenSettings, copy: TokenTable | None = None
) -> Source:
    """The tokenizer of a SentencePiece model and the tokens added beside it.

    Special tokens are cut out of the text before SentencePiece sees it and each stretch between them is
    encoded by itself, as transformers' LlamaTokenizer does; with ``legacy`` false only the first stretch
    gets the leading space. Classes with fairseq's ids get them (``fairseq_ids``); ``copy`` is the table of a
    tokenizer.json beside the model, which wins if it has these ids. Raises CheckpointError or VocabError
    where the file is not what it should be.
    """
    path = checkpoint.folder / name
    process = TokenizerProcess("sentencepiece", str(path))
    data = read_bytes(checkpoint.folder, name) or b""
    proto = parse_model(data, path)
    kind = _KINDS.get(proto.algorithm)
    if kind is None:
        raise VocabError(f"{path} is neither a BPE nor a unigram model; llama.cpp has no tokenizer for it")
    fairseq = fairseq_ids.layout_of(settings.tokenizer_class)
    copied = copy if copy is not None and fairseq_ids.are_those(copy, proto) else None
    shifted = fairseq is not None or copied is not None
    if shifted:
        proto = fairseq_ids.ordered(proto, settings, path)
    if copied is not None:
        table = copied
    elif fairseq is not None:
        table = fairseq_ids.table(proto, settings, fairseq)
    else:
        t5 = settings.tokenizer_class in _T5_CLASSES
        if t5:
            settings = _with_extra_ids(settings, len(proto.pieces), checkpoint)
        table = _table(proto, settings, path, t5=t5)
    scores = tuple(piece.score for piece in proto.pieces) + (0.0,) * (len(table.tokens) - len(proto.pieces))
    return Source(
        kind=kind,
        table=table,
        description=describe(kind, (name, *settings.files), _spec(proto), table, 0, settings.chat_template),
        encode_batch=encoder(process, data, proto, table.added, each=settings.legacy, shifted=shifted),
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


def encoder(
    process: TokenizerProcess,
    data: bytes,
    proto: ModelProto,
    added: Sequence[AddedToken],
    *,
    each: bool,
    shifted: bool = False,
) -> Encoder:
    """What the library makes of texts from which ``added`` are cut out; ``shifted``: with fairseq's ids.

    ``each``: a space is put before every stretch between them, not only before the first.
    """
    process.open(data)
    later = int(proto.add_dummy_prefix and not each)
    if later:
        # A second normalizer_spec is merged into the first (protobuf's encoding, "last one wins").
        process.open(data + _NO_DUMMY_PREFIX)
    patterns = {parse: added_pattern(added, parse) for parse in (True, False)}
    ids = {token.text: token.id or 0 for token in added}

    def library(stretches: Sequence[str], which: int = 0) -> Iterator[array[int]]:
        found = process.encode(stretches, which=which)
        return map(fairseq_ids.shifted, found) if shifted else iter(found)

    def encode(texts: Sequence[str], parse_special: bool) -> list[array[int]]:
        cut = [cut_at(patterns[parse_special], text) for text in texts]
        first = library([pieces[0] for pieces in cut if pieces[0]])
        rest = library([each for pieces in cut for each in pieces[2::2] if each], later)
        found = []
        for pieces in cut:
            encoded = array("i", next(first) if pieces[0] else ())
            for token, stretch in zip(pieces[1::2], pieces[2::2], strict=True):
                encoded.append(ids[token])
                encoded.extend(next(rest) if stretch else ())
            found.append(encoded)
        return found

    return encode
