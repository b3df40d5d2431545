"""safetensors files of random weights larger than memory, with the bytes the library would write.

The library's ``save_file`` wants all tensors of a file in memory. Here they are made slab by slab and written
at offsets known beforehand; memory stays at a few megabytes, also for sixteen gigabytes of weights.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy.typing as npt

from kconv.converters.samples.weights import Shape, random_slabs
from kconv.core.tensor import DType


def write_safetensors(
    path: Path, shapes: Mapping[str, Shape], dtype: DType, seed: int = 0, *, threads: int = 1
) -> None:
    """Write one safetensors file of random tensors, sorted by name as the safetensors library does.

    Layout: eight bytes of header length, a JSON header padded with spaces to a multiple of eight, the
    data (github.com/huggingface/safetensors, README, "Format").
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for name in sorted(shapes):
        offsets[name] = end
        end += math.prod(shapes[name]) * dtype.itemsize
        header[name] = {
            "dtype": dtype.value,
            "shape": list(shapes[name]),
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(start + end)
        file.flush()

        def fill(name: str) -> None:
            position = start + offsets[name]
            for slab in random_slabs(name, shapes[name], dtype, seed):
                position += _write_all(file.fileno(), slab, position)

        with ThreadPoolExecutor(max(1, threads)) as pool:
            for _ in pool.map(fill, offsets):
                pass


def _write_all(handle: int, values: npt.NDArray[Any], position: int) -> int:
    view = values.data.cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(handle, view[done:], position + done)
    return done
