"""What ``auto`` is for a model that half precision cannot hold: found out before anything is written.

It costs nothing where the files are proven anyway: the windows of the proof are read in fp32 first, and the
proof takes that reading. Without a proof nobody looks.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..converters.results import Options, Scope
from ..converters.targets import own_type, policy_of
from ..core.cores import available_cores
from ..core.model import Model, Note
from ..core.windows import Window
from ..quant.formats import F16
from ..quant.parts import HEAD
from ..quant.policy import choose_formats
from ..reference.reading import Reading
from ..runtimes.half_precision import HalfPrecision, Modules, flowing, halves_by_name
from ..verify.inputs import Expected, VerifyOptions, proof_windows, read_reference
from ..verify.logits import TOGETHER
from .results import Run

Known = Mapping[tuple[Window, ...], Reading]
"""What has been read of the checkpoint in fp32 already, by windows."""


def wants_halves(model: Model, options: Options) -> bool:
    """Whether ``auto`` is among the types, means f16, and the files will be proven."""
    automatic = any(name.lower() == "auto" for name in options.types)
    return automatic and options.verify != "off" and own_type(model) == F16.name.lower()


def read_first(
    expected: Expected, scope: Scope, modules: Modules, *, out: bool, run: Run
) -> tuple[Known, Note | None]:
    """What the proof of that ``scope`` will read, and why ``auto`` is F32, None where halves are wide enough.

    Where the proof will read much, what the quick one would. ``modules`` and ``out`` are as of ``flowing``.
    """
    windows = proof_windows(expected, scope, run.proof_texts, run.proof_tokens)
    if sum(len(window.ids) for window in windows) > TOGETHER:
        windows = proof_windows(expected, "quick")
    options = VerifyOptions(threads=run.threads or available_cores(), progress=run.progress)
    tokens = sum(window.tokens for window in windows)
    run.announce(f"auto: is half precision wide enough? reading {tokens:,} tokens of the proof in fp32 first")
    known = {windows: read_reference(expected, options, windows)}
    return known, _too_wide(modules, known, out=out)


def halves_of_types(model: Model, expected: Expected, options: Options) -> Modules:
    """The matrices of a GGUF that f16 with those options stores as F16."""
    chosen = choose_formats(model, policy_of(F16.name.lower(), options))
    names = {tensor.name for tensor in model.tensors if chosen[tensor.name] == F16}
    tied = all(tensor.name != HEAD for tensor in model.tensors)
    return halves_by_name(names, expected.family, expected.checkpoint, tied=tied)


def _too_wide(modules: Modules, known: Known, *, out: bool) -> Note | None:
    """The same of what has been read: None where half precision is wide enough with room to spare."""
    found = [flowing(modules, reading.magnitudes.flows, out=out) for reading in known.values()]
    near = [halves.near[0] for halves in found if isinstance(halves, HalfPrecision) and halves.near]
    if not near:
        return None
    return Note("auto-type", f"auto is F32 here, not F16: {near[0].told(hides=False)}")
