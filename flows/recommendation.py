"""Which type to take: of a plan by the memory of this machine, of a comparison by what was measured.

Running a file takes, in bytes,

- its weights, all of them, and those of a file beside it: llama.cpp maps them, and every token reads all;
- the cache of keys and values of a context of ``CONTEXT`` tokens (or the model's, if shorter), two bytes a
  number: layers x tokens x heads of keys x (width of a key + width of a value) x 2. Sliding windows are
  counted as whole contexts. Encoders keep none;
- buffers for the ``BATCH`` tokens that are read at once: logits and hidden states, four bytes a number;
- a margin of 256 MiB for the process itself (Python, llama.cpp, its tables of the vocabulary) and for what
  some graphs keep besides. SmolLM2-135M in q8_0: 594 MiB by this rule; llama.cpp says 138 of weights, 90 of
  cache and 98 of buffers, and its process had 269 MiB in memory.

It is held against what a process can have here now: the memory that is free (what caches of files hold counts
as free), at most what a container or ``ulimit -v`` allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..core import machine
from ..core.language import Phrase, phrase
from ..core.model import MetadataValue, Model
from ..core.sizes import size_text
from ..quant.published import Band
from ..runtimes.loading import CONTEXT

if TYPE_CHECKING:
    from .compare import ComparedType, Comparison
    from .plan import Plan, PlannedType

BATCH = 512
"""Tokens llama.cpp reads at once (n_ubatch)."""
ENOUGH_BITS = 9
"""Bits a weight that are enough: q8_0 has 8.5, and what it loses no one has noticed (0.001 nats)."""
LOSS = 0.1
"""Mean divergence in nats below which a type loses some accuracy at most (verify/loss.py)."""
_MARGIN = 256 << 20
_CACHE_BYTES = 2
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class RunMemory:
    """Bytes that running takes besides the weights, with a context of so many tokens."""

    context: int
    cache: int
    buffers: int

    @property
    def total(self) -> int:
        """Both, in bytes."""
        return self.cache + self.buffers


@dataclass(frozen=True)
class Recommendation:
    """``type`` is None where there is none to recommend; ``reason`` is one sentence for people.

    ``needed`` and ``available`` are bytes of memory, of a plan's recommendation alone; the second is None
    where the system does not say.
    """

    type: str | None
    reason: Phrase
    needed: int | None = None
    available: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; the reason in English."""
        return {**asdict(self), "reason": str(self.reason)}


def run_memory(model: Model, rows: int) -> RunMemory:
    """What ``model``, whose embedding has so many ``rows``, takes to run besides its weights."""
    keys = {name.partition(".")[2]: value for name, value in model.hparams.items()}
    context = min(CONTEXT, _number(keys, "context_length", CONTEXT))
    heads = _most(keys.get("attention.head_count"), 1)
    width = _number(keys, "embedding_length", 0)
    head = width // max(1, heads)
    key, value = (_number(keys, f"attention.{which}_length", head) for which in ("key", "value"))
    layers = _number(keys, "block_count", 0)  # llama.cpp keeps as many for a decoder of fewer
    kept = _total(keys.get("attention.head_count_kv"), heads, layers) * (key + value)
    cache = 0 if keys.get("attention.causal") is False else kept * context * _CACHE_BYTES
    numbers = rows + 8 * width + 2 * _most(keys.get("feed_forward_length"), 0)
    return RunMemory(context, cache, min(BATCH, context) * numbers * _FLOAT_BYTES + _MARGIN)


def _number(keys: Mapping[str, MetadataValue], name: str, default: int) -> int:
    value = keys.get(name)
    return value if isinstance(value, int) else default


def _most(value: MetadataValue | None, default: int) -> int:
    """A number that may be given by layer."""
    numbers = [each for each in value if isinstance(each, int)] if isinstance(value, tuple) else [value]
    return max((each for each in numbers if isinstance(each, int)), default=default)


def _total(value: MetadataValue | None, default: int, layers: int) -> int:
    if isinstance(value, tuple):
        return sum(each for each in value if isinstance(each, int))
    return (value if isinstance(value, int) else default) * layers


def free_memory() -> int | None:
    """Bytes that a process can have here now; None where the system does not say."""
    found = machine.memory()
    free = found.available
    if free is None:  # no Linux
        import psutil

        free = int(psutil.virtual_memory().available)
    bounds = (free, found.container, found.address_space)
    return min((bound for bound in bounds if bound is not None), default=None)


