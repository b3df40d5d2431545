"""Tokenizers of the `tokenizers` library: tokenizer.json, or vocab.json with merges.txt.

AutoTokenizer is not asked: classes of transformers rewrite what the file says.
"""

from __future__ import annotations

import base64
import json
import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import VocabError
from ..core.input_files import parse_json, quoted, read_json, read_text
from ..core.model import Note
from . import pretokenizers
from .describe import describe
from .extra_tokens import leave_out, within_rows
from .letter_classes import rough_encoder
from .token_settings import MAX_TOKENS, TokenSettings
from .token_table import token_table
from .tokenizer import META_SPACE, Encoder, Kind, Source, SpacePrefix
from .tokenizer_process import TextsRefused, TokenizerProcess
from .unigram import equally_good
from .wordpiece import vocab_txt_as_json, word_pieces

_BYTE_LEVEL = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}


def read_tokenizer_json(checkpoint: Checkpoint, settings: TokenSettings, rows: int | None = None) -> Source:
    """The tokenizer of tokenizer.json, with ``rows`` without the added tokens from that id on.

    Raises CheckpointError or VocabError where the file is malformed or of a kind nothing is known of.
    """
    name = "tokenizer.json"
    where = str(checkpoint.folder / name)
    process = TokenizerProcess("tokenizers", where)
    text = read_text(checkpoint.folder, name) or ""
    spec = parse_json(text, where)
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict):
        raise VocabError(f"{where} has no object named model")
    if rows is not None:
        left_out = leave_out(spec, rows)
        settings = within_rows(settings, rows, left_out)
        text = json.dumps(spec, ensure_ascii=False) if left_out else text
    _name_unknown(model)
    model.pop("vocab", None)  # the library hands it out again; two copies of 128,000 tokens are one too many
    parts = {key: spec.get(key) for key in ("normalizer", "pre_tokenizer")}
    process.open(text.encode("utf-8", "surrogatepass"), parts=parts, dropout=bool(model.get("dropout")))
    del text
    merges, dropped = _merges(model.pop("merges", None) or [])
    notes = [_dropped_note(dropped)] if dropped else []
    return _source(process, spec, merges, settings, (name, *settings.files), notes)


def _name_unknown(model: dict[str, Any]) -> None:
    """A unigram model has its unknown token by number only."""
    at, vocab = model.get("unk_id"), model.get("vocab")
    if isinstance(at, int) and isinstance(vocab, list) and 0 <= at < len(vocab):
        entry = vocab[at]
        if isinstance(entry, list) and entry and isinstance(entry[0], str):
            model["unk_token"] = entry[0]


def read_vocab_and_merges(checkpoint: Checkpoint, settings: TokenSettings) -> Source:
    """GPT-2's byte-level BPE from vocab.json (one flat object of text to id) and merges.txt.

    Raises CheckpointError or VocabError where a file is missing or malformed.
    """
    folder = checkpoint.folder
    process = TokenizerProcess("tokenizers", f"{folder / 'vocab.json'} and merges.txt")
    vocab = read_json(folder, "vocab.json") or {}
    for text, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id < MAX_TOKENS:
            where = f"{folder / 'vocab.json'}: {quoted(text)}"
            raise VocabError(f"{where} has the id {quoted(token_id)}, expected a number below {MAX_TOKENS}")
    merges = read_text(folder, "merges.txt")
    if merges is None:
        raise VocabError(f"{folder} has vocab.json but no merges.txt", hint="download the checkpoint again")
    lines = [line for line in re.split(r"\r?\n", merges) if line and not line.startswith("#version")]
    bad = next((line for line in lines if line.count(" ") != 1), None)
    if bad is not None:
        raise VocabError(
            f"{folder / 'merges.txt'}: {quoted(bad)} is not a merge, expected two tokens separated by a space"
        )
    # An added token's id may lie beyond a gap; as an entry of the model's vocabulary it keeps it.
    for token in settings.added:
        if token.id is not None:
            vocab.setdefault(token.text, token.id)
    byte_level = {**_BYTE_LEVEL, "add_prefix_space": settings.add_prefix_space}
    spec = {"model": {"type": "BPE"}, "pre_tokenizer": byte_level, "decoder": _BYTE_LEVEL}
    process.open(_as_tokenizer_json(vocab, lines, byte_level))
    files = ("vocab.json", "merges.txt", *settings.files)
    return _source(process, spec, tuple(lines), settings, files, [], vocab)


