"""Models of every family as names and shapes, and their F32 files.

A file of full size takes no room: it is a header and a hole, since a dry run reads no weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from kconv.converters.families.t5 import T5
from kconv.converters.gguf_plan import FilePlan
from kconv.converters.gguf_writer import write_files
from kconv.core.gguf_file import read_header
from kconv.core.model import Model
from kconv.core.tensor import DType, Tensor
from kconv.quant.importance import Importance

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Family:
    """A model: its keys and sizes. ``rows``, if given, is the number of rows of every matrix."""

    arch: str
    layers: int
    hidden: int
    ffn: int
    vocabulary: int = 300
    heads: int = 8
    kv_heads: int = 8
    tied: bool = False
    experts: int = 0
    decoder: int = 0
    gated: bool = True
    fused: bool = False
    rows: int | None = None

    @property
    def keys(self) -> dict[str, int]:
        """Keys of the architecture, without those all share."""
        sizes = {
            "block_count": self.layers,
            "context_length": 512,
            "embedding_length": self.hidden,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
        }
        if self.experts:
            sizes |= {"expert_count": self.experts, "expert_used_count": 2}
        if self.arch == "t5":
            sizes |= {"decoder_block_count": self.decoder, "attention.relative_buckets_count": 32}
        return sizes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in an order that is not llama.cpp's."""
        collected = {"token_embd.weight": self._matrix(self.vocabulary, self.hidden)}
        if not self.tied:
            collected["output.weight"] = self._matrix(self.vocabulary, self.hidden)
        if self.arch == "t5":
            for side, count in (("enc", self.layers), ("dec", self.decoder)):
                for layer in range(count):
                    collected |= self._t5_block(f"{side}.blk.{layer}.", layer, cross=side == "dec")
                collected[f"{side}.output_norm.weight"] = (self.hidden,)
            return collected
        for layer in range(self.layers):
            collected |= self._block(f"blk.{layer}.")
        return {**collected, "output_norm.weight": (self.hidden,)}

    def _matrix(self, rows: int, columns: int) -> tuple[int, int]:
        return (self.rows or rows, columns)

    def _block(self, block: str) -> dict[str, tuple[int, ...]]:
        hidden, keys = self.hidden, self.hidden // self.heads * self.kv_heads
        made: dict[str, tuple[int, ...]] = {block + "attn_norm.weight": (hidden,)}
        if self.fused:
            made[block + "attn_qkv.weight"] = self._matrix(hidden + 2 * keys, hidden)
        else:
            made[block + "attn_q.weight"] = self._matrix(hidden, hidden)
            made[block + "attn_k.weight"] = self._matrix(keys, hidden)
            made[block + "attn_v.weight"] = self._matrix(keys, hidden)
        made[block + "attn_output.weight"] = self._matrix(hidden, hidden)
        made[block + "ffn_down.bias"] = (hidden,)
        several, suffix = ((self.experts,), "_exps") if self.experts else ((), "")
        if self.experts:
            made[block + "ffn_gate_inp.weight"] = (self.experts, hidden)
        if self.gated:
            made[f"{block}ffn_gate{suffix}.weight"] = (*several, *self._matrix(self.ffn, hidden))
        made[f"{block}ffn_up{suffix}.weight"] = (*several, *self._matrix(self.ffn, hidden))
        made[f"{block}ffn_down{suffix}.weight"] = (*several, *self._matrix(hidden, self.ffn))
        return made

    def _t5_block(self, block: str, layer: int, *, cross: bool) -> dict[str, tuple[int, ...]]:
        made: dict[str, tuple[int, ...]] = {}
        for kind in ("attn", "cross_attn") if cross else ("attn",):
            made |= {
                f"{block}{kind}_{part}.weight": self._matrix(self.hidden, self.hidden) for part in "qkvo"
            }
            made[f"{block}{kind}_norm.weight"] = (self.hidden,)
        if layer == 0:
            made[block + "attn_rel_b.weight"] = (32, self.heads)
        if self.gated:
            made[block + "ffn_gate.weight"] = self._matrix(self.ffn, self.hidden)
        made[block + "ffn_up.weight"] = self._matrix(self.ffn, self.hidden)
        made[block + "ffn_down.weight"] = self._matrix(self.hidden, self.ffn)
        return made


# llama.cpp refuses these without importance data, unless their rows are no whole blocks.
REFUSED = ("iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq1_s", "iq1_m", "q2_K_S", "iq3_xxs", "iq3_xs")

