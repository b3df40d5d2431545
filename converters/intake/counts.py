"""Numbers of config.json that the files contradict, refused in one line with the number to set."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from ...core.checkpoint import Checkpoint
from ...core.errors import CheckpointError
from ...core.input_files import quoted
from .wanted import Wanted, pattern

_KEYS = {
    "layers": ("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    "decoder_layers": ("num_decoder_layers", "decoder_layers", "num_layers"),
}


def refuse_empty(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """Raise CheckpointError for weights of no numbers, as ZeRO-3 and FSDP leave them in each process."""
    empty = [name for name, each in checkpoint.tensors.items() if not each.elements and wanted.knows(name)]
    if empty:
        raise CheckpointError(
            f"{checkpoint.folder}: {len(empty)} of {len(checkpoint.tensors)} weights are empty (shape [0]), "
            f"such as {quoted(empty[0])[1:-1]}: they were saved under DeepSpeed ZeRO-3 or FSDP without being "
            "gathered",
            hint="gather them: `python zero_to_fp32.py . pytorch_model.bin` in the training folder (ZeRO-3), "
            "or save again with stage3_gather_16bit_weights_on_model_save or FSDP's FULL_STATE_DICT",
        )
    return checkpoint


def refuse_wrong_layers(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """Raise CheckpointError where the files hold another number of layers than config.json says."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in checkpoint.tensors:
        names[pattern(name)].append(name)
    held: dict[str, set[int]] = defaultdict(set)
    for row in wanted.layered:
        for source in row.sources if row.when is None else ():
            expression = re.escape(source).replace(r"\{i\}", r"(\d{1,9})").replace(r"\{e\}", r"\d+")
            matches = (re.fullmatch(expression, name) for name in names.get(pattern(source), ()))
            held[row.layers].update(int(match[1]) for match in matches if match and match.groups())
    for word, numbers in held.items():
        said = wanted.sizes[word]
        if not numbers or (max(numbers) + 1 == said and len(numbers) == said):
            continue
        raise _wrong_layers(checkpoint, _key(checkpoint, word, said), said, sorted(numbers))
    return checkpoint


def _wrong_layers(checkpoint: Checkpoint, key: str, said: int, numbers: Sequence[int]) -> CheckpointError:
    top = numbers[-1]
    if len(numbers) <= top:
        there = set(numbers)
        gaps = [number for number in range(min(top, said)) if number not in there]
        some = ", ".join(map(str, gaps[:8])) + (" …" if len(gaps) > 8 else "")
        return CheckpointError(
            f"{checkpoint.folder}: the files hold layers up to {top}, but not {some}; config.json says "
            f"{key} {said}",
            hint="complete the download, or number the layers without gaps",
        )
    cut = "" if top + 1 > said else ", unless files are missing: then complete the download"
    return CheckpointError(
        f"{checkpoint.folder}: the files hold layers 0 to {top}, but config.json says {key} {said}",
        hint=f"set {key} to {top + 1} in config.json{cut}",
    )


def _key(checkpoint: Checkpoint, word: str, said: int) -> str:
    keys = _KEYS.get(word, _KEYS["layers"])
    there = [key for key in keys if key in checkpoint.config]
    exact = [key for key in there if checkpoint.config[key] == said]
    return (exact or there or list(keys))[0]


def refuse_wrong_vocabulary(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """Raise CheckpointError where embedding or head have another number of rows than config.json says."""
    said = wanted.sizes.get("rows")
    matrices = [checkpoint.tensors.get(name) for name in (*wanted.embeddings, *wanted.heads)]
    there = [matrix for matrix in matrices if matrix is not None and len(matrix.shape) == 2]
    if said is None or not there or all(matrix.rows == said for matrix in there):
        return checkpoint
    rows = dict.fromkeys(matrix.rows for matrix in there)
    shown = ", ".join(f"{matrix.name} has {matrix.rows} rows" for matrix in there[:2])
    if len(rows) == 1:
        hint = f"set vocab_size to {there[0].rows} in config.json"
    else:
        hint = "embedding and head must have one number of rows: resize both (`resize_token_embeddings`)"
    raise CheckpointError(f"{checkpoint.folder}: {shown}, but config.json says vocab_size {said}", hint=hint)
