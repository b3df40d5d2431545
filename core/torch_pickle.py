"""The pickle inside a PyTorch weight file, read by an interpreter that cannot run code.

A pickle is a program for a stack machine. This one has the instructions a state dict needs and no others, and
it calls nothing: the constructors a state dict names are looked up in one table of our own below, any other
name is refused. (Unpicklers that filter names and then call them have been broken before: CVE-2025-32434,
CVE-2026-24747.) Instruction set: CPython's Lib/pickletools.py; what PyTorch writes: torch/_utils.py and
torch/serialization.py.
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

MAX_INSTRUCTIONS = 4_000_000
"""About 100,000 tensors; a guard against pickles made to fill memory."""

# PyTorch's storage classes and types, as safetensors calls them. An untyped storage counts bytes.
STORAGES: Mapping[str, str] = {
    **{"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64"},
    **{"ByteStorage": "U8", "CharStorage": "I8", "ShortStorage": "I16", "IntStorage": "I32"},
    **{"LongStorage": "I64", "BoolStorage": "BOOL", "UntypedStorage": "U8"},
    **{"ComplexFloatStorage": "C64", "ComplexDoubleStorage": "C128"},
}
DTYPES: Mapping[str, str] = {
    **{"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "bool": "BOOL"},
    **{"uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32"},
    **{"uint64": "U64", "int64": "I64", "complex64": "C64", "complex128": "C128"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"},
    **{"float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ"},
}


@dataclass(frozen=True)
class Storage:
    """A run of ``count`` elements kept under ``key`` in the container."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class PickledTensor:
    """A view into a storage; ``offset`` and ``strides`` are in elements of ``dtype``. Not yet checked."""

    storage: Storage
    dtype: str
    offset: Any
    shape: Any
    strides: Any


@dataclass(frozen=True)
class _Name:
    """A name the pickle may mention. It stands for itself; nothing is imported."""

    module: str
    name: str


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


class _Malformed(Exception):
    """The pickle breaks the rules of its machine, or describes what no weight is."""


def read_pickle(stream: IO[bytes], where: str, storages: dict[str, Storage] | None = None) -> Any:
    """Run one pickle from ``stream`` (left just behind it) and return its value.

    The value is made of dict, list, tuple, str, bytes, numbers, None, ``Storage`` and ``PickledTensor``. The
    storages it mentions are put into ``storages`` by key.
    Raises CheckpointError beginning with ``where``: for names other than those of a state dict, or damage.
    """
    machine = _Machine(where, {} if storages is None else storages)
    try:
        with warnings.catch_warnings():  # pickletools warns of odd escapes in strings
            warnings.simplefilter("ignore")
            return _run(machine, stream)
    except (_Malformed, ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        reason = quoted(str(error))[1:-1] or type(error).__name__
        raise CheckpointError(f"{where}: the pickle cannot be read: {reason}", hint=DOWNLOAD_HINT) from error


def _run(machine: _Machine, stream: IO[bytes]) -> Any:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > MAX_INSTRUCTIONS:
            raise CheckpointError(
                f"{machine.where}: the pickle has more than {MAX_INSTRUCTIONS} instructions"
            )
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
        (module, name) in _CONSTRUCTORS
        or (module, name) in _PLAIN_TYPES
        or (module in ("torch", "torch.storage", "torch.cuda") and name in STORAGES)
        or (module == "torch" and name in DTYPES)
    )
    if not known and module == "torch._utils" and name.startswith("_rebuild_"):
        raise CheckpointError(
            f"{machine.where} holds tensors of a kind kconv does not read ({quoted(f'{module}.{name}')})",
            hint="save the model with plain F32, F16 or BF16 tensors",
        )
    if not known:
        raise CheckpointError(
            f"{machine.where}: the pickle asks for {quoted(f'{module}.{name}')}, which is no part of a state "
            "dict and could run code; nothing was executed",
            hint=_UNSAFE_HINT,
        )
    machine.stack.append(_Name(module, name))


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    _name(machine, module, name)


def _stack_global(machine: _Machine, argument: object) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(module, str) and isinstance(name, str)):
        raise _Malformed("a name that is not text")
    _name(machine, module, name)


def _instance(machine: _Machine, argument: str) -> None:
    _global(machine, argument)
    raise _Malformed(f"an instance of {argument}")


