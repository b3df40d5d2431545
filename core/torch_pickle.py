"""The pickle inside a PyTorch weight file, read by an interpreter that cannot run code.

A pickle is a program for a stack machine. This one has the instructions a state dict needs and no others, and
it calls nothing: the constructors a state dict names are looked up in one table of our own
(``torch_values.py``), any other name is refused. (Unpicklers that filter names and then call them have been
broken before: CVE-2025-32434, CVE-2026-24747.) Instruction set: CPython's Lib/pickletools.py; what PyTorch
writes: torch/_utils.py and torch/serialization.py.
"""

from __future__ import annotations

import pickletools
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from .errors import CheckpointError
from .input_files import DOWNLOAD_HINT, quoted
from .torch_values import CONSTRUCTORS, DTYPES, PLAIN_TYPES, STORAGES, Malformed, Name, PickledTensor, Storage

MAX_INSTRUCTIONS = 400_000
"""Instructions any pickle may have, some 10,000 tensors; a guard against those made to fill memory."""
MOST_INSTRUCTIONS = 4_000_000
"""Instructions a pickle may have whatever it describes; about 100,000 tensors."""
_INTEGER_BITS = 128  # the magic number of old files has 77, sizes and strides have 64
_KEY_BITS = 60  # Python's hash of an integer is its rest by 2^61 - 1, so larger ones can be made to collide


@dataclass
class _Machine:
    """State of the stack machine: the stack, stacks set aside by marks, and the memo."""

    where: str
    storages: dict[str, Storage]
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items


def read_pickle(
    stream: IO[bytes],
    where: str,
    storages: dict[str, Storage] | None = None,
    *,
    instructions: int = MAX_INSTRUCTIONS,
) -> Any:
    """Run one pickle of at most so many ``instructions`` from ``stream`` (left just behind it): its value.

    The value is made of dict, list, tuple, str, bytes, numbers, None, ``Storage`` and ``PickledTensor``. The
    storages it mentions are put into ``storages`` by key.
    Raises CheckpointError beginning with ``where``: for names other than those of a state dict, or damage.
    """
    machine = _Machine(where, {} if storages is None else storages)
    try:
        with warnings.catch_warnings():  # pickletools warns of odd escapes in strings
            warnings.simplefilter("ignore")
            return _run(machine, stream, instructions)
    except (Malformed, ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        reason = quoted(str(error))[1:-1] or type(error).__name__
        raise CheckpointError(f"{where}: the pickle cannot be read: {reason}", hint=DOWNLOAD_HINT) from error


def _run(machine: _Machine, stream: IO[bytes], instructions: int) -> Any:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > instructions:
            raise CheckpointError(
                f"{machine.where}: the pickle has more than {instructions} instructions, too many for "
                "the weights in the file",
                hint="save the model's state_dict() alone, best as safetensors",
            )
        if isinstance(argument, int) and argument.bit_length() > _INTEGER_BITS:
            raise Malformed(f"an integer of {argument.bit_length()} bits")
        if opcode.name == "STOP":
            break
        if opcode.name in _LITERALS:
            machine.stack.append(argument)
        elif opcode.name in _HANDLERS:
            _HANDLERS[opcode.name](machine, argument)
        else:
            raise CheckpointError(
                f"{machine.where}: the pickle uses the instruction {opcode.name}, which no state dict needs; "
                "nothing was executed",
                hint=_UNSAFE_HINT,
            )
    return machine.stack.pop()


_UNSAFE_HINT = (
    "use a safetensors version of the checkpoint; or, only if you trust who made it, load it yourself and "
    "save its state dict as safetensors"
)


def _name(machine: _Machine, module: str, name: str) -> None:
    """Push a name if a state dict may need it, else refuse the file."""
    known = (
        (module, name) in CONSTRUCTORS
        or (module, name) in PLAIN_TYPES
        or (module in ("torch", "torch.storage", "torch.cuda") and name in STORAGES)
        or (module == "torch" and name in DTYPES)
    )
    if not known and module == "torch._utils" and name.startswith("_rebuild_"):
        raise CheckpointError(
            f"{machine.where} contains tensors of a kind kconv does not read ({quoted(f'{module}.{name}')})",
            hint="save the model with plain F32, F16 or BF16 tensors",
        )
    if not known:
        raise CheckpointError(
            f"{machine.where}: the pickle asks for {quoted(f'{module}.{name}')}, which does not "
            "belong in a state dict and could run code; nothing was executed",
            hint=_UNSAFE_HINT,
        )
    machine.stack.append(Name(module, name))


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    _name(machine, module, name)


def _stack_global(machine: _Machine, argument: object) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(module, str) and isinstance(name, str)):
        raise Malformed("a name that is not text")
    _name(machine, module, name)


