"""A reference whose layers can be gone through with other weights beside their own (branches.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UnsupportedModel
from ..core.tensor import Tensor
from ..core.windows import Window
from .branches import Branch, SideBySide
from .by_layer import BetweenLayers
from .empty_model import computing
from .encoder_decoder import layer_stacks
from .model import Floats, Reference
from .rounded_inputs import rounding_inputs
from .streamed_experts import OneByOne
from .weight_reader import RowRange

if TYPE_CHECKING:
    import torch

    from .saved_pass import SavedPass


class Branching(Reference):
    """A reference whose layers can be gone through with other weights beside their own."""

    @property
    def layers(self) -> int:
        """How many layers there are, of all stacks."""
        return len(self._every_layer())

    def _every_layer(self) -> list[torch.nn.Module]:
        return [layer for stack in layer_stacks(self._model, self._layers) for layer in stack]

    def _within(self, names: set[str]) -> list[tuple[str, Any]]:
        """The modules of the model that hold weights of those names, with their own names."""
        return [
            (name, module)
            for name, module in self._model.named_modules()
            if name in names or (name and any(each.startswith(f"{name}.") for each in names) and _own(module))
        ]

    def begins(self, names: set[str]) -> int | None:
        """The first layer with one of the modules of those names; None where some lie outside the layers."""
        prefixes = {module: f"{name}." for name, module in self._model.named_modules()}
        within = [prefixes[layer] for layer in self._every_layer()]
        places = set()
        for name in names:
            at = next((place for place, prefix in enumerate(within) if name.startswith(prefix)), None)
            if at is None:
                return None
            places.add(at)
        return min(places, default=None)

    def parameters_of(self, names: set[str]) -> list[str]:
        """The parameters of the modules of those names."""
        return [f"{name}.{key}" for name, module in self._within(names) for key in _own(module)]

    def branched(
        self,
        windows: Sequence[Window],
        changes: Sequence[Mapping[str, Tensor]],
        step: Callable[[], None],
        saved: SavedPass | None = None,
    ) -> Generator[list[Floats], None, None]:
        """What enters the output matrix for each window, first as the model is, then under each change.

        ``changes`` are parameters of modules within the layers. ``step`` is called once a layer and way.
        Layers that are ``saved`` are not computed again.
        """
        self._check_tokens(windows)
        batches = self._batches(windows)
        forwards = [partial(self._forward, [windows[index] for index in batch]) for batch in batches]
        every = self._every_layer()
        branches = []
        for change in changes:
            at = self.begins({name.rpartition(".")[0] for name in change})
            assert at is not None
            branches.append(Branch(every[at], partial(self._with_weights, change)))
        walk = SideBySide(self._model, layer_stacks(self._model, self._layers), self._modules)
        with computing(self._threads), _one_by_one(), self._refused():
            for found in walk.read(forwards, self._few_tokens, branches, step, saved):
                hidden: list[Floats] = [np.empty(0, np.float32)] * len(windows)
                for batch, entering in zip(batches, found, strict=True):
                    for index, values in zip(batch, entering, strict=True):
                        hidden[index] = values.copy()
                yield hidden

    def rounding(self, formats: Mapping[str, str]) -> contextlib.AbstractContextManager[None]:
        """Round what enters the modules of those names as llama.cpp does for matrices of these formats."""
        return rounding_inputs(self._model, formats)

    @contextlib.contextmanager
    def _with_weights(self, change: Mapping[str, Tensor], layer: torch.nn.Module) -> Iterator[None]:
        """Let the modules of a layer that a change touches compute with its weights."""
        import torch

        own = {id(module) for module in layer.modules()}
        with contextlib.ExitStack() as stack:
            for name, module in self._model.named_modules():
                keys = [key for key in _own(module) if f"{name}.{key}" in change] if id(module) in own else []
                for key in keys:
                    weight = change[f"{name}.{key}"]
                    place = module._parameters if key in module._parameters else module.__dict__
                    if place is module.__dict__:
                        new: Any = OneByOne(weight, self.reader)
                        stack.callback(new.release)
                    else:
                        (values,) = stack.enter_context(
                            self.reader.reading([RowRange(weight, 0, weight.rows)])
                        )
                        new = torch.nn.Parameter(values, requires_grad=False)
                    stack.callback(place.__setitem__, key, place[key])
                    place[key] = new
            yield


@contextlib.contextmanager
def _one_by_one() -> Iterator[None]:
    try:
        yield
    except BetweenLayers:
        raise UnsupportedModel(
            "this model computes with what leaves a layer before the next one gets it, so its layers cannot "
            "be probed one by one",
            hint="choose the types with --tensor-type instead of a target",
        ) from None


def _own(module: Any) -> list[str]:
    """The names of a module's own weights, experts that are read one by one among them."""
    stacks = [key for key, value in module.__dict__.items() if isinstance(value, OneByOne)]
    return [*(key for key, value in module._parameters.items() if value is not None), *stacks]
