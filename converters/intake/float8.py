"""Weights in floats of 8 bits with scales: by tensor, by row or by block, multiplied out as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ...core.checkpoint import Checkpoint
from ...core.errors import CheckpointError
from ...core.input_files import quoted
from ...core.tensor import Array, DType, Tensor
from ..transforms import read_wide
from .wanted import listed, noted, without

# Of compressed-tensors, DeepSeek, torchao, ComfyUI, Mistral and TensorRT-LLM. Each is a factor, whatever its
# name says of an inverse.
_SCALES = (
    *("weight_scale", "weight_scale_inv", "scale", "scale_weight", "qscale_weight", "weight_scales"),
    *("weights_scaling_factor", "weight_scaling_factor", "scale_inv"),
)
_USUAL_BLOCK = (128, 128)
# What concerns activations, or the cache, when a model runs in 8 bits.
_OF_ACTIVATIONS = (
    *("input_scale", "output_scale", "act_scale", "activation_scale", "input_scale_ub", "scale_input"),
    *("input_scale_inv", "activation_scale_inv", "qscale_act", "activation_scaling_factor"),
)
_BF16 = (
    "make BF16 of it with transformers: `AutoModelForCausalLM.from_pretrained(FOLDER, dtype='bfloat16', "
    "quantization_config=FineGrainedFP8Config(dequantize=True)).save_pretrained(NEW)`"
)


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """With the weights of 8 bits times their scales in fp32. Raises CheckpointError for unclear scales."""
    held = {**checkpoint.tensors, **checkpoint.scalars, **checkpoint.unindexed}
    narrow = [name for name, tensor in checkpoint.tensors.items() if tensor.held_as and not _is_scale(name)]
    settings = checkpoint.config.get("quantization_config")
    if not narrow:
        return _ignored(checkpoint) if isinstance(settings, dict) else checkpoint
    settings = settings if isinstance(settings, dict) else {}
    made: dict[str, Tensor] = {}
    used: set[str] = set()
    plain: list[str] = []
    for name in narrow:
        scale = next((each for each in _scale_names(name) if each in held), None)
        if scale is None:
            plain.append(name)
            continue
        used.add(scale)
        made[name] = _scaled(checkpoint, checkpoint.tensors[name], held[scale], settings)
    if plain and (settings or made):
        raise CheckpointError(
            f"{checkpoint.folder}: weights are 8-bit floats without the scales they need: {listed(plain)}",
            hint=f"complete the download, or {_BF16}",
        )
    others = [name for name in held if name.rpartition(".")[2] in _OF_ACTIVATIONS]
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    checkpoint = replace(checkpoint, tensors={**checkpoint.tensors, **made}, config=config)
    kinds = ", ".join(sorted({checkpoint.tensors[name].held_as for name in narrow}))
    how = "times their scales, in fp32" if made else "as they are: there are no scales"
    checkpoint = noted(checkpoint, "float8", f"{len(narrow)} weights are {kinds}; they are read {how}")
    if others:
        message = f"scales of activations are left out, weights do not need them: {listed(others)}"
        checkpoint = noted(checkpoint, "activation-scales", message)
    return without(checkpoint, used.union(others))


def _ignored(checkpoint: Checkpoint) -> Checkpoint:
    """Weights are not quantized, whatever config.json says: merges of QLoRA leave such files."""
    method = checkpoint.config["quantization_config"].get("quant_method")
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    message = f"config.json's quantization_config ({quoted(method)}) is ignored: no weight is quantized"
    return noted(replace(checkpoint, config=config), "quantization-config", message)


def _is_scale(name: str) -> bool:
    return name.rpartition(".")[2] in (*_SCALES, *_OF_ACTIVATIONS)


def _scale_names(name: str) -> list[str]:
    """``a.weight`` has ``a.weight_scale``, ``a`` has ``a_scale``."""
    if name.endswith(".weight"):
        return [name.removesuffix("weight") + scale for scale in _SCALES]
    return [f"{name}{ending}" for ending in ("_scale", "_scale_inv", ".scale")]


def _scaled(checkpoint: Checkpoint, weight: Tensor, scale: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """The product, lazily; ``scale`` has a number for each block of rows and columns."""
    if scale.elements == 1:
        block: tuple[int, ...] = weight.shape
    elif len(weight.shape) != 2 or scale.rows == 0:
        raise _unclear(checkpoint, weight, scale)
    else:
        shape = scale.shape if len(scale.shape) > 1 else (*scale.shape, 1)
        block = _block(checkpoint, weight, replace(scale, shape=shape), settings)
    read = partial(_read_scaled, weight, scale, block)
    granule = block[0] if block[0] < weight.rows else 1
    return replace(weight, dtype=DType.F32, read=read, granule=granule)


def _block(
    checkpoint: Checkpoint, weight: Tensor, scale: Tensor, settings: Mapping[str, Any]
) -> tuple[int, int]:
    """Rows and columns that share a scale: as config.json says where that fits, else as the shapes tell."""
    (rows, columns), shape = weight.shape, scale.shape
    for high, wide in (*_said_blocks(settings), _USUAL_BLOCK):
        if (-(-rows // high), -(-columns // wide)) == shape:
            return high, wide
    if len(shape) == 2 and not rows % shape[0] and shape[1] and not columns % shape[1]:
        return rows // shape[0], columns // shape[1]
    raise _unclear(checkpoint, weight, scale)


def _said_blocks(settings: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The blocks config.json names, as fine-grained FP8 and compressed-tensors do."""
    groups = settings.get("config_groups")
    weights = (
        [each.get("weights") for each in groups.values() if isinstance(each, dict)]
        if isinstance(groups, dict)
        else []
    )
    said = [settings.get("weight_block_size")]
    said += [each.get("block_structure") for each in weights if isinstance(each, dict)]
    return [
        (each[0], each[1])
        for each in said
        if isinstance(each, list) and len(each) == 2 and all(type(n) is int and 0 < n < 1 << 20 for n in each)
    ]


def _unclear(checkpoint: Checkpoint, weight: Tensor, scale: Tensor) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.folder}: {weight.name} is {weight.held_as} of shape {list(weight.shape)}, and its "
        f"scales {scale.name} have the shape {list(scale.shape)}; nothing says which belongs to what",
        hint=_BF16,
    )


def _read_scaled(weight: Tensor, scale: Tensor, block: tuple[int, ...], start: int, stop: int) -> Array:
    values = weight.read(start, stop)
    if start == stop:
        return values
    if scale.elements == 1:
        factors: Array = read_wide(scale, 0, 1).reshape(())
    else:
        first, last = start // block[0], -(-stop // block[0])
        factors = read_wide(scale, first, last).reshape(last - first, -1)
        rows = np.arange(start, stop) // block[0] - first
        factors = np.repeat(factors, block[1], axis=1)[rows, : values.shape[1]]
    with np.errstate(all="ignore"):  # what is not finite the writer reports
        product: Array = np.multiply(values, factors, dtype=np.float32)
    return product
