"""Tensors nobody needs for text, left out with a note of their names."""

from __future__ import annotations

import re

from ...core.checkpoint import Checkpoint
from ...core.errors import CheckpointError
from ...core.input_files import quoted
from ...core.tensor import Tensor
from .wanted import Wanted, listed, noted, pattern, without

# What is computed anew (rotary tables, masks, positions), or concerns a cache in 8 bits.
_TABLES = re.compile(
    r"(.*\.)?(rotary_emb|rotary_embedding|rope)\.(inv_freq|cos_cached|sin_cached|freqs_cis|original_inv_freq)"
    r"|(.*\.)?(inv_freq|position_ids|masked_bias|embed_positions\._float_tensor)"
    r"|.*\.attn(ention)?\.bias"
)
_SCALES = re.compile(r".*[._](k|v|q|kv|qkv|input|output|prob|act|activation)_(scale|zero_point)(_ub|_inv)?")
_HEADS = re.compile(
    r"(.*\.)?(v_head|value_head|score|classifier|reward_head|regression_head|critic_head|q_head|qa_outputs)"
    r"(\..*)?"
)


def without_unindexed(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """Without what the index does not name. Raises CheckpointError where the model needs it."""
    if not checkpoint.unindexed:
        return checkpoint
    sources = wanted.taken(checkpoint)
    needed = [
        name
        for name in checkpoint.unindexed
        if pattern(name) in sources and name not in checkpoint.tensors and not _TABLES.fullmatch(name)
    ]
    if needed:
        raise CheckpointError(
            f"{checkpoint.folder}: the index does not name {len(needed)} tensors that are in the weight "
            f"files and that the model needs: {listed(needed)}",
            hint="if the files are right, remove the index: numbered files are read whole without one",
        )
    names = tuple(checkpoint.unindexed)
    message = f"left out, since the index does not name them and nothing needs them: {listed(names)}"
    return noted(without(checkpoint, names), "unindexed", message)


def without_leftovers(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """Without tables that are computed anew, scales of caches, and heads that do not write text."""
    unknown = [tensor for name, tensor in checkpoint.tensors.items() if not wanted.knows(name)]
    tables = [tensor.name for tensor in unknown if _is_table(tensor)]
    scales = [tensor.name for tensor in unknown if _SCALES.fullmatch(tensor.name)]
    scales += [name for name in checkpoint.scalars if _SCALES.fullmatch(name)]
    heads = [tensor.name for tensor in unknown if _HEADS.fullmatch(tensor.name)]
    if tables:
        message = f"left out, since they are computed anew: {listed(tables)}"
        checkpoint = noted(checkpoint, "computed-tables", message)
    if scales:
        message = f"scales of caches and activations are left out: {listed(scales)}"
        checkpoint = noted(checkpoint, "cache-scales", message)
    if heads:
        message = f"left out, since writing text needs no such head: {', '.join(map(_shown, heads[:8]))}"
        checkpoint = noted(checkpoint, "other-heads", message, warning=True)
    return without(checkpoint, [*tables, *scales, *heads])


def _is_table(tensor: Tensor) -> bool:
    """Masks of older GPTs are called bias, too, but have four axes."""
    matches = _TABLES.fullmatch(tensor.name) is not None
    return matches and (not tensor.name.endswith(".bias") or len(tensor.shape) > 2)


def _shown(name: str) -> str:
    return quoted(name)[1:-1]


def without_zero_biases(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """Without biases config.json says the model does not have, where all are zero; others are refused."""
    suspects = [tensor for tensor in checkpoint.tensors.values() if _may_be_bias(tensor, wanted)]
    if not suspects:
        return checkpoint
    taken = wanted.taken(checkpoint)
    extra = [tensor for tensor in suspects if pattern(tensor.name) not in taken]
    for tensor in extra:
        if not _all_zero(tensor):
            raise _not_zero(checkpoint, wanted, tensor)
    if not extra:
        return checkpoint
    names = [tensor.name for tensor in extra]
    message = f"biases are left out, since all of them are zero: {listed(names)}"
    return noted(without(checkpoint, names), "zero-biases", message)


def _may_be_bias(tensor: Tensor, wanted: Wanted) -> bool:
    name, kind = tensor.name, pattern(tensor.name)
    if not name.endswith(".bias") or len(tensor.shape) != 1 or kind in wanted.dropped:
        return False
    named = kind in wanted.sources or pattern(f"{name[:-4]}weight") in wanted.sources
    return named and kind not in wanted.always


def _all_zero(tensor: Tensor) -> bool:
    # of bits, so that it holds for BF16, too; negative zeros are none the less zeros
    values = tensor.read(0, tensor.rows)
    return not (values.view("u2" if values.dtype.itemsize == 2 else "u4") << 1).any()


def _not_zero(checkpoint: Checkpoint, wanted: Wanted, tensor: Tensor) -> CheckpointError:
    kind = pattern(tensor.name)
    rows = [row for row in wanted.family.rows if kind in map(pattern, row.sources)]
    flag = next((row.when for row in rows if row.when is not None), None)
    if flag is None:
        return CheckpointError(
            f"{checkpoint.folder}: {quoted(tensor.name)} is not all zeros, and {wanted.family.title} models "
            "have no such bias",
            hint="check that config.json names the class the model was trained as",
        )
    said = checkpoint.config.get(flag)
    return CheckpointError(
        f"{checkpoint.folder}: {quoted(tensor.name)} is not all zeros, but config.json says {flag} "
        f"{'false' if said is False else quoted(said) if said is not None else 'nothing, which means false'}",
        hint=f"if the model was trained with these biases, set {flag} to true in config.json",
    )
