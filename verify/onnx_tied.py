"""One matrix of a checkpoint that is several in an ONNX folder: a table of tokens, and the head tied to it.

Exporters write a tied head out as a matrix of its own, and quantizers change what is multiplied and leave
what is looked up, or the other way round: a table in float32, its copy as the head in 4 bits. An encoder and
a decoder in files of their own have a table each. The numbers do not tell which is which, so the operators
do, and the reference is given each under a name of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..converters.mapping import sources_of
from ..converters.transforms import same_weights
from ..runtimes.onnx_blocks import graph_of
from ..runtimes.onnx_folder import OnnxFolder
from ..runtimes.onnx_uses import uses_of
from .inputs import Expected
from .onnx_matched import Match

_TABLE, _OUTPUT = "token_embd.weight", "output.weight"
_HEAD = "lm_head.weight"  # of all classes of transformers with a tied head
_STACK = "{stack}.embed_tokens.weight"  # T5's table of each stack, in the checkpoint and in transformers


def head_name(expected: Expected) -> str:
    """What the checkpoint calls the output matrix, or would call a tied one that is its own."""
    rows = (row for row in expected.family.rows if row.target == _OUTPUT)
    names = (name for row in rows for name in row.back_to or row.sources)
    table = sources_of(expected.family, expected.checkpoint).get(_TABLE, ())
    return next((name for name in names if name not in table), _HEAD)


def by_use(folder: OnnxFolder, matches: Sequence[Match], expected: Expected) -> list[Match]:
    """``matches``, those of a tied table under the name of what the graph uses them as, or under both.

    A head comes behind its table: what is known of an initializer that is multiplied is its name as a head.
    """
    tensors, head = expected.checkpoint.tensors, head_name(expected)
    tables = sources_of(expected.family, expected.checkpoint).get(_TABLE, ())
    table = next((tensors[name] for name in tables if name in tensors), None)
    if table is None:
        return list(matches)
    one = {table.name} | {name for name, each in tensors.items() if same_weights(table, each)}
    uses = {file.path: uses_of(graph_of(file)) for file in folder.models}
    lone = head in one or head not in tensors  # the head, for the checkpoint has no other
    named = []
    for each in matches:
        names = [each.tensor.name]
        if each.tensor.name in one:
            use = uses[each.path].get(each.name, {"rows"})
            stack = _STACK.format(stack="encoder" if each.path == folder.encoder else "decoder")
            apart = expected.family.encoder_decoder and (stack in one or stack not in tensors)
            names = [stack if apart else table.name] if "rows" in use else []
            names += [head if lone else table.name] if "product" in use else []
        named += [_renamed(each, name) for name in names]
    return named


def _renamed(match: Match, name: str) -> Match:
    tensor, stored = (replace(each, name=name) for each in (match.tensor, match.stored))
    return replace(match, tensor=tensor, stored=stored)
