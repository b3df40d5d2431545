"""Bombs in a graph of ONNX: small files that onnxruntime, or we, would blow up without end.

Everything is counted before it is made. What a graph only shows when it runs (loops, tensors made of nothing)
is limited there: onnx_limits.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.input_files import quoted

MOST_AXES = 8
"""Of a tensor; language models have four, onnxruntime's own operators six."""
_MOST_ELEMENTS = 1 << 63
MOST_NODES = 200_000  # with every function written out; the largest models have some ten thousand
_MOST_LAYERS = 4  # weights over one another in a file; tied ones lie at one place, too
_AGAIN = "make the folder again with kconv to-onnx"
_STRANGER = "do not use this folder unless you trust its origin"

_Name = tuple[str, str, str]  # of a function: domain, name, overload


def messages(message: Any) -> Iterator[Any]:
    """Every message within one: nodes and tensors of the graph, of attributes, subgraphs and functions."""
    waiting = [message]
    while waiting:
        for field, value in waiting.pop().ListFields():
            if field.message_type is not None:
                for each in value if field.is_repeated else [value]:
                    yield each
                    waiting.append(each)


def elements(shape: Sequence[int], where: str) -> int:
    """How many numbers a tensor of that shape holds.

    Raises InputError, which begins with ``where``, for too many axes, lengths below 0, and 2^63 and more.
    """
    if len(shape) > MOST_AXES:
        raise InputError(f"{where} have {len(shape):,} axes, expected at most {MOST_AXES}", hint=_STRANGER)
    if any(length < 0 for length in shape):
        raise InputError(f"{where} have the shape {quoted(list(shape))}", hint=_AGAIN)
    count = 1
    for length in shape:
        count *= length
    if count >= _MOST_ELEMENTS:
        message = f"{where} have the shape {quoted(list(shape))}, expected fewer than 2^63 numbers"
        raise InputError(message, hint=_STRANGER)
    return count


def refuse_functions(path: Path, model: Any) -> None:
    """Raises InputError for functions of a model's own that call themselves or make too many nodes."""
    calls = {_name(function): [_name(node) for node in _nodes(function)] for function in model.functions}
    sizes = _sizes(path, calls)
    total = sum(sizes.get(_name(node), 1) for node in _nodes(model.graph)) if calls else 0
    if total > MOST_NODES:
        raise InputError(
            f"{path} has more than {MOST_NODES:,} nodes with its functions expanded, far more than "
            "any language model",
            hint=_STRANGER,
        )


def refuse_message(path: Path, kind: str, nodes: int) -> None:
    """Raises InputError for a message of a kind no language model has, and for one node too many.

    A few bytes of a sparse tensor make a tensor of any size.
    """
    if kind == "SparseTensorProto":
        raise InputError(f"{path} contains sparse tensors, which no language model has", hint=_STRANGER)
    if nodes > MOST_NODES:
        message_text = f"{path} has more than {MOST_NODES:,} nodes, far more than any language model"
        raise InputError(message_text, hint=_STRANGER)


def refuse_overlap(path: Path, external: int, sizes: Mapping[Path, int]) -> None:
    """Raises InputError where weights of ``external`` bytes lie over one another in their files."""
    total = sum(sizes.values())
    if external > _MOST_LAYERS * total:
        raise InputError(
            f"{path} names weights of {external:,} bytes in files of {total:,}, so they overlap",
            hint=_STRANGER,
        )


def _nodes(graph: Any) -> Iterator[Any]:
    return (each for each in messages(graph) if each.DESCRIPTOR.name == "NodeProto")


def _name(message: Any) -> _Name:
    """Of a function, or of what a node calls."""
    name = message.op_type if message.DESCRIPTOR.name == "NodeProto" else message.name
    return "" if message.domain == "ai.onnx" else message.domain, name, getattr(message, "overload", "")


def _sizes(path: Path, calls: Mapping[_Name, Sequence[_Name]]) -> dict[_Name, int]:
    """How many nodes each function comes to, at most one more than there may be."""
    sizes: dict[_Name, int] = {}
    open_: set[_Name] = set()
    waiting = list(calls)
    while waiting:
        name = waiting[-1]
        if name in sizes:
            waiting.pop()
            continue
        missing = {each for each in calls[name] if each in calls and each not in sizes}
        if not missing:
            sizes[name] = min(1 + sum(sizes.get(each, 1) for each in calls[name]), MOST_NODES + 1)
        elif name in open_ or open_.intersection(missing):
            raise InputError(f"{path} has a function {quoted(name[1])} that calls itself", hint=_STRANGER)
        else:
            open_.add(name)
            waiting += missing
    return sizes
