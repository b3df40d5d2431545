"""Checkpoints for the comparison with llama.cpp, and llama.cpp's own converter and quantizer, each run once.

Converter and quantizer run in child processes: the converter changes tables of its own modules, the library
may abort. One child does all jobs of a kind, since importing torch and transformers takes most of the time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from shared_material import shared

from kconv.converters.samples.korean_text import korean_text
from kconv.converters.samples.weights import WeightFormat, write_checkpoint, write_json
from kconv.core.tensor import DType

FLOATS = ("f32", "f16", "bf16")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Variant:
    """A checkpoint: what its config.json says beyond the common part, and how its weights are stored."""

    name: str
    config: Mapping[str, Any]
    dtype: DType = DType.F32
    shards: int = 1
    weight_format: WeightFormat = "safetensors"
    tokenizer: Mapping[str, Any] = field(default_factory=dict)


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

VARIANTS = (
    Variant("plain", {}, DType.F32),
    Variant("gqa-bf16-sharded", {"num_key_value_heads": 2}, DType.BF16, shards=3),
    Variant("tied-bin", {"tie_word_embeddings": True}, DType.F32, shards=2, weight_format="bin"),
    Variant("biases-f16", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}, DType.F16),
    Variant(
        "llama3-rope",
        {"rope_theta": 500000.0, "rope_scaling": _LLAMA3_ROPE, "num_key_value_heads": 2},
        DType.BF16,
    ),
    Variant("linear-rope", {"rope_scaling": {"type": "linear", "factor": 2.5}}, DType.BF16),
    # 512 / 8 heads would be 64; a width of 96 has no room for the blocks of 256 that q6_K has
    Variant("head-dim", {"hidden_size": 96, "head_dim": 48, "intermediate_size": 224}, DType.BF16),
    # rows of 80 and 176 weights are no multiple of 32: every matrix needs a way out
    Variant("odd-rows", {"hidden_size": 80, "num_attention_heads": 4, "intermediate_size": 176}, DType.F32),
)

_COMMON: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_variant(folder: Path, variant: Variant, tokenizer_model: Path) -> Path:
    """Write the checkpoint of ``variant`` with that sentencepiece model into ``folder``."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model)).get_piece_size()
    write_checkpoint(
        folder,
        {**_COMMON, **variant.config, "vocab_size": pieces},
        dtype=variant.dtype,
        shards=variant.shards,
        weight_format=variant.weight_format,
        seed=7,
    )
    (folder / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(
        folder,
        {
            "tokenizer_config.json": {
                "tokenizer_class": "LlamaTokenizer",
                "add_bos_token": True,
                "add_eos_token": False,
                "model_max_length": 512,
                "legacy": True,
                **roles,
            },
            "special_tokens_map.json": roles,
            "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        },
    )
    return folder


def train_sentencepiece(path: Path, *, vocab_size: int = 800, dummy_prefix: bool = True) -> Path:
    """Train a byte-fallback BPE model with sentencepiece on the package's own text, set up as Llama 2's.

    Without a ``dummy_prefix`` no space comes before a text, as in Gemma's.
    """
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(korean_text()),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=dummy_prefix,
        character_coverage=0.99,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


_CONVERTER = """
import json, os, runpy, sys
script = sys.argv[1]
sys.path.insert(0, os.path.dirname(script))
from conversion.deepseek import DeepseekV2Model
from conversion.gpt_oss import GptOssModel
# they ask the hub which tokenizer of the byte-level kind they have; ours is a SentencePiece model
DeepseekV2Model.set_vocab = DeepseekV2Model._set_vocab_sentencepiece
GptOssModel.set_vocab = GptOssModel._set_vocab_sentencepiece
for source, target, outtype in json.loads(sys.argv[2]):
    sys.argv = [script, source, "--outfile", target, "--outtype", outtype]
    runpy.run_path(script, run_name="__main__")
"""


def run_converter(script: Path, jobs: Sequence[tuple[Path, Path, str]]) -> None:
    """Run llama.cpp's convert_hf_to_gguf.py on each ``(checkpoint, target, outtype)``."""
    described = json.dumps([[str(source), str(target), outtype] for source, target, outtype in jobs])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", _CONVERTER, str(script), described],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, f"llama.cpp's converter failed:\n{result.stderr[-3000:]}"


def checkpoints(factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for every variant, by name; nobody may change them."""

    def make(root: Path) -> None:
        tokenizer = train_sentencepiece(root / "tokenizer.model")
        for variant in VARIANTS:
            write_variant(root / variant.name, variant, tokenizer)

    root = shared(factory, "variants", make)
    return {variant.name: root / variant.name for variant in VARIANTS}


def conversions(factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """What llama.cpp's converter makes of them, by variant and type, or skip."""
    script = fetched_converter()

    sources = checkpoints(factory)
    files = {(name, type_): f"{name}-{type_}.gguf" for name in sources for type_ in FLOATS}

    def make(root: Path) -> None:
        run_converter(script, [(sources[name], root / file, type_) for (name, type_), file in files.items()])

    root = shared(factory, "llama-cpp", make)
    return {key: root / file for key, file in files.items()}


_QUANTIZER = """
import ctypes, json, sys
import llama_cpp
quiet = llama_cpp.llama_log_callback(lambda *arguments: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()
for source, target, type_name, pure in json.loads(sys.argv[1]):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + type_name)
    params.pure, params.nthread = pure, 2
    code = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if code:
        sys.exit(f"llama_model_quantize({source}, {type_name}, pure={pure}) returned {code}")
"""


def run_quantizer(jobs: Sequence[tuple[Path, Path, str, bool]]) -> None:
    """Run llama_model_quantize on each ``(source, target, type in upper case, pure)``."""
    described = json.dumps([[str(source), str(target), name, pure] for source, target, name, pure in jobs])
    result = subprocess.run(
        [sys.executable, "-c", _QUANTIZER, described], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"llama_model_quantize failed:\n{result.stderr[-3000:]}"


@dataclass(frozen=True)
class Gguf:
    """A file as gguf-py reads it: keys with type and value, tensors with type, shape and bytes, in order."""

    keys: dict[str, tuple[str, Any]]
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]]


def read_with_gguf_py(path: Path) -> Gguf:
    """Read a GGUF with a reader that is not ours."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys = {}
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF."):
            kind = "/".join(part.name for part in entry.types[:2])
            keys[name] = (kind, entry.contents())
    tensors = {
        tensor.name: (tensor.tensor_type.name, tuple(map(int, tensor.shape)), tensor.data.tobytes())
        for tensor in reader.tensors
    }
    return Gguf(keys, tensors)


def fetched_converter() -> Path:
    """llama.cpp's converter, or skip: it is downloaded once, from GitHub. Under CI a skip has failed."""
    tool = fetch_tool()
    try:
        folder: Path = tool.fetch()
    except tool.FetchError as error:
        pytest.skip(f"llama.cpp's converter is not to be had: {error}")
    return folder / "convert_hf_to_gguf.py"


def fetch_tool() -> ModuleType:
    """tools/fetch_llama_cpp.py as a module; the folder is no package."""
    spec = importlib.util.spec_from_file_location("fetch_llama_cpp", ROOT / "tools" / "fetch_llama_cpp.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
