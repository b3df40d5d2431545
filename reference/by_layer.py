"""All windows through a layer before the next one is read, so that weights are read once for any number.

transformers' model runs its layers itself, in a loop that no hook can leave and enter again. So its forward
is run up to the layers, which answer with stand-ins and note what they are called with (masks, rotary tables,
the encoder's states); then the layers are called one by one, each for every batch of windows, with what the
one before gave in the places where the stand-ins had arrived; in the end the forward is run once more, with
what really left the last layer. An encoder-decoder takes that way twice: its decoder begins where its encoder
ends. What is computed outside the layers is computed once, too, and later runs get stand-ins of it.

Stand-ins are NaN, so nothing made of one goes by unnoticed. A model that does anything with what leaves a
layer but hand it to the next one cannot be read this way (``BetweenLayers``); none of the families does.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .stand_ins import Form, is_tensor, leaves, mapped, resting, rests, set_resting, stand_in, stood_in
from .states import Kept, States, kept_states
from .streamed import StreamedModules

if TYPE_CHECKING:
    import torch

    from .saved_pass import SavedPass

# What leaves a layer is kept in memory up to this, and in files beyond.
STATES = 256 << 20  # bytes

Forward = Callable[..., Any]
"""Runs the model for one batch of windows; what a module does."""


class BetweenLayers(Exception):
    """The model computes with what leaves a layer before the next one gets it."""


class _Reached(BaseException):
    """What was wanted of a forward is there; no error, so nothing on the way takes it for one."""


@dataclass(frozen=True)
class _Given:
    """Where a layer is called with what the one before gave, by its place in that."""

    place: int


@dataclass(frozen=True)
class _Call:
    """What a layer is called with, its tensors as ``Kept`` or ``_Given``, and the places of the latter."""

    args: Any
    kwargs: Any
    places: frozenset[int]


@dataclass
class Batch:
    """Windows that are computed together, on their way.

    ``state`` is what left the last layer, as far as the next one takes it; ``calls`` how the layers of the
    stack are called; ``outside`` what later runs get in place of what was computed outside the layers, by the
    order of calls, as ``remember`` makes it of the output.
    """

    forward: Forward
    remember: Callable[[Any], Any]
    state: dict[int, Kept] = field(default_factory=dict)
    calls: list[_Call] = field(default_factory=list)
    outside: list[Any] = field(default_factory=list)

    def parted(self) -> Batch:
        """Another batch that stands where this one stands."""
        return replace(self, state=dict(self.state), outside=list(self.outside))


class Layered:
    """A model whose layers stand in ``stacks`` and run in that order; ``streamed`` reads its weights."""

    def __init__(
        self,
        model: torch.nn.Module,
        stacks: Sequence[Sequence[torch.nn.Module]],
        streamed: StreamedModules,
    ) -> None:
        self._stacks = stacks
        self._streamed = streamed
        self._outside = _outside(model, {layer for stack in stacks for layer in stack})

    @contextlib.contextmanager
    def _walk(self) -> Iterator[Walk]:
        """The steps of a reading that begins."""
        self._streamed.start()
        with kept_states(STATES) as states:
            yield Walk(self._stacks, self._outside, self._streamed, states)


class LayerByLayer(Layered):
    """All windows through each layer, one way."""

    def read(
        self,
        forwards: Sequence[Forward],
        trial: Forward,
        looking_on: Callable[[int], contextlib.AbstractContextManager[Any]],
        passed: Callable[[torch.nn.Module], None],
        saved: SavedPass | None = None,
    ) -> Iterator[Any]:
        """What each of ``forwards`` returns, in order.

        ``trial`` is a forward of few tokens, to see what layers give. ``looking_on`` surrounds what is
        computed of a batch, ``passed`` is told of each layer when all batches have gone through. Layers that
        are ``saved`` are not computed again. Raises BetweenLayers before anything has been computed of a
        batch, but for an encoder-decoder's decoder.
        """
        with self._walk() as walk:
            batches = [Batch(forward, stood_in) for forward in forwards]
            tried = Batch(trial, lambda output: output)
            done, counter = 0 if saved is None else saved.layers, itertools.count()
            self._streamed.skip(list(itertools.chain(*self._stacks))[:done])
            for number, stack in enumerate(self._stacks):
                for place, layer in enumerate(stack):
                    at, ends = next(counter), place == len(stack) - 1
                    with self._streamed.held():
                        if not place:
                            walk.try_out(tried, number)
                        for index, batch in enumerate(batches):
                            with looking_on(index):
                                if not place:
                                    walk.note_calls(batch, number)
                                if at >= done:
                                    walk.advance(batch, layer, place)
                                elif saved is not None and (ends or at == done - 1):
                                    walk.put(batch, saved.load(at, index))
                    if at >= done:
                        passed(layer)
                        if saved is not None:
                            saved.keep(at, [batch.state for batch in batches], ends=ends)
            with self._streamed.held():
                for index, batch in enumerate(batches):
                    with looking_on(index):
                        result = walk.forward(batch, len(self._stacks), {})
                    batch.state.clear()
                    yield result


class Walk:
    """The steps of a reading; ``forms`` is what the layers of each stack give."""

    def __init__(
        self,
        stacks: Sequence[Sequence[torch.nn.Module]],
        outside: Sequence[torch.nn.Module],
        streamed: StreamedModules,
        states: States,
    ) -> None:
        self._stacks = stacks
        self._outside = outside
        self._streamed = streamed
        self._states = states
        self._forms: list[Form] = []
        # of each shape the last, since masks and rotary tables of most batches are equal
        self._alike: weakref.WeakValueDictionary[Any, Kept] = weakref.WeakValueDictionary()

    def try_out(self, tried: Batch, number: int) -> None:
        """Learn what the layers of a stack give, and whether the next one gets it as it is."""
        outputs: list[Any] = []

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            outputs.append(output)
            raise _Reached

        hook = self._stacks[number][0].register_forward_hook(leave)
        try:
            with self._streamed.quiet():
                self.forward(tried, number, {})
        finally:
            hook.remove()
        (output,) = outputs
        self._forms.append(Form.of(output))
        with self._streamed.quiet():
            self.note_calls(tried, number, refuse_nan=True)

    def note_calls(self, batch: Batch, number: int, *, refuse_nan: bool = False) -> None:
        """Run up to the end of a stack without computing it: how its layers are called, what enters it."""
        stack, form = self._stacks[number], self._forms[number]
        noted: dict[int, tuple[torch.Tensor, Kept]] = {}  # the tensor is held, so that its id stays its own
        given: list[torch.Tensor] = []
        calls: list[_Call] = []
        entering: list[Kept] = []

        def hold(leaf: Any) -> Any:
            if not is_tensor(leaf):
                return leaf
            for place, one in enumerate(given):
                if leaf is one:
                    return _Given(place)
            if refuse_nan and leaf.is_floating_point() and leaf.isnan().any():
                raise BetweenLayers
            if id(leaf) not in noted:
                noted[id(leaf)] = leaf, self._keep_one_of_equals(leaf)
            return noted[id(leaf)][1]

        def answer(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not calls:
                entering.append(self._states.keep(states))
                given.append(states)
            elif states is not given[0]:
                raise BetweenLayers
            held = mapped((states, *args), hold), mapped(kwargs, hold)
            places = {leaf.place for leaf in leaves(held) if isinstance(leaf, _Given)}
            calls.append(_Call(*held, frozenset(places)))
            if len(calls) == len(stack):
                raise _Reached
            output = form.around(stand_in(states))
            given[:] = [output] if form.single else output
            return output

        self.forward(batch, number, dict.fromkeys(stack, answer))
        batch.calls, batch.state = calls, {0: entering[0]}

    def advance(self, batch: Batch, layer: torch.nn.Module, place: int) -> None:
        """Let a batch go through the layer at that place of the stack whose calls are noted."""
        fetched: list[tuple[torch.Tensor, Kept]] = []

        def fetch(leaf: Any) -> Any:
            kept = batch.state[leaf.place] if isinstance(leaf, _Given) else leaf
            if not isinstance(kept, Kept):
                return leaf
            fetched.append((kept.get(), kept))
            return fetched[-1][0]

        call = batch.calls[place]
        output = layer(*mapped(call.args, fetch), **mapped(call.kwargs, fetch))
        gives = (output,) if is_tensor(output) else output
        following = batch.calls[place + 1 :]
        others = (following[0].places if following else frozenset()) - {0}
        state: dict[int, Kept] = {}
        for other in others:  # a position bias is passed on as it came
            same = (kept for tensor, kept in fetched if tensor is gives[other])
            state[other] = next(same, None) or self._keep_one_of_equals(gives[other])
        batch.state.clear()
        fetched.clear()
        batch.state = {**state, 0: self._states.keep(gives[0])}

    def put(self, batch: Batch, states: Mapping[int, torch.Tensor]) -> None:
        """Let a batch stand behind a layer that gave these ``states``."""
        batch.state = {
            place: self._keep_one_of_equals(tensor) if place else self._states.keep(tensor)
            for place, tensor in states.items()
        }

    def forward(self, batch: Batch, number: int, answers: Mapping[torch.nn.Module, Forward]) -> Any:
        """Run the model, its layers up to that stack standing in, those after it answering as given."""
        with contextlib.ExitStack() as stack:
            for layers, form in zip(self._stacks[:number], self._forms, strict=False):
                for layer in layers:
                    stack.enter_context(resting(layer, form.passing_on))
            if number and 0 in batch.state:
                left = self._forms[number - 1].around(batch.state[0].get())
                stack.enter_context(resting(self._stacks[number - 1][-1], lambda *args, **kwargs: left))
            for layer, answer in answers.items():
                stack.enter_context(resting(layer, answer))
            stack.enter_context(self._computed_once(batch))
            with contextlib.suppress(_Reached):
                return batch.forward()

    @contextlib.contextmanager
    def _computed_once(self, batch: Batch) -> Iterator[None]:
        """Let modules outside the layers give what they gave before, each call in its turn."""
        known, turn = iter(tuple(batch.outside)), itertools.count()
        left = len(batch.outside)

        def enter(module: torch.nn.Module, args: Any) -> None:
            set_resting(module, next(turn) < left)

        def answer(compute: Forward, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            return next(known) if rests(module) else compute(*args, **kwargs)

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            if not rests(module):
                batch.outside.append(batch.remember(output))

        with contextlib.ExitStack() as stack:
            for module in self._outside:
                stack.enter_context(resting(module, partial(answer, module.forward, module)))
                stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            yield

    def _keep_one_of_equals(self, tensor: torch.Tensor) -> Kept:
        import torch

        key = tensor.shape, tensor.dtype
        last = self._alike.get(key)
        if last is not None and torch.equal(last.get(), tensor):
            return last
        kept = self._alike[key] = self._states.keep(tensor)
        return kept


def _outside(module: torch.nn.Module, layers: set[torch.nn.Module]) -> list[torch.nn.Module]:
    """The modules that hold weights and no layers, the outermost of each."""
    found: dict[torch.nn.Module, None] = {}
    for child in module.children():
        if child in layers:
            continue
        if layers.isdisjoint(child.modules()):
            found |= {child: None} if any(True for _ in child.parameters()) else {}
        else:
            found |= dict.fromkeys(_outside(child, layers))
    return list(found)