def _instance(machine: _Machine, argument: str) -> None:
    _global(machine, argument)
    raise Malformed(f"an instance of {argument}")


def _reduce(machine: _Machine, argument: object) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    make = CONSTRUCTORS.get((function.module, function.name)) if isinstance(function, Name) else None
    if make is None or not isinstance(arguments, tuple):
        raise Malformed("a call of something that is not a constructor")
    machine.stack.append(make(arguments))


def _build(machine: _Machine, argument: object) -> None:
    # The state is attributes, such as the versions in a state dict's _metadata: nothing of weights.
    machine.stack.pop()
    if not isinstance(machine.stack[-1], dict | PickledTensor):
        raise Malformed("attributes for something that has no attributes")


def _persistent(machine: _Machine, argument: object) -> None:
    match machine.stack.pop():
        # The sixth item, where there is one, is a view of a storage, as PyTorch wrote before 0.4.
        case ("storage", Name(name=kind), str(key), str(), int(count)) | (
            "storage",
            Name(name=kind),
            str(key),
            str(),
            int(count),
            None,
        ) if kind in STORAGES and count >= 0:
            storage = Storage(key, STORAGES[kind], count)
            if machine.storages.setdefault(key, storage) != storage:
                raise Malformed(f"two storages with the same key, {quoted(key)}")
            machine.stack.append(storage)
        case other:
            raise Malformed(f"a reference to a {type(other).__name__}, expected a storage")


def _set_items(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict) or len(items) % 2:
        raise Malformed("items for something that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Other keys would be hashed, and hashing deeply nested tuples can exhaust the C stack.
        if type(key) not in (str, int):
            raise Malformed(f"a dict key of type {type(key).__name__}")
        if type(key) is int and key.bit_length() > _KEY_BITS:
            raise Malformed(f"a dict key of {key.bit_length()} bits")
        if key in target:
            raise CheckpointError(f"{machine.where}: the pickle contains {quoted(key)} twice in one dict")
        target[key] = value


def _extend(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, list):
        raise Malformed("items for something that is not a list")
    target.extend(items)


def _new_dict(machine: _Machine, argument: object) -> None:
    items = machine.above_mark()
    machine.stack.append({})
    _set_items(machine, items)


def _collect(machine: _Machine, make: Callable[[list[Any]], Any]) -> None:
    items = machine.above_mark()
    machine.stack.append(make(items))


def _tuple_of(machine: _Machine, count: int) -> None:
    if len(machine.stack) < count:
        raise Malformed("a tuple of more items than there are")
    machine.stack[-count:] = [tuple(machine.stack[-count:])]


def _mark(machine: _Machine, argument: object) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _put(machine: _Machine, argument: Any) -> None:
    if argument is not None and not 0 <= argument < 1 << 32:
        raise Malformed(f"a memo index of {argument}")
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


def _push(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.stack.append(make())


_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)

_HANDLERS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "FRAME": lambda machine, argument: None,
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "EMPTY_DICT": _push(dict),
    "EMPTY_LIST": _push(list),
    "EMPTY_TUPLE": _push(tuple),
    "MARK": _mark,
    "DICT": _new_dict,
    "LIST": lambda machine, argument: _collect(machine, list),
    "TUPLE": lambda machine, argument: _collect(machine, tuple),
    "TUPLE1": lambda machine, argument: _tuple_of(machine, 1),
    "TUPLE2": lambda machine, argument: _tuple_of(machine, 2),
    "TUPLE3": lambda machine, argument: _tuple_of(machine, 3),
    "APPEND": lambda machine, argument: _extend(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine, argument: _extend(machine, machine.above_mark()),
    "SETITEM": lambda machine, argument: _set_items(machine, [machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, argument: _set_items(machine, machine.above_mark()),
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put,
    "GET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "LONG_BINGET": lambda machine, argument: machine.stack.append(machine.memo[argument]),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "INST": _instance,
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
