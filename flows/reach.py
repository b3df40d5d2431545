"""Target divergences that nothing on the menu comes near are refused before anything long is measured.

All tensors are stored in the largest formats of the menu at once, and what the model loses then is measured
on a little of the calibration text: no choice loses less. Where they need no importance data, that takes
two short passes through the model, before the calibration; else it comes behind it, before the probes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..converters.targets import Target
from ..core.cores import available_cores
from ..core.tensor import Tensor
from ..quant.choice_losses import offered
from ..quant.formats import F16, FORMATS, Format
from ..quant.importance import Importance
from ..verify.inputs import Expected, VerifyOptions, text_windows
from .chooser import out_of_reach
from .kept_losses import probes_kept
from .probing import Prober
from .results import Run

_TOKENS = 256
_ERRORS = 3.0  # standard errors by which a target has to be missed
_UNWEIGHED = (FORMATS["q8_0"], F16)  # encoded alike with and without importance data


def refuse_out_of_reach(
    wished: Sequence[Target],
    tensors: Sequence[Tensor],
    expected: Expected,
    menu: Sequence[Format],
    texts: Mapping[str, str],
    importance: Importance | None,
    run: Run,
    *,
    calibrated: bool,
) -> None:
    """Raise InputError where a target divergence is below what the largest formats of the ``menu`` lose.

    Not ``calibrated``, ``importance`` says which tensors will have data; formats that are encoded with them
    are measured when it is, the others before. Of a checkpoint that is not on this machine nothing is read.
    """
    wishes = [target.wish for target in wished if target.wish and target.wish.kind == "divergence"]
    if not wishes or expected.checkpoint.stream is not None:
        return
    finest = {tensor.name: offered(tensor, menu, importance)[-1] for tensor in tensors}
    if calibrated == all(format in _UNWEIGHED for format in finest.values()):
        return
    windows = text_windows(expected, list(texts.values())[:1], tokens=_TOKENS, window=None)
    how = VerifyOptions(
        threads=run.threads or available_cores(), progress=run.progress, announce=run.announce
    )
    prober = Prober(
        expected, tensors, importance if calibrated else None, windows, windows, how, probes_kept(run)
    )
    (lost,) = prober.together([finest])
    count = len(lost.positions)
    error = lost.positions.std(ddof=1) / math.sqrt(count) if count > 1 else math.inf
    for wish in wishes:
        if lost.mean - _ERRORS * error > wish.value:
            raise out_of_reach(wish, lost.mean)