def _reduce(machine: _Machine, argument: object) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    make = _CONSTRUCTORS.get((function.module, function.name)) if isinstance(function, _Name) else None
    if make is None or not isinstance(arguments, tuple):
        raise _Malformed("a call of something that is not a constructor")
    machine.stack.append(make(arguments))


def _build(machine: _Machine, argument: object) -> None:
    # The state is attributes, such as the versions in a state dict's _metadata: nothing of weights.
    machine.stack.pop()
    if not isinstance(machine.stack[-1], dict | PickledTensor):
        raise _Malformed("attributes for something that has none")


def _persistent(machine: _Machine, argument: object) -> None:
    match machine.stack.pop():
        # The sixth item, where there is one, is a view of a storage, as PyTorch wrote before 0.4.
        case ("storage", _Name(name=kind), str(key), str(), int(count)) | (
            "storage",
            _Name(name=kind),
            str(key),
            str(),
            int(count),
            None,
        ) if kind in STORAGES and count >= 0:
            storage = Storage(key, STORAGES[kind], count)
            if machine.storages.setdefault(key, storage) != storage:
                raise _Malformed(f"two storages of one key, {quoted(key)}")
            machine.stack.append(storage)
        case other:
            raise _Malformed(f"a reference to a {type(other).__name__}, expected a storage")


def _set_items(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict) or len(items) % 2:
        raise _Malformed("items for something that is not a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Other keys would be hashed, and hashing deeply nested tuples can exhaust the C stack.
        if type(key) not in (str, int):
            raise _Malformed(f"a dict key of type {type(key).__name__}")
        if key in target:
            raise CheckpointError(f"{machine.where}: the pickle holds {quoted(key)} twice in one dict")
        target[key] = value


def _extend(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, list):
        raise _Malformed("items for something that is not a list")
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
        raise _Malformed("a tuple of more than there is")
    machine.stack[-count:] = [tuple(machine.stack[-count:])]


def _mark(machine: _Machine, argument: object) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _put(machine: _Machine, argument: Any) -> None:
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


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise _Malformed("an OrderedDict with contents, expected an empty one that is filled")
    return {}


def _tensor(arguments: tuple[Any, ...]) -> PickledTensor:
    """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None)."""
    if len(arguments) not in (4, 6, 7) or not isinstance(arguments[0], Storage):
        raise _Malformed("a tensor that is not a view of a storage")
    if arguments[6:] not in ((), (None,), ({},)):
        raise _Malformed("a tensor to be conjugated or negated when it is read")
    return PickledTensor(arguments[0], arguments[0].dtype, *arguments[1:4])


def _tensor_of_dtype(arguments: tuple[Any, ...]) -> PickledTensor:
    """_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None)."""
    match arguments:
        case (Storage() as storage, offset, size, stride, _, _, _Name("torch", name), *_) if name in DTYPES:
            return PickledTensor(storage, DTYPES[name], offset, size, stride)
    raise _Malformed("a tensor without a type")


def _parameter(arguments: tuple[Any, ...]) -> PickledTensor:
    if not arguments or not isinstance(arguments[0], PickledTensor):
        raise _Malformed("a parameter without a tensor")
    return arguments[0]


def _tensor_with_attributes(arguments: tuple[Any, ...]) -> PickledTensor:
    """_rebuild_from_type_v2(function, type, arguments, state): a tensor somebody has set attributes on."""
    match arguments:
        case (_Name() as function, _Name() as kind, tuple(inner), _) if (
            kind.module,
            kind.name,
        ) in _PLAIN_TYPES:
            make = _CONSTRUCTORS.get((function.module, function.name))
            if make in (_tensor, _tensor_of_dtype, _parameter):
                return make(inner)
    raise _Malformed("a tensor of a class of its own")


def _only_value(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments else None


_PLAIN_TYPES = frozenset({("torch", "Tensor"), ("torch.nn.parameter", "Parameter")})

_CONSTRUCTORS: Mapping[tuple[str, str], Callable[[tuple[Any, ...]], Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_with_attributes,
    ("torch", "Size"): _only_value,
    ("torch", "device"): _only_value,
    ("_codecs", "encode"): _only_value,
}
