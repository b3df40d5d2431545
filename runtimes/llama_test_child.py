"""The child that tries llama.cpp on this machine; imports nothing of kconv but its side of a child.

For each of ``FORMATS`` it makes a tiny llama whose matrices are of that format, lets llama.cpp read a prompt
and one token more, first with the weights as the file has them and then in the library's own ("extra")
buffers, where they are repacked for this processor. It answers one byte after the first and a float64 after
the second: the squared difference of the logits over their spread. Where it dies in between, that is the
answer. The files lie in memory: nothing is left behind, whatever happens.

Exit code CANNOT_LOAD: the library itself; TOO_OLD: it is compiled for another processor; REFUSED: it did not
take the model or the prompt.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..core import child
from ..core.machine import processor
from ..core.system_files import file_of

CANNOT_LOAD, REFUSED, TOO_OLD = 11, 12, 13
ANSWER = struct.Struct("<d")
_SECONDS = 60.0  # of processor time; a test takes a tenth of one

# What ggml-cpu.h calls it, Linux, and people.
_INSTRUCTIONS = (
    ("avx", "avx", "AVX"), ("f16c", "f16c", "F16C"), ("fma", "fma", "FMA"), ("avx2", "avx2", "AVX2"),
    ("bmi2", "bmi2", "BMI2"), ("avx512", "avx512f", "AVX-512"), ("avx512_vbmi", "avx512vbmi", "AVX-512 VBMI"),
    ("avx512_vnni", "avx512_vnni", "AVX-512 VNNI"), ("avx512_bf16", "avx512_bf16", "AVX-512 BF16"),
    ("avx_vnni", "avx_vnni", "AVX VNNI"), ("amx_int8", "amx_int8", "AMX"),
)  # fmt: skip

# A llama of one layer. Rows of 256 are the shortest that blocks of q4_K fill and that AMX multiplies; what
# AMX does to many tokens at once it does from 32 of them on.
_WIDTH, _KEYS, _WORDS, _CONTEXT, _PROMPT = 256, 64, 64, 64, 40
_MATRICES = {
    "token_embd": _WORDS,
    "blk.0.attn_q": _WIDTH,
    "blk.0.attn_k": _KEYS,
    "blk.0.attn_v": _KEYS,
    "blk.0.attn_output": _WIDTH,
    "blk.0.ffn_gate": _WIDTH,
    "blk.0.ffn_up": _WIDTH,
    "blk.0.ffn_down": _WIDTH,
    "output": _WORDS,
}
_NORMS = ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
_NUMBERS = {
    "llama.context_length": _CONTEXT,
    "llama.embedding_length": _WIDTH,
    "llama.block_count": 1,
    "llama.feed_forward_length": _WIDTH,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 1,
    "llama.vocab_size": _WORDS,
}
_TEXTS = {"general.architecture": "llama", "tokenizer.ggml.model": "no_vocab"}
_EPSILON = "llama.attention.layer_norm_rms_epsilon"
_UINT32, _FLOAT32, _STRING = 4, 6, 8  # GGUF's numbers for types of values
_ALIGNMENT = 32

_NOISE = bytes(i * i * 0x9E3779B1 >> 16 & 0xFF for i in range(1, 4100))
_BLOCKS = 241  # that differ; a prime, so that no two neighbouring rows are equal


def _noise(at: int, size: int) -> bytes:
    start = at * size % (len(_NOISE) - size)
    return _NOISE[start : start + size]


# Blocks as ggml-common.h has them: scales that give weights of about a tenth, and noise for the rest.
FORMATS: dict[str, tuple[int, int, Callable[[int], bytes]]] = {
    "Q8_0": (8, 32, lambda i: struct.pack("<e", 0.001) + _noise(i, 32)),
    "Q4_0": (2, 32, lambda i: struct.pack("<e", 0.01) + _noise(i, 16)),
    "Q4_K": (12, 256, lambda i: struct.pack("<ee", 0.0004, 0.003) + _noise(i, 140)),
}
"""Name -> ggml's number, weights in a block, and what makes the i-th block."""


