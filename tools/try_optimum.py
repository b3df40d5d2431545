"""``make test-optimum``: folders of layout optimum, loaded as they are by optimum (in its environment).

The samples are converted to f32, the trained ones to q8_0 and q4_0 as well. Their tokenizers must give
transformers' ids; 64 greedy tokens with the cache, after one prompt and in a padded batch, must be those of
each prompt alone: of transformers (f32, where it has the model) or else of onnxruntime without a cache. With
the folder's own settings an answer must end where that of ``kconv run`` does. Quantized folders are of
accuracy level 0: level 4 rounds activations, and the order of sums, which a batch changes, then decides near
choices.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from greedy_tokens import ANSWERING, ENCODERS, Question, by_onnxruntime, by_transformers, compare

from kconv.converters import to_onnx
from kconv.converters.samples import SAMPLES, write_sample
from kconv.vocab.texts import built_in

PYTHON = Path(".dev/optimum/bin/python")
KCONV = str(Path(sys.executable).parent / "kconv")
PROMPTS = [
    "옛날 어느 마을에 나무꾼이 ",
    '호랑이가 말했다. "떡 하나 주면 안 잡아먹지." 그러자 ',
    "깊은 숲속에 ",
]
TRAINED = ("42dot", "kogpt", "kebyt5", "gbst-kebyt5")
WITHOUT = (*ENCODERS, "hyperclovax", "exaone", "kanana", "umt5")
"""optimum has other classes for encoders; transformers 4 has none for two and refuses the third's shape, and
the tokenizer of the fourth transformers reads only with sentencepiece."""
WIDE_HEADS = ("qwen3", "qwen3-moe", "mistral", "gemma2", "exaone4")
"""Samples whose heads are not as wide as the hidden size by their number, which optimum-onnx 0.1.0 takes an
empty cache to be: it gives onnxruntime a wrong one."""
READ_OTHERWISE = ("qwen2", "xglm", "gemma3")
"""Samples whose tokenizer files transformers 4 and 5 read in two ways: ids and ends are not asked."""
COUNT = 64
TEXTS = 1500


def questions(folder: Path, family: str) -> Iterator[Question]:
    """All questions about a family; the models they are about are made in ``folder``."""
    from transformers import AutoTokenizer

    texts = built_in()[:TEXTS]
    checkpoint = write_sample(family, folder / "checkpoints" / family)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for type in ("f32", "q8_0", "q4_0") if family in TRAINED else ("f32",):
        name = f"{family}-{type}"
        to_onnx(checkpoint, folder / name, type=type, accuracy_level=0, verify=False)
        ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
        if type == "f32" and family not in READ_OTHERWISE:
            right = [tokenizer(text)["input_ids"] for text in texts]
            yield f"{family}: ids of {len(texts)} texts", {"model": name, "texts": texts}, right
        yield from generations(name, checkpoint, folder / name, ids, family not in ANSWERING)


def generations(
    name: str, checkpoint: Path, made: Path, ids: list[list[int]], causal: bool
) -> Iterator[Question]:
    """Greedy tokens of one prompt, of a batch, and of one that may end."""
    if name.endswith("f32") and not name.startswith("gbst"):
        right = [by_transformers(checkpoint, each, COUNT, causal=causal) for each in ids]
    else:
        right = [by_onnxruntime(made, each, COUNT, causal=causal) for each in ids]
    asked = {"model": name, "causal": causal}
    yield f"{name}: {COUNT} greedy tokens", {**asked, "prompts": PROMPTS[:1], "count": COUNT}, right[:1]
    yield f"{name}: a padded batch", {**asked, "prompts": PROMPTS, "count": COUNT}, right
    if name.startswith(READ_OTHERWISE):
        return
    command = [KCONV, "run", str(made), "-p", PROMPTS[0], "-n", "128", "--greedy", "--no-chat", "--json"]
    answers = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    yield f"{name}: an answer to its end", {**asked, "prompts": PROMPTS[:1], "count": None}, [answers["ids"]]


def main() -> None:
    """Ask, compare, and end with 1 where an answer is not right."""
    import torch

    torch.set_num_threads(1)
    families = sys.argv[1:] or [each for each in SAMPLES if each not in (*WITHOUT, *WIDE_HEADS)]
    wrong = 0
    for family in families:
        with tempfile.TemporaryDirectory() as place:
            wrong += compare(list(questions(Path(place), family)), [PYTHON, "tools/optimum/answer.py", place])
    print(f"{len(families)} families: {wrong} answers wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
