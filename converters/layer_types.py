"""Which layers of a model see a part of the text only, as config.json names them."""

from __future__ import annotations

from .settings import Settings

LOCAL, EVERYWHERE = "sliding_attention", "full_attention"


def named_local_layers(settings: Settings, layers: int) -> tuple[bool, ...] | None:
    """Of each layer whether ``layer_types`` calls it local; None where config.json names no types.

    Raises CheckpointError for other types, and for more or fewer of them than there are layers.
    """
    named = settings.values.get("layer_types")
    if named is None:
        return None
    if not isinstance(named, list) or len(named) != layers or not set(map(str, named)) <= {LOCAL, EVERYWHERE}:
        raise settings.refuse("layer_types", named, f"{layers} times {LOCAL} or {EVERYWHERE}")
    return tuple(name == LOCAL for name in named)


def types_of(local: tuple[bool, ...]) -> list[str]:
    """The same as transformers spells it."""
    return [LOCAL if each else EVERYWHERE for each in local]


def all_but_each(period: int, layers: int) -> tuple[bool, ...]:
    """Every layer is local but each ``period``-th."""
    return tuple((layer + 1) % period != 0 for layer in range(layers))
