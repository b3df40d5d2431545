"""Encoder-decoders in the fp32 reference: two stacks, what they read, and where their layers lie.

transformers 5 says of every T5 that its head is tied, and keeps in ``scale_decoder_outputs`` whether what
enters the head is multiplied by d_model^-0.5; its T5Config works that out of a version 4 config.json, too.
So the scaling is transformers' own, which head it has is decided by the tensors (empty_model.py), and what
this model's ``logits`` are once its head is an identity has been scaled already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core.windows import Window

if TYPE_CHECKING:
    import torch


def has_encoder(model: Any) -> bool:
    """Whether transformers' model reads a source text."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def embeddings(model: Any) -> list[Any]:
    """The modules that look up tokens: a T5 has one in each stack besides the shared one.

    They share a parameter, but not the module, so each has to be given its rows. A GBST front end holds the
    encoder's.
    """
    shared = model.get_input_embeddings()
    modules = [shared]
    stacks: tuple[Any, ...] = (getattr(model, "encoder", None),)
    stacks += (model.decoder,) if has_encoder(model) else ()
    for stack in (each for each in stacks if hasattr(each, "embed_tokens")):
        lookup = getattr(stack.embed_tokens, "embeds", stack.embed_tokens)
        modules += [] if any(lookup is other for other in modules) else [lookup]
    return modules


def layer_stacks(model: Any, layers: int) -> list[Sequence[Any]]:
    """The encoder's layers and the decoder's; without an encoder the one list of that many ``layers``."""
    import torch

    if has_encoder(model):
        return [tuple(model.encoder.block), tuple(model.decoder.block)]
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return [next(tuple(found) for found in lists if len(found) == layers)]


def encoder_layers(model: Any) -> int:
    """How many of the layers are the encoder's."""
    return len(model.encoder.block) if has_encoder(model) else 0


def reads_source(name: str) -> bool:
    """Whether what flows into the module of that name has the source's positions, not the decoder's.

    Besides the encoder's modules, keys and values of cross-attention do.
    """
    return name.startswith("encoder.") or name.endswith(("EncDecAttention.k", "EncDecAttention.v"))


def inputs(windows: Sequence[Window], *, both_ways: bool = False) -> dict[str, torch.Tensor]:
    """What transformers' model is given, padded on the right to the longest.

    The encoder sees in both directions, so padding is masked there, and with it for the decoder; the decoder
    sees nothing that follows. A mask without a zero adds nothing: one window is what it is without. A model
    by itself whose tokens see ``both_ways`` gets a mask, too.
    """
    if not windows[0].source:
        given = {"input_ids": padded([window.ids for window in windows])}
        if both_ways:
            given["attention_mask"] = padded([(1,) * len(window.ids) for window in windows])
        return given
    sources = [window.source for window in windows]
    return {
        "input_ids": padded(sources),
        "attention_mask": padded([(1,) * len(ids) for ids in sources]),
        "decoder_input_ids": padded([window.ids for window in windows]),
    }


def padded(texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Ids as a matrix, a row a text, zeros after the shorter ones."""
    import torch

    matrix = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row, ids in zip(matrix, texts, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return matrix
