"""What llama.cpp computed, computed again: the file's weights, and inputs rounded as ggml-cpu rounds them.

Every product with a matrix is given what llama.cpp itself multiplied that matrix by, so that the two never
drift apart: whatever enters a matrix was computed, since the matrices before it, in plain float32 on both
sides, and has to agree to a few parts in 10^13. Without that, one input in 10^5 would be rounded the other
way for nothing but the order of a sum, and the layers behind would follow it.

The same pass can compute the window twice more, running freely: with the file's weights in plain fp32, and
with rounded inputs as well. These say what the weights and the rounding of inputs cost, and what is left for
the runtime.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..converters.family import AnyFamily
from ..converters.mapping import sources_of, unmapped
from ..core.checkpoint import Checkpoint
from ..core.progress import Progress, silent
from ..core.tensor import Tensor
from ..core.windows import Window
from ..quant.gguf_weights import GgufFile
from .copies import COPIES, ROUNDED, SYNCHRONIZED, WEIGHTS_ONLY, Matrix, MatrixInput, as_told
from .gelu_table import GELUS, through_table
from .ggml_rounding import Rounding, minimums_of, rounded, rounding_of
from .model import Reference
from .recomputed_attention import KEYS, VALUES, Absorbed, absorbing
from .recomputed_experts import Experts
from .watching import is_experts
from .weight_reader import RowRange

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
LOGITS = "logits"
STATES = "hidden states"
"""Stand for the output in the place of a matrix."""
_NEARLY = 1e-3
_LARGEST = sys.float_info.max  # JSON knows no infinity


@dataclass(frozen=True)
class MatrixError:
    """NMSE of what llama.cpp multiplied ``matrix`` by, a tensor of the file, or of its ``LOGITS``."""

    matrix: str
    nmse: float


@dataclass(frozen=True)
class Recomputed:
    """``errors`` in the order of the computation, the logits last, or an encoder's hidden states.

    ``unused`` are matrices llama.cpp multiplied nothing by. ``weights_only`` and ``rounded`` are the logits
    ``(positions, vocabulary)`` of the copies that run freely, None where there were none.
    """

    errors: tuple[MatrixError, ...]
    unused: tuple[str, ...]
    weights_only: Floats | None = None
    rounded: Floats | None = None


class Recomputation:
    """A file ready to be computed again, by the checkpoint's config.json; no weight is in memory yet.

    ``reference`` has the file's weights, ``matrices`` are those of the file by the reference's modules, and
    ``head`` is the output matrix, None for an encoder without. ``gelu_table``: the runtime is llama.cpp,
    which reads GELU from a table.
    """

    def __init__(
        self,
        reference: Reference,
        matrices: Mapping[str, Matrix],
        head: Matrix | None,
        *,
        gelu_table: bool = True,
    ) -> None:
        self.reference, self.matrices, self.head = reference, matrices, head
        self.gelu_table = gelu_table

    @classmethod
    def of_gguf(
        cls, checkpoint: Checkpoint, family: AnyFamily, file: GgufFile, *, threads: int | None = None
    ) -> Recomputation:
        """Of a GGUF file.

        Raises what ``Reference`` raises, MappingError where the file's tensors are not the checkpoint's.
        """
        infos = {info.name: info for info in file.header.tensors}
        tensors = {name: file.tensor(info) for name, info in infos.items()}
        wide = {name: file.format(info).name for name, info in infos.items() if len(info.shape) > 1}
        roundings = {name: rounding_of(format) for name, format in wide.items()}
        minimums = {
            name: minimums_of(file, infos[name]) for name, rounding in roundings.items() if rounding == "q8_1"
        }
        weights = unmapped(family, checkpoint, tensors)
        reference = Reference(checkpoint, family, weights=weights, as_llama_cpp=True, threads=threads)
        reference.reader.any_order = True
        in_modules: Mapping[str, Tensor] = {}
        if minimums:
            spread = unmapped(family, checkpoint, {**tensors, **minimums})
            in_modules = family.reference.tensors(spread, family.read(checkpoint.config).sizes)
        matrices: dict[str, Matrix] = {}
        for target, sources in sources_of(family, checkpoint).items():
            rounding = roundings.get(target)
            for source in sources if rounding is not None else ():
                module = family.reference.module(source)
                names = (f"{module}.weight", _fused(module))
                found = (in_modules[name] for name in names if name in in_modules)
                least = next(found, None) if rounding == "q8_1" else None
                matrices[module] = Matrix(target, rounding or "none", least)
        if family.encoder_only:
            return cls(reference, matrices, None)
        head = "output.weight" if "output.weight" in infos else "token_embd.weight"
        return cls(reference, matrices, Matrix(head, roundings[head] or "none", minimums.get(head)))

    def compute(
        self,
        window: Window,
        inputs: Mapping[str, MatrixInput],
        logits: Floats,
        progress: Progress = silent,
        *,
        free: bool = True,
    ) -> Recomputed:
        """Compute a window again.

        ``inputs`` are what llama.cpp multiplied the file's matrices by, by their names, ``logits``
        ``(positions, vocabulary)`` what it gave, of an encoder the hidden states; ``free``: with the copies
        that run freely, which takes three times the arithmetic. Raises CheckpointError, GgufError,
        UnsupportedModel for graphs that cannot be followed.
        """
        run = _Run(self, inputs, COPIES if free else 1)
        try:
            entering = self.reference.entering_head([window] * run.copies, run.attached, progress)
            return run.result(entering, logits)
        finally:
            self.reference.reader.forget()  # what is read next would come on top of it


class _Run:
    """One pass, and what is found on the way."""

    def __init__(self, recomputation: Recomputation, inputs: Mapping[str, MatrixInput], copies: int) -> None:
        self.copies = copies
        self._matrices, self._head = recomputation.matrices, recomputation.head
        self._reference, self._gelu_table = recomputation.reference, recomputation.gelu_table
        self._inputs = inputs
        self._errors: list[MatrixError] = []
        self._unused: dict[str, None] = {}
        self._missing: torch.Tensor | None = None

    @contextlib.contextmanager
    def attached(self, model: Any) -> Any:
        """Hooks at every matrix, every GELU and the experts of a transformers model."""
        import torch

        with contextlib.ExitStack() as stack:
            layers = [
                Absorbed(module, self._matrices[f"{name}.{KEYS}"], self._matrices[f"{name}.{VALUES}"],
                         self.synchronize, _round_apart)
                for name, module in model.named_modules()
                if f"{name}.{KEYS}" in self._matrices
            ]  # fmt: skip
            stack.enter_context(absorbing(layers))
            for name, module in model.named_modules():
                matrix = self._matrices.get(name)
                if is_experts(module):
                    parts = [self._matrices[f"{name}.0.{part}_proj"] for part in ("gate", "up", "down")]
                    experts = Experts(
                        module,
                        parts,
                        self._inputs,
                        self.synchronize,
                        self.add,
                        self._reference.reader,
                        self.copies,
                    )
                    stack.enter_context(_instead(module, experts.forward))
                elif type(module).__name__ in GELUS and self._gelu_table:
                    stack.enter_context(_instead(module, partial(_gelu, module.forward)))
                elif matrix is not None and not isinstance(module, torch.nn.Embedding | torch.nn.Identity):
                    before, after = partial(self._before, matrix), partial(self._after, matrix)
                    stack.callback(module.register_forward_pre_hook(before).remove)
                    stack.callback(module.register_forward_hook(after).remove)
            yield

    def _before(self, matrix: Matrix, module: Any, args: Any) -> Any:
        shape = args[0].shape  # a router is given all copies in one
        values = self.synchronize(matrix.name, args[0].reshape(self.copies, -1, shape[-1]))
        made, self._missing = self._rounded(values, matrix)
        return (made.reshape(shape), *args[1:])

    def _rounded(self, values: torch.Tensor, matrix: Matrix) -> tuple[torch.Tensor, torch.Tensor | None]:
        made = as_told(values, self._inputs.get(matrix.name))
        return round_copies(values, matrix.rounding) if made is None else (made, None)

    def _after(self, matrix: Matrix, module: Any, args: Any, output: Any) -> Any:
        """The share of the blocks' minimums in which ggml's sums differ from those of the rounded inputs."""
        import torch

        if self._missing is None or matrix.minimums is None:
            return output
        with self._reference.reader.reading([RowRange(matrix.minimums, 0, matrix.minimums.rows)]) as minimums:
            return output + torch.nn.functional.linear(self._missing, *minimums)

    def synchronize(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """``(copies, positions, columns)`` with llama.cpp's input in the first copy, once compared."""
        import torch

        given = self._inputs.get(name)
        if given is None:
            self._unused[name] = None
            return values
        theirs = given.values.reshape(len(given.values), -1)
        self.add(name, theirs, values[SYNCHRONIZED].numpy())
        if theirs.shape != tuple(values.shape[1:]):
            return values
        values = values.clone()
        values[SYNCHRONIZED] = torch.from_numpy(theirs)
        return values

    def add(self, name: str, theirs: Floats, expected: Floats) -> None:
        """Compare what llama.cpp multiplied a matrix by with what that should have been."""
        self._errors.append(MatrixError(name, nmse(theirs, expected)))

    def _scale(self, entering: torch.Tensor, head: Matrix) -> float:
        given = self._inputs.get(head.name)
        return 1.0 if given is None else _fitting(given.values, entering[SYNCHRONIZED].numpy())

    def result(self, entering: torch.Tensor, logits: Floats) -> Recomputed:
        """What was found, the output matrix included.

        A T5 whose head is tied scales what enters it; in the file the matrix is scaled instead.
        """
        head, output = self._head, self._reference.output
        if head is None or output is None:
            out = entering.numpy()
            self._errors.append(MatrixError(STATES, nmse(logits, out[SYNCHRONIZED])))
        else:
            scale = self._scale(entering, head)
            values = self.synchronize(head.name, entering / scale)
            made, missing = self._rounded(values, head)
            missing = None if missing is None else missing * scale
            out = output.multiply(made * scale, missing, head.minimums)
            self._errors.append(MatrixError(LOGITS, nmse(logits, out[SYNCHRONIZED])))
        errors, unused = tuple(self._errors), tuple(self._unused)
        if self.copies < COPIES:
            return Recomputed(errors, unused)
        return Recomputed(errors, unused, out[WEIGHTS_ONLY], out[ROUNDED])


