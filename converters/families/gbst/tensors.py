"""The front end as a model of its own: its tensors, its keys, and the fingerprint that names it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ....core.checkpoint import Checkpoint
from ....core.errors import CheckpointError, InputError, MappingError
from ....core.model import MetadataValue, Model
from ....core.tensor import Tensor
from ...front_end import FINGERPRINT_KEY, KIND_KEY
from ...settings import Settings
from ...transforms import read_wide, same_weights
from .front_end import Floats, front_end
from .settings import (
    CONVOLUTION,
    EMBEDDING,
    NORM,
    NORM_EPSILON,
    PREFIX,
    PROJECTION,
    SCORE,
    SHARED,
    GbstSettings,
    front_end_tensor,
    read_settings,
)

ARCH = "gbst"
VERSION = 1

# Name in the file -> name in a checkpoint, in the order of the file.
TABLE: Mapping[str, str] = {
    "token_embd.weight": EMBEDDING,
    "conv.weight": CONVOLUTION + "weight",
    "conv.bias": CONVOLUTION + "bias",
    "norm.weight": NORM + "weight",
    "norm.bias": NORM + "bias",
    "norm.mean": NORM + "running_mean",
    "norm.variance": NORM + "running_var",
    "proj.weight": PROJECTION + "weight",
    "proj.bias": PROJECTION + "bias",
    "score.weight": SCORE + "weight",
    "score.bias": SCORE + "bias",
}

DROPPED = (NORM + "num_batches_tracked",)
"""Counts steps of training."""


def file_shapes(settings: GbstSettings) -> dict[str, tuple[int, ...]]:
    """The tensors of a front end's file and their shapes, in its order."""
    shapes = settings.shapes()
    return {name: shapes[source] for name, source in TABLE.items() if source in shapes}


def settings_keys(settings: GbstSettings) -> dict[str, MetadataValue]:
    """Every setting as a key of the front end's file, without its prefix."""
    keys: dict[str, MetadataValue] = {
        "version": VERSION,
        "block_sizes": settings.blocks,
        "downsample_factor": settings.factor,
        "score_consensus": settings.consensus,
        "batch_norm": settings.norm,
        "embedding_length": settings.width,
        "vocab_size": settings.rows,
    }
    return {**keys, "batch_norm_epsilon": NORM_EPSILON} if settings.norm else keys


def fingerprint(settings: GbstSettings, weights: Mapping[str, Floats]) -> str:
    """SHA-256 over settings and float32 weights (under the checkpoint's names), in hexadecimal digits.

    It names what the front end computes: a body goes with any file of that fingerprint, whichever conversion
    wrote it, and with no other.
    """
    digest = hashlib.sha256(repr(sorted(settings_keys(settings).items())).encode())
    for name, shape in file_shapes(settings).items():
        digest.update(f"\n{name} {list(shape)}\n".encode())
        digest.update(np.ascontiguousarray(weights[TABLE[name]], "<f4").data)
    return digest.hexdigest()


def body_keys(fingerprint: str) -> dict[str, MetadataValue]:
    """The keys by which a body says that it needs the front end of that fingerprint."""
    return {KIND_KEY: ARCH, FINGERPRINT_KEY: fingerprint}


def front_end_model(checkpoint: Checkpoint, metadata: Mapping[str, MetadataValue] | None = None) -> Model:
    """The front end of a GBSWT5 checkpoint as a Model of architecture ``gbst``, without a vocabulary.

    Every tensor goes into the file in f32. ``metadata`` are the ``general.*`` keys of the checkpoint. Reads
    the weights, some 12 MB of float32, for the fingerprint. Raises what ``read_settings`` raises,
    MappingError for tensors there should not be, CheckpointError where the embedding of the front end and
    that of the decoder, which are one in the model, differ.
    """
    settings = read_settings(Settings(checkpoint.config, "config.json"), checkpoint.tensors)
    _refuse_others(settings, checkpoint)
    _refuse_two_embeddings(checkpoint)
    tensors = tuple(
        replace(_front_end_tensor(checkpoint, TABLE[name]), name=name, shape=shape)
        for name, shape in file_shapes(settings).items()
    )
    weights = {TABLE[tensor.name]: read_weights(tensor) for tensor in tensors}
    try:
        front_end(settings, weights)
    except InputError as error:
        raise CheckpointError(f"{checkpoint.folder}: {error.message}") from error
    keys = {**settings_keys(settings), "fingerprint": fingerprint(settings, weights)}
    hparams = {f"{ARCH}.{key}": value for key, value in keys.items()}
    general = {**(metadata or {}), "general.type": "front-end"}
    return Model(ARCH, hparams, tensors, metadata=general)


def own_fingerprint(model: Model) -> str:
    """The fingerprint of a model made by ``front_end_model``."""
    return str(model.hparams[f"{ARCH}.fingerprint"])


def read_weights(tensor: Tensor) -> Floats:
    """All of a tensor in float32."""
    return read_wide(tensor, 0, tensor.rows)


def is_front_end_tensor(name: str) -> bool:
    """Whether a checkpoint's tensor belongs to its front end and not to the T5 body."""
    return name.startswith(PREFIX) and name != PREFIX + "weight"


def _front_end_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    tensor = front_end_tensor(checkpoint.tensors, name)
    assert tensor is not None  # read_settings has seen them all
    return tensor


def _refuse_others(settings: GbstSettings, checkpoint: Checkpoint) -> None:
    known = {*settings.shapes(), *DROPPED}
    others = [name for name in checkpoint.tensors if is_front_end_tensor(name) and name not in known]
    if others:
        shown = "\n".join(f"  unexpected: {name}" for name in others[:40])
        raise MappingError(
            f"{checkpoint.folder}: {len(others)} tensors do not fit the GBST front end:\n{shown}",
            hint="check that config.json belongs to these weight files and that all of them are there",
        )


def _refuse_two_embeddings(checkpoint: Checkpoint) -> None:
    own = _front_end_tensor(checkpoint, EMBEDDING)
    for name in SHARED:
        other = checkpoint.tensors.get(name)
        if other is not None and other is not own and not same_weights(own, other):
            raise CheckpointError(
                f"{checkpoint.folder}: {own.name} differs from {name}; in GBST-KEByT5 they are the "
                "same matrix",
                hint="find out which one the model was trained with and remove the other",
            )
