"""transformers' class for a config.json no family is for, and the weights as that class has them.

The renaming and merging of weights is transformers' own list (its conversion_mapping), carried out lazily.
Code that a checkpoint brings along is never run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from ..converters.by_name import natural
from ..converters.family import InTransformers, Sizes
from ..converters.transforms import concatenated, stacked
from ..core.errors import CheckpointError, UnsupportedModel
from ..core.input_files import quoted
from ..core.tensor import Tensor
from .empty_model import computing, empty_model

_OPEN_AN_ISSUE = "open an issue with the model's name if you need it"
_STACKED = re.compile(r"(.*\.experts)\.((?:gate|up|down)_proj)\Z")
"""A checkpoint's own stack of experts; that of the first stands for all."""
_EXPERTS = re.compile(r"(.*\.experts\.)(\d+)\.")


@dataclass(frozen=True)
class AnyModel:
    """A class of transformers: how it has the weights, and the ``settings`` it reads, by their names."""

    reference: InTransformers
    settings: Any


def any_model(config: Mapping[str, Any], where: str, threads: int) -> AnyModel:
    """What transformers has for a config.json that no family is for.

    Raises UnsupportedModel where it has no class that generates text, CheckpointError where it cannot make
    the model described.
    """
    name = class_for(config, where)
    nulls = frozenset(key for key, value in config.items() if value is None)
    with computing(threads):
        try:
            model = empty_model(InTransformers(name, nulls=nulls), config, where)  # as from_pretrained does
        except CheckpointError:  # of the nulls or of something else, which it says again without them
            nulls = frozenset()
            model = empty_model(InTransformers(name), config, where)
    names = _Names(model)
    reference = InTransformers(name, nulls=nulls, tensors=names.tensors, module=names.module)
    return AnyModel(reference, _declared(model.config))


def _declared(settings: Any) -> SimpleNamespace:
    """The settings the class has a default of; what else stands in a config.json it never reads."""
    names = {*vars(type(settings)()), *settings.attribute_map}
    return SimpleNamespace(**{name: getattr(settings, name) for name in names if hasattr(settings, name)})


def class_for(config: Mapping[str, Any], where: str) -> str:
    """The name of the class. Raises UnsupportedModel."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind, given = config.get("model_type"), config.get("architectures")
    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) if isinstance(kind, str) else None
    name = found[0] if isinstance(found, tuple | list) else found
    classes = [each for each in given if isinstance(each, str)] if isinstance(given, list) else []
    if name is not None and (not classes or name in classes):
        return str(name)
    named = quoted(classes[0] if classes else kind)
    if config.get("auto_map"):
        message = f"{where}: {named} is code of the checkpoint's own (auto_map), which kconv never runs"
    else:
        message = f"{where}: transformers has no class for {named} that generates text from text alone"
    raise UnsupportedModel(message, hint="`kconv models` lists what else can be verified")


class _Names:
    """From the names in a checkpoint to those of a class's parameters, by transformers' list of changes."""

    def __init__(self, model: Any) -> None:
        kept = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._own = kept | {name for name, _ in model.named_buffers()}
        self._prefix = model.base_model_prefix
        self._renamings, self._converters = _changes(model)

    def target(self, name: str) -> tuple[str, Any, str | None]:
        """The parameter a weight goes into; the merge it goes through, if any, and by which pattern."""
        for renaming in self._renamings:
            name, _ = renaming.rename_source_key(name)
        for converter in self._converters:
            renamed, pattern = converter.rename_source_key(name)
            if pattern is not None:
                return self._prefixed(renamed), converter, pattern
        return self._prefixed(name), None, None

    def _prefixed(self, name: str) -> str:
        if name in self._own:
            return name
        options = (f"{self._prefix}.{name}", name.removeprefix(f"{self._prefix}."))
        return next((each for each in options if each in self._own), name)

    def tensors(self, held: Mapping[str, Tensor], sizes: Sizes) -> Mapping[str, Tensor]:
        """See ``InTransformers.tensors``. Raises UnsupportedModel for changes kconv cannot make lazily."""
        made: dict[str, Tensor] = {}
        parts: dict[str, tuple[Any, dict[str, list[Tensor]]]] = {}
        for name in sorted(held, key=natural):
            target, converter, pattern = self.target(name)
            if converter is None or pattern is None:
                made[target] = held[name]
            else:
                parts.setdefault(target, (converter, {}))[1].setdefault(pattern, []).append(held[name])
        for target, (converter, found) in parts.items():
            lists = [found[pattern] for pattern in converter.source_patterns if pattern in found]
            made[target] = _merged(converter, lists, target)
        return made

    def module(self, name: str) -> str:
        """See ``InTransformers.module``; an expert's matrices are ``….experts.3.gate_proj`` and so on."""
        target, converter, pattern = self.target(name)
        match = _EXPERTS.match(name)
        if converter is None or match is None:
            return _STACKED.sub(r"\1.0.\2", target.removesuffix(".weight"))
        place, _, fused = target.rpartition(".")
        parts = ("gate_proj", "up_proj") if fused == "gate_up_proj" else (fused,)
        return f"{place}.{match[2]}.{parts[converter.source_patterns.index(pattern)]}"


def _changes(model: Any) -> tuple[list[Any], list[Any]]:
    """Renamings, all of which apply, and merges, of which one does; none in older transformers."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter
    except ImportError:
        return [], []
    changes = get_model_conversion_mapping(model)
    merges = [change for change in changes if isinstance(change, WeightConverter)]
    return [change for change in changes if not isinstance(change, WeightConverter)], merges


def _merged(converter: Any, parts: Sequence[Sequence[Tensor]], target: str) -> Tensor:
    """What one of transformers' conversions makes, lazily: experts are read one at a time."""
    operations = [(type(each).__name__, getattr(each, "dim", None)) for each in converter.operations]
    ways: dict[tuple[Any, ...], Callable[[], Tensor]] = {
        (("MergeModulelist", 0),): partial(_stack_all, parts),
        (("MergeModulelist", 0), ("Concatenate", 1)): partial(_stack_pairs, parts),
        (("Concatenate", 0),): partial(_join_all, parts),
    }
    way = ways.get(tuple(operations))
    if way is None:
        done = ", ".join(name for name, _ in operations)
        raise UnsupportedModel(
            f"transformers makes {target} of the checkpoint's weights by {done}, which kconv cannot do",
            hint=_OPEN_AN_ISSUE,
        )
    return way()


def _stack_all(parts: Sequence[Sequence[Tensor]]) -> Tensor:
    return stacked(parts[0])


def _stack_pairs(parts: Sequence[Sequence[Tensor]]) -> Tensor:
    return stacked([concatenated(each) for each in zip(*parts, strict=True)])


def _join_all(parts: Sequence[Sequence[Tensor]]) -> Tensor:
    return concatenated([part for each in parts for part in each])
