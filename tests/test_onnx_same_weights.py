"""ONNX files hold the very weights of the GGUF: what gguf-py and the onnx package read from them is equal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.mapping import build, sources_of, unmapped
from kconv.converters.onnx.formats import choose_onnx_formats
from kconv.converters.onnx.graph import Graph
from kconv.converters.onnx.graphs import graphs_of
from kconv.converters.onnx.writer import write_onnx
from kconv.converters.samples import write_sample
from kconv.core.checkpoint import Checkpoint
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import Array, DType, Tensor
from kconv.quant.formats import Q6_K, Q8_0, Format
from kconv.quant.onnx_packing import PACKED, Packed, unpacked

Floats = npt.NDArray[np.float32]


def in_gguf(checkpoint: Checkpoint, path: Path) -> dict[str, tuple[int, Floats]]:
    """Type and weights by the checkpoint's names, rows in the checkpoint's order."""
    tensors, types = {}, {}
    for each in gguf.GGUFReader(path).tensors:
        shape = tuple(int(length) for length in reversed(each.shape))
        weights = np.asarray(gguf.quants.dequantize(each.data, each.tensor_type), np.float32).reshape(shape)
        tensors[each.name] = Tensor(each.name, shape, DType.F32, _rows_of(weights))
        types[each.name] = each.tensor_type.value
    family = family_for(checkpoint.config)
    targets = {source: name for name, sources in sources_of(family, checkpoint).items() for source in sources}
    return {
        name: (types[targets[name]], np.asarray(tensor.read(0, tensor.rows)))
        for name, tensor in unmapped(family, checkpoint, tensors).items()
    }


def _rows_of(weights: Floats) -> Any:
    def read(start: int, stop: int) -> Array:
        return weights[start:stop]

    return read


def in_onnx(folder: Path, graphs: Mapping[str, Graph]) -> dict[str, tuple[Format, Floats]]:
    """Format and weights by the checkpoint's names, read from the files with the onnx package."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for file in graphs:
        for each in onnx.load(folder / file).graph.initializer:
            arrays[each.name] = numpy_helper.to_array(each)
    tensors = {}
    for weight in (weight for graph in graphs.values() for weight in graph.weights.values()):
        parts = [arrays[part.name] for part in weight.parts]
        if weight.format in PACKED:
            blocks = parts[0].reshape(*parts[1].shape, -1)
            weights = unpacked(weight.format, Packed(blocks, parts[1]))
        else:
            weights = parts[0].astype(np.float32)
        tensors[weight.tensor.name] = weight.format, weights
    return tensors


@pytest.mark.parametrize(
    "sample",
    [
        "42dot",
        "kogpt",
        "kebyt5",
        "gbst-kebyt5",
        "qwen2",
        "qwen3",
        "gpt-neox",
        "exaone",
        "qwen3-moe",
        "exaone4",
        "mistral",
        "gemma3",
        "bert",
    ],
)
def test_weights_are_those_of_the_gguf(sample: str, tmp_path: Path) -> None:
    folder = write_sample(sample, tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    family = family_for(checkpoint.config)
    model = build(family, checkpoint)
    types, by_target = ("f16", "q8_0", "q4_0"), sources_of(family, checkpoint)
    files = to_gguf(folder, tmp_path, types=types, verify=False).outputs
    for type, file in zip(types, files, strict=True):
        graphs = graphs_of(family, checkpoint, choose_onnx_formats(family, checkpoint, model, type).formats)
        place = tmp_path / f"{type} onnx"
        place.mkdir()
        write_onnx(graphs, place)
        right, actual = in_gguf(checkpoint, file.path), in_onnx(place, graphs)
        shared = [name for name in actual if name in right and actual[name][0].ggml_type == right[name][0]]
        for name in shared:
            assert np.array_equal(actual[name][1], right[name][1]), (type, name)
        other = sorted(set(actual) - set(shared))
        own = [name for name in other if name not in right]
        assert all(name.startswith("encoder.embed_tokens.") for name in own)  # a front end's, in its own file
        different = {name for name in other if name in right}
        expected = {name for name, (number, _) in right.items() if number == Q6_K.ggml_type}
        (head,) = by_target.get("output.weight", by_target["token_embd.weight"])
        assert expected <= {head}
        expected |= {"shared.weight"} if sample == "gbst-kebyt5" else set()  # the front end's, F32 here
        assert different == expected
        if type == "q4_0":
            assert actual[head][0] == Q8_0
