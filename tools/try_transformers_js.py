"""``make test-js``: folders of layout transformers.js, loaded by Transformers.js under Node as they are.

The small trained models are converted to every type. Their tokenizers must give the ids transformers gives,
and 64 greedy tokens with the cache must be those of transformers (f32, where it has the model) or else of
onnxruntime in Python without a cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

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
CAUSAL = ("42dot", "kogpt")
COUNT = 64
TEXTS = 1500


def by_transformers(checkpoint: Path, ids: list[int], *, causal: bool) -> list[int]:
    """Greedy tokens of the checkpoint itself in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM
    model = kind.from_pretrained(checkpoint, dtype=torch.float32)
    exactly = {"max_new_tokens": COUNT, "min_new_tokens": COUNT, "do_sample": False, "eos_token_id": None}
    with torch.inference_mode():
        made = model.generate(torch.tensor([ids]), **exactly)
    return list(made[0].tolist()[-COUNT:])


def by_onnxruntime(folder: Path, ids: list[int], *, causal: bool) -> list[int]:
    """Greedy tokens of a folder, every step with the whole text and an empty cache."""
    import onnxruntime

    def session(pattern: str) -> Any:
        return onnxruntime.InferenceSession(next(folder.glob(f"onnx/{pattern}*.onnx")))

    given, made = {}, ids
    if not causal:
        row = np.array([ids])
        mask = np.ones_like(row)
        (hidden,) = session("encoder_model").run(None, {"input_ids": row, "attention_mask": mask})
        given, made = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}, [0]
    decoder = session("model" if causal else "decoder_model_merged")
    for each in decoder.get_inputs():
        if each.name.startswith("past_key_values."):
            shape = [length if isinstance(length, int) else 0 for length in each.shape]
            given[each.name] = np.zeros([1, *shape[1:]], np.float32)
        elif each.name == "use_cache_branch":
            given[each.name] = np.array([False])
    for _ in range(COUNT):
        row = np.array([made])
        given["input_ids"] = row
        if causal:
            given |= {"attention_mask": np.ones_like(row), "position_ids": np.arange(len(made))[None]}
        (logits,) = decoder.run(["logits"], given)
        made = [*made, int(logits[0, -1].argmax())]
    return made[-COUNT:]


def questions(folder: Path) -> list[tuple[str, dict[str, Any], Any]]:
    """What is asked, in words and for Node, and the right answer."""
    from transformers import AutoTokenizer

    asked: list[tuple[str, dict[str, Any], Any]] = []
    texts = built_in()[:TEXTS]
    for family, prompt in PROMPTS.items():
        causal = family in CAUSAL
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
                tokens = by_transformers(checkpoint, ids, causal=causal)
            else:
                tokens = by_onnxruntime(folder / name, ids, causal=causal)
            question = {"model": name, "dtype": dtype, "ids": ids, "count": COUNT, "causal": causal}
            asked.append((f"{family} {dtype}: {COUNT} greedy tokens", question, tokens))
    return asked


def main() -> None:
    """Ask, compare, and end with 1 where an answer is not right."""
    with tempfile.TemporaryDirectory() as place:
        asked = questions(Path(place))
        answered = subprocess.run(
            ["node", "answer.mjs", f"{place}/"],
            cwd=NODE,
            input=json.dumps([question for _, question, _ in asked]),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    wrong = 0
    for (words, _, right), found in zip(asked, json.loads(answered.stdout), strict=True):
        different = sum(one != other for one, other in zip(right, found, strict=True))
        wrong += different > 0
        print(f"{words}: {'all equal' if not different else f'{different} differ'}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
