"""Load folders with optimum and say what they answer: python answer.py FOLDER < questions.

FOLDER holds the models. A question is {model, texts} or {model, prompts, count, causal}: the ids of texts, or
the tokens that follow each prompt, all in one padded batch, when the most likely one is always taken: so
many, or, with ``count`` null, to where the folder's own settings end, at most 128. The answers are printed
as one JSON list. This runs where optimum is installed and kconv is not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM
from transformers import AutoTokenizer


def encode(folder: Path, texts: list[str]) -> list[list[int]]:
    """Ids of each text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text)["input_ids"] for text in texts]


def generate(folder: Path, prompts: list[str], count: int | None, causal: bool) -> list[list[int]]:
    """The tokens after each prompt; padding on the left where a model goes on writing."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left" if causal else "right")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    given = tokenizer(prompts, padding=True, return_tensors="pt")
    model = (ORTModelForCausalLM if causal else ORTModelForSeq2SeqLM).from_pretrained(folder)
    exactly = {"max_new_tokens": count, "eos_token_id": None} if count else {"max_new_tokens": 128}
    made = model.generate(**given, do_sample=False, **exactly)
    return made[:, given["input_ids"].shape[1] if causal else 1 :].tolist()


def main() -> None:
    """Answer all questions in their order."""
    place, answers = Path(sys.argv[1]), []
    for question in json.load(sys.stdin):
        folder = place / question.pop("model")
        ask = encode if "texts" in question else generate
        try:
            answers.append(ask(folder, **question))
        except Exception as error:
            answers.append([f"{type(error).__name__}: {error}"])
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
