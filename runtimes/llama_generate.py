"""The child that generates text with a GGUF file in llama.cpp; imports of kconv only what children have.

``llama.py`` is the parent's side. A bad file may abort the process llama.cpp runs in, so it is never loaded
in the parent. Arguments: FILE.gguf THREADS EXTRA_BUFFERS VERBOSE (both 0 or 1). The high-level class of
llama-cpp-python is not used: it adds a BOS of its own, reads the whole context's logits back and cannot run
encoder-decoder models.

Request: ``REQUEST`` (what, bytes that follow) and those bytes: ``TEXT`` with UTF-8, ``PIECE`` with an int32
token, ``GENERATE`` with ``SETTINGS``, a ``SAMPLING``, and what is to be read: int32 ids, or with an embedded
source float32 rows. ``STOP`` ends what is being generated before the next token, and has no answer.

Answers: ``ANSWER`` (kind, number, another number, bytes that follow). ``LOADED`` with ``FACTS`` once;
``PROGRESS`` (done, total) and ``LOG`` (a piece of llama.cpp's log, with VERBOSE) before others; ``IDS`` for
a text; ``TOKENS`` for a piece and for what is generated: of each token a ``TOKEN`` (the token, whether it
ends the text, its length) with its bytes; ``DONE`` after the last one; ``NO_CONTEXT`` (size) where there is
no room for a context, and then the child goes on. All little-endian. Exit codes: ``REFUSED`` and those
after it. Errors of llama.cpp go to stderr.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Sequence
from typing import Any

from ..core import child
from ..core.vocabulary import is_word
from . import KV_TYPES
from .llama_sampling import SAMPLING, int32s, sampler_chain

TEXT, PIECE, GENERATE, STOP = 1, 2, 3, 4
LOADED, PROGRESS, LOG, IDS, TOKENS, DONE, NO_CONTEXT = 1, 2, 3, 4, 5, 6, 7
REFUSED, NO_DECODER, STUCK = 3, 4, 5
REQUEST = struct.Struct("<BI")
ANSWER = struct.Struct("<BiiI")
TOKEN = struct.Struct("<i?I")
FACTS = struct.Struct("<6i3?")
"""Context length, width, tokens, BOS, EOS, the decoder's start token; BOS added, EOS added, encoder."""
SETTINGS = struct.Struct("<IIIB?")
"""Tokens to generate, size of the context, tokens read at once, index in KV_TYPES, embedded source."""

_PART = 1 << 16
_TOGETHER = 0.002  # seconds; tokens that come faster are sent together, since each time takes some 20 µs


