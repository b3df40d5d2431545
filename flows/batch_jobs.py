"""What a batch is asked for: steps, each one conversion, and what each is called in the journal."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..converters.onnx.formats import AUTO, parse_type
from ..converters.results import Options, Scope
from ..converters.targets import label_of, type_of
from ..core.errors import UsageError
from ..core.reading import hub_origin
from ..quant.policy_file import policy_label
from ..quant.wish import Wanted, wanted

Format = Literal["gguf", "onnx"]
FORMATS: tuple[Format, ...] = ("gguf", "onnx")


@dataclass(frozen=True)
class Step:
    """One conversion: a checkpoint to GGUF files of several types in one read, or to one ONNX folder.

    ``job`` is the number of the job it belongs to, from 1. ``source`` is the whole path of a folder, or
    ``org/name[@revision]`` on the Hub. ``output`` is absolute: the folder in which the
    outputs get their usual names, or a file ending in ``.gguf``. ``options`` are arguments of
    ``flows.convert.to_gguf`` or ``flows.to_onnx.to_onnx`` besides types, output, force and threads. ``types``
    also name the files whose formats are chosen, by their targets: ``4.5G``, ``KL0.02``.
    """

    job: int
    source: str
    format: Format
    types: tuple[str, ...]
    output: Path
    options: Mapping[str, Any]
    threads: int | None = None

    @property
    def address(self) -> str:
        """The source, so that a name on the Hub is not taken for a folder that is called the same."""
        return self.source if os.path.isabs(self.source) else f"hf://{self.source}"

    @property
    def scope(self) -> Scope:
        """How much of a proof there is to be."""
        scope: Scope = self.options.get("verify", "quick")
        return scope

    @property
    def keys(self) -> dict[str, str]:
        """The journal's name for each output, and its type as it was asked for."""
        place = f"{self.output}:{self.source}"
        return {f"{self.format}:{self.canonical(name)}:{place}": name for name in self.types}

    @property
    def wanted(self) -> Wanted:
        """What is asked for besides types, for all files of the step."""
        sizes, divergences, menu = (
            self.options.get(name) or () for name in ("target_size", "target_kl", "menu")
        )
        return wanted(sizes, divergences, menu, self.options.get("policy"))

    @property
    def wishes(self) -> tuple[str, ...]:
        """What the files are called whose formats are chosen, of all that the options ask for."""
        return tuple(wish.label for wish in self.wanted.wishes(self._policy_label))

    @property
    def _policy_label(self) -> str:
        return policy_label(self.options.get("policy") or "")

    def canonical(self, name: str) -> str:
        """One name for what has several."""
        return name if name in self.wishes else canonical(self.format, name)

    def with_types(self, types: Sequence[str]) -> Step:
        """The same for some of its types."""
        return Step(self.job, self.source, self.format, tuple(types), self.output, self.options, self.threads)

    def gguf_options(self) -> Options:
        """What a conversion to GGUF gets."""
        named = {field.name for field in fields(Options)} - {"types", "chosen"}
        types = tuple(name for name in self.types if name not in self.wishes)
        chosen = self.wanted.only(self.types, self._policy_label)
        values = {name: value for name, value in self.options.items() if name in named}
        files = {
            "imatrix": None if values.get("imatrix") is None else str(values["imatrix"]),
            "calibrate": tuple(map(str, values.get("calibrate", ()))),
        }
        return Options(types, chosen=chosen, **{**values, **files})


def canonical(format: Format, type_name: str) -> str:
    """One name for a type that has several (``Q4_K``, ``q4_k_m``). Raises UsageError for none."""
    if format == "onnx":
        return parse_type(type_name)
    return AUTO if type_name.lower() == AUTO else type_of(type_name, Options())


def model_name(source: str) -> str:
    """What files made of a source are called, before it is opened."""
    folder = Path(source)
    repository = hub_origin(folder)[0] if folder.is_dir() else None
    name = repository or (os.path.realpath(source) if folder.exists() else source.partition("@")[0])
    return re.sub(r"[^\w.\-+]", "_", name.rstrip("/").rpartition("/")[2]) or "model"


def refuse_same_outputs(steps: Sequence[Step]) -> None:
    """Raise UsageError where two jobs would write one file, be it only on a disk that ignores case."""
    seen: dict[str, Step] = {}
    for step in steps:
        for type_name in step.types:
            place = str(step.output)
            if not place.endswith(".gguf"):
                known = type_name in step.wishes
                label = type_name if known else label_of(canonical(step.format, type_name))
                place = f"{place}/{model_name(step.source)}-{label}.{step.format}"
            other = seen.setdefault(place.casefold(), step)
            if other is not step:
                raise UsageError(
                    f"jobs {other.job} ({other.source}) and {step.job} ({step.source}) would both write "
                    f"{place}",
                    hint="give one of them an output of its own",
                )


def shard_of(steps: Sequence[Step], shard: int, shards: int) -> list[Step]:
    """The steps of shard ``shard`` (from 1) of ``shards``: sources are dealt out in the order of the file.

    All that is made of one source is in one shard, so that it is downloaded once.
    """
    numbers = {source: at for at, source in enumerate(dict.fromkeys(step.source for step in steps))}
    return [step for step in steps if numbers[step.source] % shards == shard - 1]
