"""The small trained XGLM: tokens, logits, and that no type loses more in llama.cpp than it costs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_position_families import _floats, _kl, llama_cpp_logits, transformers_logits

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.mapping import unmapped
from kconv.converters.samples import write_sample
from kconv.core.reading import open_checkpoint
from kconv.flows.generate import generate
from kconv.quant.gguf_weights import open_gguf

TYPES = ("f32", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q3_k_m")
PLACES = {"fc1": "ffn_up", "fc2": "ffn_down", "out_proj": "attn_output", "lm_head": "output"}
PROMPT = "옛날 옛날 깊은 숲속에"


def rounded(values: Any, block: int) -> Any:
    """Values as ggml multiplies them: 8 bits and a scale for each block."""
    import torch

    parts = values.reshape(*values.shape[:-1], -1, block)
    scale = parts.abs().amax(-1, keepdim=True) / 127
    scale = scale.half().float() if block == 32 else scale
    whole = torch.round(parts / torch.where(scale == 0, 1, scale)) * scale
    return whole.reshape(values.shape)


def with_file(folder: Path, file: Path, ids: list[int]) -> tuple[Any, Any]:
    """What transformers computes with a file's weights; and with inputs rounded as for its formats."""
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with open_gguf(file) as read:
        tensors = {info.name: read.tensor(info) for info in read.header.tensors}
        formats = {name: str(tensor.dtype) for name, tensor in tensors.items()}
        weights = unmapped(family_for(checkpoint.config), checkpoint, tensors)
        state = {name: torch.from_numpy(_floats(each)) for name, each in weights.items()}
    # the head is a matrix of its own in the file, the embedding times the root of the width another
    model.lm_head.weight = torch.nn.Parameter(state["lm_head.weight"].clone())
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    with torch.no_grad():
        exact = model(torch.tensor([ids])).logits[0].numpy()
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                layer = re.search(r"layers\.(\d+)\.", name)
                place = PLACES.get(name.rpartition(".")[2], "attn_qkv")
                kind = formats[f"blk.{layer[1]}.{place}.weight" if layer else f"{place}.weight"].upper()
                block = 256 if kind.endswith("_K") else 32
                module.register_forward_pre_hook(lambda _, given, block=block: (rounded(given[0], block),))
        return exact, model(torch.tensor([ids])).logits[0].numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    path = tmp_path_factory.mktemp("xglm")
    folder = write_sample("xglm", path / "xglm")
    conversion = to_gguf(folder, path, types=TYPES, verify=False)
    assert conversion.parity.verdict == "exact"
    return folder, {output.type: output.path for output in conversion.outputs}


def sample_ids(folder: Path) -> list[int]:
    from transformers import AutoTokenizer

    text = (folder / "README.md").read_text("utf-8")
    ids: list[int] = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert ids[0] == 2
    return ids[:250]


def test_no_type_loses_more_than_it_costs(made: tuple[Path, dict[str, Path]]) -> None:
    folder, files = made
    ids = sample_ids(folder)
    expected = transformers_logits(folder, ids)
    for name, file in files.items():
        found = llama_cpp_logits(file, ids)
        if name == "f32":
            assert np.square(found - expected).mean() / expected.var() < 1e-4
            assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.99
            continue
        weights, whole = (_kl(expected, each) for each in with_file(folder, file, ids))
        kl = _kl(expected, found)
        print(f"{name}: KL {kl:.3e}, weights alone {weights:.3e}, with rounded inputs {whole:.3e}")
        assert kl < 1.1 * max(weights, whole)


def test_it_goes_on_as_in_transformers(made: tuple[Path, dict[str, Path]]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, files = made
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        whole = model.generate(ids, max_new_tokens=48, do_sample=False, pad_token_id=1)[0]
    given = generate(files["f32"], PROMPT, tokens=48, greedy=True, threads=1)
    assert list(given.prompt_ids) == ids[0].tolist()
    theirs = tokenizer.decode(whole[ids.shape[1] :], skip_special_tokens=True)
    assert given.text.strip() == theirs.strip()