def _fitting(found: Floats, expected: Floats) -> float:
    """The factor by which ``found`` fits ``expected`` best; 1 where it nearly is, and where none does."""
    if found.shape != expected.shape:
        return 1.0
    one, two = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    factor = float(one @ two) / max(float(one @ one), 1e-300)
    return factor if math.isfinite(factor) and factor > 0 and abs(factor - 1) > _NEARLY else 1.0


def round_copies(values: torch.Tensor, rounding: Rounding) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``ggml_rounding.rounded`` for all copies but that of the weights alone."""
    made, missing = rounded(values, rounding)
    if made is not values and len(values) == COPIES:
        made[WEIGHTS_ONLY] = values[WEIGHTS_ONLY]
    if missing is not None and len(values) == COPIES:
        missing[WEIGHTS_ONLY] = 0
    return made, missing


def _round_apart(values: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """``round_copies`` for a format without minimums."""
    return round_copies(values, matrix.rounding)[0]


def _gelu(exact: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    made = through_table(values)
    if len(values) == COPIES:
        made[WEIGHTS_ONLY] = exact(values[WEIGHTS_ONLY])
    return made


@contextlib.contextmanager
def _instead(module: Any, forward: Callable[..., Any]) -> Any:
    """Let a module compute by ``forward`` meanwhile."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # the class's own is seen again


def _fused(module: str) -> str:
    """The parameter transformers 5 keeps an expert's matrix in: ``….experts.3.up_proj`` in gate_up_proj."""
    place, _, matrix = module.rpartition(".")
    return f"{place.rpartition('.')[0]}.{'down_proj' if matrix == 'down_proj' else 'gate_up_proj'}"


@np.errstate(all="ignore")  # what is not finite is an error like any other
def nmse(found: Floats, expected: Floats) -> float:
    """Mean squared difference over the variance of what is expected; the largest number if not finite."""
    if found.shape != expected.shape:
        return _LARGEST
    difference = found.astype(np.float64) - expected
    value = float(np.mean(difference * difference) / max(float(np.var(expected, dtype=np.float64)), 1e-30))
    return value if math.isfinite(value) else _LARGEST
