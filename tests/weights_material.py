"""Files made elsewhere, by llama_model_quantize in a child process; models as kconv maps them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.core.model import Model
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import Tensor

# Importance of the columns of every matrix: exp(sigma * normal), as uneven as sigma says.
_QUANTIZER = """
import ctypes, json, sys, zlib
import gguf, llama_cpp, numpy as np
quiet = llama_cpp.llama_log_callback(lambda *arguments: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
for source, target, name, sigma in json.loads(sys.argv[1]):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + name)
    params.nthread = 2
    if sigma is not None:
        kept, entries = [], []
        for tensor in gguf.GGUFReader(source).tensors:
            if len(tensor.shape) == 2:
                chance = np.random.default_rng(zlib.crc32(tensor.name.encode()))
                kept.append(np.exp(sigma * chance.standard_normal(int(tensor.shape[0]))).astype(np.float32))
                data = kept[-1].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
                entries.append(llama_cpp.llama_model_imatrix_data(tensor.name.encode(), data, kept[-1].size))
        entries.append(llama_cpp.llama_model_imatrix_data(None, None, 0))
        array = (llama_cpp.llama_model_imatrix_data * len(entries))(*entries)
        params.imatrix = ctypes.cast(array, type(params.imatrix))
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        sys.exit(f"llama_model_quantize({source}, {name}, {sigma}) failed")
"""


def quantize_elsewhere(source: Path, jobs: Mapping[Path, tuple[str, float | None]]) -> None:
    """Quantize ``source`` to each path: to a type in upper case, with importance data of a sigma or none."""
    described = json.dumps([[str(source), str(path), name, sigma] for path, (name, sigma) in jobs.items()])
    result = subprocess.run(
        [sys.executable, "-c", _QUANTIZER, described], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"llama_model_quantize failed:\n{result.stderr[-3000:]}"


def mapped(folder: Path) -> tuple[Model, dict[str, Tensor]]:
    """The checkpoint as its recipe maps it, and Q and K as they stand in it, by GGUF name."""
    checkpoint = open_checkpoint(folder)
    model = build(family_for(checkpoint.config), checkpoint)
    raw = {}
    for layer in range(int(checkpoint.config["num_hidden_layers"])):
        for kind in "qk":
            name = f"model.layers.{layer}.self_attn.{kind}_proj.weight"
            raw[f"blk.{layer}.attn_{kind}.weight"] = checkpoint.tensors[name]
    return model, raw


def names(model: Model) -> Sequence[str]:
    """GGUF names of the model's tensors."""
    return [tensor.name for tensor in model.tensors]
