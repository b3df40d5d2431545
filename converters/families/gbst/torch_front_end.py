"""GBST in PyTorch, for the fp32 reference: batched, with the parameters under a checkpoint's names.

Written from the description of the method (arXiv 2106.12672) and of the official order of operations, apart
from kconv.converters.families.gbst.front_end, so that each can be held against the other. Unlike that one it
pads as the original does, takes batches with their attention masks, and knows the missing mask.

Set as ``encoder.embed_tokens`` of transformers' T5ForConditionalGeneration it gives its parameters the
names of GBSWT5ForConditionalGeneration, whose encoder is T5's but for the embedding. T5 is then called with
``inputs_embeds`` and ``attention_mask`` as ``GbstEmbedding`` returns them; its cross-attention takes that
same mask. Importing this module imports torch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .settings import NORM_EPSILON, GbstSettings


class InferenceNorm(nn.Module):
    """Batch norm over ``(batch, width, length)`` by its running statistics.

    They are parameters here, not buffers, so that they are read from the checkpoint like everything else.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.running_mean = nn.Parameter(torch.zeros(width))
        self.running_var = nn.Parameter(torch.ones(width))

    def forward(self, values: Tensor) -> Tensor:
        """Normalize each channel."""
        return functional.batch_norm(
            values, self.running_mean, self.running_var, self.weight, self.bias, eps=NORM_EPSILON
        )


class ForwardConvolution(nn.Module):
    """A depth-wise convolution that reads the following positions, then a 1×1 convolution.

    ``(batch, length, width) -> (batch, length, width)``; beyond the end there are zeros.
    """

    def __init__(self, settings: GbstSettings) -> None:
        super().__init__()
        width, self.ahead = settings.width, settings.kernel - 1
        self.convol = nn.Conv1d(width, width, settings.kernel, groups=width)
        self.bn = InferenceNorm(width) if settings.norm else None
        self.proj = nn.Conv1d(width, width, 1)

    def forward(self, embedded: Tensor) -> Tensor:
        """Convolve along the text."""
        values = self.convol(functional.pad(embedded.mT, (0, self.ahead)))
        if self.bn is not None:
            values = self.bn(values)
        return self.proj(values).mT  # type: ignore[no-any-return]


class GbstEmbedding(nn.Module):
    """Ids ``(batch, length)`` to embeddings ``(batch, ceil(length / factor), width)`` and their mask.

    In the original the convolution reads the embeddings of padding ids into the last ``kernel - 1`` positions
    of a shorter text. With ``alone`` it reads zeros there, as at the end of a text without padding, so that
    each text of a batch is what it is by itself.
    """

    def __init__(self, settings: GbstSettings, *, alone: bool = False) -> None:
        super().__init__()
        self.settings, self.alone = settings, alone
        self.embeds = nn.Embedding(settings.rows, settings.width)
        # The numbers are places in the original's sequences of modules, and part of the parameters' names.
        self.positional_convol = nn.ModuleDict({"2": ForwardConvolution(settings)})
        self.cand_scoring = nn.ModuleDict({"0": nn.Linear(settings.width, 1)})

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """``mask (batch, length)`` is 0 for padding. Without a mask appended zeros count like text."""
        settings, length = self.settings, ids.shape[1]
        values = self.embeds(ids)
        if self.alone and mask is not None:
            values = values * mask.to(values.dtype)[:, :, None]
        values = self.positional_convol["2"](values)
        padding = -length % math.lcm(*settings.blocks)
        values = functional.pad(values, (0, 0, 0, padding))
        valid = None if mask is None else functional.pad(mask.bool(), (0, padding))

        candidates = torch.stack([_repeated_means(values, valid, size) for size in settings.blocks], dim=2)
        scores = self.cand_scoring["0"](candidates).squeeze(-1)
        if valid is not None:
            covered = torch.stack([_repeated_any(valid, size) for size in settings.blocks], dim=2)
            scores = scores.masked_fill(~covered, torch.finfo(scores.dtype).min)
        scores = scores.softmax(dim=-1)
        if settings.consensus:
            scores = _consensus(scores, valid)
        mixed = torch.einsum("blsw,bls->blw", candidates, scores)
        return _downsampled(mixed, valid, length, settings.factor)


