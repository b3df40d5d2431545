"""What make test-js, test-optimum and test-genai share: right answers, greedy tokens made without what is
tried, and holding what that answers against them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ANSWERING = ("kebyt5", "gbst-kebyt5", "umt5")
"""Families of samples that answer; the others go on writing."""
ENCODERS = ("bert", "roberta", "xlm-roberta", "t5-encoder")
"""Families of samples that write nothing."""

Question = tuple[str, dict[str, Any], Any]
"""What is asked, in words and for the program that is tried, and the right answer."""


def compare(asked: Sequence[Question], command: Sequence[str | Path], cwd: Path | None = None) -> int:
    """Ask a program, which reads and writes JSON; how many answers are not right, told as well.

    It computes in one thread, as whoever asks should: with several, on a machine that has other work, they
    wait for each other longer than such small models take.
    """
    questions = json.dumps([question for _, question, _ in asked])
    answered = subprocess.run(
        command,
        cwd=cwd,
        input=questions,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wrong = 0
    for (words, _, right), ours in zip(asked, json.loads(answered.stdout), strict=True):
        different = sum(one != other for one, other in zip(right, ours, strict=False))
        different += abs(len(right) - len(ours))  # one reason in the place of all answers
        wrong += different > 0
        outcome = f"{different} of {len(right)} differ" if different else "all equal"
        print(f"{words}: {outcome}", flush=True)
    return wrong


def by_transformers(checkpoint: Path, ids: list[int], count: int, *, causal: bool) -> list[int]:
    """Tokens of the checkpoint itself in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM
    model = kind.from_pretrained(checkpoint, dtype=torch.float32)
    exactly = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "eos_token_id": None}
    with torch.inference_mode():
        made = model.generate(torch.tensor([ids]), **exactly)
    return list(made[0].tolist()[-count:])


def by_onnxruntime(graphs: Path, ids: list[int], count: int, *, causal: bool) -> list[int]:
    """Tokens of the graphs in a folder, every step with the whole text and an empty cache."""
    import onnxruntime

    def session(name: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(next(graphs.glob(f"{name}*.onnx")), options)

    given, made = {}, ids
    if not causal:
        row = np.array([ids])
        mask = np.ones_like(row)
        (hidden,) = session("encoder_model").run(None, {"input_ids": row, "attention_mask": mask})
        given, made = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}, [0]
    decoder = session("model" if causal else "decoder_model")
    for each in decoder.get_inputs():
        if each.name.startswith("past_key_values."):
            shape = [length if isinstance(length, int) else 0 for length in each.shape]
            kind = np.float16 if each.type == "tensor(float16)" else np.float32
            given[each.name] = np.zeros([1, *shape[1:]], kind)
        elif each.name == "use_cache_branch":
            given[each.name] = np.array([False])
    for _ in range(count):
        row = np.array([made])
        given["input_ids"] = row
        if causal:
            given |= {"attention_mask": np.ones_like(row), "position_ids": np.arange(len(made))[None]}
        (logits,) = decoder.run(["logits"], given)
        made = [*made, int(logits[0, -1].argmax())]
    return made[-count:]
