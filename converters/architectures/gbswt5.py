"""GBST-KEByT5: a T5 whose encoder reads what a GBST front end makes of the bytes.

This recipe is that of the body, an ordinary ``t5`` for llama.cpp; its ``token_embd.weight`` serves the
decoder. The front end's tensors go into a file of their own (kconv.converters.gbst). Names are those of
ETRI's code (github.com/etri-crossmodal/gbswt5, modeling_gbst5.py).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ...core.checkpoint import Checkpoint
from ...core.errors import UnsupportedModel
from ..card import general_metadata
from ..gbst.front_end_file import front_end_path, is_front_end
from ..gbst.settings import EMBEDDING, read_settings
from ..gbst.tensors import DROPPED, TABLE, body_keys, front_end_model, own_fingerprint
from ..recipe import Companion, Row
from ..settings import Settings
from .t5 import EMBEDDINGS, T5

_SHARED = EMBEDDINGS[0]


def _rows() -> tuple[Row, ...]:
    """T5's, where the embedding may also stand under the front end's name."""
    rows: list[Row] = []
    for row in T5.rows:
        rows.append(row)
        if row.sources == (_SHARED,):
            rows.append(replace(row, sources=(EMBEDDING,), when=_renamed(str(row.when))))
    return tuple(rows)


def _renamed(flag: str) -> str:
    return flag.replace(_SHARED, EMBEDDING)


def _flags(settings: Settings, checkpoint: Checkpoint) -> frozenset[str]:
    """T5's. Raises what the front end's settings raise: a body without its front end is of no use."""
    read_settings(settings, checkpoint.tensors)
    heads, kv_heads = (
        settings.integer("num_heads"),
        settings.integer("kv_heads", settings.integer("num_heads")),
    )
    if heads != kv_heads:
        raise UnsupportedModel(
            f"{settings.where}: kv_heads is {kv_heads} and num_heads {heads}; a T5 has as many key heads as "
            "query heads",
            hint="open an issue with the model's name if you need it",
        )
    if any(name in checkpoint.tensors for name in EMBEDDINGS) or EMBEDDING not in checkpoint.tensors:
        return T5.flags(settings, checkpoint)
    named = replace(checkpoint, tensors={**checkpoint.tensors, _SHARED: checkpoint.tensors[EMBEDDING]})
    return frozenset(_renamed(flag) for flag in T5.flags(settings, named))


def _front_end(checkpoint: Checkpoint) -> tuple[Companion, ...]:
    model = front_end_model(checkpoint, general_metadata(checkpoint))
    found = own_fingerprint(model)
    return (Companion(model, body_keys(found), front_end_path, partial(is_front_end, wanted=found)),)


GBSWT5 = replace(
    T5,
    name="gbswt5",
    title="GBST T5",
    models=("GBST-KEByT5 base, large",),
    hf_classes=("GBSWT5ForConditionalGeneration",),
    flags=_flags,
    rows=_rows(),
    dropped=(*T5.dropped, *TABLE.values(), *DROPPED),
    companions=_front_end,
)
