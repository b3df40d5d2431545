"""kconv's own tables of what stands in GGUF files, against gguf-py's: every number and every name.

They are its own since importing gguf takes a tenth of a second, which every command and every child would
pay. Formats and their blocks are compared in test_quant_formats.py and test_gguf_file.py.
"""

from __future__ import annotations

import ast
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from gguf import constants, utility
from test_house import ROOMS, ROOT

from kconv.converters.card import size_label
from kconv.converters.families import FAMILIES, family_for
from kconv.converters.family import AnyFamily
from kconv.converters.samples import SAMPLES, write_sample
from kconv.core import gguf_file, gguf_pairs
from kconv.core.reading import open_checkpoint
from kconv.core.vocabulary import TokenType
from kconv.quant.named_recipes import POLICIES
from kconv.quant.policy import quantization_metadata
from kconv.vocab.special_ids import ROLES

ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
NOT_IN_GGUF_PY = {"rope.scale_linear", "attention.value_scale"}
"""Keys that llama.cpp reads (src/llama-arch.cpp) and no converter writes: what proofs look at."""
NORMALIZER = {f"tokenizer.ggml.normalizer.{each}" for each in ("lowercase", "strip_accents")}
"""Newer than the gguf package: llama.cpp reads and writes them."""


def keys_of(table: type) -> Iterator[str]:
    for name, value in vars(table).items():
        if isinstance(value, type):
            yield from keys_of(value)
        elif isinstance(value, str) and not name.startswith("_"):
            yield value


KEYS = {key.removeprefix("{arch}.") for key in keys_of(gguf.Keys)}


def test_the_container() -> None:
    assert struct.unpack("<I", gguf_file._MAGIC) == (gguf.GGUF_MAGIC,)
    assert gguf_file._VERSION == gguf.GGUF_VERSION
    assert gguf_file.ALIGNMENT == gguf.GGUF_DEFAULT_ALIGNMENT


def test_types_of_values() -> None:
    types = gguf.GGUFValueType
    assert {*gguf_pairs.SCALARS, gguf_pairs.STRING, gguf_pairs.ARRAY} == {int(kind) for kind in types}
    named = {name: value for name, value in vars(gguf_pairs).items() if name in types.__members__}
    assert set(named) >= {"STRING", "ARRAY", "UINT32", "FLOAT32", "BOOL"}
    assert all(types[name] == value for name, value in named.items())
    codes = {"U": "BHIQ", "I": "bhiq", "F": "fd", "B": "?"}
    for number, code in gguf_pairs.SCALARS.items():
        kind = types(number).name
        assert code in codes[kind[0]]
        assert struct.calcsize("<" + code) * 8 == int(re.sub(r"\D", "", kind) or 8)


def test_types_of_tokens() -> None:
    assert {kind.name: int(kind) for kind in TokenType} == {kind.name: int(kind) for kind in gguf.TokenType}


def test_types_of_files() -> None:
    theirs = {kind.name.removeprefix("MOSTLY_"): int(kind) for kind in gguf.LlamaFileType}
    theirs["F32"] = theirs.pop("ALL_F32")
    del theirs["GUESSED"], theirs["NVFP4"]  # a loader's guess; a type that llama-quantize does not offer
    ours = {policy.display: policy.file_type for policy in POLICIES.values()}
    assert ours.pop("Q2_0") == 41  # llama.h (LLAMA_FTYPE_MOSTLY_Q2_0); gguf-py has none yet
    assert ours == theirs


def test_the_version_of_quantized_formats() -> None:
    metadata = quantization_metadata(POLICIES["q4_K_M"], None)
    assert metadata["general.quantization_version"] == gguf.GGML_QUANT_VERSION


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_architectures_and_their_tensors(family: AnyFamily) -> None:
    tensors = {constants.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[ARCHITECTURES[family.arch]]}
    for row in family.rows:
        # Of T5's layers only the first has this one.
        name = row.target.replace(".0.", ".{i}.").replace("{i}", "{bid}")
        assert name.removesuffix(".weight").removesuffix(".bias") in tensors


@pytest.mark.parametrize("sample", SAMPLES)
def test_keys_of_architectures(sample: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_sample(sample, tmp_path / sample)))
    family = family_for(checkpoint.config)
    keys = family.hparams(family.read(checkpoint.config), checkpoint)
    assert {key.removeprefix(f"{family.arch}.") for key in keys} <= KEYS


@pytest.mark.parametrize("power", range(16))
def test_the_label_of_a_size(power: int) -> None:
    for digits in (1, 1.04, 1.05, 1.4392, 2.5, 4.11354112, 9.49, 9.5, 9.9499, 9.95, 9.996, 9.9999):
        total = round(digits * 10**power)
        for near in (total - 1, total, total + 1):
            if near > 0:
                assert size_label(near) == utility.size_label(near, near, 0, 0)


def test_keys_anywhere_in_the_code() -> None:
    """Whatever begins as a key does and is none of gguf-py's is listed here, or has another meaning."""
    begin = r"(general|tokenizer\.(ggml|chat)|split|imatrix|rope|attention)"
    prefix = "|".join(re.escape(family.arch) for family in FAMILIES)
    key = re.compile(rf"(?:(?:{prefix})\.)?({begin}[a-z0-9_.]*\.?[a-z0-9_]*[a-z0-9_])")
    found = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                match = key.fullmatch(node.value)
                if match and "." in match[1] and not match[1].endswith((".weight", ".bias")):
                    found.add(match[1])
    modules = {"attention.dense", "attention.query_key_value"}  # GPT-NeoX's, in checkpoints
    modules |= {"attention.output.dense", *(f"attention.self.{each}" for each in ("query", "key", "value"))}
    assert found - KEYS - NORMALIZER == NOT_IN_GGUF_PY | modules
    assert len(found & KEYS) > 50
    assert {f"tokenizer.ggml.{role}_token_id" for role in ROLES} <= KEYS
