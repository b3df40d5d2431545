"""KoGPT at full size: 6.17 billion random weights, converted within 1.5 GiB of private memory.

The checkpoint is what KoGPT's is: one fp16 pytorch_model.bin of 12.3 GB with the bool masks of every layer in
it, and a tokenizer.json of 64,512 tokens. torch writes the file's frame, with holes in place of the weights,
which are filled in afterwards; so no more of it is in memory than a few megabytes. Exit code 1 when the limit
is broken.

    python bench/kogpt_full_size.py [--keep] [--types q8_0,q4_0] [--layers 28]

KCONV_SCRATCH (default /tmp/kconv-bench) needs 12.4 GB for the checkpoint and 7 GB for the larger file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import material
from memory import measure

from kconv.converters.samples.weights import random_slabs, write_json
from kconv.core.tensor import DType

KCONV = str(Path(sys.executable).parent / "kconv")
MIB = 2**20
LIMIT = 1536 * MIB
SPECIALS = ("[BOS]", "[EOS]", "[UNK]", "[PAD]", "[MASK]")
ROWS = 64512
# As re-uploads keep it (../shared/facts/checkpoints.md).
CONFIG: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPTJForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gptj",
    "n_embd": 4096,
    "n_head": 16,
    "n_inner": None,
    "n_layer": 28,
    "n_positions": 2048,
    "rotary_dim": 64,
    "tie_word_embeddings": False,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "torch_dtype": "float16",
    "vocab_size": ROWS,
}


def main() -> int:
    """Write the checkpoint unless it is there, convert it to each type, print a table."""
    parser = argparse.ArgumentParser(description="Convert a KoGPT of full size.")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint for the next time")
    parser.add_argument("--types", default="q8_0,q4_0", help="one after the other; q8_0+q4_0: from one read")
    parser.add_argument("--layers", type=int, default=28)
    options = parser.parse_args()
    folder = prepared({**CONFIG, "n_layer": options.layers})
    print("| types | seconds | peak private MiB | output MiB |\n|---|---:|---:|---:|", flush=True)
    broken = False
    for type_ in options.types.split(","):
        out = material.scratch() / "kogpt-out"
        shutil.rmtree(out, ignore_errors=True)
        wanted = [word for name in type_.split("+") for word in ("-q", name)]
        run = measure([KCONV, "to-gguf", str(folder), "-o", str(out), *wanted, "--no-verify"])
        if run.code:
            raise SystemExit(f"kconv ended with {run.code}:\n{run.stderr[-3000:]}")
        size = sum(path.stat().st_size for path in out.glob("*.gguf"))
        print(
            f"| {type_} | {run.seconds:.0f} | {run.peak_private / MIB:.0f} | {size / MIB:.0f} |", flush=True
        )
        broken |= run.peak_private > LIMIT
        shutil.rmtree(out)
    if not options.keep:
        shutil.rmtree(folder)
    return int(broken)


def prepared(config: dict[str, Any]) -> Path:
    """The checkpoint's folder, written unless it is there whole."""
    folder = material.scratch() / f"kogpt-6b-{config['n_layer']}-layers"
    if not (folder / ".complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_tokenizer(folder)
        write_json(folder, {"config.json": config})
        (folder / "README.md").write_text("---\nlicense: cc-by-nc-nd-4.0\n---\n# Synthetic KoGPT\n", "utf-8")
        write_bin(folder / "pytorch_model.bin", shapes(config), masks=config["n_layer"])
        (folder / ".complete").touch()
    return folder


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a GPTJForCausalLM (transformers, modeling_gptj.py)."""
    width, rows = config["n_embd"], config["vocab_size"]
    found: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (rows, width)}
    for layer in range(config["n_layer"]):
        place = f"transformer.h.{layer}."
        found |= {f"{place}ln_1.{kind}": (width,) for kind in ("weight", "bias")}
        found |= {f"{place}attn.{name}_proj.weight": (width, width) for name in ("k", "v", "q", "out")}
        found |= {f"{place}mlp.fc_in.weight": (4 * width, width), f"{place}mlp.fc_in.bias": (4 * width,)}
        found |= {f"{place}mlp.fc_out.weight": (width, 4 * width), f"{place}mlp.fc_out.bias": (width,)}
    found |= {f"transformer.ln_f.{kind}": (width,) for kind in ("weight", "bias")}
    return {**found, "lm_head.weight": (rows, width), "lm_head.bias": (rows,)}


def write_bin(path: Path, tensors: dict[str, tuple[int, ...]], *, masks: int) -> None:
    """A file torch.save could have written, its weights at random."""
    import torch

    with torch.serialization.skip_data():
        # never touched, so they take no memory
        state = {name: torch.empty(shape, dtype=torch.float16) for name, shape in tensors.items()}
        for layer in range(masks):
            state[f"transformer.h.{layer}.attn.bias"] = torch.empty(1, 1, 2048, 2048, dtype=torch.bool)
            state[f"transformer.h.{layer}.attn.masked_bias"] = torch.empty((), dtype=torch.float16)
        torch.save(state, path)
    places = storages(path)

    def fill(item: tuple[int, str]) -> None:
        number, name = item
        with path.open("r+b") as file:
            file.seek(places[str(number)])
            for slab in random_slabs(name, tensors[name], DType.F16, 1):
                file.write(slab.data)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, enumerate(tensors)))


def storages(path: Path) -> dict[str, int]:
    """Where the bytes of each storage begin, by its key: its number in the order of the state dict."""
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            file.seek(entry.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            if "/data/" in entry.filename:
                found[entry.filename.rpartition("/")[2]] = entry.header_offset + 30 + name + extra
    return found


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json alone, the special tokens first."""
    vocab, merges = material.byte_level_bpe(ROWS - len(SPECIALS))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": text, "special": True, **flags} for number, text in enumerate(SPECIALS)
        ],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "unk_token": "[UNK]",
            "vocab": {text: number for number, text in enumerate((*SPECIALS, *vocab))},
            "merges": [" ".join(pair) for pair in merges],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    roles = {"bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    write_json(folder, {"special_tokens_map.json": roles})


if __name__ == "__main__":
    sys.exit(main())
