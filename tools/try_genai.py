"""``make test-genai``: folders of decoders, run as they are in onnxruntime-genai (in its environment).

Every sample of a decoder, in both flavours, f32 and q4_0: 32 greedy tokens of one prompt and of a batch
padded on the right must be those of onnxruntime with the whole text at every step; beams must be
transformers'. Its tokenizer is asked for the ids of texts, which for some families are others: that is said,
and no failure. Then onnxsim and onnxconverter-common's convert_float_to_float16 (inputs and
results among it) take the graphs. A family is
told as soon as it is answered. All compute in one thread: with several, on a machine that has other work,
they wait for each other longer than such small models take.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from greedy_tokens import ANSWERING, ENCODERS, Question, by_onnxruntime

from kconv.converters import to_onnx
from kconv.converters.samples import SAMPLES, write_sample

PYTHON = Path(".dev/genai/bin/python")
COUNT = 32
TEXTS = ["안녕하세요. 만나서 반갑습니다!", "Hello, world", "옛날 어느 마을에 나무꾼이 살았어요."]
IDS = [[5, 17, 100, 42, 9, 61, 7], [33, 8, 90], [12]]
BEAMS = 3
PATIENCE = 600  # seconds
NOT_IN_TRANSFORMERS = ("exaone", "kanana")
"""Without a class there, or with shapes it refuses in a whole model."""


def questions(folder: Path, family: str) -> Iterator[Question]:
    """All questions about a family; the models they are about are made in ``folder``."""
    from transformers import AutoTokenizer

    checkpoint = write_sample(family, folder / "checkpoint")
    for flavour, type in (("contrib", "f32"), ("contrib", "q4_0"), ("standard", "f32")):
        name = f"{family}-{flavour}-{type}"
        given: dict[str, Any] = {"type": type, "flavour": flavour, "accuracy_level": 0}
        to_onnx(checkpoint, folder / name, verify=False, **given)
        right = [by_onnxruntime(folder / name, each, COUNT, causal=True) for each in IDS]
        used = {token for each in (*IDS, *right) for token in each}
        asked = {"model": name, "count": COUNT, "beams": 1, "unused": _unused(used)}
        yield f"{name}: {COUNT} greedy tokens", {**asked, "prompts": IDS[:1]}, right[:1]
        yield f"{name}: a padded batch", {**asked, "prompts": IDS}, right
        if type == "f32":
            for tool in ("onnxsim", "convert_float_to_float16"):
                yield f"{name}: through {tool}", {"model": name, "tool": tool, "ids": IDS[0]}, [True]
        if (flavour, type) == ("contrib", "f32") and family not in NOT_IN_TRANSFORMERS:
            beams = [by_beams(checkpoint, IDS[0])]
            asked |= {"beams": BEAMS, "unused": _unused(used | set(beams[0]))}
            yield f"{name}: {BEAMS} beams", {**asked, "prompts": IDS[:1]}, beams
            tokenizer = AutoTokenizer.from_pretrained(checkpoint)
            ids = [tokenizer(text)["input_ids"] for text in TEXTS]
            yield f"{name}: ids of texts", {"model": name, "texts": TEXTS}, ids


def _unused(used: set[int]) -> int:
    return next(number for number in range(len(used) + 1) if number not in used)


def by_beams(checkpoint: Path, ids: list[int]) -> list[int]:
    """The tokens of transformers' best beam in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.generation_config.eos_token_id = None  # all beams are as long
    exactly = {"max_new_tokens": COUNT, "do_sample": False}
    with torch.inference_mode():
        made = model.generate(torch.tensor([ids]), num_beams=BEAMS, **exactly)
    return list(made[0].tolist()[-COUNT:])


def main() -> None:
    """Ask, compare, and end with 1 where tokens are not right."""
    import torch

    torch.set_num_threads(1)
    families = sys.argv[1:] or [each for each in SAMPLES if each not in (*ANSWERING, *ENCODERS)]
    outcomes = [outcome for family in families for outcome in ask(family)]
    print(f"{len(families)} families: {outcomes.count(True)} answers right, {outcomes.count(False)} wrong")
    sys.exit(1 if False in outcomes else 0)


def ask(family: str) -> Iterator[bool]:
    """Whether each answer about a family is right, told as well; of ids of texts it is told only."""
    with tempfile.TemporaryDirectory() as place:
        asked = list(questions(Path(place), family))
        command = [PYTHON, "tools/genai/answer.py", place]
        given, one = (
            json.dumps([question for _, question, _ in asked]),
            {**os.environ, "OMP_NUM_THREADS": "1"},
        )
        answered = subprocess.run(
            command, input=given, stdout=subprocess.PIPE, text=True, check=True, env=one, timeout=PATIENCE
        )
    for (words, question, right), ours in zip(asked, json.loads(answered.stdout), strict=True):
        told = "equal" if right == ours else "other"
        if "texts" not in question:
            yield right == ours
            told += "" if right == ours else f": {ours}, expected {right}"
        print(f"{words}: {told}", flush=True)


if __name__ == "__main__":
    main()
