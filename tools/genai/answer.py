"""Run folders in onnxruntime-genai, put graphs through tools: python answer.py FOLDER < questions.

FOLDER holds the models. A question is {model, texts}, {model, prompts, count, beams, unused} or {model, tool,
ids}: the ids of texts; the tokens that follow each prompt of ids, all in one batch, padded as genai has it,
on the right; or whether a tool has made of the folder's graph one that gives nearly the same logits. The
answers are printed as one JSON list. This runs where onnxruntime-genai is installed and kconv is not.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxruntime_genai as genai


def encode(folder: Path, texts: list[str]) -> list[list[int]]:
    """Ids of each text."""
    tokenizer = genai.Tokenizer(genai.Model(str(folder)))
    return [tokenizer.encode(text).tolist() for text in texts]


def generate(folder: Path, prompts: list[list[int]], count: int, beams: int, unused: int) -> list[list[int]]:
    """The ``count`` tokens after each prompt, by what the folder's own settings say but for the end.

    Without one genai takes the padding for the end: that is ``unused``, a token that does not occur.
    """
    place = folder / "genai_config.json"
    settings = json.loads(place.read_text("utf-8"))
    settings["model"] |= {"eos_token_id": [], "pad_token_id": unused}  # which an overlay would not do
    settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] = 1
    place.write_text(json.dumps(settings), "utf-8")
    model = genai.Model(str(folder))
    width = max(map(len, prompts))
    given = np.array([each + [unused] * (width - len(each)) for each in prompts], np.int32)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(
        batch_size=len(prompts), num_beams=beams, max_length=width + count, do_sample=False
    )
    generator = genai.Generator(model, parameters)
    generator.append_tokens(given)
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(row).tolist()[-count:] for row in range(len(prompts))]


def through(folder: Path, tool: str, ids: list[int]) -> list[bool]:
    """Whether the logits by what ``tool`` makes of the graph differ by what halves cost at most."""
    model = onnx.load(str(folder / "model.onnx"))
    if tool == "onnxsim":
        import onnxsim

        made, sound = onnxsim.simplify(model)
        assert sound, "onnxsim finds its graph to compute something else"
    else:
        from onnxconverter_common import float16

        # Its Cast keep their type and declare another; by their kind it would block its own, without an end.
        blocked = [node.name for node in model.graph.node if node.op_type == "Cast"]
        made = float16.convert_float_to_float16(model, node_block_list=blocked)
    with tempfile.TemporaryDirectory() as place:
        onnx.save(made, f"{place}/model.onnx")
        found, wanted = logits(f"{place}/model.onnx", ids), logits(str(folder / "model.onnx"), ids)
    return [bool(np.mean((found - wanted) ** 2) < 1e-4 * np.mean(wanted**2))]


def logits(path: str, ids: list[int]) -> Any:
    """Of all ``ids``, from an empty cache."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    given = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    given["position_ids"] = np.arange(len(ids))[None]
    for each in session.get_inputs():
        if each.name.startswith("past"):
            kind = np.float16 if each.type == "tensor(float16)" else np.float32
            given[each.name] = np.zeros((1, each.shape[1], 0, each.shape[3]), kind)
    return session.run(["logits"], given)[0]


def answer(place: Path, question: dict[str, Any]) -> list[Any]:
    """What is asked of a model in ``place``; where it cannot be told, why."""
    folder = place / question.pop("model")
    ask = encode if "texts" in question else through if "tool" in question else generate
    try:
        return list(ask(folder, **question))  # type: ignore[operator]
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def main() -> None:
    """Answer all questions in their order; what libraries print goes where errors go."""
    answers = os.dup(1)
    os.dup2(2, 1)
    made = [answer(Path(sys.argv[1]), each) for each in json.load(sys.stdin)]
    with open(answers, "w", encoding="utf-8") as file:
        json.dump(made, file)


if __name__ == "__main__":
    main()
