"""Names: what wrappers put in front or in between, and what is missing in front."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from ...core.checkpoint import Checkpoint
from ...core.errors import CheckpointError
from ...core.input_files import quoted
from .wanted import Wanted, listed, noted, pattern, renamed

# What torch.compile, FSDP, activation checkpointing, Fabric and peft put between the parts of a name.
_WRAPPERS = (
    *("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module"),
    *("module", "base_layer"),
)
_PEFT = "base_model.model."  # taken off where no family says what names should be, too
_DEEP = 12  # parts a prefix may have
_ADAPTER = re.compile(
    r"(.*\.)?(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|hada_w[12]_[ab]|ia3_l|vera_lambda_[bd]"
    r"|modules_to_save|original_module|prompt_embeddings)(\..*)?"
)
_MERGE = "merge it: `model.merge_and_unload().save_pretrained(...)` of peft, and convert that"


def refuse_adapters(checkpoint: Checkpoint) -> Checkpoint:
    """Raise CheckpointError for adapters not merged: as tensors, or as files beside the weights."""
    held = [name for name in checkpoint.tensors if _ADAPTER.fullmatch(name)]
    if held:
        raise CheckpointError(
            f"{checkpoint.folder}: {len(held)} tensors are those of an adapter (LoRA) that is not merged: "
            f"{listed(held)}",
            hint=_MERGE,
        )
    if checkpoint.has("adapter_config.json"):
        files = [name for name in ("adapter_model.safetensors", "adapter_model.bin") if checkpoint.has(name)]
        if files:
            raise CheckpointError(
                f"{checkpoint.folder} holds a model and, in {files[0]}, an adapter (LoRA) for it; nothing "
                "says whether it is merged already",
                hint=f"{_MERGE}; if it is merged, take adapter_config.json and {files[0]} out of the folder",
            )
        message = "adapter_config.json is ignored: the folder holds no adapter, but whole weights"
        return noted(checkpoint, "adapter-config", message, warning=True)
    return checkpoint


def unwrapped(checkpoint: Checkpoint) -> Checkpoint:
    """Without the parts of names that say what a model was wrapped in when it was saved."""
    if flat := [name for name in checkpoint.tensors if name.rpartition(".")[2] == "_flat_param"]:
        raise CheckpointError(
            f"{checkpoint.folder}: {quoted(flat[0])} is a flattened parameter of FSDP, in which many are one",
            hint="save the full state dict (StateDictType.FULL_STATE_DICT), or `accelerate merge-weights`",
        )
    found = Counter(part for name in checkpoint.tensors for part in _WRAPPERS if part in name.split("."))
    if found:

        def bare(name: str) -> str:
            return ".".join(part for part in name.split(".") if part not in _WRAPPERS)

        said = " and ".join(f"{part}." for part in found)
        checkpoint = noted(renamed(checkpoint, bare), "wrapped-names", f"{said} is taken out of tensor names")
    return _without_uniform(checkpoint)


def _without_uniform(checkpoint: Checkpoint) -> Checkpoint:
    while checkpoint.tensors and all(name.startswith(_PEFT) for name in checkpoint.tensors):
        bare = renamed(checkpoint, lambda name: name.removeprefix(_PEFT))
        checkpoint = noted(bare, "name-prefix", f"the prefix {_PEFT} of tensor names is taken off")
    return checkpoint


def as_named(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """With the names the family's rows ask for, where all differ from them by what they begin with."""
    start = _start(checkpoint, wanted)
    base = wanted.base
    if start is None or start == base:
        return checkpoint
    outer = start.removesuffix(base) if f".{start}".endswith(f".{base}") else None

    def new_name(name: str) -> str:
        if outer:
            return name.removeprefix(outer)
        if wanted.knows(name):
            return name
        if name.startswith(start) and (start or wanted.knows(base + name) or wanted.in_a_layer(base + name)):
            return base + name.removeprefix(start)
        for at, letter in enumerate(name):  # a head beside: language_model.lm_head.weight
            if letter == "." and start.startswith(name[: at + 1]) and wanted.knows(name[at + 1 :]):
                return name[at + 1 :]
        return name

    if outer:
        message = f"the prefix {outer} of tensor names is taken off"
    elif start:
        message = f"tensor names that begin with {start} are read as {base or 'without it'}"
    else:
        message = f"tensor names lack the prefix {base} and are read as if they had it"
    return noted(renamed(checkpoint, new_name), "name-prefix", message)


def _start(checkpoint: Checkpoint, wanted: Wanted) -> str | None:
    """What the names of the model's layers begin with in this file; None where nothing looks like them."""
    inner = {
        source.removeprefix(wanted.base)
        for source in wanted.sources
        if "#" in source and source.startswith(wanted.base)
    }
    found: dict[str, set[str]] = defaultdict(set)
    for name in checkpoint.tensors:
        parts, kinds = name.split("."), pattern(name).split(".")
        for at in range(min(len(parts), _DEEP)):
            if (kind := ".".join(kinds[at:])) in inner:
                found["".join(f"{part}." for part in parts[:at])].add(kind)
    if not found:
        return None
    most = max(map(len, found.values()))
    best = [start for start, kinds in found.items() if len(kinds) == most]
    if wanted.base in best:
        return wanted.base
    if len(best) > 1:
        shown = " and ".join(quoted(start) for start in sorted(best)[:4])
        raise CheckpointError(
            f"{checkpoint.folder}: the layers of a whole model lie there more than once, under {shown}",
            hint="save the model you want alone",
        )
    return best[0]
