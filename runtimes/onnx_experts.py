"""What flowed into the experts of an ONNX graph, as llama.cpp tells it: by position, with the experts chosen.

In kconv's graphs (converters/onnx/experts.py) each expert is given the rows it was chosen for, which are
copies of what the router was given: that is how their positions are known again.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from .matrix_inputs import MatrixInput
from .reader import RuntimeFailure

_FIRST = re.compile(r"(.+)\.experts\.0\.down_proj\.weight")


def by_position(inputs: Mapping[str, MatrixInput]) -> dict[str, MatrixInput]:
    """``inputs`` by matrix, those of a layer's experts under the names of its first expert.

    Raises RuntimeFailure where an expert was given something else than the router.
    """
    made = dict(inputs)
    for name in inputs:
        match = _FIRST.fullmatch(name)
        if match is None:
            continue
        place = match[1]
        router = inputs.get(f"{place}.gate.weight")
        if router is None:
            raise RuntimeFailure(f"{place}: nothing is multiplied by the router's matrix")
        made[f"{place}.experts.0.down_proj.weight"] = _slots(place, router, inputs)
        for part in ("gate_proj", "up_proj"):
            made[f"{place}.experts.0.{part}.weight"] = router
    return made


def _slots(place: str, router: MatrixInput, inputs: Mapping[str, MatrixInput]) -> MatrixInput:
    """What flowed into the last matrices, ``(positions, chosen, columns)``, and the experts chosen."""
    positions: dict[bytes, list[int]] = {}
    for position, row in enumerate(router.values):
        positions.setdefault(row.tobytes(), []).append(position)
    slots: defaultdict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)
    expert = 0
    while (given := inputs.get(f"{place}.experts.{expert}.gate_proj.weight")) is not None:
        inner = inputs[f"{place}.experts.{expert}.down_proj.weight"].values
        seen: defaultdict[bytes, int] = defaultdict(int)
        for row, values in zip(given.values, inner, strict=True):
            key = row.tobytes()
            found = positions.get(key, [])
            if seen[key] >= len(found):
                raise RuntimeFailure(f"{place}: expert {expert} was given what the router was not")
            slots[found[seen[key]]].append((expert, values))
            seen[key] += 1
        expert += 1
    lengths = {len(slots[position]) for position in range(len(router.values))}
    if len(lengths) != 1:
        raise RuntimeFailure(f"{place}: not every position has as many experts as the others")
    ordered = [slots[position] for position in range(len(router.values))]
    return MatrixInput(
        np.array([[values for _, values in each] for each in ordered], np.float32),
        np.array([[number for number, _ in each] for each in ordered], np.int32),
    )
