"""A model as a value: what a family makes of a checkpoint and what a writer turns into a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .tensor import Tensor
from .vocabulary import Vocab

# GGUF metadata values: int is written as uint32, float as float32, bool as bool, str as string; a tuple as
# an array of bool, int32, float32 or strings, bytes as an array of uint8.
MetadataValue = bool | int | float | str | bytes | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """Something a stage did or noticed, for the output and the manifest.

    ``name`` is short and stable (``pad-rows``, ``stale-special-ids``), ``message`` one sentence.
    """

    name: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Model:
    """One value that flows through the stages, each of them ``Model -> Model``.

    ``hparams`` are the architecture's GGUF keys in full (``llama.block_count``), ``metadata`` the
    ``general.*`` keys. ``vocab`` is None until the vocabulary stage. ``wide_inputs`` is a regular expression
    of the names of matrices whose input may exceed half precision, so that their weights must not be F16.
    ``granted`` are keys of config.json that transformers takes for granted and other programs do not.
    ``left_out`` is what llama.cpp's graph takes for keys, without prefix, that a file leaves out.
    """

    arch: str
    hparams: Mapping[str, MetadataValue]
    tensors: tuple[Tensor, ...]
    vocab: Vocab | None = None
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    wide_inputs: str | None = None
    granted: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, MetadataValue] = field(default_factory=dict)

    def has_wide_input(self, name: str) -> bool:
        """Whether the input of the matrix of that GGUF name may exceed half precision."""
        return self.wide_inputs is not None and re.fullmatch(self.wide_inputs, name) is not None

    def tensor(self, name: str) -> Tensor:
        """The tensor of that GGUF name; KeyError if there is none."""
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(name)
