"""index.html of a folder of layout transformers.js: a page that chats with the model, or has it write on.

The page is data/index.html, with the model's name and how it is asked put in. It loads the version of
Transformers.js that ``make test-js`` tries, and the onnxruntime-web which that one needs.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from .folder import Layout, SideFiles
from .graph import Graph
from .side_files import TEMPLATE, TOKENIZER

PAGE = "index.html"
LIBRARY = "4.3.1"
RUNTIME = "1.31.0-dev.20260914-8d85527a0"
DTYPES: Mapping[str, str] = MappingProxyType(
    {
        **{"f32": "fp32", "f16": "fp16", "q8_0": "q8", "q4_0": "q4"},
        **{"f16-f16": "fp16", "q8_0-f16": "q8", "q4_0-f16": "q4f16"},
    }
)
"""Transformers.js's names of kconv's types (``OnnxFormats.name``)."""


def with_page(
    side: SideFiles, graphs: Mapping[str, Graph], layout: Layout, type: str, name: str
) -> SideFiles:
    """The files with index.html among them, if the folder is for Transformers.js and its model writes texts.

    ``name`` is what the page is called.
    """
    outputs = {each.name for graph in graphs.values() for each in graph.outputs}
    if not layout.folder or "logits" not in outputs:
        return side
    asked = {
        "dtype": DTYPES[type],
        "chat": _has_template(side.contents),
        "answers": any(each.startswith("encoder") for each in graphs),
    }
    page = files(__package__).joinpath("data", PAGE).read_text("utf-8")
    for mark, text in {
        "@TITLE@": html.escape(f"{name} · {type.upper()}"),
        "@LIBRARY@": LIBRARY,
        "@RUNTIME@": RUNTIME,
        "@MODEL@": json.dumps(asked),
    }.items():
        page = page.replace(mark, text)
    return replace(side, contents=MappingProxyType({**side.contents, PAGE: page.encode()}))


def _has_template(contents: Mapping[str, bytes]) -> bool:
    settings: dict[str, Any] = json.loads(contents.get(TOKENIZER) or b"{}")
    return TEMPLATE in contents or bool(settings.get("chat_template"))
