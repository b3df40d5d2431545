"""The plans of files that are made from a GGUF: its keys as they are, its tensors in other formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..converters.gguf_plan import FilePlan
from ..converters.targets import Target
from ..core.gguf_file import ALIGNMENT, TensorInfo, read_pairs, tensor_bytes
from ..core.gguf_pairs import encode_pairs
from ..core.gguf_split import AS_BEFORE, BY_SIZE, placed
from ..core.model import Model
from ..quant.formats import F32, Format
from ..quant.gguf_weights import GgufFile
from ..quant.importance import Importance
from ..quant.policy import Policy, choose_formats, quantization_metadata
from ..quant.provenance import is_provenance, provenance

COPY = "copy"
"""The type that leaves all weights as they are: for joining parts, or making some."""
AS_IT_IS = Policy(COPY, F32, 0)
"""Its policy."""


@dataclass(frozen=True)
class Planner:
    """Plans files of the weights of ``file``, which are those of ``model``; ``keep_split``: in its parts."""

    file: GgufFile
    model: Model
    importance: Importance | None
    keep_split: bool

    @cached_property
    def _before(self) -> Mapping[str, bytes]:
        """The pairs of the source, read once, however many plans a choice takes."""
        return read_pairs(self.file.path)

    def plan_of(self, target: Target) -> FilePlan:
        """The file of a target whose formats its policy chooses."""
        return self.plan(target, choose_formats(self.model, target.policy, self.importance).formats)

    def plan(self, target: Target, formats: Mapping[str, Format]) -> FilePlan:
        """The file of a target in these formats; parts only where they were asked for."""
        alignment = self.file.header.metadata.get("general.alignment", ALIGNMENT)
        parts = {info.name: info.part for info in self.file.header.tensors} if self.keep_split else {}
        infos = []
        for tensor in self.model.tensors:
            kind = formats[tensor.name].ggml_type
            size, part = tensor_bytes(tensor.shape, kind), parts.get(tensor.name, 0)
            infos.append(TensorInfo(tensor.name, tensor.shape, kind, size, part=part))
        return FilePlan(
            target.path,
            self.model.arch,
            {},
            tuple(formats[tensor.name] for tensor in self.model.tensors),
            placed(infos, target.split_size, alignment),
            self._pairs(target),
            AS_BEFORE if self.keep_split else BY_SIZE,
            alignment,
        )

    def _pairs(self, target: Target) -> tuple[bytes, ...]:
        """The source's keys byte for byte, then those that say how the weights are stored now.

        llama_model_quantize takes a key away before it sets it anew, so that it comes last.
        """
        policy = target.policy
        keys = quantization_metadata(policy, self.importance)
        kept = {key: pair for key, pair in self._before.items() if key not in BY_SIZE}
        if policy is AS_IT_IS:
            metadata = self.file.header.metadata
            keys = {key: metadata[key] for key in keys if key in metadata}
        else:
            keys |= provenance(target.choice, self.importance if policy.quantizes else None)
            kept = {key: pair for key, pair in kept.items() if not is_provenance(key)}
        return (*(pair for key, pair in kept.items() if key not in keys), *encode_pairs(keys))
