"""The child that reads windows of tokens with llama.cpp; imports nothing of kconv but its side of a child.

A bad file may abort the process llama.cpp runs in, so it is never loaded in the parent. Its arguments are
FILE.gguf THREADS; it loads the file once and answers requests until there are no more. stderr receives
llama.cpp's errors and nothing else of it.

Request: uint8 what is wanted (1 logits, 2 layers, 8 inputs of matrices, added up; 4 more: sources are
embeddings; 16 an encoder's hidden states, 32 its embeddings of texts), uint32 tokens decoded at once, uint32
windows; then per window: uint32 positions of the source (an encoder's; none for other models), uint32 tokens,
uint32 first position whose logits are wanted, the source as int32 ids or as float32 ``(positions, hidden)``,
and the ids of the window as int32.

An answer is uint8 kind, three uint32, data: LOADED (vocabulary, hidden, layers) once at the start; then for
each window, for its source if it has one and for each piece of it decoded at once: LAYER (layer, first
position, positions) with float32 ``(positions, hidden)`` for each layer, if wanted, an encoder's layers
counted first; the inputs of all matrices, if wanted, as llama_inputs.py says; and for each piece LOGITS
(window, first position, positions) with float32 ``(positions, vocabulary)``, if wanted, without data where
the piece has none to send. For an encoder that writes no text a window is one STATES (window, pooling, rows)
with float32 ``(rows, hidden)``: a row for each token, pooling 0, or one for the text, as the file pools it,
before which come the inputs of all matrices, if wanted. All little-endian.
Exit codes: ``REFUSED`` and those after it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..core import child
from ..core.child import Stop
from .llama_inputs import Inputs
from .llama_layers import Captured, capture

LOGITS_WANTED, LAYERS_WANTED, EMBEDDED, INPUTS_WANTED, STATES_WANTED, POOLED_WANTED = 1, 2, 4, 8, 16, 32
LOADED, LOGITS, LAYER, STATES = 1, 2, 3, 7
REFUSED, NO_CONTEXT, NOT_DECODED, NOT_SUPPORTED = 3, 4, 5, 7
REQUEST, WINDOW, ANSWER = struct.Struct("<BIII"), struct.Struct("<III"), struct.Struct("<BIII")


@dataclass(frozen=True)
class Model:
    """A file llama.cpp has loaded."""

    library: Any
    handle: Any
    threads: int
    vocabulary: int
    hidden: int
    layers: int
    encoder_layers: int


@dataclass(frozen=True)
class Text:
    """A window as it was asked for: what an encoder reads, the ids, and from where on logits are wanted.

    The source is so many ``positions``: ids, or floats that make an embedding for each.
    """

    positions: int
    source: array[Any]
    ids: array[Any]
    first: int


def main(arguments: Sequence[str]) -> int:
    """Load the file of the first argument and answer requests."""
    model = _load(child.llama_cpp(), arguments[0], int(arguments[1]))
    child.write(ANSWER.pack(LOADED, model.vocabulary, model.hidden, model.layers))
    while True:
        _answer(model)


def _answer(model: Model) -> None:
    """One request, from its first byte to the last of its answers."""
    wanted, size, head, count = REQUEST.unpack(child.take(REQUEST.size))
    states = bool(wanted & (STATES_WANTED | POOLED_WANTED))
    if model.encoder_layers == model.layers and not states:
        raise Stop(NOT_SUPPORTED, "it has no decoder, so it gives no logits")
    texts = [_text(model, embedded=bool(wanted & EMBEDDED), states=states) for _ in range(count)]
    longest = max((len(text.ids) for text in texts), default=1)
    source = max((text.positions for text in texts), default=0)
    if states:
        _send_states(model, texts, wanted)
        return
    size = min(size, longest)
    captured: Captured | None = {} if wanted & LAYERS_WANTED else None
    library = model.library
    inputs = Inputs(library, child.write) if wanted & INPUTS_WANTED else None
    # an encoder reads its text at once, and llama.cpp reads no more at once than a context holds
    context = _context(model, max(longest, source), max(size, head, source), captured, inputs)
    for index, text in enumerate(texts):
        # with the data: a NaN left in the cache would spoil what comes after, even masked
        library.llama_memory_clear(library.llama_get_memory(context), True)
        if text.source:
            _encode(library, context, text)
            if captured is not None:
                _send_layers(model, captured, range(model.encoder_layers), 0, text.positions)
            _end(inputs)
        for start, stop in pieces(len(text.ids), size, head):
            begin = min(max(text.first, start), stop)
            if inputs is not None:
                inputs.paused = bool(head and start)
            # llama.cpp computes the last layer only where logits are asked for
            output = begin if captured is None and inputs is None else start
            _read(library, context, text.ids[start:stop], start, output)
            if captured is not None:
                layers = range(model.encoder_layers, model.layers)
                _send_layers(model, captured, layers, start, stop - start)
            _end(inputs)
            if wanted & LOGITS_WANTED:
                child.write(ANSWER.pack(LOGITS, index, begin, stop - begin))
                if begin < stop:
                    _send_logits(model, context, begin - output, stop - begin)
    library.llama_free(context)


def pieces(length: int, size: int, head: int) -> Iterator[tuple[int, int]]:
    """Where so many tokens begin and end that are decoded at once: the first ``head`` alone, if it is not 0.

    Inputs of matrices are those of the head alone then, of everything otherwise.
    """
    start, stop = 0, head or size
    while start < length:
        yield start, min(stop, length)
        start, stop = stop, stop + size


def _send_states(model: Model, texts: Sequence[Text], wanted: int) -> None:
    """An encoder's hidden states of each text, or what it makes of them by its own way of pooling."""
    library = model.library
    inputs = Inputs(library, child.write) if wanted & INPUTS_WANTED else None
    longest = max((len(text.ids) for text in texts), default=1)
    pooling = (
        library.LLAMA_POOLING_TYPE_UNSPECIFIED if wanted & POOLED_WANTED else library.LLAMA_POOLING_TYPE_NONE
    )
    context = _context(model, longest, longest, None, inputs, pooling=pooling)
    way = library.llama_pooling_type(context)
    for index, text in enumerate(texts):
        _encode(library, context, Text(len(text.ids), text.ids, text.ids, 0))
        _end(inputs)
        one = way != library.LLAMA_POOLING_TYPE_NONE
        rows = 1 if one else len(text.ids)
        values = (
            library.llama_get_embeddings_seq(context, 0) if one else library.llama_get_embeddings(context)
        )
        if not values:
            raise Stop(NOT_DECODED, "llama.cpp gave no embeddings")
        address = ctypes.cast(values, ctypes.c_void_p).value or 0
        child.write(ANSWER.pack(STATES, index, way, rows))
        child.write((ctypes.c_char * (4 * rows * model.hidden)).from_address(address))
    library.llama_free(context)


