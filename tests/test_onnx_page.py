"""Folders for Transformers.js: their page, and tables of rows that its WASM can look up."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from kconv.converters.onnx.flavours import FLAVOURS
from kconv.converters.onnx.graph import Element, Graph
from kconv.converters.onnx.page import LIBRARY, PAGE
from kconv.converters.onnx.writer import write_onnx
from kconv.converters.samples import write_sample
from kconv.converters.targets import FOLDER_MANIFEST
from kconv.core.input_files import file_sha256
from kconv.core.reading import open_checkpoint
from kconv.flows.to_onnx import to_onnx
from kconv.quant.formats import FORMATS

TABLE = "model.embed_tokens.weight"


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_rows_of_packed_tables_are_the_same_to_the_bit_in_both_flavours(tmp_path: Path, kind: str) -> None:
    """The WASM with WebGPU in it (onnxruntime-web 1.31) has no GatherBlockQuantized on the CPU."""
    tensors = open_checkpoint(write_sample("42dot", tmp_path / "checkpoint")).tensors
    ids = np.arange(3 * 40).reshape(3, 40) * 2
    found = []
    for name, flavour in FLAVOURS.items():
        graph = Graph("table", tensors, {TABLE: FORMATS[kind]}, flavour=flavour)
        graph.input("ids", Element.INT64, ("texts", "length"))
        graph.op("Identity", graph.embedding("ids", TABLE), name="rows")
        graph.output("rows", Element.FLOAT, ("texts", "length", tensors[TABLE].shape[1]))
        used = {node.kind for node in graph.nodes}
        assert ("GatherBlockQuantized" in used) == (name == "standard")
        (tmp_path / name).mkdir()
        write_onnx({"table.onnx": graph}, tmp_path / name)
        session = onnxruntime.InferenceSession(tmp_path / name / "table.onnx")
        found.append(session.run(None, {"ids": ids})[0])
    assert found[0].tobytes() == found[1].tobytes()
    assert found[0].shape == (3, 40, tensors[TABLE].shape[1])


@pytest.mark.parametrize(
    ("family", "asked"),
    [
        ("42dot", {"dtype": "q8", "chat": False, "answers": False}),
        ("llama-3-ko", {"dtype": "q8", "chat": True, "answers": False}),
        ("kebyt5", {"dtype": "q8", "chat": False, "answers": True}),
        ("bert", None),
    ],
)
def test_a_model_that_writes_has_a_page_which_loads_one_library(
    tmp_path: Path, family: str, asked: dict[str, object] | None
) -> None:
    checkpoint = write_sample(family, tmp_path / "<b>&model")
    chat = "aog" if asked is not None and asked["chat"] else None
    given = {"type": "q8_0", "layout": "transformers.js", "chat_template": chat, "threads": 1}
    folder = to_onnx(checkpoint, tmp_path / "web", verify=False, **given).path  # type: ignore[arg-type]
    page = folder / PAGE
    if asked is None:
        assert not page.exists()
        return
    text = page.read_text("utf-8")
    assert json.loads(re.findall(r"const MODEL = (.*);", text)[0]) == asked
    assert " · Q8_0</title>" in text
    assert "<b>" not in text
    assert re.findall(r"@[A-Z]+@", text) == []
    imports = json.loads(re.findall(r'<script type="importmap">(.*?)</script>', text, re.DOTALL)[0])
    assert imports["imports"]["@huggingface/transformers"].endswith(f"@{LIBRARY}/dist/transformers.min.js")
    elsewhere = set(re.findall(r"https?://[\w.-]+", text)) - {"http://localhost"}
    assert elsewhere == {"https://cdn.jsdelivr.net"}
    written = json.loads((folder / FOLDER_MANIFEST).read_text("utf-8"))["output"]["files"]
    assert {"name": PAGE, "bytes": page.stat().st_size, "sha256": file_sha256(page)} in written


def test_the_page_is_for_the_library_that_make_test_js_tries() -> None:
    package = Path("tools/transformers_js/package.json").read_text("utf-8")
    assert json.loads(package)["dependencies"]["@huggingface/transformers"] == LIBRARY
