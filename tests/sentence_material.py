"""Encoders as transformers, llama.cpp and onnxruntime embed texts with them, each by its own API."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
TEXTS = (
    "안녕하세요. 만나서 반갑습니다!",
    "a",
    "대한민국의 수도는 서울이고, 인구는 9,400,000명쯤입니다. The quick brown fox jumps over the lazy dog.",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. " * 4,
)

_LLAMA_CPP = """
import json, sys
import llama_cpp
model = llama_cpp.Llama(sys.argv[1], embedding=True, n_ctx=256, n_batch=256, n_ubatch=256, verbose=False)
texts = json.loads(sys.argv[2])
found = [model.embed(text) for text in texts]
ids = [model.tokenize(text.encode(), add_bos=True, special=False) for text in texts]
print(json.dumps([found, ids]))
"""


def embedded_by_llama_cpp(path: Path, texts: Sequence[str] = TEXTS) -> tuple[Any, list[list[int]]]:
    """Embeddings (or hidden states) and token ids of texts by llama-cpp-python, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _LLAMA_CPP, str(path), json.dumps(list(texts))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    embedded, ids = json.loads(done.stdout.splitlines()[-1])
    return embedded, ids


def states_of_transformers(
    folder: Path, texts: Sequence[str] = TEXTS
) -> tuple[list[Floats], list[list[int]]]:
    """Hidden states ``(positions, hidden)`` in fp32 and token ids, each text by itself."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = [tokenizer(text)["input_ids"] for text in texts]
    with torch.inference_mode():
        states = [model(torch.tensor([each])).last_hidden_state[0].double().numpy() for each in ids]
    return states, ids


def cosine(one: Any, other: Any) -> float:
    """Of two vectors."""
    left, right = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


def padded(ids: Sequence[Sequence[int]], padding: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids of several texts as a matrix, and the mask."""
    width = max(map(len, ids)) + 2
    matrix, mask = np.full((len(ids), width), padding, np.int64), np.zeros((len(ids), width), np.int64)
    for row, each in enumerate(ids):
        matrix[row, : len(each)], mask[row, : len(each)] = each, 1
    return matrix, mask
