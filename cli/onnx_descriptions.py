"""What ``kconv inspect`` says of an ONNX folder, as plain JSON values. Reads no weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import KconvError
from .descriptions import Description, classes, manifest_of, plain, proof_of, summary, tensor_line, tokenizer

if TYPE_CHECKING:
    from ..runtimes.onnx_model_file import Initializer, ModelFile, Value

_OF_CHECKPOINTS = ("*.safetensors", "*.bin")


def is_onnx(folder: Path) -> bool:
    """Whether a folder is one of ONNX files, and not a checkpoint that has some, too."""
    from ..runtimes.onnx_folder import holds_onnx

    return holds_onnx(folder) and not any(any(folder.glob(pattern)) for pattern in _OF_CHECKPOINTS)


def describe_onnx(folder: Path) -> Description:
    """An ONNX folder, from its graphs, config.json and tokenizer. Raises what ``open_onnx`` raises."""
    from ..converters.card import general_metadata
    from ..converters.targets import manifest_path
    from ..runtimes.onnx_folder import open_onnx
    from ..runtimes.onnx_left import left_to_cpu

    opened = open_onnx(folder, runs=False)
    files = opened.without_weights
    general, manifest = general_metadata(files), manifest_of(folder)
    tensors = _tensors(opened.models)
    source = {} if manifest is None else manifest["source"]
    return {
        "path": str(folder),
        "kind": "onnx",
        "name": plain(general.get("general.name")),
        "architecture": classes(opened.config),
        "license": plain(general.get("general.license", source.get("license"))),
        "bytes": opened.bytes,
        **summary(tensors),
        "file_type": opened.type,
        "flavour": opened.flavour,
        "least_onnxruntime": opened.least,
        "left_to_cpu": left_to_cpu(opened.operators),
        "hyperparameters": {
            str(key): plain(value) for key, value in opened.config.items() if key != "architectures"
        },
        "vocabulary": tokenizer(files),
        "metadata": {key: plain(value) for key, value in general.items()},
        "manifest": None if manifest is None else str(manifest_path(folder)),
        "proof": proof_of(manifest, _size(folder, manifest)),
        "graphs": [_graph(model) for model in opened.models],
        "tensors": tensors,
    }


def _size(folder: Path, manifest: Mapping[str, Any] | None) -> int:
    """Bytes of the files the manifest names, as they are now."""
    from ..converters.recorded import written_files

    try:
        written = () if manifest is None else written_files(manifest, folder)
    except KconvError:
        return -1
    paths = [folder / file.name for file in written]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _tensors(models: Sequence[ModelFile]) -> list[Description]:
    """The weights of all graphs, each once, blocks and scales as the matrix they are.

    Where weights lie in files of their own, what a graph keeps itself are constants, which are left out.
    """
    from ..runtimes.onnx_model_file import element_name

    initializers: dict[str, Initializer] = {}
    for model in models:
        initializers |= model.external or model.initializers
    lines = []
    for name, stored in initializers.items():
        matrix = name.removesuffix(".blocks")
        scales = initializers.get(f"{matrix}.scales") if matrix != name else None
        if scales is not None:
            lines.append(_in_blocks(matrix, stored, scales))
        elif not (name.endswith(".scales") and f"{name.removesuffix('.scales')}.blocks" in initializers):
            lines.append(tensor_line(name, stored.shape, element_name(stored.element), stored.nbytes))
    return lines


def _in_blocks(name: str, blocks: Initializer, scales: Initializer) -> Description:
    """A matrix of whole numbers with a scale for each block of 32 (quant/onnx_packing.py)."""
    from ..quant.onnx_packing import BLOCK

    size = blocks.nbytes + scales.nbytes
    known = {BLOCK: "q8_0", BLOCK // 2: "q4_0"}
    format = known.get(blocks.nbytes // max(1, math.prod(scales.shape)), "blocks")
    return tensor_line(name, (*scales.shape[:-1], BLOCK * scales.shape[-1]), format, size)


def _graph(model: ModelFile) -> Description:
    return {
        "file": model.path.name,
        "producer": plain(model.producer),
        "opsets": {domain or "ai.onnx": version for domain, version in model.opsets.items()},
        "data": [path.name for path in model.data],
        "operators": dict(sorted(model.operators.items(), key=lambda item: (-item[1], item[0]))),
        "inputs": [_value(each) for each in model.inputs],
        "outputs": [_value(each) for each in model.outputs],
    }


def _value(value: Value) -> Description:
    return {"name": value.name, "type": value.type, "shape": list(value.shape)}
