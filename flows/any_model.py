"""Models without a family: one is made for a file and its checkpoint when they are verified.

transformers' class gives the reference, llama.cpp's tables of names the rows, and the settings most classes
share the keys. What these do not tell is "not compared", and without all weights "right" is not decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..converters.by_config import keys_by_config
from ..converters.by_name import EMBEDDING, Told, numbers, rows_by_name
from ..converters.departures import departure_by_config
from ..converters.family import AnyFamily, Family
from ..converters.mapping import build
from ..converters.tokenizer import read_tokenizer
from ..core.checkpoint import Checkpoint
from ..core.cores import available_cores
from ..core.errors import InputError, VocabError
from ..core.gguf_file import GgufHeader
from ..core.model import Model
from ..quant.gguf_weights import GgufFile
from ..reference.any_model import AnyModel, any_model
from ..verify.inputs import Expected
from ..verify.same_model import refuse_other_model
from ..vocab.expected import expected_model
from ..vocab.in_gguf import read_vocab
from ..vocab.tokenizer import Source

_NO_WEIGHTS = "rotary_emb.inv_freq"  # tables older checkpoints keep, which every class computes anew


@dataclass(frozen=True)
class _Sizes:
    """The facts of such a family."""

    sizes: Mapping[str, int]


@dataclass(frozen=True)
class NotCompared:
    """What could not be held against the checkpoint.

    ``tensors`` of the file, ``weights`` of the checkpoint, by name; ``keys`` of the file's metadata;
    ``vocabulary`` is why the vocabulary has no counterpart, or empty.
    """

    tensors: tuple[str, ...]
    weights: tuple[str, ...]
    keys: tuple[str, ...]
    vocabulary: str

    @property
    def all_weights_read(self) -> bool:
        """Whether every weight of either side was found on the other."""
        return not self.tensors and not self.weights


def expected_of_any(
    file: GgufFile, checkpoint: Checkpoint, manifest: Mapping[str, Any] | None
) -> tuple[Expected, NotCompared]:
    """What a file of a model without a family should hold, and what that leaves out.

    Raises UnsupportedModel for models transformers has no class for, InputError for a file of another model,
    VocabError where the checkpoint's tokenizer cannot be read.
    """
    found = any_model(checkpoint.config, f"{checkpoint.folder}/config.json", available_cores())
    header = file.header
    sizes = _sizes(found.settings)
    layers = max(sizes["layers"], _whole(header.metadata.get(f"{header.arch}.block_count")))
    stored = {info.name: file.tensor(info) for info in header.tensors}
    weights = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not name.endswith(_NO_WEIGHTS) and name not in checkpoint.aliases
    }
    told = rows_by_name(header.arch, layers, weights, stored, sizes)
    if not any(row.target == EMBEDDING for row in told.rows):
        raise _other_model(file, checkpoint, header.arch)
    family, keys = _family(found, checkpoint, header, told, sizes)
    model = build(family, checkpoint)
    refuse_other_model(file, model)
    source = read_tokenizer(checkpoint)
    model, why = _with_vocabulary(model, checkpoint, source, header, manifest)
    return Expected(checkpoint, family, model, source), NotCompared(told.untold, told.left, keys, why)


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 16 else 0


def _sizes(settings: Any) -> dict[str, int]:
    heads = _whole(getattr(settings, "num_attention_heads", 0))
    kv_heads = _whole(getattr(settings, "num_key_value_heads", None)) or heads
    return {"layers": _whole(getattr(settings, "num_hidden_layers", 0)), "heads": heads, "kv_heads": kv_heads}


def _family(
    found: AnyModel, checkpoint: Checkpoint, header: GgufHeader, told: Told, sizes: Mapping[str, int]
) -> tuple[AnyFamily, tuple[str, ...]]:
    """The family, and the keys of the file that config.json does not tell."""
    start = f"{header.arch}."
    own = {key.removeprefix(start): value for key, value in header.metadata.items() if key.startswith(start)}
    keys, unknown = keys_by_config(found.settings, own)
    facts = _Sizes({**sizes, **numbers(told.rows)})
    skipped = tuple(name for name in checkpoint.tensors if name not in _used(told))
    name = found.reference.name
    family: AnyFamily = Family(
        name=str(checkpoint.config.get("model_type")),
        title=name,
        models=(),
        hf_classes=(name,),
        arch=header.arch,
        facts=lambda settings: facts,
        flags=lambda facts, checkpoint: frozenset(),
        keys=lambda facts: keys,
        rows=told.rows,
        limits={"llama.cpp": lambda facts: None},
        reference=found.reference,
        dropped=skipped,
        gelu="gelu" in _activation(found.settings),
        departure=departure_by_config(found.settings),
    )
    return family, tuple(f"{start}{key}" for key in unknown)


def _used(told: Told) -> set[str]:
    return {source for row in told.rows for source in row.sources}


def _activation(settings: Any) -> str:
    names = ("hidden_activation", "hidden_act", "activation_function")
    return next((str(value) for name in names if (value := getattr(settings, name, None))), "")


def _with_vocabulary(
    model: Model,
    checkpoint: Checkpoint,
    source: Source,
    header: GgufHeader,
    manifest: Mapping[str, Any] | None,
) -> tuple[Model, str]:
    """The model with the vocabulary it should have; with the file's own, and why, where nothing tells."""
    try:
        return expected_model(model, checkpoint, source, header, manifest), ""
    except VocabError as error:
        vocab, _ = read_vocab(header.metadata)
        return replace(model, vocab=vocab), error.message


def _other_model(file: GgufFile, checkpoint: Checkpoint, arch: str) -> InputError:
    return InputError(
        f"{file.path}: llama.cpp's names for the architecture {arch[:40]!r} fit none of the tensors of "
        f"{checkpoint.folder}, not even the embedding",
        hint="pass the checkpoint the file was made from with --against",
    )