def for_this_machine(plan: Plan, bands: Mapping[str, Band], available: int | None) -> Recommendation:
    """The type of ``plan`` to make for a machine with so many bytes ``available``.

    Those are out that would not fit on the disk, need importance data nobody gave, or take more memory to
    run than there is. Of the rest the one with the least divergence that is published for it (``bands``, by
    type), or else the one with most bits a weight; but none of more than ``ENOUGH_BITS``, where there are
    others, since that gains nothing one could measure and reads more bytes for every token.
    """

    def needed(each: PlannedType) -> int:
        return each.bytes + plan.companion_bytes + plan.run_memory.total

    def worth(each: PlannedType) -> tuple[bool, float, float]:
        above = each.bits_per_weight > ENOUGH_BITS
        return above, _expected(each, bands), each.bytes * (1 if above else -1)

    makeable = [each for each in plan.types if not each.needs_imatrix]
    on_disk = [each for each in makeable if each.bytes + plan.companion_bytes <= plan.free]
    if not on_disk:
        return Recommendation(None, phrase("no type fits on the disk or can be made without importance data"))
    fitting = [each for each in on_disk if available is None or needed(each) <= available]
    if not fitting:
        least = min(on_disk, key=lambda each: each.bytes)
        text = phrase("the smallest type, {type}, takes about {needed} to run, and {free} are free here")
        told = text.of(type=least.type, needed=size_text(needed(least)), free=size_text(available or 0))
        return Recommendation(None, told, needed(least), available)
    best = min(fitting, key=worth)
    values = {
        "weights": size_text(best.bytes + plan.companion_bytes),
        "cache": size_text(plan.run_memory.cache),
        "context": f"{plan.run_memory.context:,}",
        "needed": size_text(needed(best)),
        "free": "?" if available is None else size_text(available),
    }
    return Recommendation(best.type, _why(best, bands).of(**values), needed(best), available)


def _expected(each: PlannedType, bands: Mapping[str, Band]) -> float:
    """Mean divergence that is published or, where formats were chosen by measured losses, predicted."""
    if each.choice is not None:
        return each.choice.predicted
    return bands[each.type].low if each.type in bands else math.inf


def _why(best: PlannedType, bands: Mapping[str, Band]) -> Phrase:
    if best.bits_per_weight > ENOUGH_BITS:
        return phrase(
            "of the types asked for, the smallest; it takes about {needed} of the {free} free here (weights "
            "{weights}, cache of {context} tokens {cache}, buffers)"
        )
    if math.isfinite(_expected(best, bands)):
        return phrase(
            "the least expected loss of those that run in the {free} free here: about {needed} (weights "
            "{weights}, cache of {context} tokens {cache}, buffers)"
        )
    return phrase(
        "the most bits a weight of those that run in the {free} free here: about {needed} (weights "
        "{weights}, cache of {context} tokens {cache}, buffers)"
    )


def of_comparison(
    comparison: Comparison, *, most_loss: float | None = None, most_bytes: int | None = None
) -> Recommendation:
    """The type to take of those that were measured; types that are wrong or gave no logits are out.

    With ``most_bytes`` the one that loses least (mean divergence) of the files no larger than that; else the
    smallest that loses less than ``most_loss`` nats (default ``LOSS``), or, where none does, the one that
    loses least.
    """
    limit = LOSS if most_loss is None else most_loss
    sound = [each for each in comparison.types if each.figures is not None and each.proof.right != "failed"]
    small = [each for each in sound if most_bytes is None or each.bytes <= most_bytes]
    if not small:
        reason = phrase("no file is both right and small enough") if sound else phrase("no file is right")
        return Recommendation(None, reason)
    good = [each for each in small if _loss(each) < limit]
    told = {"limit": f"{limit:g}", "size": size_text(most_bytes or 0)}
    if most_bytes is not None and (most_loss is None or not good):
        chosen = _least(small)
        reason = phrase("it loses the least (mean KL {kl}) of those of at most {size}")
    elif good:
        chosen = min(good, key=lambda each: each.bytes)
        reason = phrase("the smallest of these that loses less than {limit} nats (mean KL {kl}, {bytes})")
    else:
        chosen = _least(small)
        reason = phrase("none of these loses less than {limit} nats; this one loses the least (mean KL {kl})")
    values = {**told, "kl": f"{_loss(chosen):.3g}", "bytes": size_text(chosen.bytes)}
    return Recommendation(chosen.type, reason.of(**values))


def _least(types: Sequence[ComparedType]) -> ComparedType:
    return min(types, key=lambda each: (_loss(each), each.bytes))


def _loss(each: ComparedType) -> float:
    return math.inf if each.figures is None else each.figures.kl_mean
