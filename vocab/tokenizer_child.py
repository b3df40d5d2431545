"""The child that runs the tokenizers library or sentencepiece; imports one of them and its side of a child.

Both read files of strangers in C++ and Rust: patterns of exponential time, normalizers that multiply a text,
numbers no file should have. Its argument is the library.

Request and answer are each two uint32, the sizes of what follows: JSON, then data. A request says what is to
be done (``do``, a method here) and its limits: ``seconds`` of processor time, ``memory`` to be added. Texts
are a uint32 number of them, a uint32 length each, and UTF-8; token ids int32 numbers of them, then int32 ids.
All little-endian. Exit code REFUSED: the library refused what it was given, as the last line of the log says.
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from ..core import child

REFUSED = 3
Answer = tuple[Any, bytes]


class _Tokenizers:
    """One tokenizer of the tokenizers library, and a bare one that has its model and splits alone."""

    def __init__(self) -> None:
        import tokenizers

        self._library = tokenizers
        self._whole: Any = None
        self._bare: Any = None

    def open(self, request: Any, data: bytes) -> Answer:
        """The tokenizer of a tokenizer.json."""
        self._whole = self._library.Tokenizer.from_str(data.decode())
        self._whole.no_truncation()
        self._whole.no_padding()
        if request["dropout"]:
            self._whole.model.dropout = None  # it would make every encoding a die roll
        return None, b""

    def add(self, request: Any, data: bytes) -> Answer:
        """Add a token; the id it got."""
        token = self._library.AddedToken(request["text"], **request["flags"])
        (self._whole.add_special_tokens if request["special"] else self._whole.add_tokens)([token])
        return self._whole.token_to_id(request["text"]), b""

    def vocabulary(self, request: Any, data: bytes) -> Answer:
        """All texts, and their ids."""
        entries = self._whole.get_vocab(with_added_tokens=True)
        return list(entries), _numbers(array("q", entries.values()))

    def added(self, request: Any, data: bytes) -> Answer:
        """Added tokens as they are found in texts: id, text and flags of each."""
        flags = ("content", "special", "normalized", "lstrip", "rstrip", "single_word")
        tokens = sorted(self._whole.get_added_tokens_decoder().items())
        return [[index, *(getattr(token, flag) for flag in flags)] for index, token in tokens], b""

    def around(self, request: Any, data: bytes) -> Answer:
        """Ids of each text, without and with what the post-processor adds; none where it cannot be read."""
        ids: list[list[list[int]]] = []
        for text in request["texts"]:
            try:
                pair = [self._whole.encode(text, add_special_tokens=added).ids for added in (False, True)]
            except Exception:
                pair = [[], []]
            ids.append(pair)
        return ids, b""

    def scores(self, request: Any, data: bytes) -> Answer:
        """Scores of a unigram model by id."""
        pairs = json.loads(self._whole.to_str())["model"]["vocab"]
        return None, _numbers(array("d", (score for _, score in pairs)))

    def make_bare(self, request: Any, data: bytes) -> Answer:
        """A tokenizer of the same model, and the splits of another tokenizer.json."""
        self._bare = self._library.Tokenizer(self._whole.model)
        if data:
            self._bare.pre_tokenizer = self._library.Tokenizer.from_str(data.decode()).pre_tokenizer
        return None, b""

    def encode(self, request: Any, data: bytes) -> Answer:
        """Ids of texts, and why the library has none for some of them, by index."""
        tokenizer = self._bare if request["which"] else self._whole
        tokenizer.encode_special_tokens = not request["parse_special"]
        texts = _texts(data)
        refused: dict[int, str] = {}
        try:
            ids = [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception:
            ids = []
            for index, text in enumerate(texts):
                try:
                    ids.append(tokenizer.encode(text, add_special_tokens=False).ids)
                except Exception as error:
                    refused[index] = str(error)[:300]
                    ids.append([])
        return refused, _ids(ids)

    def try_parts(self, request: Any, data: bytes) -> Answer:
        """Encode texts with some parts of a tokenizer.json and a model of one token, saying before each try
        which it is: the process may end in any.
        """
        texts = _texts(data)
        model = {"model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}}
        for number, parts in enumerate(request["tries"]):
            child.write(bytes([number]))
            tokenizer = self._library.Tokenizer.from_str(json.dumps({**model, **parts}))
            for text in texts:
                tokenizer.encode(text)
        child.write(bytes([len(request["tries"])]))
        return None, b""


class _SentencePiece:
    """One model of the sentencepiece library, or the same with other settings beside it."""

    def __init__(self) -> None:
        import sentencepiece

        self._library = sentencepiece
        self._processors: list[Any] = []

    def open(self, request: Any, data: bytes) -> Answer:
        """One more processor of a ModelProto."""
        processor = self._library.SentencePieceProcessor()
        processor.LoadFromSerializedProto(data)
        self._processors.append(processor)
        return None, b""

    def encode(self, request: Any, data: bytes) -> Answer:
        """Ids of texts."""
        threads = request["threads"]
        return {}, _ids(self._processors[request["which"]].encode(_texts(data), num_threads=threads))


def _texts(data: bytes) -> list[str]:
    (count,) = struct.unpack_from("<I", data)
    sizes = struct.unpack_from(f"<{count}I", data, 4)
    texts, at = [], 4 + 4 * count
    for size in sizes:
        texts.append(data[at : at + size].decode("utf-8", "surrogatepass"))
        at += size
    return texts


def _ids(lists: Sequence[Sequence[int]]) -> bytes:
    counts, ids = array("i", map(len, lists)), array("i")
    for each in lists:
        ids.extend(each)
    return _numbers(counts) + _numbers(ids)


def _numbers(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def main(arguments: Sequence[str]) -> int:
    """Answer requests until the parent is done."""
    library: Any = {"tokenizers": _Tokenizers, "sentencepiece": _SentencePiece}[arguments[0]]()
    while True:
        size, more = struct.unpack("<II", child.take(8))
        request = json.loads(child.take(size))
        data = child.take(more)
        child.limit_memory(request["memory"])
        child.limit_time(request["seconds"])
        content, answer = _done(getattr(library, request["do"]), request, data)
        child.limit_time(0)
        header = json.dumps(content, ensure_ascii=False).encode()
        child.write(struct.pack("<II", len(header), len(answer)))
        child.write(header)
        child.write(answer)
        del request, data, content, answer, header


def _done(what: Callable[[Any, bytes], Answer], request: Any, data: bytes) -> Answer:
    try:
        return what(request, data)
    except MemoryError:
        raise
    except BaseException as error:  # pyo3's PanicException is no Exception
        raise child.Stop(REFUSED, " ".join(str(error).split()) or type(error).__name__) from None
