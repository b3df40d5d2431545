"""What a conversion and its proof take in private memory: a rule fitted to measurements, somewhat above them.

Measured on two threads (bench/memory.py: pages that belong to kconv and its child processes alone), in MiB:

    checkpoint                          tokens and merges   conversion   rule   quick proof    rule
    kebyt5 sample, bytes                              384           66     81           344     334
    42dot sample                                    5,000           87     93           323     352
    Llama 1.3B, SentencePiece                      32,000           77    124           761     777
    42dot 1.3B, byte-level BPE                    100,000          122    176           920     971
    Llama-3-8B, byte-level BPE                    256,000          265    295         1,229   1,389

Conversions of the two samples were measured later, on a machine that takes some 16 MiB more for the same.
"""

from __future__ import annotations

from ..core.model import Model
from .pieces import SLAB

_MIB = 1 << 20
_INTERPRETER = 80 * _MIB  # Python, numpy, tokenizers
_ENTRY = 800  # bytes of a token or a merge, as text in several tables
_TORCH = 340 * _MIB  # torch, transformers, llama.cpp in its child process
_HEAD = 128 * _MIB  # the output matrix is multiplied in slices of at most this
_TOKENS = 256  # what the quick proof reads
_LOGITS = 64 * _MIB  # logits computed ahead; eight such arrays are held while two models are compared


def conversion_memory(model: Model, threads: int) -> int:
    """Bytes of private memory in which so many threads write a model.

    Each holds a piece of the checkpoint as read, as float32, and in the formats it is written in.
    """
    pieces = (
        min(max(SLAB, tensor.row_elements), tensor.elements) * (tensor.dtype.itemsize + 8)
        for tensor in model.tensors
    )
    return _INTERPRETER + _vocabulary(model) + threads * max(pieces, default=0)


def proof_memory(model: Model) -> int:
    """Bytes of private memory the quick proof takes."""
    head = model.tensor("token_embd.weight")  # of the output matrix's shape
    inner = (tensor.elements for tensor in model.tensors if tensor.shape != head.shape)
    logits = min(_LOGITS, 4 * _TOKENS * head.rows)
    return (
        _TORCH + _vocabulary(model) + min(_HEAD, 4 * head.elements) + 8 * logits + 4 * max(inner, default=0)
    )


def _vocabulary(model: Model) -> int:
    return 0 if model.vocab is None else _ENTRY * (model.vocab.size + len(model.vocab.merges))