class Model:
    """A file llama.cpp has loaded."""

    def __init__(self, library: Any, handle: Any, threads: int) -> None:
        self.library, self.handle, self.threads = library, handle, threads
        self.vocab = library.llama_model_get_vocab(handle)
        self.size = library.llama_vocab_n_tokens(self.vocab)
        self.encoder = bool(library.llama_model_has_encoder(handle))
        self.start = library.llama_model_decoder_start_token(handle)
        self.context: Any = None
        self.settings: tuple[int, int, str] | None = None  # of that context
        self.seen: list[int] = []  # tokens the decoder has read in it
        self.goes_on = self._goes_on()

    def facts(self) -> bytes:
        """What the parent has to know."""
        library = self.library
        return FACTS.pack(
            library.llama_model_n_ctx_train(self.handle),
            library.llama_model_n_embd(self.handle),
            self.size,
            library.llama_vocab_bos(self.vocab),
            library.llama_vocab_eos(self.vocab),
            self.start,
            library.llama_vocab_get_add_bos(self.vocab),
            library.llama_vocab_get_add_eos(self.vocab),
            self.encoder,
        )

    def ids(self, text: bytes) -> bytes:
        """Token ids of a text, as int32; special tokens written in it are recognised."""
        room = len(text) + 8
        while True:
            buffer = (ctypes.c_int32 * room)()
            count = self.library.llama_tokenize(self.vocab, text, len(text), buffer, room, False, True)
            if count >= 0:
                return bytes(memoryview(buffer).cast("B")[: 4 * count])
            room = -count

    def encoded_token(self, token: int) -> bytes:
        """A token, whether it ends the text, and its bytes: of control tokens none but those of words."""
        known = 0 <= token < self.size
        end = known and self.ends(token)
        piece = self._piece(token, special=False) if known else b""
        if known and not piece and not end:
            spelled = self._piece(token, special=True)
            piece = spelled if is_word(spelled.decode("utf-8", "replace")) else b""
        return TOKEN.pack(token, end, len(piece)) + piece

    def ends(self, token: int) -> bool:
        """Whether the token ends the text; what only ends a model's reasoning does not."""
        return token != self.goes_on and bool(self.library.llama_vocab_is_eog(self.vocab, token))

    def _goes_on(self) -> int:
        """The token of the file's key for the end of reasoning (vocab/end_of_turn.py), -1 for none."""
        value = ctypes.create_string_buffer(32)
        self.library.llama_model_meta_val_str(self.handle, b"kconv.goes_on_token_id", value, 32)
        return int(value.value) if value.value.isdigit() else -1

    def _piece(self, token: int, *, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self.library.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def read(self, function: Any, batch: Any) -> None:
        """Have the encoder or the decoder read a batch. Raises Stop."""
        status = function(self.context, batch)
        if status:
            raise child.Stop(STUCK, f"{function.__name__} gave {status}")

    def decode(self, tokens: Sequence[int]) -> None:
        """Have the decoder read. Raises Stop."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        self.read(self.library.llama_decode, self.library.llama_batch_get_one(ids, len(tokens)))


def main(arguments: Sequence[str]) -> int:
    """Load the file and answer requests."""
    path, threads, extra, verbose = arguments
    library = child.llama_cpp()
    child.log_errors(library, _send_log if verbose == "1" else None)
    model = _load(library, path, int(threads), extra=extra == "1")
    child.write(_answer(LOADED, 0, 0, model.facts()))
    while True:
        what, size = REQUEST.unpack(child.take(REQUEST.size))
        data = child.take(size)
        if what == TEXT:
            child.write(_answer(IDS, 0, 0, model.ids(data)))
        elif what == PIECE:
            child.write(_answer(TOKENS, data=model.encoded_token(*int32s(data))))
        elif what == GENERATE:
            _generate(model, data)


def _answer(kind: int, number: int = 0, other: int = 0, data: bytes | bytearray = b"") -> bytes:
    return ANSWER.pack(kind, number, other, len(data)) + data


def _load(library: Any, path: str, threads: int, *, extra: bool) -> Model:
    """Raises Stop where llama.cpp refuses the file."""
    library.llama_backend_init()
    parameters = library.llama_model_default_params()
    parameters.use_extra_bufts = extra
    reported = -1

    def on_progress(fraction: float, _: Any) -> bool:
        nonlocal reported
        if round(fraction * 1000) > reported:
            reported = round(fraction * 1000)
            child.write(_answer(PROGRESS, reported, 1000))
        return True

    parameters.progress_callback = library.llama_progress_callback(on_progress)
    handle = library.llama_model_load_from_file(os.fsencode(path), parameters)
    if not handle:
        raise child.Stop(REFUSED)
    if not library.llama_model_has_decoder(handle):
        raise child.Stop(NO_DECODER)
    return Model(library, handle, threads)


def _generate(model: Model, request: bytes) -> None:
    """Read what the request holds and answer with tokens."""
    count, size, at_once, kv_type, embedded = SETTINGS.unpack_from(request)
    sampling = request[SETTINGS.size : SETTINGS.size + SAMPLING.size]
    source = request[SETTINGS.size + SAMPLING.size :]
    known = _known_beginning(model, source, (size, at_once, KV_TYPES[kv_type]))
    if not known and not _new_context(model, size, at_once, KV_TYPES[kv_type]):
        child.write(_answer(NO_CONTEXT, size))
        return
    begun = _read_source(model, source, at_once, known, embedded=embedded)
    model.seen = list(begun)
    if not child.waiting():
        sampler = sampler_chain(model.library, model.size, sampling, begun)
        _stream(model, sampler, count)
        model.library.llama_sampler_free(sampler)
    child.write(_answer(DONE))


def _known_beginning(model: Model, source: bytes, settings: tuple[int, int, str]) -> int:
    """How many tokens of the prompt the context holds from the request before; forgets what follows them.

    A conversation reads every turn once so. A context of another kind, an encoder's, or one that has dropped
    tokens (a cache of a window) is begun anew: 0.
    """
    if model.context is None or model.encoder or model.settings != settings:
        return 0
    library, prompt = model.library, int32s(source)
    pairs = zip(model.seen, prompt[:-1], strict=False)  # the last is read again, for its logits
    known = next(
        (at for at, (old, new) in enumerate(pairs) if old != new), min(len(model.seen), len(prompt) - 1)
    )
    memory = library.llama_get_memory(model.context)
    whole = known > 0 and library.llama_memory_seq_pos_min(memory, 0) == 0
    return known if whole and library.llama_memory_seq_rm(memory, 0, known, -1) else 0


def _stream(model: Model, sampler: Any, count: int) -> None:
    """Up to ``count`` tokens, sent as soon as they are chosen."""
    library = model.library
    ids = (ctypes.c_int32 * 1)()
    batch = library.llama_batch_get_one(ids, 1)
    answers: dict[int, tuple[bytes, bool]] = {}  # what takes 10 µs is done once for a token
    pending, sent = bytearray(), 0.0
    for position in range(count):
        if child.waiting():
            if pending:
                child.write(_answer(TOKENS, data=pending))
            break
        token = library.llama_sampler_sample(sampler, model.context, -1)
        if token not in answers:
            answers[token] = model.encoded_token(token), model.ends(token)
        answer, end = answers[token]
        pending += answer
        last = end or position + 1 == count
        if last or time.monotonic() - sent > _TOGETHER:
            child.write(_answer(TOKENS, data=pending))
            pending.clear()
            sent = time.monotonic()
        if last:
            break
        ids[0] = token
        model.read(library.llama_decode, batch)
        model.seen.append(token)


def _read_source(model: Model, source: bytes, batch: int, known: int, *, embedded: bool) -> list[int]:
    """Read the prompt but for the tokens that are ``known``; all tokens the decoder has seen."""
    if model.encoder:
        # an encoder sees everything at once, and its positions take none of the decoder's
        _encode(model, source, embedded=embedded)
        model.decode([model.start])
        return [model.start]
    prompt = int32s(source)
    for start in range(known, len(prompt), batch):
        if child.waiting():
            return prompt[:start]
        child.write(_answer(PROGRESS, start, len(prompt)))
        model.decode(prompt[start : start + batch])
    child.write(_answer(PROGRESS, len(prompt), len(prompt)))
    return prompt


def _encode(model: Model, source: bytes, *, embedded: bool) -> None:
    """Have the encoder read; what it makes of it stays in the context for the decoder."""
    library = model.library
    width = library.llama_model_n_embd(model.handle) if embedded else 1
    count = len(source) // (4 * width)
    child.write(_answer(PROGRESS, 0, count))
    if embedded:
        values = (ctypes.c_float * (count * width)).from_buffer_copy(source)
        batch = library.llama_batch(n_tokens=count, embd=ctypes.cast(values, ctypes.POINTER(ctypes.c_float)))
    else:
        ids = (ctypes.c_int32 * count).from_buffer_copy(source)
        batch = library.llama_batch_get_one(ids, count)
    model.read(library.llama_encode, batch)
    child.write(_answer(PROGRESS, count, count))


def _new_context(model: Model, size: int, batch: int, kv_type: str) -> bool:
    """Begin from nothing, with room for ``size`` tokens; whether there is so much memory."""
    library = model.library
    if model.context is not None:
        library.llama_free(model.context)
    parameters = library.llama_context_default_params()
    parameters.n_ctx = size
    parameters.n_batch = parameters.n_ubatch = batch
    parameters.n_threads = parameters.n_threads_batch = model.threads
    parameters.no_perf = True
    types = {"f16": library.GGML_TYPE_F16, "f32": library.GGML_TYPE_F32, "q8_0": library.GGML_TYPE_Q8_0}
    parameters.type_k = parameters.type_v = types[kv_type]
    if kv_type == "f32":
        parameters.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if not library.llama_supports_gpu_offload():  # drivers reserve addresses they never fill
        child.limit_to_free_memory()
    model.context = library.llama_init_from_model(model.handle, parameters) or None
    model.settings, model.seen = (size, batch, kv_type), []
    return model.context is not None


def _send_log(text: bytes) -> None:
    child.write(_answer(LOG, 0, 0, text[:_PART]))
