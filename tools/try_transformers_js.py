"""``make test-js``: folders of layout transformers.js, loaded by Transformers.js under Node as they are.

The small trained models are converted to every type, one model of other families to f32 and to q4_0 with f16
activations (q4f16). Their tokenizers must give the ids transformers gives,
and 64 greedy tokens with the cache must be those of transformers (f32, where it has the model) or else of
onnxruntime in Python without a cache.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from greedy_tokens import ANSWERING, Question, by_onnxruntime, by_transformers, compare

from kconv.converters import to_onnx
from kconv.converters.samples import write_sample
from kconv.vocab.texts import built_in

NODE = Path(".dev/js")
DTYPES = {"f32": "fp32", "f16": "fp16", "q8_0": "q8", "q4_0": "q4"}
PROMPTS = {
    "42dot": "옛날 어느 마을에",
    "kogpt": "옛날 옛날 깊은 숲속에",
    "kebyt5": "옛날 어느 마을에 나무꾼이 ",
    "gbst-kebyt5": "옛날 어느 마을에 나무꾼이 ",
}
OTHERS = ("opt", "qwen2", "qwen3", "gpt-neox", "gemma2", "gemma3", "gpt2", "mpt", "mistral")
"""Families that Transformers.js has classes for."""
COUNT = 64
IDS = [5, 17, 100, 42, 9, 61, 7]
TEXTS = 1500


def questions(folder: Path) -> list[Question]:
    """What is asked, in words and for Node, and the right answer."""
    from transformers import AutoTokenizer

    asked: list[Question] = []
    texts = built_in()[:TEXTS]
    for family, prompt in PROMPTS.items():
        causal = family not in ANSWERING
        checkpoint = write_sample(family, folder / "checkpoints" / family)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        for type, dtype in DTYPES.items():
            name = f"{family}-{type}"
            to_onnx(checkpoint, folder / name, type=type, layout="transformers.js", verify=False)
            if type == "f32":
                right = [tokenizer(text)["input_ids"] for text in texts]
                asked.append((f"{family}: ids of {len(texts)} texts", {"model": name, "texts": texts}, right))
            ids = tokenizer(prompt)["input_ids"]
            if type == "f32" and family != "gbst-kebyt5":
                tokens = by_transformers(checkpoint, ids, COUNT, causal=causal)
            else:
                tokens = by_onnxruntime(folder / name / "onnx", ids, COUNT, causal=causal)
            question = {"model": name, "dtype": dtype, "ids": ids, "count": COUNT, "causal": causal}
            asked.append((f"{family} {dtype}: {COUNT} greedy tokens", question, tokens))
    for family in OTHERS:
        asked += of_another(folder, family)
    return asked


def of_another(folder: Path, family: str) -> list[Question]:
    """Greedy tokens after ids, whatever the tokenizer."""
    checkpoint, asked = write_sample(family, folder / "checkpoints" / family), []
    for type, activations, dtype in (("f32", "f32", "fp32"), ("q4_0", "f16", "q4f16")):
        name = f"{family}-{dtype}"
        given: dict[str, Any] = {"type": type, "activations": activations, "layout": "transformers.js"}
        to_onnx(checkpoint, folder / name, verify=False, accuracy_level=0, **given)
        if type == "f32":
            tokens = by_transformers(checkpoint, IDS, COUNT, causal=True)
        else:
            tokens = by_onnxruntime(folder / name / "onnx", IDS, COUNT, causal=True)
        question = {"model": name, "dtype": dtype, "ids": IDS, "count": COUNT, "causal": True}
        asked.append((f"{family} {dtype}: {COUNT} greedy tokens", question, tokens))
    return asked


def main() -> None:
    """Ask, compare, and end with 1 where an answer is not right."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        wrong = compare(questions(Path(place)), ["node", "answer.mjs", f"{place}/"], cwd=NODE)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
