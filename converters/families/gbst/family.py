"""GBST-KEByT5: a T5 whose encoder reads what a GBST front end makes of the bytes.

This family is that of the body, an ordinary ``t5`` for llama.cpp; its ``token_embd.weight`` serves the
decoder. The front end's tensors go into a file of their own. Names are those of ETRI's code
(github.com/etri-crossmodal/gbswt5, modeling_gbst5.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ....core.checkpoint import Checkpoint
from ....core.errors import UnsupportedModel
from ....core.tensor import Tensor
from ...family import Companion, InTransformers, Row
from ...front_end import FrontEnd
from ...onnx.graph import Graph
from ...onnx.request import GraphRequest
from ...settings import Settings
from ..t5.facts import T5Facts
from ..t5.family import T5
from ..t5.graphs import t5_graphs
from ..t5.shape import EMBEDDINGS
from .front_end_file import find_front_end, front_end_path, is_front_end
from .graph import GbstFront
from .settings import EMBEDDING, SHARED, GbstSettings, front_end_tensor, read_settings
from .tensors import (
    ARCH,
    DROPPED,
    TABLE,
    body_keys,
    front_end_model,
    is_front_end_tensor,
    own_fingerprint,
)

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


def _flags(facts: T5Facts, checkpoint: Checkpoint) -> frozenset[str]:
    """T5's. Raises what the front end's settings raise: a body without its front end is of no use."""
    _settings(checkpoint)
    if facts.heads != facts.kv_heads:
        raise UnsupportedModel(
            f"{facts.where}: kv_heads is {facts.kv_heads} and num_heads {facts.heads}; a T5 has as many key "
            "heads as query heads",
            hint="open an issue with the model's name if you need it",
        )
    if any(name in checkpoint.tensors for name in EMBEDDINGS) or EMBEDDING not in checkpoint.tensors:
        return T5.flags(facts, checkpoint)
    named = replace(checkpoint, tensors={**checkpoint.tensors, _SHARED: checkpoint.tensors[EMBEDDING]})
    return frozenset(_renamed(flag) for flag in T5.flags(facts, named))


def _settings(checkpoint: Checkpoint) -> GbstSettings:
    return read_settings(Settings(checkpoint.config, "config.json"), checkpoint.tensors)


def _companions(checkpoint: Checkpoint) -> tuple[Companion, ...]:
    from ...card import general_metadata  # imports gguf-py, which runs and proofs have no use for

    model = front_end_model(checkpoint, general_metadata(checkpoint))
    fingerprint = own_fingerprint(model)
    return (
        Companion(model, body_keys(fingerprint), front_end_path, partial(is_front_end, wanted=fingerprint)),
    )


def _graphs(request: GraphRequest[T5Facts]) -> dict[str, Graph]:
    """A T5's, the front end at the encoder's beginning; its weights, some 12 MB, are read to be checked."""
    front_end_model(request.checkpoint)  # refuses two embeddings that differ, a norm of negative variance
    return t5_graphs(request, GbstFront(_settings(request.checkpoint)))


def _join(model: Any, checkpoint: Checkpoint) -> int:
    """Put the torch front end before the encoder of transformers' empty ``model``; returns its factor.

    Its byte embedding becomes a module apart from the shared one: a file's body may hold that one quantized,
    its front end never does. Raises what ``read_settings`` raises.
    """
    import torch

    from .torch_front_end import set_front_end

    settings = _settings(checkpoint)
    set_front_end(model, settings, alone=True)
    model.encoder.embed_tokens.embeds = torch.nn.Embedding(settings.rows, settings.width, device="meta")
    return settings.factor


def _weights(body: Mapping[str, Tensor], checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """A body's weights, under the checkpoint's names, and with them the front end's own."""
    own = {name: tensor for name, tensor in checkpoint.tensors.items() if is_front_end_tensor(name)}
    embedding = front_end_tensor(checkpoint.tensors, EMBEDDING)
    if embedding is not None:
        own[EMBEDDING] = embedding
    weights = dict(body)
    if EMBEDDING in weights:  # the one name it has in some checkpoints
        weights.setdefault(SHARED[0], weights[EMBEDDING])
    return {**weights, **own}


GBSWT5 = replace(
    T5,
    name="gbswt5",
    title="GBST T5",
    models=("GBST-KEByT5 base, large",),
    hf_classes=("GBSWT5ForConditionalGeneration",),
    flags=_flags,
    rows=_rows(),
    reference=InTransformers("T5ForConditionalGeneration"),
    tokenizer_class="",  # its tokenizer is ByT5's, which has no file
    graphs=_graphs,
    dropped=(*T5.dropped, *TABLE.values(), *DROPPED),
    companions=_companions,
    front_end=FrontEnd(
        kind=ARCH,
        title="GBST",
        exact=frozenset((EMBEDDING, *SHARED)),
        factor=lambda checkpoint: _settings(checkpoint).factor,
        factor_of=lambda config: Settings(config, "config.gbswt5.json").integer("downsample_factor", 1),
        fingerprint=lambda checkpoint: own_fingerprint(front_end_model(checkpoint)),
        beside=find_front_end,
        join=_join,
        weights=_weights,
        onnx_file="config.gbswt5.json",
        onnx_config={"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
    ),
)
