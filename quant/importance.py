"""Importance: how strongly each input channel of a matrix is driven, so that rounding spares what matters.

The numbers are mean squared activations; ggml's quantizers weigh with them the error they make small. They
come from a pass over the checkpoint (flows/importance.py) or from a file (imatrix_file.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.errors import InputError
from ..core.gguf_file import shown
from ..core.input_files import file_sha256
from ..core.model import MetadataValue, Note
from ..core.tensor import Tensor
from .formats import Format

if TYPE_CHECKING:
    from .full_statistics import FullStatistics
    from .imatrix_file import ActivationSums
    from .optimize import Optimization

Floats = npt.NDArray[np.float32]

# Left out, as by llama-imatrix: formats are finer there, and with importance the samples' KL was the same.
SPARED = ("token_embd.weight", "output.weight")

_IGNORING = frozenset({"q8_0", "tq1_0", "tq2_0", "mxfp4", "nvfp4", "q1_0", "q2_0"})
_LARGEST = 1e15  # ggml multiplies sums of these by themselves in float32, and infinite scales come of it
_SMALLEST = 1e-15  # likewise sums come to nothing
_BLOCK = 32  # columns that most formats round together
_KEYS = "quantize.imatrix."
OPTIMIZED = "kconv.optimized"
"""Before the keys by which a file says that its codes were chosen, and by what."""
_LONGEST_VALUE = 127  # bytes of a text llama-quantize keeps (llama.h, llama_model_kv_override)
_SHOWN = 3
_MAKE = "make one of this checkpoint: kconv imatrix CHECKPOINT --text FILE, or pass --calibrate FILE"


@dataclass(frozen=True)
class Importance:
    """What is known of a model's activations.

    ``values`` are the mean squares by GGUF name, float32 ``(columns,)``, for a stack of experts
    ``(experts * columns,)``. ``source`` is the file's name without folders, empty where there was none, with
    its ``sha256``; ``datasets`` the texts, ``chunks`` of ``chunk_size`` tokens how much was read of them.
    ``full`` are the correlations of the inputs, where the file has them, ``optimization`` how codes are
    chosen by them, where they are.
    """

    values: Mapping[str, Floats]
    source: str
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int
    sha256: str = ""
    full: FullStatistics | None = None
    optimization: Optimization | None = None

    def of(self, name: str, columns: int) -> Floats | None:
        """The values of a matrix; None where llama.cpp goes without: one that is missing, an odd embedding.

        ``columns`` are those of all experts together. Raises InputError where the width is not the matrix's.
        """
        values = self.values.get(name)
        if values is None or values.size == columns:
            return values
        if name == SPARED[0]:
            return None
        raise InputError(
            f"{self.where} has {values.size} values for {shown(name)}, which has {columns} columns "
            "here: it belongs to another model",
            hint=_MAKE,
        )

    @property
    def where(self) -> str:
        """What it is called in messages."""
        return f"the imatrix {self.source}" if self.source else "the importance data"


def read_importance(path: str | Path) -> Importance:
    """The importance in an imatrix file of llama.cpp's, GGUF or older (``.dat``), as llama-quantize takes it.

    Raises InputError for what is no such file, is damaged, or holds what cannot be means of squares,
    EnvironmentProblem where the machine refuses.
    """
    path = Path(path)
    from .full_statistics import read_statistics
    from .imatrix_file import read_imatrix

    importance = importance_of(read_imatrix(path), path.name, file_sha256(path))
    return replace(importance, full=read_statistics(path, importance.sha256))


def importance_of(activations: ActivationSums, source: str = "", sha256: str = "") -> Importance:
    """Means of what was counted; of experts no token came by, ones (tools/quantize/quantize.cpp)."""
    means = {}
    for name, sums in activations.sums.items():
        counts = activations.counts[name].astype(np.float32)[:, None]
        by_expert = sums.reshape(len(counts), -1)
        divided = np.divide(by_expert, counts, out=np.ones_like(by_expert), where=counts > 0)
        if divided.max() > _LARGEST:
            raise InputError(
                f"the imatrix {source}: {shown(name)} contains a mean of squares of {divided.max():.3g}, "
                f"expected at most {_LARGEST:.0e}, above which ggml's arithmetic overflows",
                hint=_MAKE,
            )
        means[name] = divided.reshape(-1)
    return Importance(means, source, activations.datasets, activations.chunks, activations.chunk_size, sha256)


def importance_to_be(
    tensors: Sequence[Tensor], datasets: tuple[str, ...] = (), source: str = ""
) -> Importance:
    """Importance data as kconv learns them from texts, but for the numbers: for plans."""
    values = {
        tensor.name: np.ones(tensor.elements // tensor.shape[-2], np.float32)
        for tensor in tensors
        if len(tensor.shape) > 1 and tensor.name not in SPARED
    }
    return Importance(values, source, datasets, int(bool(datasets)), 0)


def values_of(tensor: Tensor, importance: Importance | None) -> Floats | None:
    """The values of a tensor ``(rows, columns)`` or ``(experts, rows, columns)``, as ``Importance.of``."""
    if importance is None or len(tensor.shape) < 2:
        return None
    experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
    return importance.of(tensor.name, experts * tensor.shape[-1])


def refuse_other_model(importance: Importance, tensors: Sequence[Tensor]) -> None:
    """Raise InputError if the importance is of a model with other tensors, by their names and widths."""
    names = {tensor.name for tensor in tensors}
    strange = [name for name in importance.values if name not in names]
    if strange:
        raise InputError(
            f"{importance.where} belongs to another model: {_counted(strange)} not in this model",
            hint=_MAKE,
        )
    for tensor in tensors:
        values_of(tensor, importance)


def importance_notes(
    importance: Importance | None, tensors: Sequence[Tensor], formats: Mapping[str, Format], policy: str
) -> list[Note]:
    """What is to be known of a file called ``policy``: of tensors that are quantized without importance,
    or as if parts of them never mattered, or that the data change nothing. ``formats`` go by tensor names.
    """
    if importance is None:
        return []
    quantized = [tensor for tensor in tensors if formats[tensor.name].quantized]
    weighed = [tensor for tensor in quantized if formats[tensor.name].name not in _IGNORING]
    if quantized and not weighed:
        message = (
            f"{importance.where} has no effect on the {policy} file: its formats do not use "
            "importance data, as in llama.cpp"
        )
        return [Note("unused-importance", message)]
    notes = []
    values = {tensor.name: values_of(tensor, importance) for tensor in weighed}
    lacking = [name for name, known in values.items() if known is None and name not in SPARED]
    if lacking:
        message = (
            f"{importance.where} lacks {_counted(lacking)} quantized without importance data, as in llama.cpp"
        )
        notes.append(Note("missing-importance", message, warning=True))
    idle = [name for name, known in values.items() if known is not None and _has_idle_block(known)]
    if idle:
        message = (
            f"{importance.where} has only zeros for {_BLOCK} or more adjacent columns of "
            f"{_counted(idle)} quantized as if these columns did not matter: calibrate on more text"
        )
        notes.append(Note("idle-columns", message, warning=True))
    return notes


def _has_idle_block(values: Floats) -> bool:
    """Whether next to nothing flows into a whole block; what ggml makes of its weights is arbitrary then."""
    return bool((np.maximum.reduceat(values, range(0, len(values), _BLOCK)) < _SMALLEST).any())


def _counted(names: Sequence[str]) -> str:
    """``a.weight, which is``; ``12 tensors (a.weight, b.weight, …), which are``."""
    if len(names) == 1:
        return f"{shown(names[0])}, which is"
    more = ", …" if len(names) > _SHOWN else ""
    return f"{len(names)} tensors ({', '.join(map(shown, names[:_SHOWN]))}{more}), which are"


def importance_metadata(importance: Importance | None) -> dict[str, MetadataValue]:
    """The keys llama-quantize leaves in a file it has quantized with an imatrix; names without folders."""
    if importance is None:
        return {}
    keys: dict[str, MetadataValue] = {}
    if importance.source:
        keys[f"{_KEYS}file"] = _cut(importance.source)
    if importance.datasets:
        keys[f"{_KEYS}dataset"] = _cut(plain_name(importance.datasets[0]))
    keys[f"{_KEYS}entries_count"] = len(importance.values)
    if importance.chunks > 0:
        keys[f"{_KEYS}chunks_count"] = importance.chunks
    if importance.optimization is not None:
        from .optimize import METHOD

        keys[f"{OPTIMIZED}.method"] = METHOD
        keys[f"{OPTIMIZED}.statistics"] = _cut(importance.source)
        keys[f"{OPTIMIZED}.statistics_sha256"] = importance.sha256
    return keys


def made_with_importance(metadata: Mapping[str, Any]) -> bool:
    """Whether a file of those keys says that it was quantized with an imatrix."""
    return any(key.startswith(_KEYS) for key in metadata)


def _cut(text: str) -> str:
    return text.encode("utf-8", "replace")[:_LONGEST_VALUE].decode("utf-8", "ignore")


def plain_name(dataset: str) -> str:
    """A text's name without the folders of whoever made the file."""
    return dataset.replace("\\", "/").rstrip("/").rpartition("/")[2]