# At full width and depth. What kconv converts, then what reaches kconv quantize as a GGUF.
FULL: Mapping[str, Family] = {
    "42dot 1.3B": Family("llama", 24, 2048, 5632, 50260, 16, 16),
    "KoLlama 7B": Family("llama", 32, 4096, 11008, 46336, 32, 32),
    "Llama 3 8B": Family("llama", 32, 4096, 14336, 128256, 32, 8),
    "Llama 3.2 1B, tied": Family("llama", 16, 2048, 8192, 128256, 32, 8, tied=True),
    "Llama 3.2 3B, tied, three share a key": Family("llama", 28, 3072, 8192, 128256, 24, 8, tied=True),
    "Llama 65B": Family("llama", 80, 8192, 22016, 32000, 64, 64),
    "Llama 70B": Family("llama", 80, 8192, 28672, 32000, 64, 8),
    "KoGPT 6B": Family("phi2", 28, 4096, 16384, 64512, 16, 16, gated=False),
    "KEByT5 base": Family("t5", 18, 1536, 3968, 384, 12, 12, decoder=6),
    "KEByT5 small": Family("t5", 12, 1472, 3584, 384, 6, 6, decoder=4),
    "KEByT5 large, tied": Family("t5", 36, 1536, 3840, 384, 16, 16, decoder=12, tied=True),
    "KE-T5 base": Family("t5", 12, 768, 2048, 64128, 12, 12, decoder=12),
    "T5, ungated, tied": Family("t5", 12, 768, 3072, 32128, 12, 12, decoder=12, tied=True, gated=False),
    "GPT-NeoX 5.8B": Family("phi2", 28, 4096, 16384, 30080, 16, 16, gated=False, fused=True),
    "Mixtral 8x7B": Family("llama", 32, 4096, 14336, 32000, 32, 8, experts=8),
    "four experts": Family("llama", 24, 2048, 5632, 32000, 16, 16, experts=4),
    "Falcon 40B": Family("falcon", 60, 8192, 32768, 65024, 128, 8, gated=False, fused=True),
    "Falcon, eight experts": Family(
        "falcon", 32, 4096, 16384, 65024, 64, 64, gated=False, fused=True, experts=8
    ),
}

# Of 32 layers and more, with few rows: every rule that depends on the layer shows, and every fallback.
NARROW: Mapping[str, Family] = {
    "llama": Family("llama", 33, 256, 512, rows=2),
    "shared keys, tied": Family("llama", 32, 256, 512, heads=8, kv_heads=2, tied=True, rows=2),
    "rows of 288 and 352": Family("llama", 32, 288, 352, rows=2),
    "rows of 160, tied; 40": Family("llama", 32, 160, 40, kv_heads=2, tied=True, rows=2),
    "phi2": Family("phi2", 34, 256, 512, gated=False, rows=2),
    "t5": Family("t5", 24, 256, 512, decoder=20, rows=2),
    "t5 of 96 and 416, tied": Family("t5", 24, 96, 416, decoder=20, tied=True, rows=2),
    "eight experts": Family("llama", 32, 256, 256, heads=8, kv_heads=2, experts=8, rows=1),
    "falcon": Family("falcon", 32, 256, 512, gated=False, fused=True, rows=2),
}


def as_model(family: Family, arrays: Mapping[str, Floats] | None = None) -> Model:
    """As kconv sees it; without ``arrays`` there are no weights to read."""
    keys = {f"{family.arch}.{key}": value for key, value in family.keys.items()}

    def lazy(name: str, shape: tuple[int, ...]) -> Tensor:
        def read(start: int, stop: int) -> npt.NDArray[Any]:
            assert arrays is not None
            return arrays[name][start:stop]

        return Tensor(name, shape, DType.F32, read)

    tensors = tuple(lazy(*item) for item in family.shapes().items())
    wide = T5.wide_inputs if family.arch == T5.arch else None
    return Model(family.arch, keys, tensors, wide_inputs=wide)


def random_arrays(family: Family, seed: int = 1) -> dict[str, Floats]:
    """Weights of every tensor: normal, with a few large ones."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for name, shape in family.shapes().items():
        rows = generator.standard_normal(shape, np.float32) * np.float32(0.03)
        rows[generator.random(shape) < 0.002] *= 12
        arrays[name] = rows
    return arrays


def random_importance(family: Family, seed: int = 2, *, embedding: bool = False) -> Importance:
    """Importance of every matrix, log-normal as real ones are; of the token embedding only if asked."""
    generator = np.random.default_rng(seed)
    values = {}
    for name, shape in family.shapes().items():
        if len(shape) > 1 and (embedding or name != "token_embd.weight"):
            count = shape[-1] * (shape[0] if len(shape) > 2 else 1)
            values[name] = np.exp(generator.standard_normal(count)).astype(np.float32)
    return Importance(values, "some.gguf", ("text.txt",), 10, 512)


def write_f32(path: Path, family: Family, arrays: Mapping[str, Floats] | None = None) -> Path:
    """The F32 file, written by gguf-py; without ``arrays`` its data are a hole."""
    writer = gguf.GGUFWriter(path, family.arch)
    for key, value in family.keys.items():
        writer.add_uint32(f"{family.arch}.{key}", value)
    for key in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"):
        writer.add_float32(f"{family.arch}.{key}", 1e-5)
    writer.add_uint32(f"{family.arch}.vocab_size", family.vocabulary)
    shapes = family.shapes()
    for name, shape in shapes.items():
        writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * math.prod(shape))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.seek(0, 2)
        place = _aligned(file.tell())
        for name, shape in shapes.items():
            if arrays is not None:
                file.seek(place)
                file.write(np.ascontiguousarray(arrays[name]).tobytes())
            place += _aligned(4 * math.prod(shape))
        file.truncate(place)
    return path


def _aligned(size: int) -> int:
    return -(-size // 32) * 32


def write_with_kconv(
    model: Model, plans: Sequence[FilePlan], importance: Importance | None, *, threads: int = 1
) -> None:
    """All plans to their own paths."""
    for plan in plans:
        plan.path.touch()
    write_files(model.tensors, plans, [plan.path for plan in plans], threads=threads, importance=importance)


def contents(path: Path) -> dict[str, tuple[int, bytes]]:
    """Type and bytes of every tensor."""
    header = read_header(path)
    data = path.read_bytes()[header.data_offset :]
    return {
        info.name: (info.ggml_type, data[info.offset : info.offset + info.nbytes]) for info in header.tensors
    }
