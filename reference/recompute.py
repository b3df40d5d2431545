"""What llama.cpp computes, computed again: the file's weights, inputs rounded as ggml-cpu rounds them.

Every product with a matrix is given what llama.cpp itself multiplied that matrix by (runtimes/llama_inputs),
so that the two never drift apart: what is compared at a matrix was computed, since the matrices before it,
in plain float32 on both sides. Without that, one input in 10^5 would be rounded the other way for the order
of a sum alone, and whole layers would follow it.

The same pass computes two more rows, which run freely: the file's weights in fp32, and the file's weights
with rounded inputs. They say how much the weights and the inputs cost, and what is left for the runtime.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..converters.family import AnyFamily
from ..converters.mapping import sources_of, unmapped
from ..core.checkpoint import Checkpoint
from ..core.progress import Progress, silent
from ..core.tensor import Array, Tensor
from ..core.windows import Window
from ..quant.gguf_weights import GgufFile
from .empty_model import computing
from .gelu_table import GELUS, through_table
from .ggml_rounding import Rounding, minimums_of, rounded, rounding_of
from .model import Reference
from .streamed import Rows
from .watching import is_experts

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
_ROWS = 3
SYNCHRONIZED, WEIGHTS_ONLY, ROUNDED = range(_ROWS)
_LARGEST = sys.float_info.max  # JSON knows no infinity


@dataclass(frozen=True)
class MatrixInput:
    """What llama.cpp multiplied a matrix by; see runtimes/matrix_inputs."""

    values: Floats
    experts: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True)
class SiteError:
    """What enters a matrix (GGUF name), or the logits: NMSE of llama.cpp's against what it should be."""

    name: str
    error: float


@dataclass(frozen=True)
class Recomputed:
    """``sites`` in the order of the computation, the logits last.

    ``weights_only`` and ``rounded`` are the logits ``(positions, vocabulary)`` of the rows that run freely,
    ``unused`` the matrices llama.cpp never multiplied anything by.
    """

    sites: tuple[SiteError, ...]
    weights_only: Floats
    rounded: Floats
    unused: tuple[str, ...]


@dataclass(frozen=True)
class _Matrix:
    """A matrix of the file as a module of the reference has it."""

    name: str
    rounding: Rounding
    minimums: Tensor | None


class Recomputation:
    """A file ready to be computed again, as the checkpoint's architecture has it; no weight is in memory.

    Raises what ``Reference`` raises, MappingError where the file's tensors are not the checkpoint's.
    """

    def __init__(
        self, checkpoint: Checkpoint, family: AnyFamily, file: GgufFile, *, threads: int | None = None
    ) -> None:
        held = {info.name: file.tensor(info) for info in file.header.tensors}
        weights = unmapped(family, checkpoint, held)
        self._reference = Reference(checkpoint, family, weights=weights, threads=threads)
        self._threads = self._reference.threads
        self._file = file
        self._formats = {info.name: file.format(info).name for info in file.header.tensors}
        self._by_module = self._matrices(checkpoint, family, held)
        self._head = "output.weight" if "output.weight" in held else "token_embd.weight"

    def _matrices(
        self, checkpoint: Checkpoint, family: AnyFamily, held: Mapping[str, Tensor]
    ) -> dict[str, _Matrix]:
        spread = {**held, **{info.name: minimums_of(self._file, info) for info in self._file.header.tensors
                             if rounding_of(self._formats[info.name]) == "q8_1"}}  # fmt: skip
        sizes = family.read(checkpoint.config).sizes
        minimums = family.reference.tensors(unmapped(family, checkpoint, spread), sizes)
        found: dict[str, _Matrix] = {}
        for target, sources in sources_of(family, checkpoint).items():
            format = self._formats.get(target)
            rounding = None if format is None else rounding_of(format)
            if rounding is None:
                continue
            for source in sources:
                module = family.reference.module(source)
                least = None
                if rounding == "q8_1":
                    names = (f"{module}.weight", *_fused(module))
                    least = next((minimums[name] for name in names if name in minimums), None)
                found[module] = _Matrix(target, rounding, least)
        return found

    def compute(
        self, window: Window, inputs: Mapping[str, MatrixInput], logits: Floats, progress: Progress = silent
    ) -> Recomputed:
        """Compute a window again from what llama.cpp multiplied and gave.

        ``inputs`` are by the names of the file's matrices, ``logits`` ``(positions, vocabulary)``.
        """
        pass_ = _Pass(self, inputs)
        entering = self._reference.forward_copies(window, 3, pass_.attached, progress)
        return pass_.result(entering, logits)


