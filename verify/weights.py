"""The weights of a file against the checkpoint's, tensor by tensor, in pieces of bounded size.

The checkpoint's weights are mapped as for a conversion and encoded anew in the file's format, by others than
our kernels that made it (quant/second_look.py). Equal bytes are right. Where they differ, float formats and
files kconv itself made are wrong; in quantized files made elsewhere (importance data choose other bytes) the
error must be what the format makes, as in what takes too long to encode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..converters.pieces import Piece, cut, work_through
from ..converters.transforms import same_weights
from ..core.cores import available_cores
from ..core.gguf_file import TensorInfo
from ..core.language import phrase
from ..core.model import Model
from ..core.progress import Progress, silent
from ..core.tensor import DType, Tensor
from ..quant.code_layouts import layout_of
from ..quant.encoders import Encoder
from ..quant.formats import BF16, F16, F32, FORMATS, Format
from ..quant.gguf_weights import GgufFile
from ..quant.importance import Importance
from ..quant.low_rank import ROWS, hides_update
from ..quant.second_look import SecondLook
from ..quant.slabs import Scratch
from .chosen_codes import LARGER, Chosen
from .proof import Finding, TensorError, TensorState, WeightsPart, verdict_of
from .same_model import layer_of
from .weight_cases import Search
from .weight_errors import Compared, is_scaled, measure, total
from .weight_findings import findings_of
from .weight_limits import error_limit, slope_limits, typical_error
from .weight_rows import Pair, floats, rows_of

_STORED_AS = {DType.F32: F32, DType.F16: F16, DType.BF16: BF16}

# Tensors computed from the configuration: other programs may round differently on the way.
_COMPUTED = "rope_freqs.weight"
_COMPUTED_ERROR = 1e-5

# One row in so many is few, so many tensors are many.
_FEW, _MANY = 10, 64


def check_weights(
    file: GgufFile,
    model: Model,
    *,
    strict: bool,
    threads: int | None = None,
    progress: Progress = silent,
    importance: Importance | None = None,
    originals: Mapping[str, Tensor] | None = None,
    chosen: Chosen | None = None,
) -> WeightsPart:
    """Compare every tensor of the file with the model's; the shapes have been compared before.

    ``strict``: the file is kconv's own work with this libggml and, if any, this ``importance``, so that any
    other byte is damage. ``chosen``: its codes were chosen by statistics nobody has here.
    ``originals``: the checkpoint's tensors of the same shape, before the family changed their order, by GGUF
    name; they make causes clearer. Raises GgufError, CheckpointError and EnvironmentProblem where one of the
    two cannot be read.
    """
    pairs, findings = _paired(file, model)
    sizes = [(pair.format, pair.tensor.elements) for pair in pairs]
    look = SecondLook(sizes, importance, exact=strict)
    compared = _compare(file, pairs, look, threads or available_cores(), progress, chosen)
    errors, wrong = [], []
    step = 1 if len(pairs) < _MANY else 7  # meets each kind of matrix: few layers have 7 or 14 tensors
    for number, (pair, result) in enumerate(zip(pairs, compared, strict=True)):
        state = judge(pair, result, strict, chosen=chosen is not None)
        if state == "within" and chosen is None and number % step == 0 and _hides_update(file, pair):
            state = "differs"
        errors.append(_tensor_error(pair, result, state))
        if state == "differs":
            wrong.append((pair, result))
    findings += findings_of(wrong, Search(file, model, originals or {}, len(pairs)))
    loose = [error for error in errors if error.state == "not compared"]
    findings += _remarks(loose)
    return WeightsPart(verdict_of(tuple(findings)), tuple(errors), tuple(findings), len(loose))


# Which tensors belong together


def _paired(file: GgufFile, model: Model) -> tuple[list[Pair], list[Finding]]:
    """What is to be compared, and findings on tensors only one side has."""
    infos = {info.name: info for info in file.header.tensors}
    pairs, findings = [], []
    for tensor in model.tensors:
        info = infos.pop(tensor.name, None)
        if info is not None and info.shape == tensor.shape:
            pairs.append(Pair(info, tensor, file.format(info)))
        elif info is not None:
            message = phrase("{name} is {found}, but {expected} in the checkpoint").of(
                name=tensor.name, found=list(info.shape), expected=list(tensor.shape)
            )
            findings.append(Finding(tensor.name, message))
        elif not _dispensable(tensor, model):
            message = phrase("tensor {name} of the checkpoint is not in the file").of(name=tensor.name)
            findings.append(
                Finding(tensor.name, message, expected=str(list(tensor.shape)), found=phrase("missing"))
            )
    for name, info in infos.items():
        stand_in = _tied_head(info, model)
        if stand_in is not None:
            pairs.append(Pair(info, stand_in, file.format(info)))
        elif not _harmless(file, info):
            shown = name[:80] if name.isprintable() else repr(name[:80])
            message = phrase("the file has a tensor {shown} {found} that the checkpoint does not have").of(
                shown=shown, found=list(info.shape)
            )
            findings.append(Finding(shown, message, expected="none", found=str(list(info.shape))))
    return pairs, findings


def _tied_head(info: TensorInfo, model: Model) -> Tensor | None:
    """The embedding, where the file writes it out a second time as the output matrix of a tied model."""
    for tensor in model.tensors:
        if info.name == "output.weight" and tensor.name == "token_embd.weight" and tensor.shape == info.shape:
            return replace(tensor, name=info.name)
    return None


def _dispensable(tensor: Tensor, model: Model) -> bool:
    """A head llama.cpp replaces by an equal embedding, or a bias of zeros."""
    if tensor.name == "output.weight":
        return same_weights(model.tensor("token_embd.weight"), tensor)
    bias = tensor.name.endswith(".bias") and len(tensor.shape) == 1
    return bias and not floats(tensor, 0, tensor.rows).any()


def _harmless(file: GgufFile, info: TensorInfo) -> bool:
    """A bias of zeros, or divisors of rotary frequencies that are all one."""
    if len(info.shape) != 1 or info.shape[0] > 1 << 20:
        return False
    values = file.tensor(info).read(0, info.shape[0])
    if info.name == _COMPUTED:
        return bool((values == 1).all())
    return info.name.endswith(".bias") and not values.any()


# Comparing


def _compare(
    file: GgufFile,
    pairs: Sequence[Pair],
    look: SecondLook,
    threads: int,
    progress: Progress,
    chosen: Chosen | None,
) -> list[Compared]:
    tensors = [pair.tensor for pair in pairs]
    slow = {index for index, pair in enumerate(pairs) if pair.format.block_size == 256}
    results: dict[Piece, Compared | None] = {}
    total_bytes = sum(pair.info.nbytes for pair in pairs)

    def run(pieces: Sequence[Piece], progress: Progress, *, thorough: bool) -> None:
        def work(rows: Piece, scratch: Scratch) -> int:
            pair = pairs[rows.index]
            results[rows] = _compare_piece(file, pair, rows, look, scratch, chosen, thorough=thorough)
            return pair.info.nbytes * (rows.stop - rows.start) // max(1, pair.tensor.rows)

        work_through(pieces, work, threads=threads, stage="weights", total=total_bytes, progress=progress)

    pieces = cut(tensors, slow)
    run(pieces, progress, thorough=False)
    # Where part of a tensor differs, the sums of all of it are needed.
    harmed = {rows.index for rows, result in results.items() if result is not None and not result.same}
    again = [rows for rows in pieces if rows.index in harmed and results[rows] is None]
    run(again, silent, thorough=True)
    parts: list[list[tuple[int, Compared]]] = [[] for _ in pairs]
    for rows, result in results.items():
        weights = (rows.stop - rows.start) * tensors[rows.index].row_elements
        parts[rows.index].append((rows.start, result or Compared(True, weights)))
    return [total(result for _, result in sorted(part, key=lambda item: item[0])) for part in parts]


def _compare_piece(
    file: GgufFile,
    pair: Pair,
    rows: Piece,
    look: SecondLook,
    scratch: Scratch,
    chosen: Chosen | None,
    *,
    thorough: bool,
) -> Compared | None:
    """One piece; None where the weights are stored without loss and the bytes are equal."""
    info, tensor, format = pair.info, pair.tensor, pair.format
    data = file.read(info, rows.start, rows.stop)
    source = tensor.read(rows.start, rows.stop)
    if format in (F32, _STORED_AS[tensor.dtype]) and not thorough:
        (expected,) = Encoder((format,), kernels="none").encode(source, tensor.dtype, scratch).data
        if np.array_equal(data, expected):
            return None
    first = rows.start * (tensor.row_elements // info.shape[-1]) if len(info.shape) > 1 else 0
    parts = []
    for part in look.encode(tensor, format, source, data, scratch, rows.start):
        found = measure(part.weights, part.stored, part.encoded, format, first + part.first)
        if chosen is not None:
            found = chosen.bounded(found, info.name, format, part.weights, part.stored, first + part.first)
        parts.append(found)
    return total(parts)


# Judging


def judge(pair: Pair, compared: Compared, strict: bool, *, chosen: bool = False) -> TensorState:
    if compared.not_finite:
        return "differs"
    if compared.same:
        return "identical"
    if pair.tensor.name == _COMPUTED and not strict:
        return "within" if compared.stored.error < _COMPUTED_ERROR else "differs"
    if (strict and (compared.own is not None or compared.changed.count)) or not pair.format.quantized:
        # Zeros of the other sign are the same numbers.
        return "within" if compared.different == 0 and not strict else "differs"
    if _few_rows_changed(pair, compared) and compared.worse.count:
        return "differs"
    if not _within(pair.format, compared, chosen=chosen):
        return "differs"
    return "within" if compared.own is not None else "not compared"


def _hides_update(file: GgufFile, pair: Pair) -> bool:
    """Whether a layer's matrix holds more than rounding, for all that its error is small enough."""
    if not pair.format.quantized or len(pair.info.shape) != 2 or layer_of(pair.info.name) is None:
        return False
    rows = range(0, pair.tensor.rows, max(1, pair.tensor.rows // ROWS))
    return hides_update(rows_of(file.tensor(pair.info), rows), rows_of(pair.tensor, rows), pair.format)


def _few_rows_changed(pair: Pair, compared: Compared) -> bool:
    """Whether nearly all rows are those of encoding anew, so that no importance data excuse the others."""
    rows = compared.weights // pair.info.shape[-1]
    return compared.own is not None and _FEW * compared.changed.count < rows


def _within(format: Format, compared: Compared, *, chosen: bool) -> bool:
    """Whether the error is what the format makes of the weights, whatever the importance data."""
    own = compared.own
    error = compared.stored.error
    limit = error_limit(format, None if own is None else own.error)
    if chosen and own is not None and layout_of(format) is not None:
        limit = LARGER * own.error
    if compared.far.count or error > limit:
        return False
    lowest, highest = slope_limits(
        format, None if own is None else (own.error, own.slope), error, compared.weights
    )
    return lowest <= compared.stored.slope <= highest and not is_scaled(compared)


def _tensor_error(pair: Pair, compared: Compared, state: TensorState) -> TensorError:
    own = compared.own.error if compared.own is not None else compared.stored.error
    if compared.own is None and not compared.same:
        own = typical_error(pair.format)
    return TensorError(
        pair.info.name,
        pair.format.name,
        layer_of(pair.info.name),
        state,
        compared.stored.error,
        own,
        compared.worst_row,
        compared.worst_row_error,
        compared.stored.slope,
    )


def _remarks(loose: Sequence[TensorError]) -> list[Finding]:
    """What is worth knowing though nothing is wrong."""
    if not loose:
        return []
    names = ", ".join(sorted({FORMATS[error.format].display for error in loose}))
    message = phrase(
        "{count} tensors in {names} were not compared byte by byte, since encoding them anew takes "
        "too long; they differ from the checkpoint no more than is usual for the format"
    ).of(count=len(loose), names=names)
    return [Finding(loose[0].name, message, grave=False)]
