"""What to say of weights that are not finite, or do not fit a format."""

from __future__ import annotations

from ..core.errors import NonFiniteError
from ..core.tensor import Tensor
from ..quant.slabs import HALF_MAX, Slab, count_nonfinite
from .pieces import Piece


def has_bad_weights(slab: Slab, tensor: Tensor, rows: Piece, *, allow_nan: bool) -> bool:
    """Whether a slab has weights that are not finite or do not fit a format; raises unless they may be so."""
    if slab.finite and not slab.overflowed and not slab.impossible:
        return False
    if not allow_nan or slab.impossible:
        raise _bad_weights_error(slab, tensor, rows)
    return True


def _bad_weights_error(slab: Slab, tensor: Tensor, rows: Piece) -> NonFiniteError:
    """What to raise for a slab with weights that are not finite or do not fit a format."""
    where = tensor.origin or tensor.name
    if not slab.finite:
        hint = "--allow-nan converts it anyway"
        if slab.impossible:
            hint = f"libggml cannot write such weights as {slab.impossible[0].display}"
        nans, infinities = count_nonfinite(tensor.read(rows.start, rows.stop), tensor.dtype)
        return NonFiniteError(
            f"{where}: {nans} NaN and {infinities} infinite weights in rows {rows.start} to {rows.stop - 1}",
            hint=f"the checkpoint is damaged or its training diverged; {hint}",
        )
    names = ", ".join(format.name for format in (*slab.impossible, *slab.overflowed))
    if slab.largest <= HALF_MAX:
        return NonFiniteError(
            f"{where}: the importance data give rows {rows.start} to {rows.stop - 1} scales beyond the "
            f"range of {names}",
            hint=(
                "the data have zeros or extreme values where the weights matter: compute them from more text"
            ),
        )
    return NonFiniteError(
        f"{where}: weights up to {slab.largest:.6g} in rows {rows.start} to {rows.stop - 1} "
        f"are beyond the range of {names}",
        hint="convert to bf16 or f32" + ("" if slab.impossible else "; --allow-nan writes them as infinite"),
    )
