"""Samplers of llama.cpp, chained as its own programs chain them; also the child that lends them to others.

The child (``sampler.py`` is the parent's side) chooses among logits another runtime computed: the same
logits and the same seed give the token llama.cpp would take. It is called without arguments and answers one
byte when the library is loaded. First request: ``START`` (size of the vocabulary, number of tokens), a
``SAMPLING``, and the tokens that stand before as int32. Each later one is ``size`` float32 logits and is
answered by an int32, the token. All little-endian.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Sequence
from typing import Any

from ..core import child

SAMPLING = struct.Struct("<didddiI")
"""Temperature, top_k, top_p, min_p, repeat penalty, how far it looks back, seed."""
START = struct.Struct("<II")


def sampler_chain(library: Any, size: int, packed: bytes, before: Sequence[int]) -> Any:
    """The chain of llama.cpp's own programs (common/sampling.cpp), in the same order.

    ``size`` is the number of tokens, ``packed`` a ``SAMPLING``, ``before`` the tokens that stand before;
    whoever calls frees the chain.
    """
    temperature, top_k, top_p, min_p, penalty, back, seed = SAMPLING.unpack(packed)
    chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
    steps = []
    if penalty != 1 and back:
        steps.append(library.llama_sampler_init_penalties(size, back, penalty, 0.0, 0.0))
    if temperature <= 0:
        steps.append(library.llama_sampler_init_greedy())
    else:
        steps += [
            library.llama_sampler_init_top_k(top_k),
            library.llama_sampler_init_top_p(top_p, 1),
            library.llama_sampler_init_min_p(min_p, 1),
            library.llama_sampler_init_temp(temperature),
            library.llama_sampler_init_dist(seed),
        ]
    for step in steps:
        library.llama_sampler_chain_add(chain, step)
    for token in before[-back:] if back else ():
        library.llama_sampler_accept(chain, token)
    return chain


def int32s(data: bytes | bytearray) -> list[int]:
    """Numbers as requests carry them."""
    return list(struct.unpack(f"<{len(data) // 4}i", data))


def main(arguments: Sequence[str]) -> int:
    """Choose a token for each vector of logits."""
    library = child.llama_cpp()
    child.write(b"\x01")
    size, count = START.unpack(child.take(START.size))
    chain = sampler_chain(library, size, child.take(SAMPLING.size), int32s(child.take(4 * count)))
    tokens = (library.llama_token_data * size)()
    candidates = library.llama_token_data_array(
        ctypes.cast(tokens, ctypes.POINTER(library.llama_token_data)), size, -1, False
    )
    # llama_token_data is id, logit, p, of four bytes each
    words = memoryview(tokens).cast("B").cast("I")
    ids = array("I", range(size))
    nothing = array("I", bytes(4 * size))
    while True:
        logits = memoryview(child.take(4 * size)).cast("I")
        words[0::3], words[1::3], words[2::3] = ids, logits, nothing
        candidates.size, candidates.selected, candidates.sorted = size, -1, False
        library.llama_sampler_apply(chain, ctypes.byref(candidates))
        token = candidates.data[candidates.selected].id
        library.llama_sampler_accept(chain, token)
        child.write(struct.pack("<i", token))
