"""Front ends: what makes the input of an encoder in place of its own embedding, where llama.cpp has no graph.

A family that has one says so by its ``front_end``; through that value every room reaches it. In GGUF it is a
file of its own beside its bodies, which name it by kind and fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.checkpoint import Checkpoint
from ..core.errors import GgufError
from ..core.input_files import quoted
from ..core.tensor import Tensor

Floats = npt.NDArray[np.float32]
Embed = Callable[[Sequence[int]], Floats]
"""Token ids to what an encoder reads, float32 ``(positions, width)``."""

# In a body: which kind of front end it needs, and the fingerprint of the one it was made with.
KIND_KEY, FINGERPRINT_KEY = "kconv.front_end", "kconv.front_end.fingerprint"


@dataclass(frozen=True)
class FrontEndFile:
    """A front end as read from its file: what was really read is what the fingerprint is of.

    It makes one position of ``factor`` token ids.
    """

    path: Path
    fingerprint: str
    factor: int
    embed: Embed


@dataclass(frozen=True)
class FrontEnd:
    """A kind of front end; ``kind`` is the general.architecture of its files, ``title`` its name in words.

    ``exact`` are the checkpoint's tensors it computes with, in float32 whatever type the body has. ``factor``
    is how many ids become one position, ``factor_of`` what a config.json alone says of that; ``fingerprint``
    names what a checkpoint's computes, ``beside`` finds the file of a body (path, keys, the file chosen by
    the user). ``join`` puts it, in torch, before the encoder of transformers' empty model, ``weights`` adds
    its own tensors to those of a body. An ONNX folder holds it in the encoder's graph: ``onnx_config`` gives
    the keys of config.json that say how that runs, and ``onnx_file`` the name under which the configuration
    as it was is kept.
    """

    kind: str
    title: str
    exact: frozenset[str]
    factor: Callable[[Checkpoint], int]
    factor_of: Callable[[Mapping[str, Any]], int]
    fingerprint: Callable[[Checkpoint], str]
    beside: Callable[[Path, Mapping[str, Any], Path | None], FrontEndFile]
    join: Callable[[Any, Checkpoint], int]
    weights: Callable[[Mapping[str, Tensor], Checkpoint], Mapping[str, Tensor]]
    onnx_file: str
    onnx_config: Mapping[str, Any]


def front_end_of(
    known: Sequence[FrontEnd], body: Path, metadata: Mapping[str, Any], chosen: Path | None = None
) -> FrontEndFile | None:
    """The front end the body at ``body`` needs, None if it needs none; ``metadata`` are the body's keys.

    ``chosen`` is the file to take, by default the one beside the body. Raises GgufError where there is none,
    where it belongs to another model, is damaged or not asked for.
    """
    kind, wanted = metadata.get(KIND_KEY), metadata.get(FINGERPRINT_KEY)
    if kind is None:
        if chosen is not None:
            raise GgufError(f"{body} does not need a front end, but {chosen} was given", hint="leave it out")
        return None
    front_end = next((each for each in known if each.kind == kind), None)
    if front_end is None or not isinstance(wanted, str):
        kinds = " or ".join(each.kind for each in known)
        raise GgufError(
            f"{body}: {KIND_KEY} is {quoted(kind)} with the fingerprint {quoted(wanted)}, expected {kinds} "
            "and 64 hexadecimal digits",
            hint="the file is damaged or was made by a newer kconv",
        )
    return front_end.beside(body, metadata, chosen)
