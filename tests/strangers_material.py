"""Files as other people publish them, made with llama.cpp's own tools: llama_model_quantize and gguf-py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from imatrix_material import llama_cpp_activations
from llama_quantize_jobs import Job, quantize

T = "tokenizer.ggml."
FTYPES = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15, "iq3_m": 27, "iq2_m": 29, "iq4_xs": 30}
"""llama.h's numbers of recipes."""
Q8_0, Q5_K, Q6_K, IQ4_NL = 8, 13, 14, 20
"""ggml.h's numbers of formats."""

IMATRIX = {
    "quantize.imatrix.file": "/models_out/demo-GGUF/demo.imatrix",
    "quantize.imatrix.dataset": "/training_dir/calibration_datav3.txt",
    "quantize.imatrix.entries_count": 21,
    "quantize.imatrix.chunks_count": 125,
}
"""What llama-quantize writes of its imatrix, and bartowski's files have."""

UNSLOTH = {
    **IMATRIX,
    "general.name": "Demo Instruct",
    "general.basename": "Demo",
    "general.quantized_by": "Unsloth",
    "general.repo_url": "https://huggingface.co/unsloth",
    "general.base_model.count": 1,
    "general.base_model.0.name": "Demo Instruct",
    "general.tags": ["unsloth", "ko"],
}
"""What unsloth's files say of themselves."""


def rewritten(
    path: Path,
    out: Path,
    keys: Mapping[str, Any] | None = None,
    *,
    tensors_each: int = 0,
    more: Mapping[str, tuple[np.ndarray[Any, Any], int]] | None = None,
) -> Path:
    """Copy ``path`` through gguf-py, as gguf_new_metadata.py and gguf-split do, and return the (first) file.

    ``keys`` are set, or left out where None; those that are there keep their types. With ``tensors_each`` the
    copy is in parts of so many tensors, named after ``out``. ``more`` tensors take the place of those of
    their names, or come behind: the bytes of their rows, and ggml's number of their format.
    """
    import gguf
    from gguf.scripts.gguf_new_metadata import MetadataDetails

    reader = gguf.GGUFReader(path)
    changes = dict(keys or {})
    writer = gguf.GGUFWriter(
        out, reader.fields["general.architecture"].contents(), split_max_tensors=tensors_each
    )
    for field in reader.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            details = MetadataDetails(kind, field.contents(), sub_type=inner)
            value = changes.pop(field.name, details.value)
            if value is not None:
                writer.add_key_value(field.name, value, kind, sub_type=inner)
    for name, value in changes.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(name, value, kind)
    tensors = {each.name: (each.data, each.tensor_type) for each in reader.tensors}
    for name, (data, kind) in {**tensors, **(more or {})}.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out if not tensors_each else min(out.parent.glob(f"{out.stem}-00001-of-*.gguf"))


def measure_importance(source: Path, *, tokens: int = 256) -> None:
    """An imatrix of that file, measured in llama.cpp on random tokens, where ``quantized`` finds it."""
    folder = source.with_suffix("")
    folder.mkdir(exist_ok=True)
    ids = np.random.default_rng(5).integers(3, 250, tokens).tolist()
    means = llama_cpp_activations(source, [(ids, ())], folder)
    single = {name: values.astype(np.float32) for name, values in means.items()}
    np.savez(source.with_suffix(".npz"), **single)  # type: ignore[arg-type]


def quantized(
    source: Path, out: Path, type_: str, *, imatrix: bool = False, mixed: Sequence[tuple[str, int]] = ()
) -> Path:
    """What llama_model_quantize makes of ``source``; ``mixed``: patterns of names and their formats."""
    job = Job(source, FTYPES[type_], out, threads=2, imatrix=imatrix, overrides=mixed)
    (answer,) = quantize([job])
    assert answer is not None
    return out
