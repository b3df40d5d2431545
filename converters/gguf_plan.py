"""The plan of a GGUF: every key, every tensor with its format, size and place, before a weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.gguf_file import ALIGNMENT, TensorInfo, aligned, header_bytes, tensor_bytes
from ..core.gguf_pairs import encode_pairs
from ..core.gguf_split import BY_SIZE, part_path, placed, split_pairs
from ..core.model import MetadataValue, Model
from ..core.vocabulary import gguf_keys
from ..quant.formats import F32, Format


@dataclass(frozen=True)
class FilePlan:
    """One GGUF to be: every key, and every tensor with its format, size and place.

    ``path`` is the file's, or what the names of a model in several files are made of. ``pairs`` are all keys
    as bytes where they come from a file; else they are ``arch`` and ``metadata``. ``split_keys`` are those of
    parts, in the order they are written.
    """

    path: Path
    arch: str
    metadata: Mapping[str, MetadataValue]
    formats: tuple[Format, ...]
    tensors: tuple[TensorInfo, ...]
    pairs: tuple[bytes, ...] | None = None
    split_keys: tuple[str, ...] = BY_SIZE
    alignment: int = ALIGNMENT

    @property
    def parts(self) -> list[tuple[TensorInfo, ...]]:
        """The tensors of each file."""
        count = self.tensors[-1].part + 1 if self.tensors else 1
        return [tuple(info for info in self.tensors if info.part == part) for part in range(count)]

    @property
    def paths(self) -> list[Path]:
        """The files, the one that is given to llama.cpp first."""
        count = len(self.parts)
        return [part_path(self.path, part, count) for part in range(count)]

    @property
    def data_bytes(self) -> int:
        """Bytes of the data sections."""
        return sum(self._data_bytes(infos) for infos in self.parts)

    @property
    def weights(self) -> dict[str, int]:
        """How many weights each format has."""
        counts: dict[str, int] = {}
        for info, format in zip(self.tensors, self.formats, strict=True):
            counts[format.name] = counts.get(format.name, 0) + math.prod(info.shape)
        return counts

    def layout(self) -> list[tuple[bytes, int]]:
        """For each file what stands before the data, and how many bytes of data follow."""
        parts, pairs = self.parts, self.pairs
        if pairs is None:
            pairs = tuple(encode_pairs({"general.architecture": self.arch, **self.metadata}))
        made = []
        unusual = [] if self.alignment == ALIGNMENT else encode_pairs({"general.alignment": self.alignment})
        for part, infos in enumerate(parts):
            own = split_pairs(part, len(parts), len(self.tensors), self.split_keys)
            keys = [*(unusual if part else pairs), *own]
            made.append((header_bytes(keys, infos, self.alignment), self._data_bytes(infos)))
        return made

    def _data_bytes(self, infos: Sequence[TensorInfo]) -> int:
        return infos[-1].offset + aligned(infos[-1].nbytes, self.alignment) if infos else 0


def plan_file(
    path: Path,
    model: Model,
    formats: Sequence[Format],
    keys: Mapping[str, MetadataValue],
    split_size: int | None = None,
) -> FilePlan:
    """Sizes and offsets; ``formats`` go with ``model.tensors``, ``keys`` are added to the model's.

    With ``split_size`` there are files of at most so many bytes of weights.
    """
    vocab = {} if model.vocab is None else gguf_keys(model.vocab)
    metadata = {**model.metadata, **keys, **model.hparams, **vocab}
    infos = [
        TensorInfo(tensor.name, tensor.shape, format.ggml_type, tensor_bytes(tensor.shape, format.ggml_type))
        for tensor, format in zip(model.tensors, formats, strict=True)
    ]
    return FilePlan(path, model.arch, metadata, tuple(formats), placed(infos, split_size))


def plan_companion(path: Path, model: Model) -> FilePlan:
    """The plan of a file that stands beside a model's own, such as a GBST front end: everything in f32."""
    return plan_file(path, model, [F32] * len(model.tensors), {})
