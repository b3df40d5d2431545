"""make test-real: SmolLM2-135M-Instruct, a real model, in every type: each file right, whatever it loses.

Prints a table of what was measured, and ends with 1 if a file is not right or the estimate of what another
type would lose was off by more than it says. Importance data are computed first, for the types that need it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kconv.converters.results import Options
from kconv.core.errors import InputError
from kconv.flows.convert import to_gguf
from kconv.flows.plan import plan
from kconv.quant.policy import POLICIES
from kconv.verify.loss import FACTOR, loss_of
from kconv.verify.proof import Proof

CHECKPOINT = Path(__file__).parent.parent / ".dev" / "real-model" / "SmolLM2-135M-Instruct"
TOGETHER = 6  # files from one read


def main() -> int:
    """Convert to every type, a few at a time, and print what each proof found."""
    types = _that_fit(sys.argv[1:] or list(POLICIES))
    losses: dict[str, float] = {}
    wrong = []
    print("| type | verdict | right | worst input, NMSE | mean KL | weights | inputs | runtime | loses |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, proof in _proofs(types):
        figures, shares = proof.logits.figures, proof.logits.shares
        worst = max(proof.runtime.worst, key=lambda each: each.nmse / each.limit)
        loss = proof.logits.loss
        cells = [name, proof.verdict, proof.right, f"{worst.nmse:.1e} ({worst.matrix})"]
        cells += [f"{figures.kl_mean:.4g}" if figures else ""]
        parts = [shares.weights, shares.inputs, shares.runtime] if shares else []
        cells += [f"{value:.3g}" for value in parts] or [""] * 3
        print("| " + " | ".join([*cells, loss.grade if loss else ""]) + " |", flush=True)
        if proof.right != "passed":
            wrong.append(name)
        if figures:
            losses[name] = figures.kl_mean
    return int(bool(wrong) or not _estimates_hold(losses))


def _that_fit(types: list[str]) -> list[str]:
    """Those whose blocks fit rows of 576 weights; the others are refused, as llama-quantize refuses them."""
    fit = []
    for name in types:
        try:
            plan(CHECKPOINT, options=Options(types=(name,)))
        except InputError as error:
            print(f"{name}: {str(error).splitlines()[0]}\n")
        else:
            fit.append(name)
    return fit


def _proofs(types: list[str]) -> Iterator[tuple[str, Proof]]:
    text = Path(__file__).parent.parent / "README.md"
    for start in range(0, len(types), TOGETHER):
        with tempfile.TemporaryDirectory() as folder:
            made = to_gguf(
                CHECKPOINT,
                Path(folder),
                types=types[start : start + TOGETHER],
                calibrate=[text],
                verify="full",  # a quick proof does not measure shares
            )
            yield from zip((output.type for output in made.outputs), made.proofs, strict=True)


def _estimates_hold(losses: dict[str, float]) -> bool:
    """Whether what is said of other types is right within the factor that is said."""
    hold = True
    for name, measured in losses.items():
        loss = loss_of(measured, name)
        if loss.type in losses and loss.estimate is not None:
            ratio = loss.estimate / losses[loss.type]
            print(f"{name}: {loss.type} would lose {loss.estimate:.2g}, measured {losses[loss.type]:.3g}")
            hold = hold and 1 / FACTOR <= ratio <= FACTOR
    return hold


if __name__ == "__main__":
    sys.exit(main())
