"""PyTorch files against ``torch.load(weights_only=True)``: whatever kconv accepts is what torch reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_material import bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated

from kconv.core.errors import CheckpointError
from kconv.core.torch_file import WRAPPERS, open_torch
from kconv.core.weight_file import WeightFile

READ = (torch.float32, torch.float16, torch.bfloat16)
DROPPED = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
CALM = settings(max_examples=120, deadline=None, derandomize=True, database=None)
calm = settings(CALM, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def views(draw: st.DrawFn, base: torch.Tensor) -> torch.Tensor:
    """A view of a storage: any shape and offset, axes exchanged, rows left out, one element many times."""
    shape = draw(st.lists(st.integers(0, 4), min_size=0, max_size=4))
    count = 1
    for length in shape:
        count *= length
    offset = draw(st.integers(0, max(0, base.numel() - count)))
    tensor = base[offset : offset + count].reshape(shape)
    for how in draw(st.lists(st.sampled_from(["exchange", "narrow", "step", "repeat", "grown"]), max_size=3)):
        axis = draw(st.integers(0, max(0, tensor.ndim - 1)))
        if how == "exchange" and tensor.ndim > 1:
            tensor = tensor.transpose(axis, draw(st.integers(0, tensor.ndim - 1)))
        elif how == "narrow" and tensor.ndim and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 1, tensor.shape[axis] - 1)
        elif how == "step" and tensor.ndim and tensor.shape[axis] > 1:
            tensor = tensor[(slice(None),) * axis + (slice(None, None, 2),)]
        elif how == "repeat" and tensor.ndim < 5:
            tensor = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], 2, *tensor.shape[axis:])
        elif how == "grown":
            tensor = tensor.unsqueeze(axis)
    return tensor


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors of one or two storages, some of them the same, some as parameters, some of types to drop."""
    state: dict[str, torch.Tensor] = {}
    for storage in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from((*READ, *READ, *DROPPED)))
        numbers = torch.arange(draw(st.integers(256, 300))) - 20
        base = (numbers if kind in DROPPED else numbers / 7).to(kind)
        for number in range(draw(st.integers(1, 3))):
            tensor = draw(views(base))
            if kind in READ and draw(st.booleans()):
                tensor = torch.nn.Parameter(tensor, requires_grad=draw(st.booleans()))
            state[f"{storage}.{number}.가"] = tensor
    return state


def same(weights: WeightFile, read: Any) -> None:
    """Every tensor that kconv has is the one torch has, byte for byte; the rest is named as dropped."""
    inner = [read[name] for name in WRAPPERS if isinstance(read.get(name), dict)]
    wrapped = len(inner) == 1 and not any(isinstance(each, torch.Tensor) for each in read.values())
    read = inner[0] if wrapped else read
    tensors = {name: value for name, value in read.items() if isinstance(value, torch.Tensor)}
    assert set(weights.tensors) | set(weights.dropped) >= set(tensors)
    for name, tensor in weights.tensors.items():
        right = tensors[name]
        assert tensor.shape == tuple(right.shape)
        assert tensor.read(0, tensor.rows).tobytes() == bits(right).tobytes()
        middle = tensor.rows // 2
        assert tensor.read(middle, tensor.rows).tobytes() == bits(right[middle:]).tobytes()
    for name in set(tensors) - set(weights.tensors):
        assert tensors[name].dtype in DROPPED or tensors[name].ndim == 0


@calm
@given(st.data())
def test_whatever_is_accepted_is_what_torch_reads(tmp_path: Path, data: st.DataObject) -> None:
    state = data.draw(state_dicts())
    path, legacy = tmp_path / "pytorch_model.bin", data.draw(st.booleans())
    wrapper = data.draw(st.sampled_from((None, None, *WRAPPERS)))
    torch.save(
        state if wrapper is None else {wrapper: state, "epoch": 3},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    if refusal := refused(path):
        assert not all(each.is_contiguous() for each in state.values()), refusal
        assert "adjacent" in refusal or "beyond its storage" in refusal
    else:
        same(open_torch(path), torch.load(path, weights_only=True))


def refused(path: Path) -> str:
    """The message, empty where the file is accepted."""
    try:
        open_torch(path)
    except CheckpointError as error:
        return error.message
    return ""


@pytest.mark.parametrize(("how", "legacy"), [("zip", False), ("bytes", False), ("bytes", True)])
def test_damaged_files_that_are_accepted(how: str, legacy: bool, tmp_path: Path) -> None:
    """Where torch reads them, too, it reads the same."""
    stream, path = io.BytesIO(), tmp_path / "pytorch_model.bin"
    base = torch.arange(60.0)
    state = {"a": base[:12].reshape(3, 4), "b": base.reshape(6, 10).t(), "c": torch.ones(5).half()}
    torch.save(state, stream, _use_new_zipfile_serialization=not legacy)
    accepted = both = 0
    for seed in range(300):
        path.write_bytes(mutated(stream.getvalue(), how, seed))
        try:
            weights = open_torch(path)
        except CheckpointError:
            continue
        accepted += 1
        try:
            read = torch.load(path, weights_only=True)
        except Exception:  # of any kind; they check other things
            continue
        both += 1
        same(weights, read)
    assert accepted > 5
    assert both > 5