def read_vocab_txt(checkpoint: Checkpoint, settings: TokenSettings) -> Source:
    """BERT's WordPiece from vocab.txt, one token a line. Raises CheckpointError or VocabError."""
    spec = vocab_txt_as_json(checkpoint, settings)
    process = TokenizerProcess("tokenizers", str(checkpoint.folder / "vocab.txt"))
    process.open(json.dumps(spec, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    del spec["model"]["vocab"]
    return _source(process, spec, (), settings, ("vocab.txt", *settings.files), [])


def _as_tokenizer_json(
    vocab: Mapping[str, int], merges: Sequence[str], byte_level: Mapping[str, Any]
) -> bytes:
    prefix = {"add_prefix_space": False}
    parts = {"pre_tokenizer": byte_level, "decoder": {**_BYTE_LEVEL, **prefix}}
    spec = {**parts, "model": {"type": "BPE", "vocab": vocab, "merges": merges}}
    return json.dumps(spec, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _merges(raw: Sequence[Any]) -> tuple[tuple[str, ...], int]:
    """Merges as "left right", and how many cannot be written so: a part that holds a space.

    Such a merge never fires where spaces have become another character before, and nowhere else has
    llama.cpp a tokenizer for the vocabulary.
    """
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw]
    kept = tuple(pair for pair in pairs if pair.count(" ") == 1)
    return kept, len(pairs) - len(kept)


def _dropped_note(count: int) -> Note:
    return Note(
        "merges-with-spaces", f"{count} merges of texts with spaces cannot be written and are left out"
    )


def _source(
    process: TokenizerProcess,
    spec: Mapping[str, Any],
    merges: tuple[str, ...],
    settings: TokenSettings,
    files: tuple[str, ...],
    notes: list[Note],
    vocabulary: dict[str, int] | None = None,
) -> Source:
    model = spec["model"]
    kind = _kind(spec)
    unknown = model.get("unk_token") if isinstance(model.get("unk_token"), str) else None
    table, moved = token_table(process, kind, unknown, settings, vocabulary)
    scores: tuple[float, ...] = ()
    if kind == "sentencepiece unigram":
        known = process.scores()
        scores = known + (0.0,) * (len(table.tokens) - len(known))
    return Source(
        kind=kind,
        table=table,
        description=describe(kind, files, spec, table, len(merges), settings.chat_template),
        encode_batch=_encoder(process, moved),
        scores=scores,
        merges=merges,
        splits=pretokenizers.structure(spec.get("pre_tokenizer")),
        ignore_merges=bool(model.get("ignore_merges")),
        normalizers=tuple(str(step.get("type")) for step in pretokenizers.steps(spec.get("normalizer"))),
        charsmap=_charsmap(spec),
        prefix=_prefix(spec),
        pieces=word_pieces(spec, pretokenizers.steps(spec.get("normalizer")))
        if kind == "wordpiece"
        else None,
        chat_template=settings.chat_template,
        equally_good=equally_good(table, scores) if scores else None,
        encode_pieces=_piece_encoder(process, spec) if kind == "byte-fallback bpe" else None,
        rough=rough_encoder(process, spec, table.added, moved) if kind == "byte-level bpe" else None,
        notes=(*notes, *settings.notes, *table.notes),
    )


def _kind(spec: Mapping[str, Any]) -> Kind:
    model = spec["model"]
    kind = model.get("type")
    if kind == "BPE" or (kind is None and "continuing_subword_prefix" in model):
        types = {
            step.get("type")
            for key in ("pre_tokenizer", "normalizer", "decoder")
            for step in pretokenizers.steps(spec.get(key))
        }
        if model.get("byte_fallback"):
            return "byte-fallback bpe"
        return "byte-level bpe" if "ByteLevel" in types else "character bpe"
    if kind == "Unigram" or (kind is None and "unk_id" in model):
        return "sentencepiece unigram"
    if kind == "WordPiece" or (kind is None and "max_input_chars_per_word" in model):
        return "wordpiece"
    raise VocabError(
        f"tokenizer.json contains a {kind} model, which kconv does not support",
        hint="supported are BPE (byte-level, with byte fallback, over characters), unigram and WordPiece",
    )


def _charsmap(spec: Mapping[str, Any]) -> bytes:
    for step in pretokenizers.steps(spec.get("normalizer")):
        value = step.get("precompiled_charsmap") if step.get("type") == "Precompiled" else None
        if isinstance(value, str):
            return base64.b64decode(value)  # the library has taken it, so it is valid
    return b""


def _prefix(spec: Mapping[str, Any]) -> SpacePrefix | None:
    for step in pretokenizers.steps(spec.get("normalizer")):
        if step.get("type") == "Prepend" and step.get("prepend") in (" ", META_SPACE):
            return SpacePrefix(each=True, doubled=True)
    for step in pretokenizers.steps(spec.get("pre_tokenizer")):
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme") or (
                "always" if step.get("add_prefix_space", True) else "never"
            )
            return None if scheme == "never" else SpacePrefix(each=scheme == "always", doubled=False)
        if step.get("type") == "ByteLevel" and step.get("add_prefix_space"):
            return SpacePrefix(each=True, doubled=False)
    return None


def _encoder(process: TokenizerProcess, moved: Mapping[int, int], which: int = 0) -> Encoder:
    def placed(found: list[array[int]]) -> list[array[int]]:
        return [array("i", [moved.get(i, i) for i in ids]) for ids in found] if moved else found

    def encode(texts: Sequence[str], parse_special: bool) -> list[array[int]]:
        try:
            return placed(process.encode(texts, which=which, parse_special=parse_special))
        except TextsRefused as refused:
            refused.found = placed(refused.found)
            raise

    return encode


def _piece_encoder(process: TokenizerProcess, spec: Mapping[str, Any]) -> Encoder:
    """Encodes vocabulary entries as they stand: the same model and splits, no normalizer, no prefix."""
    stub = b""
    if spec.get("pre_tokenizer"):
        model = {"type": "BPE", "vocab": {}, "merges": []}
        stub = json.dumps(_without_prefix({"model": model, "pre_tokenizer": spec["pre_tokenizer"]})).encode()
    process.make_bare(stub)
    return _encoder(process, {}, which=1)


def _without_prefix(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_prefix(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    same = {key: _without_prefix(entry) for key, entry in value.items()}
    if value.get("type") == "Metaspace":
        return {**same, "prepend_scheme": "never", "add_prefix_space": False}
    return {**same, "add_prefix_space": False} if value.get("type") == "ByteLevel" else same