def model(name: str) -> bytes:
    """The GGUF file whose matrices are of that format."""
    number, size, block = FORMATS[name]
    blocks = [block(i) for i in range(_BLOCKS)]
    many = b"".join(blocks) * (_WIDTH * _WIDTH // size // _BLOCKS + 1)
    width = len(blocks[0]) * _WIDTH // size
    tensors: list[tuple[str, tuple[int, ...], int, bytes]] = [
        (f"{title}.weight", (_WIDTH, rows), number, many[: rows * width]) for title, rows in _MATRICES.items()
    ]
    ones = struct.pack("<f", 1.0) * _WIDTH
    tensors += [(f"{title}.weight", (_WIDTH,), 0, ones) for title in _NORMS]
    pairs = [_text(key) + struct.pack("<I", _STRING) + _text(value) for key, value in _TEXTS.items()]
    pairs += [_text(key) + struct.pack("<II", _UINT32, value) for key, value in _NUMBERS.items()]
    pairs.append(_text(_EPSILON) + struct.pack("<If", _FLOAT32, 1e-5))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs)
    data = bytearray()
    for title, shape, kind, weights in tensors:
        head += _text(title) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += weights + bytes(-len(weights) % _ALIGNMENT)
    return head + bytes(-len(head) % _ALIGNMENT) + data


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _logits(library: Any, path: str, *, extra: bool) -> list[float]:
    """What the model says after a prompt and after one token more. Raises Stop."""
    parameters = library.llama_model_default_params()
    no_devices = (ctypes.c_void_p * 1)(None)  # the processor alone
    parameters.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    parameters.n_gpu_layers, parameters.use_extra_bufts = 0, extra
    handle = library.llama_model_load_from_file(os.fsencode(path), parameters)
    if not handle:
        raise child.Stop(REFUSED, "llama.cpp did not load the model of the self-test")
    settings = library.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = _CONTEXT
    settings.n_threads = settings.n_threads_batch = 1  # several would wait for each other, spinning
    context = library.llama_init_from_model(handle, settings)
    if not context:
        raise child.Stop(REFUSED, "llama.cpp made no context for the model of the self-test")
    logits: list[float] = []
    # not in this thread: processors ask each thread for itself whether it may use their tiles
    worker = threading.Thread(target=_read, args=(library, context, logits))
    worker.start()
    worker.join()
    if len(logits) != 2 * _WORDS:
        raise child.Stop(REFUSED, "llama.cpp did not read the prompt of the self-test")
    library.llama_free(context)
    library.llama_model_free(handle)
    return logits


def _read(library: Any, context: Any, logits: list[float]) -> None:
    """Add the logits after a prompt and after one token more, as far as llama.cpp reads them."""
    for ids in (range(_PROMPT), range(1)):
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        if library.llama_decode(context, library.llama_batch_get_one(tokens, len(ids))):
            return
        logits += library.llama_get_logits_ith(context, -1)[:_WORDS]


def _difference(plain: Sequence[float], other: Sequence[float]) -> float:
    """Squared difference over spread; NaN where either is not finite, as where there are no logits."""
    mean = sum(plain) / len(plain)
    spread = sum((value - mean) ** 2 for value in plain)
    return sum((a - b) ** 2 for a, b in zip(plain, other, strict=True)) / spread if spread else float("nan")


def missing_instructions(library: Any, flags: Collection[str]) -> list[str]:
    """What a llama.cpp is compiled for and a processor with ``flags`` has not; none without flags."""
    if not flags:
        return []
    missing = []
    for name, flag, title in _INSTRUCTIONS:
        has = getattr(library, f"ggml_cpu_has_{name}", None)  # it asks the compiler, not the processor
        if has is not None and has() and flag not in flags:
            missing.append(title)
    return missing


def main(arguments: Sequence[str]) -> int:
    """Try every format; the arguments are none."""
    try:
        library = child.llama_cpp()
    except (OSError, RuntimeError, AttributeError) as error:
        raise child.Stop(CANNOT_LOAD, str(error)) from error
    missing = missing_instructions(getattr(library, "_lib", None), processor().flags)
    if missing:
        named = ", ".join(missing)
        raise child.Stop(TOO_OLD, f"is compiled for processors with {named}, which this one has not")
    child.limit_time(_SECONDS)
    child.log_errors(library)
    library.llama_backend_init()
    for name in FORMATS:
        with file_of(model(name), "kconv-self-test", ".gguf") as path:
            plain = _logits(library, path, extra=False)
            child.write(b"\x01")
            child.write(ANSWER.pack(_difference(plain, _logits(library, path, extra=True))))
    child.take(1)  # until the parent is done
    return 0
