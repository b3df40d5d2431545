"""``make test-genai``: folders of decoders, run as they are in onnxruntime-genai (in its environment).

Every sample of a decoder, in both flavours, f32 and q4_0: 32 greedy tokens of one prompt and of a batch
padded on the right must be those of onnxruntime with the whole text at every step; beams must be
transformers'. Its tokenizer is asked for the ids of texts, which for some families are others: that is said,
and no failure. Then onnxsim and onnxconverter-common's convert_float_to_float16 take the graphs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from greedy_tokens import Question, by_onnxruntime

from kconv.converters import to_onnx
from kconv.converters.samples import SAMPLES, write_sample

PYTHON = Path(".dev/genai/bin/python")
COUNT = 32
TEXTS = ["안녕하세요. 만나서 반갑습니다!", "Hello, world", "옛날 어느 마을에 나무꾼이 살았어요."]
IDS = [[5, 17, 100, 42, 9, 61, 7], [33, 8, 90], [12]]
WITHOUT = ("bert", "roberta", "xlm-roberta", "kebyt5", "gbst-kebyt5", "umt5", "t5-encoder")
BEAMS = 3
NOT_IN_TRANSFORMERS = ("exaone", "kanana")
"""Without a class there, or with shapes it refuses in a whole model."""


def questions(folder: Path, families: list[str]) -> Iterator[Question]:
    """All questions; the models they are about are made in ``folder``."""
    from transformers import AutoTokenizer

    for family in families:
        checkpoint = write_sample(family, folder / "checkpoints" / family)
        for flavour, type in (("contrib", "f32"), ("contrib", "q4_0"), ("standard", "f32")):
            name = f"{family}-{flavour}-{type}"
            given: dict[str, Any] = {"type": type, "flavour": flavour, "accuracy_level": 0}
            to_onnx(checkpoint, folder / name, verify=False, **given)
            right = [by_onnxruntime(folder / name, each, COUNT, causal=True) for each in IDS]
            asked = {"model": name, "count": COUNT, "beams": 1}
            yield f"{name}: {COUNT} greedy tokens", {**asked, "prompts": IDS[:1]}, right[:1]
            yield f"{name}: a padded batch", {**asked, "prompts": IDS}, right
            if type == "f32":
                for tool in ("onnxsim", "convert_float_to_float16"):
                    yield f"{name}: through {tool}", {"model": name, "tool": tool, "ids": IDS[0]}, [True]
            if (flavour, type) == ("contrib", "f32") and family not in NOT_IN_TRANSFORMERS:
                beams = [by_beams(checkpoint, IDS[0])]
                yield f"{name}: {BEAMS} beams", {**asked, "prompts": IDS[:1], "beams": BEAMS}, beams
                tokenizer = AutoTokenizer.from_pretrained(checkpoint)
                ids = [tokenizer(text)["input_ids"] for text in TEXTS]
                yield f"{name}: ids of texts", {"model": name, "texts": TEXTS}, ids


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
    families = sys.argv[1:] or [each for each in SAMPLES if each not in WITHOUT]
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        asked = list(questions(Path(place), families))
        command = [PYTHON, "tools/genai/answer.py", place]
        given = json.dumps([question for _, question, _ in asked])
        answered = subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True, check=True)
    for (words, question, right), ours in zip(asked, json.loads(answered.stdout), strict=True):
        same = right == ours
        wrong += not same and "texts" not in question
        told = "" if same or "texts" in question else f": {ours}, expected {right}"
        print(f"{words}: {'equal' if same else 'other' + told}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
