"""Where an ONNX folder runs, as its manifest tells: a model card's section on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..converters.onnx.genai import GENAI
from ..converters.onnx.page import PAGE
from ..core.foreign_values import object_of, objects_of, text_of


@dataclass(frozen=True)
class Runs:
    """Where an ONNX folder runs: its layout and flavour, and the ``least`` onnxruntime, None if not known.

    ``genai``: it has what onnxruntime-genai asks for; ``page``: it has a page that runs it in a browser;
    ``halves``: what flows and its cache are FLOAT16.
    """

    layout: str
    flavour: str
    least: str | None
    genai: bool
    page: bool
    halves: bool


def runs_of(manifest: Mapping[str, Any]) -> Runs | None:
    """By the manifest alone, so that a folder here and one in the repository have the same card."""
    options, output = (object_of(manifest.get(each)) for each in ("options", "output"))
    layout = text_of(options.get("layout"))
    if layout is None:
        return None
    least = text_of(output.get("least_onnxruntime"))
    names = {each.get("name") for each in objects_of(output.get("files"))}
    flavour = text_of(options.get("flavour")) or "standard"
    halves = text_of(options.get("activations")) == "f16"
    return Runs(layout, flavour, least, GENAI in names, PAGE in names, halves)
