"""GBST in the proof: the front end in torch joined to the reference, the one in the file to llama.cpp.

The measured side computes with what ``gbst-….gguf`` holds, in numpy as ``kconv run`` does. Everything in that
file is float32, so its fingerprint says of every weight and setting whether it is the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..converters.architectures.gbswt5 import GBSWT5
from ..converters.gbst.front_end import Floats, embed
from ..converters.gbst.front_end_file import front_end_of
from ..converters.gbst.settings import EMBEDDING, SHARED, GbstSettings, held_tensor, read_settings
from ..converters.gbst.tensors import (
    FINGERPRINT_KEY,
    KIND_KEY,
    front_end_model,
    is_front_end_tensor,
    own_fingerprint,
)
from ..converters.recipe import Recipe
from ..converters.settings import Settings
from ..core.checkpoint import Checkpoint
from ..core.input_files import file_sha256, quoted
from ..core.tensor import Tensor
from ..quant.gguf_weights import GgufFile
from .candidate import CandidateFailure
from .proof import Finding, MetadataPart, verdict_of

Embed = Callable[[Sequence[int]], Floats]
"""Token ids to what an encoder reads, float32 ``(positions, width)``."""

_KNOWN_AS = {GBSWT5.hf_classes[0]: "T5ForConditionalGeneration"}


def transformers_class(recipe: Recipe) -> str:
    """The class of transformers that computes the model, or all of it but its front end."""
    return _KNOWN_AS.get(recipe.hf_classes[0], recipe.hf_classes[0])


def tokens_a_position(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """How many tokens of a source make one position of the encoder: 1 without a front end.

    Raises what ``read_settings`` raises.
    """
    if recipe.name != GBSWT5.name:
        return 1
    return read_settings(Settings(checkpoint.config, "config.json"), checkpoint.tensors).factor


def join_front_end(model: Any, recipe: Recipe, checkpoint: Checkpoint) -> GbstSettings | None:
    """Put the torch front end before the encoder of transformers' empty ``model``; None where there is none.

    Its byte embedding becomes a module apart from the shared one: a file's body may hold that one quantized,
    its front end never does. Raises what ``read_settings`` raises.
    """
    if recipe.name != GBSWT5.name:
        return None
    import torch

    from .gbst_torch import set_front_end

    settings = read_settings(Settings(checkpoint.config, "config.json"), checkpoint.tensors)
    set_front_end(model, settings, alone=True)
    model.encoder.embed_tokens.embeds = torch.nn.Embedding(settings.rows, settings.width, device="meta")
    return settings


def with_front_end(weights: Mapping[str, Tensor], checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """A body's weights, under the checkpoint's names, and with them the front end's own."""
    own = {name: tensor for name, tensor in checkpoint.tensors.items() if is_front_end_tensor(name)}
    embedding = held_tensor(checkpoint.tensors, EMBEDDING)
    if embedding is not None:
        own[EMBEDDING] = embedding
    body = dict(weights)
    if EMBEDDING in body:  # the one name it has in some checkpoints
        body.setdefault(SHARED[0], body[EMBEDDING])
    return {**body, **own}


def embed_of(file: GgufFile, recipe: Recipe, chosen: Path | None = None) -> Embed | None:
    """What the file's front end, ``chosen`` or beside it, makes of a text; None for models without one.

    Raises what ``front_end_of`` raises, CandidateFailure where the file does not say which it needs.
    """
    found = front_end_of(file.path, file.header.metadata, chosen)
    if found is not None:
        return lambda ids: embed(found.front_end, ids).values
    if recipe.name == GBSWT5.name:
        raise CandidateFailure(
            f"the file does not name its front end ({KIND_KEY}), without which it reads nothing"
        )
    return None


def named_front_end(file: GgufFile, chosen: Path | None = None) -> dict[str, Any] | None:
    """Which file the front end was read from, for the provenance; None for models without one.

    Raises what ``front_end_of`` raises.
    """
    found = front_end_of(file.path, file.header.metadata, chosen)
    if found is None:
        return None
    size = found.path.stat().st_size
    digest = file_sha256(found.path)
    return {"file": found.path.name, "bytes": size, "sha256": digest, "fingerprint": found.fingerprint}


def with_front_end_findings(
    part: MetadataPart, file: GgufFile, recipe: Recipe, checkpoint: Checkpoint, chosen: Path | None = None
) -> MetadataPart:
    """The metadata part and, of a GBST model, whether the body has the checkpoint's front end.

    Raises GgufError where the front end the body names is not there, damaged or another model's.
    """
    said = file.header.metadata.get(FINGERPRINT_KEY)
    found = front_end_of(file.path, file.header.metadata, chosen)
    if recipe.name != GBSWT5.name and found is None:
        return part
    wanted = None
    if recipe.name == GBSWT5.name:
        wanted = own_fingerprint(front_end_model(checkpoint))
    findings = part.findings
    if found is None or found.fingerprint != wanted:
        findings = (_finding(said, wanted), *findings)
    return MetadataPart(verdict_of(findings), part.keys + 1, findings)


def _finding(said: object, wanted: str | None) -> Finding:
    if wanted is None:
        message = "the file wants a front end before its encoder, the checkpoint has none"
    elif said is None:
        message = (
            "the file does not name its front end: nothing tells a program that text must go through one"
        )
    else:
        message = (
            "the front end is not the checkpoint's: its weights or its settings differ, and the encoder "
            "reads something else than it was trained on"
        )
    return Finding(FINGERPRINT_KEY, message, wanted or "missing", "missing" if said is None else quoted(said))
