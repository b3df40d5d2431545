"""What of a request cannot be, told before anything is read."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import UsageError
from ..quant.choice_losses import parse_menu
from .results import Options
from .targets import policy_of, refuse_odd_ending, refuse_one_file_for_many, split_size, type_of


def check_request(output: str | Path | None, options: Options) -> None:
    """Refuse with UsageError what makes no sense whatever the checkpoint."""
    refuse_odd_ending(output)
    refuse_one_file_for_many(output, len(different_types(options)) + len(options.chosen.wishes()))
    _check_chosen(options)
    split_size(options)
    _check_importance(options)


def different_types(options: Options) -> set[str]:
    """The types asked for, one of several names once; which of them ``auto`` is, is not known yet."""
    return {"auto" if name.lower() == "auto" else type_of(name, options) for name in options.types}


def _check_chosen(options: Options) -> None:
    if options.chosen.menu and not options.chosen.targets:
        raise UsageError("--menu is what --target-size and --target-kl choose among", hint="leave it out")
    parse_menu(options.chosen.menu)
    if options.chosen and options.pure:
        raise UsageError(
            "--pure asks for one format, a target or a policy for several", hint="leave one of them out"
        )
    if options.chosen.targets and not options.calibrate and options.chosen.policy is None:
        raise UsageError(
            "a target needs text to measure losses on",
            hint="pass --policy FILE of an earlier choice or, to kconv to-gguf, --calibrate TEXT (20,000 "
            "tokens or more of the kind the model will read)",
        )


def _check_importance(options: Options) -> None:
    if options.imatrix is not None and options.calibrate:
        raise UsageError("--imatrix and --calibrate cannot be combined", hint="leave one of them out")
    named = ["f16" if name.lower() == "auto" else name for name in options.types]
    weighs = bool(options.chosen) or any(policy_of(name, options).quantizes for name in named)
    if (options.imatrix is not None or options.calibrate) and not weighs:
        raise UsageError(
            "--imatrix and --calibrate only affect quantized types", hint="add one, for example -q q4_k_m"
        )
    if options.optimize and options.imatrix is None and not options.calibrate:
        raise UsageError(
            "--optimize needs to know what flows into the model's matrices",
            hint="add --imatrix with a file from kconv imatrix --full or, to kconv to-gguf, --calibrate TEXT",
        )


def refuse_elsewhere(*, optimize: bool, calibrate: bool, scheduler: bool, stream: bool, store: bool) -> None:
    """Raise UsageError for codes to be chosen where weights or statistics are not on this machine."""
    if not optimize:
        return
    if scheduler or stream:
        given = "--scheduler" if scheduler else "--stream"
        raise UsageError(
            f"--optimize and {given} cannot be combined: the weights have to lie on this machine",
            hint=f"leave out {given}",
        )
    if store and calibrate:
        raise UsageError(
            "--calibrate and --optimize leave a file of statistics beside the output, expected a folder here",
            hint="make it first with kconv imatrix --full, and pass it with --imatrix",
        )
