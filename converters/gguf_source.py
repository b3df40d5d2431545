"""A GGUF as a model: where the weights of a new GGUF come from when they do not come from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from ..core.errors import GgufError, InputError
from ..core.gguf_counts import check_counts
from ..core.gguf_file import TensorInfo, shown
from ..core.model import Model, Note
from ..core.tensor import Array, DType, Reader, StoredBytes, Tensor
from ..quant.formats import BF16, F16, F32, Format, format_of_type
from ..quant.gguf_weights import GgufFile
from ..quant.parts import llama_cpp_order
from .families import FAMILIES, FRONT_ENDS
from .front_end import FINGERPRINT_KEY, KIND_KEY

_KINDS = ("model", "mmproj")
_LARGEST_MATRIX = (
    1 << 28
)  # weights, and so many are in memory at once; those of the widest experts are a third
_FLOATS: Mapping[Format, DType] = {F32: DType.F32, F16: DType.F16, BF16: DType.BF16}


def gguf_model(file: GgufFile, *, keep_split: bool = False) -> Model:
    """The model of a GGUF; all keys are under ``hparams``, and there is no vocabulary.

    The tensors are in the order llama_model_quantize writes them: by layer and name, or as they lie in parts.
    Shapes are as ggml counts axes: the slowest are left out while they have length 1. Raises GgufError where
    it holds no model llama.cpp runs, or numbers its tensors contradict.
    """
    header = file.header
    kind = header.metadata.get("general.type", "model")
    if header.arch in ("", *(each.kind for each in FRONT_ENDS)) or kind not in _KINDS or not header.tensors:
        declared = f"general.architecture {shown(header.arch)}, general.type {shown(kind)}"
        raise GgufError(
            f"{file.path} does not contain a llama.cpp model ({declared}, {len(header.tensors)} tensors)",
            hint="give the GGUF file of a model",
        )
    check_counts(file.path, header)
    infos = [replace(info, shape=_axes(info.shape)) for info in header.tensors]
    for info in infos:
        if not 0 < math.prod(info.shape[1:]) <= _LARGEST_MATRIX or not info.shape[0]:
            raise GgufError(
                f"{file.path}: tensor {shown(info.name)} of shape {list(info.shape)} has no weights",
                hint="the file is damaged or was made for another program",
            )
    infos.sort(key=lambda info: (info.part, info.offset) if keep_split else llama_cpp_order(info.name))
    notes = []
    if FINGERPRINT_KEY in header.metadata:
        place = f"{header.metadata.get(KIND_KEY)}-….gguf of {file.path.absolute().parent}"
        notes.append(
            Note("front-end", f"the output does not run without its front end: put {place} next to it")
        )
    tensors = tuple(_tensor(file, info) for info in infos)
    wide = next((family.wide_inputs for family in FAMILIES if family.arch == header.arch), None)
    return Model(header.arch, header.metadata, tensors, notes=tuple(notes), wide_inputs=wide)


def _axes(shape: Sequence[int]) -> tuple[int, ...]:
    first = next((axis for axis, length in enumerate(shape[:-1]) if length != 1), max(len(shape) - 1, 0))
    return tuple(shape[first:]) or (1,)


def _tensor(file: GgufFile, info: TensorInfo) -> Tensor:
    """Floats as they are, all else as bytes and, on request, as decoded weights."""
    format = format_of_type(info.ggml_type)
    dtype, read_bytes = _FLOATS.get(format) if format else None, file.reader(info)
    read = file.floats_reader(info) if dtype is None else partial(_viewed, read_bytes, info.shape, dtype)
    return Tensor(
        info.name,
        info.shape,
        dtype or DType.F32,
        read,
        granule=format.block_size if format and len(info.shape) == 1 else 1,
        origin=f"{file.paths[info.part]}: tensor {info.name}",
        computed=info.name == "rope_freqs.weight",
        stored=StoredBytes(info.ggml_type, read_bytes),
    )


def _viewed(read_bytes: Reader, shape: tuple[int, ...], dtype: DType, start: int, stop: int) -> Array:
    return read_bytes(start, stop).view(dtype.storage).reshape(stop - start, *shape[1:])


def stored_formats(model: Model) -> dict[str, Format]:
    """The format each tensor of a GGUF has there."""
    return {
        tensor.name: format
        for tensor in model.tensors
        if tensor.stored and (format := format_of_type(tensor.stored.ggml_type))
    }


def requantizing_notes(file: GgufFile, wanted: Mapping[str, Format], *, allow: bool) -> tuple[Note, ...]:
    """A warning of tensors that are quantized already and get another format.

    Raises InputError for them unless ``allow``, GgufError for those that cannot be turned into weights.
    """
    infos = file.header.tensors
    changed = [info for info in infos if wanted[info.name].ggml_type != info.ggml_type]
    quantized = [info for info in changed if file.format(info).quantized]
    if not quantized:
        return ()
    some, all_, path = len(quantized), len(infos), file.path
    name, format = quantized[0].name, file.format(quantized[0]).display
    if not allow:
        raise InputError(
            f"{path}: {some} of {all_} tensors are already quantized ({name} is {format}); "
            "quantizing them again loses quality",
            hint="quantize from the F32, F16 or BF16 file, or pass --allow-requantize",
        )
    message = (
        f"{some} of {all_} tensors were already quantized ({name} is {format}) and were quantized again, "
        "as allowed"
    )
    return (Note("requantized", message, warning=True),)
