"""What the pickle of a state dict is made of: storages, tensors, and the few constructors it names.

Nothing here calls anything of PyTorch's: each constructor only takes its arguments apart. See
``torch_pickle.py``, and torch/_utils.py for what the constructors are in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
class Name:
    """A name the pickle may mention, kept as a name; nothing is imported."""

    module: str
    name: str


class Malformed(Exception):
    """The pickle breaks the rules of its machine, or describes what no weight is."""


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise Malformed("an OrderedDict with contents, expected an empty one that is filled")
    return {}


def _tensor(arguments: tuple[Any, ...]) -> PickledTensor:
    """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None)."""
    if len(arguments) not in (4, 6, 7) or not isinstance(arguments[0], Storage):
        raise Malformed("a tensor that is not a view of a storage")
    if arguments[6:] not in ((), (None,), ({},)):
        raise Malformed("a tensor to be conjugated or negated when it is read")
    return PickledTensor(arguments[0], arguments[0].dtype, *arguments[1:4])


def _tensor_of_dtype(arguments: tuple[Any, ...]) -> PickledTensor:
    """_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None)."""
    match arguments:
        case (Storage() as storage, offset, size, stride, _, _, Name("torch", name), *_) if name in DTYPES:
            return PickledTensor(storage, DTYPES[name], offset, size, stride)
    raise Malformed("a tensor without a type")


def _parameter(arguments: tuple[Any, ...]) -> PickledTensor:
    if not arguments or not isinstance(arguments[0], PickledTensor):
        raise Malformed("a parameter without a tensor")
    return arguments[0]


def _tensor_with_attributes(arguments: tuple[Any, ...]) -> PickledTensor:
    """_rebuild_from_type_v2(function, type, arguments, state): a tensor with attributes of its own."""
    match arguments:
        case (Name() as function, Name() as kind, tuple(inner), _) if (
            kind.module,
            kind.name,
        ) in PLAIN_TYPES:
            make = CONSTRUCTORS.get((function.module, function.name))
            if make in (_tensor, _tensor_of_dtype, _parameter):
                return make(inner)
    raise Malformed("a tensor of a custom class")


def _only_value(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments else None


PLAIN_TYPES = frozenset({("torch", "Tensor"), ("torch.nn.parameter", "Parameter")})

CONSTRUCTORS: Mapping[tuple[str, str], Callable[[tuple[Any, ...]], Any]] = {
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
