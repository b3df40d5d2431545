"""Is the file one of this model at all? What is not is refused before anything is proven."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..core.errors import InputError
from ..core.gguf_file import TensorInfo
from ..core.model import Model
from ..quant.gguf_weights import GgufFile

_SHOWN = 8
_LAYER = re.compile(r"(?:^|\.)blk\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """The layer a tensor belongs to by its GGUF name, or None."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def block_of(name: str) -> int | str | None:
    """The layer a tensor belongs to, in words where it is one of an encoder-decoder's, or None."""
    layer = layer_of(name)
    side = {"enc": "encoder", "dec": "decoder"}.get(name.partition(".")[0])
    return layer if layer is None or side is None else f"{side} layer {layer}"


def refuse_other_model(file: GgufFile, model: Model) -> None:
    """Raise InputError, naming all that differs, if the file holds another model than the checkpoint.

    Compared are the architecture, the number of layers and of embedding rows, and the shapes of all tensors
    both have. Missing tensors, extra ones and wrong metadata are left to the proof, unless nothing fits.
    """
    _refuse_what_is_no_model(file)
    shapes = {info.name: info.shape for info in file.header.tensors}
    differences = [*_architecture(file, model), *_layers(file, model)]
    embedding, misshapen = None, []
    for tensor in model.tensors:
        shape = shapes.get(tensor.name)
        if shape is None or shape == tensor.shape:
            continue
        if tensor.name == "token_embd.weight" and shape[1:] == tensor.shape[1:]:
            embedding = f"the vocabulary has {shape[0]} rows, but {tensor.shape[0]} in the checkpoint"
        else:
            misshapen.append(f"{tensor.name} is {_shape(shape)}, expected {_shape(tensor.shape)}")
    differences += [embedding] if embedding else []
    differences += misshapen[:_SHOWN]
    if len(misshapen) > _SHOWN:
        differences.append(f"… and {len(misshapen) - _SHOWN} more tensors of other shapes")
    if not differences and not any(tensor.name in shapes for tensor in model.tensors):
        first = ", ".join(repr(name[:60]) for name in list(shapes)[:3])
        differences.append(f"it has none of the checkpoint's tensors, but {len(shapes)} others ({first}, …)")
    if differences:
        raise InputError(
            f"{file.path} does not belong to this checkpoint:\n"
            + "\n".join(f"  {line}" for line in differences),
            hint="pass the checkpoint the file was made from with --against",
        )


def _refuse_what_is_no_model(file: GgufFile) -> None:
    keys = file.header.metadata
    if keys.get("general.type", "model") != "model":
        raise InputError(
            f"{file.path} is a {str(keys['general.type'])[:40]!r} (general.type), expected a model",
            hint="give the GGUF file of the model itself",
        )
    if not file.header.tensors:
        raise InputError(
            f"{file.path} contains no tensors, only metadata",
            hint="a vocabulary alone cannot be verified; give the whole model",
        )


def _architecture(file: GgufFile, model: Model) -> list[str]:
    if file.header.arch == model.arch:
        return []
    return [f"its architecture is {file.header.arch[:80]!r}, expected {model.arch!r}"]


def _layers(file: GgufFile, model: Model) -> list[str]:
    """A layer more or less is another model if the metadata agree; if not, it is damage."""
    actual, expected = _count(file.header.tensors), _count(model.tensors)
    stated: Any = file.header.metadata.get(f"{file.header.arch}.block_count")
    if actual == expected or (isinstance(stated, int) and stated == expected):
        return []
    return [f"it has {actual} layers, expected {expected}"]


def _count(tensors: Sequence[TensorInfo] | Sequence[Any]) -> int:
    return max((layer_of(tensor.name) or 0 for tensor in tensors), default=-1) + 1


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
