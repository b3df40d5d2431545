"""Graphs and their weights in one folder, where links put them into several.

onnxruntime wants a graph's weights in the folder of the graph, links followed. In the Hub's cache they are
elsewhere if they came by Xet: in a store by their hashes, each in another folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import EnvironmentProblem
from ..core.files import explained
from ..core.scratch import scratch_folder
from .onnx_folder import OnnxFolder


@contextlib.contextmanager
def gathered(folder: OnnxFolder) -> Iterator[dict[Path, Path]]:
    """Where to open each graph while the block runs: itself, or in a folder of hard links (or copies).

    Raises EnvironmentProblem where there is no room for copies.
    """
    if not any(_is_scattered(model.path, model.data) for model in folder.models):
        yield {model.path: model.path for model in folder.models}
        return
    with contextlib.ExitStack() as stack:
        store = Path(os.path.realpath(folder.files[-1])).parent.parent
        try:  # hard links need no room, but the same file system
            place = stack.enter_context(scratch_folder("onnx", store))
        except EnvironmentProblem:
            place = stack.enter_context(scratch_folder("onnx"))
        for path in folder.files:
            with explained(place / path.name, elsewhere="set TMPDIR to another disk"):
                _put(Path(os.path.realpath(path)), place / path.name)
        yield {model.path: place / model.path.name for model in folder.models}


def _is_scattered(graph: Path, data: tuple[Path, ...]) -> bool:
    """Whether onnxruntime would refuse to read weights where they lie."""
    homes = (graph.parent.resolve(), graph.resolve().parent)
    return not all(any(each.resolve().is_relative_to(home) for home in homes) for each in data)


def _put(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)
