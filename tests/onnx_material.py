"""A Llama as an ONNX folder, written with the onnx package alone: running folders depends on no converter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kconv.core.reading import open_checkpoint
from kconv.core.tensor import Tensor


def numbers(tensor: Tensor) -> Any:
    return np.ascontiguousarray(tensor.read(0, tensor.rows).astype(np.float32).reshape(tensor.shape))


def write_llama_onnx(
    checkpoint: Path,
    folder: Path,
    *,
    wrong_positions: bool = False,
    sees_padding: bool = False,
    half: bool = False,
) -> Path:
    """model.onnx and its data, config and tokenizer.

    ``wrong_positions``: every reading begins at position 0 again, which only the cache shows.
    ``sees_padding``: padding counts as text. ``half``: weights, logits and cache in f16.
    """
    opened = open_checkpoint(checkpoint)
    config, weights = opened.config, {name: numbers(t) for name, t in opened.tensors.items()}
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    width, layers = config["hidden_size"] // heads, config["num_hidden_layers"]
    theta = (config.get("rope_parameters") or config)["rope_theta"]
    kind, element = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    nodes: list[Any] = []
    initializers: list[Any] = []

    def op(name: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        made = [f"{name}_{len(nodes)}_{at}" for at in range(outputs)]
        nodes.append(helper.make_node(name, list(inputs), made, **attributes))
        return made[0] if outputs == 1 else made

    def keep(name: str, value: Any) -> str:
        name = f"other.{name}"
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def linear(x: str, name: str) -> str:
        return str(op("MatMul", x, keep(name, weights[name].T.astype(kind))))

    def norm(x: str, name: str) -> str:
        scale = keep(name, weights[name].astype(kind))
        return str(op("RMSNormalization", x, scale, epsilon=config["rms_norm_eps"], axis=-1))

    zero, one = keep("zero", np.array(0, np.int64)), keep("one", np.array(1, np.int64))
    first, second = keep("first", np.array([0], np.int64)), keep("second", np.array([1], np.int64))
    total = op("Squeeze", op("Shape", "attention_mask", start=1, end=2))
    count = op("Squeeze", op("Shape", "input_ids", start=1, end=2))
    rows = op("Unsqueeze", op("Range", op("Sub", total, count), total, one), second)
    mask = op("LessOrEqual", op("Unsqueeze", op("Range", zero, total, one), first), rows)
    if not sees_padding:
        reported = op("Cast", "attention_mask", to=TensorProto.BOOL)
        reported = op("Unsqueeze", reported, keep("both", np.array([1, 2], np.int64)))
        least = keep("least", np.array(np.finfo(kind).min, kind))
        mask = op("Where", op("And", mask, reported), keep("nothing", np.array(0, kind)), least)
    positions = "position_ids"
    if wrong_positions:
        positions = op("Unsqueeze", op("Range", zero, count, one), first)
    angles = np.outer(np.arange(1024), theta ** (-np.arange(0, width, 2) / width))
    cos, sin = keep("cos", np.cos(angles).astype(kind)), keep("sin", np.sin(angles).astype(kind))

    x = op("Gather", keep("embedding", weights["model.embed_tokens.weight"].astype(kind)), "input_ids")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", f"length of {name}"])
        for name in ("input_ids", "attention_mask", "position_ids")
    ]
    outputs = [helper.make_tensor_value_info("logits", element, ["batch", "length", config["vocab_size"]])]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        y = norm(x, f"{at}.input_layernorm.weight")
        q, k, v = (linear(y, f"{at}.self_attn.{each}_proj.weight") for each in "qkv")
        q = op("RotaryEmbedding", q, cos, sin, positions, num_heads=heads)
        k = op("RotaryEmbedding", k, cos, sin, positions, num_heads=kv)
        past = [f"past_key_values.{layer}.{each}" for each in ("key", "value")]
        present = [f"present.{layer}.{each}" for each in ("key", "value")]
        y, *made = op("Attention", q, k, v, mask, *past, outputs=3, q_num_heads=heads, kv_num_heads=kv)
        nodes.extend(helper.make_node("Identity", [a], [b]) for a, b in zip(made, present, strict=True))
        x = op("Add", x, linear(y, f"{at}.self_attn.o_proj.weight"))
        y = norm(x, f"{at}.post_attention_layernorm.weight")
        gate = linear(y, f"{at}.mlp.gate_proj.weight")
        gate = op("Mul", gate, op("Sigmoid", gate))
        up = linear(y, f"{at}.mlp.up_proj.weight")
        x = op("Add", x, linear(op("Mul", gate, up), f"{at}.mlp.down_proj.weight"))
        for names, filled in ((past, inputs), (present, outputs)):
            shape = ["batch", kv, f"length of {names[0]}", width]
            filled += [helper.make_tensor_value_info(name, element, shape) for name in names]
    x = norm(x, "model.norm.weight")
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    nodes.append(helper.make_node("MatMul", [x, keep("head", head.T.astype(kind))], ["logits"]))

    graph = helper.make_graph(nodes, "llama", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    folder.mkdir(parents=True)
    onnx.save_model(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=64,
    )
    for path in checkpoint.iterdir():
        if path.suffix in (".json", ".jinja", ".model", ".txt"):
            shutil.copy(path, folder)
    return folder