def _end(inputs: Inputs | None) -> None:
    """All inputs of what was decoded at once are sent, where they were wanted."""
    if inputs is not None and not inputs.paused:
        if inputs.problem:
            raise Stop(NOT_SUPPORTED, inputs.problem)
        inputs.end()


def _text(model: Model, *, embedded: bool, states: bool) -> Text:
    positions, tokens, first = WINDOW.unpack(child.take(WINDOW.size))
    if bool(positions) is not bool(model.encoder_layers) and not states:
        raise Stop(NOT_SUPPORTED, "a source text is for an encoder, and an encoder needs one")
    source = array("f" if embedded else "i", child.take(4 * positions * (model.hidden if embedded else 1)))
    ids = array("i", child.take(4 * tokens))
    if sys.byteorder == "big":
        source.byteswap()
        ids.byteswap()
    return Text(positions, source, ids, first)


def _encode(library: Any, context: Any, text: Text) -> None:
    """Have the encoder read a source; what it makes of it stays in the context until it reads another."""
    embedded = text.source.typecode == "f"
    batch = library.llama_batch_init(text.positions, len(text.source) // text.positions if embedded else 0, 1)
    ctypes.memmove(batch.embd if embedded else batch.token, *_memory(text.source))
    _run(library.llama_encode, "llama_encode", library, context, batch, text.positions, 0, 0)


def _read(library: Any, context: Any, ids: array[Any], start: int, output: int) -> None:
    """Read ``ids`` at position ``start`` and after; logits from position ``output`` on."""
    batch = library.llama_batch_init(len(ids), 0, 1)
    ctypes.memmove(batch.token, *_memory(ids))
    _run(library.llama_decode, "llama_decode", library, context, batch, len(ids), start, output)


def _memory(values: array[Any]) -> tuple[int, int]:
    """Where an array lies, and its bytes."""
    address, count = values.buffer_info()
    return address, count * values.itemsize


def _run(
    function: Any, name: str, library: Any, context: Any, batch: Any, count: int, start: int, output: int
) -> None:
    batch.n_tokens = count
    for i in range(count):
        batch.pos[i] = start + i
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = start + i >= output
    status = function(context, batch)
    library.llama_batch_free(batch)
    if status:
        raise Stop(NOT_DECODED, f"{name} gave {status}")


def _send_logits(model: Model, context: Any, skip: int, rows: int) -> None:
    """``rows`` rows of the last decode's output, the first ``skip`` left out, straight from its buffer."""
    logits = model.library.llama_get_logits(context)
    if not logits:
        raise Stop(NOT_DECODED, "llama.cpp gave no logits")
    row = 4 * model.vocabulary
    address = ctypes.cast(logits, ctypes.c_void_p).value or 0
    child.write((ctypes.c_char * (rows * row)).from_address(address + skip * row))


def _send_layers(model: Model, captured: Captured, layers: range, start: int, rows: int) -> None:
    """What left ``layers``; llama.cpp counts those of encoder and decoder from zero each."""
    if sorted(captured) != list(range(len(layers))):
        raise Stop(
            NOT_DECODED,
            (f"llama.cpp reports the output of {len(captured)} layers, but the file has {len(layers)}"),
        )
    for at, layer in enumerate(layers):
        data = captured.pop(at)
        if len(data) != 4 * rows * model.hidden:
            raise Stop(NOT_DECODED, f"the output of layer {layer} has {len(data)} bytes for {rows} tokens")
        child.write(ANSWER.pack(LAYER, layer, start, rows))
        child.write(data)


def _load(library: Any, path: str, threads: int) -> Model:
    """The weights stay mapped, as the file has them, on the CPU."""
    child.log_errors(library)
    library.llama_backend_init()
    parameters = library.llama_model_default_params()
    no_devices = (ctypes.c_void_p * 1)(None)
    parameters.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    parameters.n_gpu_layers = 0
    parameters.load_mode = library.LLAMA_LOAD_MODE_MMAP
    parameters.use_extra_bufts = False  # no copy of the weights, repacked for one kind of processor
    handle = library.llama_model_load_from_file(os.fsencode(path), parameters)
    if not handle:
        raise Stop(REFUSED)
    vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(handle))
    hidden, layers = library.llama_model_n_embd(handle), library.llama_model_n_layer(handle)
    encoder = 0
    if library.llama_model_has_encoder(handle):
        encoder = layers
        if library.llama_model_has_decoder(handle):
            layers += _decoder_layers(library, handle, layers)
    return Model(library, handle, threads, vocabulary, hidden, layers, encoder)


