"""Chooses the formats of a file among what its tensors lose and weigh; sizes are planned to the byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from ..converters.gguf_plan import FilePlan
from ..converters.mapping import parameters
from ..converters.targets import Target
from ..core.errors import InputError
from ..core.gguf_file import aligned
from ..core.model import Model
from ..core.sizes import size_text
from ..core.tensor import Tensor
from ..quant.choice import Candidate, Chosen, Item, least_bytes, least_loss
from ..quant.chosen_policy import chosen_policy
from ..quant.formats import FORMATS, Format
from ..quant.policy_file import Choice
from ..quant.wish import Wish
from .losses import Losses

PlanOf = Callable[[Target], FilePlan]
"""Plans the file of a target as it will be written."""

_ROUNDS = 6  # in which a size is met to the byte


@dataclass(frozen=True)
class Found:
    """Formats by tensors, the predicted mean divergence in nats, and what sums of losses are multiplied by
    for it. ``recipe`` is the one of llama-quantize these are the formats of, if any; ``measured`` what was
    found on held-out text, as a policy file says it.
    """

    formats: Mapping[str, Format]
    predicted: float
    factor: float = 1.0
    recipe: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)

    def losing(self, mean: float) -> Found:
        """The same, known to lose so much as a whole."""
        factor = self.factor * mean / self.predicted if self.predicted else self.factor
        return replace(self, predicted=mean, factor=factor)


def out_of_reach(wish: Wish, least: float) -> InputError:
    """What to raise for a target divergence below the ``least`` that can be had."""
    return InputError(
        f"no choice loses as little as {wish.value:g} nats: the largest formats of the menu lose {least:.2g}",
        hint="allow finer ones, for example --menu q4_K,q5_K,q6_K,q8_0,f16, or a larger target",
    )


class Chooser:
    """Chooses among what tensors lose and weigh."""

    def __init__(
        self,
        tensors: Sequence[Tensor],
        losses: Losses,
        model: Model,
        plan_of: PlanOf,
    ) -> None:
        self._tensors, self._plan_of, self._weights = tensors, plan_of, parameters(model)
        self._losses = losses
        self._items = [
            Item(
                tensor.name,
                tuple(
                    Candidate(format.name, aligned(format.tensor_bytes(tensor.shape)), loss)
                    for format, loss in losses.of[tensor.name].items()
                    if loss != inf
                ),
            )
            for tensor in tensors
        ]

    def choose(
        self,
        target: Target,
        factor: float = 1.0,
        near: Mapping[str, Format] | None = None,
        above: int | None = None,
    ) -> Found:
        """What fulfils the wish of a target, where the model loses ``factor`` times the sum of all losses.

        ``near``: no tensor gets a format more than one step on its menu below these, or more than ``above``
        steps above. Errors say little of single matrices with huge activations, which a model may have one or
        two of and which bear no rounding; recipes store them like their neighbours.
        Raises InputError where nothing on the menu does.
        """
        wish = target.wish
        assert wish is not None
        items = (
            self._items
            if near is None
            else [_around(item, near[item.name].name, above) for item in self._items]
        )
        if wish.kind == "divergence":
            found = least_bytes(items, wish.value / factor)
            if found is None:
                least = factor * sum(min(each.loss for each in item.candidates) for item in items)
                raise out_of_reach(wish, least)
        else:
            found = self._within(target, wish, items)
        return Found(self._formats(found), factor * found.loss, factor)

    def loss_of(self, formats: Mapping[str, Format]) -> float | None:
        """The sum of what tensors lose in these formats; None where one is not on its menu."""
        total = 0.0
        for item in self._items:
            losses = {each.format: each.loss for each in item.candidates}
            if formats[item.name].name not in losses:
                return None
            total += losses[formats[item.name].name]
        return total

    def most(self, target: Target) -> int | None:
        """What a file may weigh that a target wishes for, as ``size`` counts; None: it wishes no size."""
        wish = target.wish
        return None if wish is None or wish.kind == "divergence" else self._most(wish)

    def _within(self, target: Target, wish: Wish, items: Sequence[Item]) -> Chosen:
        """The candidates that lose least in a file of that size, which is planned to the byte."""
        smallest = least_loss(items, sum(min(c.bytes for c in item.candidates) for item in items))
        assert smallest is not None
        most = self._most(wish)
        least = self.size(target, self._formats(smallest))
        room = most - (least - smallest.bytes)
        for _ in range(_ROUNDS):
            found = least_loss(items, room)
            if found is None:
                break
            over = self.size(target, self._formats(found)) - most
            if over <= 0:
                return found
            room -= over  # parts of a file that is split, whose headers differ
        bits = f" ({8 * least / self._weights:.2f} bits per weight)" if wish.kind == "bits" else ""
        raise InputError(
            f"{wish.label} is below the smallest file of these formats: {least:,} bytes, "
            f"{size_text(least)}{bits}",
            hint="choose a larger size, or allow smaller formats with --menu",
        )

    def _most(self, wish: Wish) -> int:
        return int(wish.value if wish.kind == "bytes" else wish.value * self._weights / 8)

    def size(self, target: Target, formats: Mapping[str, Format], recipe: str = "") -> int:
        """Bytes of the file, with all its parts; of the weights alone where bits per weight are meant.

        ``recipe`` is the one these are the formats of, which the file says.
        """
        measured = {**self._losses.measured, **({"recipe": recipe} if recipe else {})}
        choice = Choice(target.policy.name, "", formats, 0.0, {}, measured)
        policy = chosen_policy(target.policy.name, formats, self._tensors, target.policy)
        plan = self._plan_of(replace(target, policy=policy, choice=choice))
        if target.wish is not None and target.wish.kind == "bits":
            return plan.data_bytes
        return sum(len(head) + data for head, data in plan.layout())

    def _formats(self, chosen: Chosen) -> dict[str, Format]:
        pairs = zip(self._items, chosen.candidates, strict=True)
        return {item.name: FORMATS[candidate.format] for item, candidate in pairs}


def _around(item: Item, format: str, above: int | None) -> Item:
    """The item without candidates more than a step below that format, or more than ``above`` above."""
    sizes = sorted({each.bytes for each in item.candidates})
    at = next(sizes.index(each.bytes) for each in item.candidates if each.format == format)
    allowed = sizes[max(0, at - 1) : None if above is None else at + above + 1]
    return Item(item.name, tuple(each for each in item.candidates if each.bytes in allowed))
