"""make test-width: every family at the width of its published models, two layers, random weights.

For each: GGUF and ONNX in F32 against transformers in fp32 (NMSE, first choices), and 128 greedy tokens of
llama.cpp, each of which must be the checkpoint's own first choice, up to the first tie: a lead below 6√2
times the RMS difference of the logits. Exit code 1 where one is broken. The tokenizer is the sample's, so
the vocabulary is small; 30 GB of memory are never needed, one model of 1 to 4 GB is written at a time.

    python bench/full_width.py [NAME]...     NAME: a sample's; KCONV_SCRATCH: default .dev/bench
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import material
import numpy as np

from kconv.converters.families import family_for
from kconv.converters.intake import prepared
from kconv.converters.mapping import product
from kconv.converters.samples import write_sample
from kconv.converters.samples.weights import write_checkpoint
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import DType
from kconv.core.windows import Window
from kconv.flows.convert import to_gguf
from kconv.flows.generate import generate
from kconv.flows.to_onnx import to_onnx
from kconv.flows.verify import verify
from kconv.reference.model import Reference
from kconv.runtimes.llama_reader import LlamaReader
from kconv.verify.proof import Proof

TOKENS = 128
TEXT = "서울은 대한민국의 수도이다. "
# Of the published configurations, but for the number of layers and the vocabulary.
WIDTHS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "qwen2": {  # Qwen2.5-7B
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 2,
            "num_attention_heads": 28, "num_key_value_heads": 4,
        },
        "qwen3": {  # Qwen3-8B
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 2,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        },
        "qwen3-moe": {  # Qwen3-30B-A3B, a quarter of its experts
            "hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 2, "num_experts": 32,
            "num_experts_per_tok": 8, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        },
        "gpt-neox": {  # Polyglot-Ko-5.8B
            "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 2,
            "num_attention_heads": 16, "rotary_pct": 0.25,
        },
        "exaone": {  # EXAONE-3.5-7.8B
            "hidden_size": 4096, "intermediate_size": 14336, "num_layers": 2, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128,
        },
        "exaone4": {  # EXAONE-4.0-1.2B
            "hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 3,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        },
        "hyperclovax": {  # HyperCLOVA X SEED Think 14B
            "hidden_size": 6144, "intermediate_size": 14336, "num_hidden_layers": 2,
            "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128,
            "attention_multiplier": 0.0078125,
        },
        "kanana": {  # Kanana-1.5-2.1B
            "hidden_size": 1792, "intermediate_size": 8064, "num_hidden_layers": 2,
            "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
        },
        "mistral": {  # Mistral-Nemo
            "hidden_size": 5120, "intermediate_size": 14336, "num_hidden_layers": 2,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        },
        "gemma2": {  # Gemma-2-9B
            "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 2,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
            "query_pre_attn_scalar": 256,
        },
        "gemma3": {  # Gemma-3-4B
            "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 3,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "query_pre_attn_scalar": 256,
        },
        "gpt2": {"n_embd": 1920, "n_inner": 7680, "n_layer": 2, "n_head": 16},  # ko-gpt-trinity-1.2B
        "mpt": {"d_model": 2048, "n_heads": 16, "n_layers": 2},  # MPT-1B
        "opt": {  # OPT-1.3B
            "hidden_size": 2048, "word_embed_proj_dim": 2048, "ffn_dim": 8192, "num_hidden_layers": 2,
            "num_attention_heads": 32,
        },
        "xglm": {"d_model": 2048, "ffn_dim": 8192, "num_layers": 2, "attention_heads": 16},  # XGLM-1.7B
    }
)  # fmt: skip


def main(names: list[str]) -> int:
    """Check the families named, or all; print a table as it grows."""
    scratch = material.scratch() / "width"
    print(
        "| family | width | NMSE GGUF | same GELU | NMSE ONNX | other first choices | greedy tokens | s | |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    broken = 0
    for name in names or list(WIDTHS):
        place = scratch / name
        shutil.rmtree(place, ignore_errors=True)
        try:
            broken += not _check(name, place)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return 1 if broken else 0


def widened(name: str, place: Path) -> Path:
    """The sample of that name with the sizes of ``WIDTHS`` and random weights; its tokenizer stays."""
    folder = write_sample(name, place / name)
    checkpoint = open_checkpoint(folder)
    config = {**checkpoint.config, **WIDTHS[name]}
    layers = int(next(value for key, value in WIDTHS[name].items() if "layer" in key))
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = (config["layer_types"] * layers)[:layers]
    family = family_for(config)
    changed = replace(checkpoint, config=config)
    facts = family.read(config)
    sizes, flags = facts.sizes, family.flags(facts, changed)
    shapes: dict[str, tuple[int, ...]] = {}
    for row in family.rows:
        if not row.sources or (row.when is not None and row.when not in flags):
            continue
        if row.share is not None and row.share.place:
            continue
        for i in range(sizes[row.layers] if "{i}" in row.target else 1):
            for source in row.named(row.sources, i, sizes):
                if source in shapes:
                    continue
                shapes[source] = tuple(product(words, sizes) for words in row.shape)
    for path in checkpoint.weight_files:
        path.unlink()
    for index in folder.glob("*.index.json"):
        index.unlink()
    write_checkpoint(folder, config, dtype=DType.F32, shapes=shapes, seed=7)
    return folder


def _check(name: str, place: Path) -> bool:
    begun = time.monotonic()
    folder = widened(name, place)
    gguf = to_gguf(folder, place / "made.gguf", types=["f32"], verify="off").outputs[0].path
    proof = verify(gguf, folder, tokens=256)
    figures = proof.logits.figures
    assert figures is not None
    greedy, fine = _greedy(gguf, folder)
    onnx = to_onnx(folder, place / "onnx", type="f32", verify="off")
    folder_proof = verify(onnx.path, folder, tokens=256)
    other = folder_proof.logits.figures
    assert other is not None
    gelu = figures.nmse_same_gelu
    proven = ("passed", "warned")  # XGLM's tokens are warned of: what NFKC does to a text stands in docs/
    right = proof.verdict in proven and folder_proof.verdict in proven and fine
    right = right and (figures.nmse if gelu is None else gelu) < 1e-6
    width = next(iter(WIDTHS[name].values()))
    print(
        f"| {name} | {width} | {figures.nmse:.1e} | {'' if gelu is None else f'{gelu:.1e}'} | "
        f"{other.nmse:.1e} | {figures.other_top1} of {figures.positions} | {greedy} | "
        f"{time.monotonic() - begun:.0f} | {'ok' if right else f'{said(proof)}; {said(folder_proof)}'} |",
        flush=True,
    )
    return right


def said(proof: Proof) -> str:
    """A verdict and its cause."""
    return f"{proof.verdict} {proof.cause}"


def _greedy(gguf: Path, folder: Path) -> tuple[str, bool]:
    """What became of 128 greedy tokens, and whether each is the checkpoint's own first choice up to a tie."""
    answer = generate(gguf, TEXT, chat=False, greedy=True, tokens=TOKENS, kv_type="f32")
    checkpoint = prepared(open_checkpoint(folder))
    ids = (*answer.prompt_ids, *answer.ids)
    window = Window(0, ids)
    reading = Reference(checkpoint, family_for(checkpoint.config)).read([window])
    start = len(answer.prompt_ids) - 1
    expected = reading.logits(0, start, len(ids) - 1)
    with LlamaReader(gguf, threads=2) as reader:
        made = np.concatenate([block.logits.copy() for block in reader.logits([window])])[
            start : len(ids) - 1
        ]
    rms = float(np.sqrt(((made - expected) ** 2).mean()))
    for position, token in enumerate(answer.ids):
        row = expected[position]
        lead = float(row.max() - row[token])
        if lead > 0:
            tie = lead < 6 * math.sqrt(2) * rms
            return (
                f"{position} equal, then {'a tie' if tie else 'ANOTHER'} (lead {lead:.1e}, RMS {rms:.1e})",
                tie,
            )
    return f"{len(answer.ids)} equal", True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
