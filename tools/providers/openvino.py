"""Which nodes OpenVINO leaves to the CPU provider: python openvino.py GRAPH... prints JSON.

By graph: ``error``, None where it runs, and ``placed``, how many nodes of each kind each provider has
computed. This runs where onnxruntime-openvino is installed and kconv is not.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from typing import Any

import numpy as np
import onnxruntime

TOKENS = 4
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def main() -> None:
    """Ask for each graph; what libraries print goes where errors go."""
    answers = os.dup(1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as place:
        found = {graph: asked(graph, place) for graph in sys.argv[1:]}
    with open(answers, "w", encoding="utf-8") as file:
        json.dump(found, file)


def asked(graph: str, place: str) -> dict[str, Any]:
    """What becomes of one graph that is given a few tokens."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.enable_profiling = 4, True
    options.profile_file_prefix = os.path.join(place, "profile")
    try:
        providers = ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
        session.run(None, {each.name: given(each) for each in session.get_inputs()})
    except Exception as error:
        return {"error": str(error)[:300], "placed": {}}
    placed: dict[str, Counter[str]] = {}
    with open(session.end_profiling(), encoding="utf-8") as file:
        for event in json.load(file):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                told = event["args"]
                placed.setdefault(told["provider"], Counter())[told["op_name"]] += 1
    return {"error": None, "placed": placed}


def given(value: Any) -> Any:
    """Tokens behind an empty cache, or whatever an input of a decoder has in the place of them."""
    kind = _TYPES.get(value.type, np.bool_)
    if value.name == "position_ids":
        return np.arange(TOKENS)[None]
    if value.name.endswith(("input_ids", "attention_mask")):
        return np.ones((1, TOKENS), np.int64)
    if value.name == "use_cache_branch":
        return np.array([False])
    sizes = [size if isinstance(size, int) else 0 for size in value.shape[1:]]
    if value.name == "encoder_hidden_states":
        sizes[0] = TOKENS
    return np.zeros([1, *sizes], kind)


if __name__ == "__main__":
    main()
