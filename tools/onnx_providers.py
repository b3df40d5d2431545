"""``make providers``: which nodes of kconv's graphs each provider to be had here takes; fills docs/*/onnx.md.

Small models of several families in both flavours are opened in onnxruntime-web: in its plain WASM under
Node, and in that with WebGPU in it, without and with, in a headless Chromium with a software adapter. Of
WebGPU is told which kinds of nodes are left to the CPU, but for those that only compute indices and shapes,
and how many copies between the two a call takes; of OpenVINO, on the CPU, which it leaves to onnxruntime.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kconv.converters import to_onnx
from kconv.converters.samples import write_sample

LIBRARY = Path(".dev/js/node_modules/onnxruntime-web/dist")
PYTHON = Path(".dev/providers/bin/python")
OPENVINO = Path(".dev/openvino/bin/python")
FAMILIES = {"42dot": "Llama", "mpt": "MPT", "kebyt5": "T5"}
KINDS = (("standard", "f32"), ("standard", "q4_0"), ("contrib", "f32"), ("contrib", "q4_0"))
HEAVY = {
    *("Attention", "GroupQueryAttention", "MultiHeadAttention", "MatMul", "Gemm", "MatMulNBits", "Softmax"),
    *("RMSNormalization", "RotaryEmbedding", "LayerNormalization", "SimplifiedLayerNormalization", "Gelu"),
    *("SkipSimplifiedLayerNormalization", "GatherBlockQuantized", "Sigmoid", "Tanh", "Gather"),
}
"""What computes with activations; the rest of a graph is about indices, shapes and masks."""
COPIES = ("MemcpyFromHost", "MemcpyToHost")
BEGIN, END = "<!-- tools/onnx_providers.py -->", "<!-- /tools/onnx_providers.py -->"
HEADS = {
    "en": (
        *("model", "WASM", "WASM with WebGPU", "on WebGPU left to the CPU", "copies a call"),
        "on OpenVINO left to onnxruntime",
    ),
    "ko": (
        *("모델", "WASM", "WebGPU가 든 WASM", "WebGPU에서 CPU에 남는 연산", "호출마다 복사"),
        "OpenVINO에서 onnxruntime에 남는 연산",
    ),
}
WORDS = {"en": {True: "runs", False: "does not load"}, "ko": {True: "실행", False: "불러올 수 없음"}}
NOTHING = {"en": "nothing", "ko": "없음"}


def main() -> None:
    """Make the graphs, ask, and put the table into the documentation."""
    with tempfile.TemporaryDirectory() as place:
        graphs = _made(Path(place))
        plain = _loads("ort.wasm.min.mjs", Path(place), graphs)
        command = [str(PYTHON), "tools/providers/webgpu.py", place, str(LIBRARY), *graphs]
        placed = json.loads(subprocess.check_output(command))
        command = [str(OPENVINO), "tools/providers/openvino.py", *(f"{place}/{each}" for each in graphs)]
        compiled = json.loads(subprocess.check_output(command))
    for language, heads in HEADS.items():
        lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for graph, name in graphs.items():
            here = (WORDS[language][each is None] for each in (plain[graph], placed[graph]["wasm"]))
            left, copies = _left(placed[graph])
            lines.append(
                f"| {name} | {' | '.join(here)} | {left or NOTHING[language]} | {copies} | "
                f"{_not_compiled(compiled[f'{place}/{graph}'], language)} |"
            )
        _put(Path(f"docs/{language}/onnx.md"), "\n".join(lines))
        print("\n".join(lines))
    sys.stdout.flush()


def _made(place: Path) -> dict[str, str]:
    """What is shown of each graph, by its path in ``place``: the decoder where there are several."""
    shown = {}
    for family, words in FAMILIES.items():
        checkpoint = write_sample(family, place / "checkpoints" / family)
        for flavour, type in KINDS:
            given: dict[str, Any] = {"type": type, "flavour": flavour, "layout": "transformers.js"}
            folder = to_onnx(checkpoint, place / f"{family}-{flavour}-{type}", verify=False, **given).path
            (graph,) = (each for each in folder.rglob("*.onnx") if not each.name.startswith("encoder"))
            shown[graph.relative_to(place).as_posix()] = f"{words}, {flavour}, {type}"
    return shown


def _loads(build: str, place: Path, graphs: Mapping[str, str]) -> dict[str, str | None]:
    """By path: None, or why a build of the WASM does not load a graph."""
    command = [
        "node",
        "tools/providers/load.mjs",
        str(LIBRARY),
        build,
        *(str(place / each) for each in graphs),
    ]
    found = json.loads(subprocess.check_output(command))
    return {each: found[str(place / each)] for each in graphs}


def _left(answer: Mapping[str, Any]) -> tuple[str, str]:
    """Kinds of nodes that compute and stay on the CPU, and the copies."""
    if answer["error"] is not None:
        return answer["error"].replace("|", "/").replace("\n", " "), "–"
    on_cpu = answer["placed"].get("CPUExecutionProvider", {})
    copies = [sum(kinds.get(each, 0) for kinds in answer["placed"].values()) for each in COPIES]
    return ", ".join(sorted(HEAVY & on_cpu.keys())), " + ".join(map(str, copies))


def _not_compiled(answer: Mapping[str, Any], language: str) -> str:
    """Kinds of nodes that compute and that OpenVINO does not take."""
    if answer["error"] is not None:
        return WORDS[language][False]
    own = answer["placed"].get("CPUExecutionProvider", {})
    return ", ".join(sorted(HEAVY & own.keys())) or NOTHING[language]


def _put(page: Path, table: str) -> None:
    text = page.read_text("utf-8")
    before, rest = text.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}", "utf-8")


if __name__ == "__main__":
    main()