class _Pass:
    """One pass, and what is found on the way."""

    def __init__(self, of: Recomputation, inputs: Mapping[str, MatrixInput]) -> None:
        self._of, self._inputs = of, inputs
        self._reference = of._reference
        self._sites: list[SiteError] = []
        self._unused: list[str] = []

    def attached(self, model: Any, stack: Any) -> None:
        """Hooks at every matrix and every GELU; ``stack`` takes them off again."""
        import torch

        for name, module in model.named_modules():
            matrix = self._of._by_module.get(name)
            if is_experts(module):
                self._at_experts(name, module, stack)
            elif type(module).__name__ in GELUS:
                exact = module.forward
                module.forward = partial(_gelus, exact)
                stack.callback(setattr, module, "forward", exact)
            elif matrix is not None and getattr(module, "weight", None) is not None and module.weight.ndim == 2 and not isinstance(module, torch.nn.Embedding):
                before, after = partial(self._before, matrix), partial(self._after, matrix)
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after).remove)

    def _before(self, matrix: _Matrix, module: Any, args: Any) -> Any:
        shape = args[0].shape  # a router is given all rows in one
        values = self._synchronized(matrix.name, args[0].reshape(_ROWS, -1, shape[-1]))
        made, self._missing = _rounded(values, matrix.rounding)
        return (made.reshape(shape), *args[1:])

    def _after(self, matrix: _Matrix, module: Any, args: Any, output: Any) -> Any:
        if self._missing is None:
            return output
        return self._with_sums(matrix, output, self._missing)

    def _synchronized(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """``(rows, positions, columns)`` with llama.cpp's own input in the first row, which is compared."""
        import torch

        given = self._inputs.get(name)
        if given is None:
            self._unused.append(name)
            return values
        found = given.values.reshape(len(given.values), -1)
        self._compare(name, found, values[SYNCHRONIZED].numpy())
        if found.shape != tuple(values.shape[1:]):
            return values
        values = values.clone()
        values[SYNCHRONIZED] = torch.from_numpy(found)
        return values

    def _with_sums(self, matrix: _Matrix, output: torch.Tensor, missing: torch.Tensor | None) -> torch.Tensor:
        import torch

        if missing is None or matrix.minimums is None:
            return output
        reader, tensor = self._reference.reader, matrix.minimums
        lease = reader.read([Rows(tensor, 0, tensor.rows)])
        output = output + torch.nn.functional.linear(missing, lease.tensors[0])
        reader.release(lease)
        return output

    def _compare(self, name: str, found: Floats, expected: Floats) -> None:
        self._sites.append(SiteError(name, nmse(found, expected)))

    def _at_experts(self, place: str, module: Any, stack: Any) -> None:
        """Compute experts expert by expert, with what llama.cpp chose and multiplied."""
        matrices = [self._of._by_module[f"{place}.0.{each}_proj"] for each in ("gate", "up", "down")]
        before = module.forward
        module.forward = partial(self._experts, matrices, module)
        stack.callback(setattr, module, "forward", before)

    def _experts(
        self, matrices: Sequence[_Matrix], module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: Any
    ) -> torch.Tensor:
        """What transformers' experts make of ``(rows * positions, hidden)``; ``index`` are those chosen."""
        import torch

        gate, up, down = matrices
        values = self._synchronized(gate.name, hidden.reshape(_ROWS, -1, hidden.shape[-1]))
        entering = [_rounded(values, each.rounding) for each in (gate, up)]
        given, count = self._inputs.get(down.name), values.shape[1]
        if given is None:
            self._unused.append(down.name)
        found, expected, total = [], [], torch.zeros_like(hidden)
        for expert in index.unique().tolist():
            tokens, places = torch.where(index == expert)
            halves = module.gate_up_proj[expert].chunk(2)
            least = [None, None] if gate.minimums is None else self._read_expert(gate.minimums, expert).chunk(2)
            gated, inner = (
                self._product(values.reshape(hidden.shape)[tokens], missing if missing is None else missing.reshape(hidden.shape)[tokens], half, minimum)
                for (values, missing), half, minimum in zip(entering, halves, least, strict=True)
            )
            inner = module.act_fn(gated) * inner
            if given is not None:
                own = [(at, slot) for at, token in enumerate(tokens.tolist()) if token < count
                       for slot in np.flatnonzero(given.experts[token] == expert)]  # fmt: skip
                for at, slot in own:
                    theirs = given.values[int(tokens[at]), slot]
                    found.append(theirs)
                    expected.append(inner[at].numpy().copy())
                    inner[at] = torch.from_numpy(theirs)
            free = (tokens >= count * WEIGHTS_ONLY) & (tokens < count * (WEIGHTS_ONLY + 1))
            made, missing = rounded(inner, down.rounding)
            made = torch.where(free[:, None], inner, made)
            if missing is not None:
                missing = torch.where(free[:, None], torch.zeros_like(missing), missing)
            minimum = None if down.minimums is None else self._read_expert(down.minimums, expert)
            product = self._product(made, missing, module.down_proj[expert], minimum)
            total.index_add_(0, tokens, product * weights[tokens, places, None])
        if found:
            self._compare(down.name, np.array(found), np.array(expected))
        return total

    def _read_expert(self, tensor: Tensor, expert: int) -> torch.Tensor:
        lease = self._reference.reader.read([Rows(tensor, expert, expert + 1)])
        made = lease.tensors[0][0].clone()
        self._reference.reader.release(lease)
        return made

    def _product(self, values: torch.Tensor, missing: torch.Tensor | None, weight: torch.Tensor, minimum: torch.Tensor | None) -> torch.Tensor:
        import torch

        made = torch.nn.functional.linear(values, weight)
        if missing is None or minimum is None:
            return made
        return made + torch.nn.functional.linear(missing, minimum)

    def result(self, entering: torch.Tensor, logits: Floats) -> Recomputed:
        """What was found, the output matrix included."""
        name, reference = self._of._head, self._reference
        matrix = _Matrix(name, rounding_of(self._of._formats[name]) or "none", None)
        if matrix.rounding == "q8_1":
            info = next(info for info in self._of._file.header.tensors if info.name == name)
            matrix = _Matrix(name, matrix.rounding, minimums_of(self._of._file, info))
        values = self._synchronized(name, entering)
        made, missing = _rounded(values, matrix.rounding)
        out = np.empty((*made.shape[:2], reference.vocabulary), np.float32)
        reference.through_head(made, missing, matrix.minimums, out)
        self._compare("logits", logits, out[SYNCHRONIZED])
        return Recomputed(tuple(self._sites), out[WEIGHTS_ONLY], out[ROUNDED], tuple(dict.fromkeys(self._unused)))


def _fused(module: str) -> tuple[str, ...]:
    """What transformers 5 keeps an expert's matrix in."""
    place, _, matrix = module.rpartition(".")
    fused = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}.get(matrix)
    return (f"{place.rpartition('.')[0]}.{fused}",) if fused else ()


def _rounded(values: torch.Tensor, rounding: Rounding) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All rows rounded but that of the weights alone."""
    import torch

    made, missing = rounded(values, rounding)
    if rounding != "none":
        made[WEIGHTS_ONLY] = values[WEIGHTS_ONLY]
    if missing is not None:
        missing = missing.clone()
        missing[WEIGHTS_ONLY] = 0
    return made, missing


def _gelus(exact: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    made = through_table(values)
    made[WEIGHTS_ONLY] = exact(values[WEIGHTS_ONLY])
    return made


@np.errstate(all="ignore")  # what is not finite is told
def nmse(found: Floats, expected: Floats) -> float:
    """Mean squared difference over the variance of what is expected; the largest number if not finite."""
    if found.shape != expected.shape:
        return _LARGEST
    difference = found.astype(np.float64) - expected
    value = float(np.mean(difference * difference) / max(float(np.var(expected, dtype=np.float64)), 1e-30))
    return value if math.isfinite(value) else _LARGEST
