"""KoGPT 6B at full size: random weights in one pytorch_model.bin, as torch.save writes it.

torch.save under ``skip_data`` lays the archive out with the storages left as holes; these are then filled
slab by slab, so that memory stays at some megabytes. The checksums of the archive are those of the holes,
which neither PyTorch nor kconv looks at.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from material import Shape
from vocabularies import byte_level_bpe

from kconv.converters.samples.weights import random_slabs, write_json
from kconv.core.tensor import DType

SPECIALS = ("[BOS]", "[EOS]", "[UNK]", "[PAD]", "[MASK]")
MASKED = -1e9  # minus infinity once it is a half

# kakaobrain/kogpt (KoGPT6B-ryan1.5b) as its re-uploads have it: 6166502400 weights, the head's bias included.
CONFIG: Mapping[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPTJForCausalLM"],
    "attn_pdrop": 0,
    "bos_token_id": 0,
    "embd_pdrop": 0,
    "eos_token_id": 1,
    "gradient_checkpointing": False,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gptj",
    "n_embd": 4096,
    "n_head": 16,
    "n_inner": None,
    "n_layer": 28,
    "n_positions": 2048,
    "resid_pdrop": 0,
    "rotary_dim": 64,
    "task_specific_params": {
        "text-generation": {"do_sample": True, "max_length": 128, "temperature": 1.0}
    },
    "tie_word_embeddings": False,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "transformers_version": "4.11.2",
    "use_cache": True,
    "vocab_size": 64512,
}  # fmt: skip


def gptj_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a ``GPTJForCausalLM`` (transformers, modeling_gptj.py)."""
    hidden, rows = config["n_embd"], config["vocab_size"]
    inner = config["n_inner"] or 4 * hidden
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (rows, hidden)}
    for layer in range(config["n_layer"]):
        prefix = f"transformer.h.{layer}"
        shapes |= {f"{prefix}.ln_1.{name}": (hidden,) for name in ("weight", "bias")}
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes[f"{prefix}.attn.{name}.weight"] = (hidden, hidden)
        for name, (outer, inwards) in {"fc_in": (inner, hidden), "fc_out": (hidden, inner)}.items():
            shapes[f"{prefix}.mlp.{name}.weight"] = (outer, inwards)
            shapes[f"{prefix}.mlp.{name}.bias"] = (outer,)
    shapes |= {f"transformer.ln_f.{name}": (hidden,) for name in ("weight", "bias")}
    return {**shapes, "lm_head.weight": (rows, hidden), "lm_head.bias": (rows,)}


def write_weights(folder: Path, shape: Shape, threads: int) -> None:
    """Write config.json and pytorch_model.bin: random weights, and the causal mask of every layer."""
    import torch

    names = {DType.F32: torch.float32, DType.F16: torch.float16}
    dtype, weights = names[shape.dtype], gptj_shapes(shape.config)
    write_json(folder, {"config.json": {**shape.config, "torch_dtype": str(dtype).removeprefix("torch.")}})
    # torch.empty of that size asks for addresses only; nothing is ever put there
    state = {name: torch.empty(size, dtype=dtype) for name, size in weights.items()}
    count = shape.config["n_positions"]
    for layer in range(shape.config["n_layer"]):
        prefix = f"transformer.h.{layer}.attn"
        state[f"{prefix}.bias"] = torch.empty((1, 1, count, count), dtype=torch.bool)
        state[f"{prefix}.masked_bias"] = torch.empty((), dtype=dtype)
    path = folder / "pytorch_model.bin"
    with torch.serialization.skip_data():
        torch.save(state, path)
    places = _places(path, list(state))
    with path.open("r+b") as file:

        def fill(name: str) -> None:
            position = places[name]
            for piece in _content(name, tuple(state[name].shape), shape.dtype):
                done = 0
                while done < len(piece):
                    done += os.pwrite(file.fileno(), piece[done:], position + done)
                position += len(piece)

        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(fill, places):
                pass


def _places(path: Path, names: list[str]) -> dict[str, int]:
    """Where each tensor's bytes begin: storages are numbered in the order in which they were pickled."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        records = {entry.filename.partition("/")[2]: entry.header_offset for entry in archive.infolist()}
        places = {}
        for number, name in enumerate(names):
            header = records[f"data/{number}"]
            file.seek(header + 26)
            lengths = file.read(4)
            places[name] = header + 30 + sum(int.from_bytes(lengths[at : at + 2], "little") for at in (0, 2))
    return places


def _content(name: str, size: tuple[int, ...], dtype: DType) -> Iterator[memoryview]:
    """A tensor's bytes, piece by piece."""
    if name.endswith(".attn.bias"):
        yield np.tri(size[-1], dtype=np.bool_).data.cast("B")
    elif name.endswith(".masked_bias"):
        with np.errstate(over="ignore"):
            yield np.array([MASKED]).astype(dtype.storage).data.cast("B")
    else:
        for slab in random_slabs(name, size, dtype, 1):
            yield slab.data.cast("B")


def write_tokenizer(folder: Path) -> None:
    """KoGPT's layout: tokenizer.json alone, five special tokens in front of a byte-level BPE: 64512."""
    base, merges = byte_level_bpe(CONFIG["vocab_size"] - len(SPECIALS))
    vocab = {text: number for number, text in enumerate((*SPECIALS, *base))}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    rest = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    roles = {f"{text[1:-1].lower()}_token": text for text in SPECIALS[:4]}
    write_json(
        folder,
        {
            "tokenizer.json": {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [
                    {"id": number, "content": text, **rest} for number, text in enumerate(SPECIALS)
                ],
                "normalizer": None,
                "pre_tokenizer": level,
                "post_processor": None,
                "decoder": level,
                "model": {
                    "type": "BPE",
                    "dropout": None,
                    "unk_token": None,
                    "continuing_subword_prefix": None,
                    "end_of_word_suffix": None,
                    "fuse_unk": False,
                    "vocab": vocab,
                    "merges": [" ".join(pair) for pair in merges],
                },
            },
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **roles},
            "special_tokens_map.json": roles,
        },
    )


KOGPT_6B = Shape("kogpt-6b-f16", CONFIG, DType.F16, 1, write_tokenizer, write_weights, gptj_shapes)
