"""What answers in place of modules that are not to compute, and of tensors that are not there yet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def resting(module: Any, answer: Callable[..., Any]) -> Iterator[None]:
    """Let a module answer with that instead of computing; its weights are not read."""
    before = module.__dict__.get("forward")
    module.forward = answer
    set_resting(module, True)
    try:
        yield
    finally:
        set_resting(module, False)
        del module.forward
        if before is not None:
            module.forward = before


def set_resting(module: Any, resting: bool) -> None:
    """Say whether a module computes now."""
    module.rests = resting


def rests(module: Any) -> bool:
    """Whether a module does not compute now."""
    return bool(module.__dict__.get("rests", False))


@dataclass(frozen=True)
class Form:
    """What layers give: the states alone, or a tuple that begins with them; ``others`` is like the rest."""

    single: bool
    others: tuple[Any, ...] = ()

    @classmethod
    def of(cls, output: Any) -> Form:
        """The form of what a layer gave."""
        return cls(True) if is_tensor(output) else cls(False, tuple(output[1:]))

    def around(self, states: torch.Tensor) -> Any:
        """The same with other states, and stand-ins for the rest."""
        return states if self.single else (states, *(stand_in(other) for other in self.others))

    def passing_on(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What a layer would give that changes nothing; it can stand in for its forward."""
        return self.around(states)


def is_tensor(value: Any) -> bool:
    """Whether it is one of torch's."""
    import torch

    return isinstance(value, torch.Tensor)


def stand_in(value: Any) -> Any:
    """NaN in the shape of a tensor of floats, without its memory; anything else as it is."""
    import torch

    if not is_tensor(value) or not value.is_floating_point():
        return value
    return torch.full((), torch.nan, dtype=value.dtype).expand(value.shape)


def stood_in(output: Any) -> Any:
    """Stand-ins for all tensors of an output."""
    return mapped(output, stand_in)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """``value`` with each leaf of its tuples, lists and dictionaries changed."""
    if type(value) in (tuple, list):
        return type(value)(mapped(each, change) for each in value)
    if type(value) is dict:
        return {key: mapped(each, change) for key, each in value.items()}
    return change(value)


def leaves(value: Any) -> list[Any]:
    """What ``mapped`` changes."""
    found: list[Any] = []
    mapped(value, found.append)
    return found