def downsampled_mask(mask: Tensor, factor: int) -> Tensor:
    """``(batch, length) -> (batch, ceil(length / factor))``: whether any of ``factor`` neighbours is 1."""
    return _groups(functional.pad(mask.bool(), (0, -mask.shape[1] % factor)), factor).any(dim=2)


def _consensus(scores: Tensor, valid: Tensor | None) -> Tensor:
    """Scores ``(batch, length, sizes)`` averaged over positions by the softmax of their products."""
    products = scores @ scores.mT
    if valid is not None:
        pairs = valid[:, :, None] & valid[:, None, :]
        products = products.masked_fill(~pairs, torch.finfo(products.dtype).min)
    return products.softmax(dim=-1) @ scores


def _downsampled(
    mixed: Tensor, valid: Tensor | None, length: int, factor: int
) -> tuple[Tensor, Tensor | None]:
    """Means of ``factor`` neighbours, up to the last that holds a position of the text."""
    kept = math.ceil(length / factor) * factor
    # Where the blocks' common multiple is none of the factor the original has too few positions and fails.
    short = max(0, kept - mixed.shape[1])
    counted = mixed.new_ones(mixed.shape[:2], dtype=torch.bool) if valid is None else valid
    counted = functional.pad(counted, (0, short))[:, :kept]
    means = _means(functional.pad(mixed, (0, 0, 0, short))[:, :kept], counted, factor)
    return means, None if valid is None else downsampled_mask(counted, factor)


def _repeated_means(values: Tensor, valid: Tensor | None, size: int) -> Tensor:
    means = _groups(values, size).mean(dim=2) if valid is None else _means(values, valid, size)
    return means.repeat_interleave(size, dim=1)


def _repeated_any(valid: Tensor, size: int) -> Tensor:
    return _groups(valid, size).any(dim=2).repeat_interleave(size, dim=1)


def _means(values: Tensor, valid: Tensor, size: int) -> Tensor:
    """Means over the valid ones of ``size`` neighbours; zeros where none is."""
    kept = _groups(values.masked_fill(~valid[:, :, None], 0.0), size)
    counts: Tensor = _groups(valid, size).sum(dim=2).clamp(min=1)
    return kept.sum(dim=2) / counts[:, :, None]


def _groups(values: Tensor, size: int) -> Tensor:
    """``(batch, length, …) -> (batch, length / size, size, …)``."""
    batch, length, *rest = values.shape
    return values.reshape(batch, length // size, size, *rest)


def set_front_end(model: Any, settings: GbstSettings, *, alone: bool = False) -> None:
    """Make GBSWT5ForConditionalGeneration of transformers' T5ForConditionalGeneration.

    ``model`` is then called as before, with the ids and the attention mask of the bytes: the encoder and the
    decoder's cross-attention get the down-sampled mask. The byte embedding is the one both sides share.
    ``alone`` is for batches of texts that are to be read each by itself (see GbstEmbedding).
    """
    front = GbstEmbedding(settings, alone=alone)
    front.embeds = model.shared
    front.to(model.shared.weight.device)
    model.encoder.embed_tokens = front

    def enter(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        ids = given.pop("input_ids", None)
        if ids is not None:
            given["inputs_embeds"], given["attention_mask"] = front(ids, given.get("attention_mask"))
        return args, given

    def cross(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        mask, states = given.get("encoder_attention_mask"), given.get("encoder_hidden_states")
        if mask is not None and states is not None and mask.shape[1] != states.shape[1]:
            given["encoder_attention_mask"] = downsampled_mask(mask, settings.factor)
        return args, given

    model.encoder.register_forward_pre_hook(enter, with_kwargs=True)
    model.decoder.register_forward_pre_hook(cross, with_kwargs=True)