def _decoder_layers(library: Any, handle: Any, encoder: int) -> int:
    """As many as the encoder's unless the file says otherwise (src/models/t5.cpp)."""
    arch = _metadata(library, handle, "general.architecture")
    count = _metadata(library, handle, f"{arch}.decoder_block_count")
    return int(count) if count.isdecimal() else encoder


def _metadata(library: Any, handle: Any, key: str) -> str:
    """A key of the file as llama.cpp writes it out; nothing where it is missing."""
    room = ctypes.create_string_buffer(64)
    library.llama_model_meta_val_str(handle, key.encode(), room, len(room))
    return room.value.decode("utf-8", "replace")


def _context(
    model: Model,
    tokens: int,
    batch: int,
    captured: Captured | None,
    inputs: Inputs | None,
    *,
    pooling: int | None = None,
) -> Any:
    """Room for ``tokens``, read ``batch`` at once, in as plain fp32 arithmetic as llama.cpp has.

    With ``pooling`` it gives embeddings.
    """
    library = model.library
    parameters = library.llama_context_default_params()
    parameters.n_ctx = tokens
    parameters.n_batch = parameters.n_ubatch = batch
    parameters.n_threads = parameters.n_threads_batch = model.threads
    parameters.type_k = parameters.type_v = library.GGML_TYPE_F32
    parameters.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.offload_kqv = parameters.op_offload = False
    if pooling is not None:
        parameters.embeddings, parameters.pooling_type = True, pooling
    if captured is not None:
        parameters.cb_eval = capture(library, captured)
    elif inputs is not None:
        parameters.cb_eval = inputs.callback
    context = library.llama_init_from_model(model.handle, parameters)
    if not context:
        raise Stop(NO_CONTEXT)
    return context
