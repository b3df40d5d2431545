"""Checkpoint folders for the tests of reading, good and bad."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kconv.core.errors import CheckpointError
from kconv.core.reading import open_checkpoint


def folder_with_config(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


def raw_safetensors(header: object, data: bytes = b"") -> bytes:
    """The bytes of a safetensors file with any header: an object, or text already."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def index(weight_map: dict[str, Any]) -> str:
    return json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})


def bits(tensor: Any) -> npt.NDArray[Any]:
    """A torch tensor as kconv gives it: numpy in C order, bfloat16 as its bits."""
    import torch

    tensor = tensor.detach().contiguous()
    return np.asarray((tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy())


def private_bytes() -> int:
    """Private memory of this process (RssAnon)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


def refusal(folder: Path, *words: str) -> CheckpointError:
    """Open the folder, which must be refused with a message holding all of ``words`` on one line."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    error = caught.value
    assert error.exit_code == 3
    assert error.message.isprintable(), error.message
    assert len(error.message) < 600
    for word in words:
        assert word in error.message, f"{word!r} is not in {error.message!r}"
    return error
