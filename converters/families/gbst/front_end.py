"""GBST in numpy: token ids to the embeddings that enter a T5 encoder.

Charformer's gradient-based subword tokenization (Tay et al., arXiv 2106.12672, section 2.1) with the order of
operations, and the treatment of padding, of ETRI's code (github.com/etri-crossmodal/gbswt5, gbst.py), all in
float32:

1. embed the ids; append zeros where the convolution reads beyond the end; depth-wise convolution as wide as
   the largest block, looking forward; batch norm in some models; 1×1 convolution
2. per block size, the mean of each block of neighbours, repeated to its positions: one candidate per size
3. a linear score per candidate, softmax over the sizes
4. consensus: each position's scores become their average over all positions, weighted by the softmax of the
   scores' products (equation 5 of the paper)
5. the sum of the candidates, weighted by their scores; the mean of ``factor`` neighbours

Positions outside the mask count in no mean and in no consensus, but the convolution does read the embeddings
of padding ids: it reaches the last ``kernel - 1`` positions before them. The original pads with masked zeros
to a common multiple of the block sizes; here blocks are cut short instead, which is the same.

A long text is worked through in pieces, in two passes: the first keeps nothing but the scores, the second
mixes. So memory grows with the result, not with the width times the length, let alone the length squared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ....core.errors import InputError
from .settings import CONVOLUTION, EMBEDDING, NORM, NORM_EPSILON, PROJECTION, SCORE, GbstSettings

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_PIECE = 1 << 19  # weights of a piece of text: 2 MiB a copy
_KEPT = 4  # pieces that are not convolved a second time
_PRODUCTS = 1 << 20  # products of scores computed together


@dataclass(frozen=True)
class FrontEnd:
    """A front end ready to compute.

    ``embedding (rows, width)``, ``convolution (kernel, width)``, ``projection (width, width)`` and ``score
    (width,)`` with their biases. ``scale`` and ``shift (width,)`` are the batch norm in its inference form,
    None in models without one.
    """

    settings: GbstSettings
    embedding: Floats
    convolution: Floats
    convolution_bias: Floats
    projection: Floats
    projection_bias: Floats
    score: Floats
    score_bias: np.float32
    scale: Floats | None = None
    shift: Floats | None = None


@dataclass(frozen=True)
class Embedded:
    """What enters the encoder: ``values (positions, width)`` and its attention ``mask (positions,)``."""

    values: Floats
    mask: Bools


@np.errstate(all="ignore")  # readers of the embeddings report what is not finite
def front_end(settings: GbstSettings, weights: Mapping[str, Floats]) -> FrontEnd:
    """A front end from float32 weights under a checkpoint's names, in the shapes of ``settings.shapes()``.

    Raises InputError where the variance of a batch norm is negative.
    """
    scale = shift = None
    if settings.norm:
        variance = weights[NORM + "running_var"]
        if (variance < 0).any():
            raise InputError(f"{NORM}running_var has negative values, expected variances")
        scale = weights[NORM + "weight"] / np.sqrt(variance + np.float32(NORM_EPSILON))
        shift = weights[NORM + "bias"] - weights[NORM + "running_mean"] * scale
    return FrontEnd(
        settings,
        weights[EMBEDDING],
        np.ascontiguousarray(weights[CONVOLUTION + "weight"][:, 0].T),
        weights[CONVOLUTION + "bias"],
        weights[PROJECTION + "weight"][:, :, 0],
        weights[PROJECTION + "bias"],
        weights[SCORE + "weight"][0],
        weights[SCORE + "bias"][0],
        scale,
        shift,
    )


def embed(front: FrontEnd, ids: Sequence[int], mask: Sequence[bool] | Bools | None = None) -> Embedded:
    """Ids of one text (length ≥ 1) to ceil(length / factor) embeddings and their mask.

    ``mask`` is false for padding; None means that there is none, so all ones. Raises InputError for an empty
    text, for ids the embedding does not have, and for a mask of another length.
    """
    tokens = _checked(front, ids)
    valid = np.ones(len(tokens), np.bool_) if mask is None else np.asarray(mask, np.bool_)
    if valid.shape != tokens.shape:
        raise InputError(f"a mask of {valid.shape} for {len(tokens)} token ids; expected one value per id")
    return _embed(front, tokens, valid, -(-len(tokens) // front.settings.factor))


def embed_without_mask(front: FrontEnd, ids: Sequence[int]) -> Floats:
    """What the original gives when no attention mask is passed, ``(ceil(length / factor), width)``.

    That differs from a mask of ones: the zeros it appends to reach a common multiple of the block sizes then
    count like text, in means and in the consensus. For comparisons; nothing in kconv runs a model so.
    Raises InputError as ``embed`` does.
    """
    tokens = _checked(front, ids)
    period = math.lcm(*front.settings.blocks)
    padded = -(-len(tokens) // period) * period
    return _embed(front, tokens, np.ones(padded, np.bool_), -(-len(tokens) // front.settings.factor)).values


def _checked(front: FrontEnd, ids: Sequence[int]) -> npt.NDArray[np.int64]:
    tokens = np.asarray(ids, np.int64).reshape(-1)
    rows = front.settings.rows
    if not len(tokens):
        raise InputError(
            "there are no token ids to embed, expected at least one",
            hint="even an empty text needs the end-of-text token, with which byte models end every text",
        )
    if tokens.min() < 0 or tokens.max() >= rows:
        raise InputError(f"token ids must be 0 to {rows - 1}, the rows of the front end's embedding")
    return tokens


@np.errstate(all="ignore")
def _embed(front: FrontEnd, tokens: npt.NDArray[np.int64], valid: Bools, count: int) -> Embedded:
    """``count`` embeddings; positions of ``valid`` beyond the tokens are zeros after the convolution."""
    settings = front.settings
    pieces = list(_pieces(settings, len(valid)))
    scores = np.empty((len(valid), len(settings.blocks)), np.float32)
    kept: dict[int, Floats] = {}
    for start, stop in pieces:
        values = convolved(front, tokens, start, stop)
        scores[start:stop] = block_scores(
            front, block_means(settings, values, valid[start:stop]), len(values)
        )
        if len(kept) < _KEPT:
            kept[start] = values
    weights = _softmax(scores)
    if settings.consensus:
        weights[valid] = consensus(weights[valid])
    made, mask = np.zeros((count, settings.width), np.float32), np.zeros(count, np.bool_)
    for start, stop in pieces:
        values = kept.pop(start) if start in kept else convolved(front, tokens, start, stop)
        mixed = mixture(settings, block_means(settings, values, valid[start:stop]), weights[start:stop])
        pooled, seen = pool(mixed, valid[start:stop], settings.factor)
        first = start // settings.factor
        fitting = min(len(pooled), count - first)
        made[first : first + fitting] = pooled[:fitting]
        mask[first : first + fitting] = seen[:fitting]
    return Embedded(made, mask)


def _pieces(settings: GbstSettings, length: int) -> Iterator[tuple[int, int]]:
    """The text in pieces that begin where all blocks begin."""
    step = max(1, _PIECE // settings.width // settings.period) * settings.period
    for start in range(0, length, step):
        yield start, min(start + step, length)


def convolved(front: FrontEnd, tokens: npt.NDArray[np.int64], start: int, stop: int) -> Floats:
    """Step 1 for positions ``start`` to ``stop``, ``(stop - start, width)``; zeros beyond the last token."""
    settings = front.settings
    here = max(0, min(stop, len(tokens)) - start)
    read = np.zeros((here + settings.kernel - 1, settings.width), np.float32)
    seen = tokens[start : start + len(read)]
    read[: len(seen)] = front.embedding[seen]
    values = read[:here] * front.convolution[0]
    for ahead in range(1, settings.kernel):
        values += read[ahead : ahead + here] * front.convolution[ahead]
    values += front.convolution_bias
    if front.scale is not None and front.shift is not None:
        values *= front.scale
        values += front.shift
    made = np.zeros((stop - start, settings.width), np.float32)
    np.matmul(values, front.projection.T, out=made[:here])
    made[:here] += front.projection_bias
    return made


def block_means(settings: GbstSettings, values: Floats, valid: Bools) -> list[Floats]:
    """Step 2: per block size the means ``(ceil(length / size), width)`` over valid positions; zeros if none.

    ``values (length, width)`` begin where all blocks begin; the last block may be cut short.
    """
    return [pool(values, valid, size)[0] for size in settings.blocks]


def pool(values: Floats, valid: Bools, size: int) -> tuple[Floats, Bools]:
    """Masked means of ``size`` neighbours ``(ceil(length / size), width)``, and whether any was valid."""
    if size == 1 and valid.all():
        return values, valid
    kept = values if valid.all() else np.where(valid[:, None], values, np.float32(0))
    starts = np.arange(0, len(values), size)
    counts = np.add.reduceat(valid.astype(np.float32), starts)
    means: Floats = np.add.reduceat(kept, starts, axis=0)
    means /= np.maximum(counts, np.float32(1))[:, None]
    return means, counts > 0


def block_scores(front: FrontEnd, means: Sequence[Floats], length: int) -> Floats:
    """Step 3 before the softmax: each position's score for each block size, ``(length, sizes)``."""
    made = np.empty((length, len(means)), np.float32)
    for column, (size, candidates) in enumerate(zip(front.settings.blocks, means, strict=True)):
        made[:, column] = np.repeat(candidates @ front.score + front.score_bias, size)[:length]
    return made


def consensus(weights: Floats) -> Floats:
    """Step 4 for ``(positions, sizes)``: the average of all rows, weighted by softmax of their products."""
    made = np.empty_like(weights)
    step = max(1, _PRODUCTS // max(1, len(weights)))
    for start in range(0, len(weights), step):
        made[start : start + step] = _softmax(weights[start : start + step] @ weights.T) @ weights
    return made


def mixture(settings: GbstSettings, means: Sequence[Floats], weights: Floats) -> Floats:
    """Step 5: the candidates, weighted by ``weights (length, sizes)``, summed up: ``(length, width)``."""
    length = len(weights)
    made = np.zeros((length, settings.width), np.float32)
    for column, (size, candidates) in enumerate(zip(settings.blocks, means, strict=True)):
        made += np.repeat(candidates, size, axis=0)[:length] * weights[:, column : column + 1]
    return made


def _softmax(values: Floats) -> Floats:
    """Over the last axis, in place of ``values``."""
    values -= values.max(axis=-1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(axis=-1, keepdims=True)
    return values
