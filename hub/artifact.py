"""What is run, proven or quantized, on the Hub as here: a GGUF file, or a folder of ONNX files.

Of the latter its graphs, their weights, configuration and tokenizer are fetched. Repositories hold the same
graphs in half a dozen types; those that would be run from a folder with all of them are fetched
(runtimes/onnx_folder.py).
"""

from __future__ import annotations

import re
from pathlib import Path

from ..core.errors import HubRefusal
from ..core.onnx_names import graph_names
from ..core.progress import Progress, silent
from .download import fetch_files
from .gguf_files import fetch_gguf, gguf_models
from .names import parse_hub_name
from .source import HubFile, HubSource, resolve
from .wanted import small_files

_SETTINGS = re.compile(r"config\.[a-z0-9]+\.json|kconv\.manifest\.json")
"""A front end's (config.gbswt5.json), and what the proof compares."""
_GRAPHS = ("model", "encoder_model", "decoder_model_merged", "decoder_model", "decoder_with_past_model")


def local_artifact(source: str | Path, progress: Progress = silent) -> Path:
    """The path of a GGUF file or an ONNX folder; of one on the Hub, once it is downloaded.

    Takes what ``parse_hub_name`` takes. A repository without ONNX files stands for the only GGUF in it.
    Raises HubRefusal where it is unclear what is meant, and what ``resolve`` and ``fetch_files`` raise.
    """
    name = parse_hub_name(source)
    if name is None:
        return Path(source)
    found = resolve(name)
    if name.means_gguf or is_shelf_of_ggufs(found):
        return fetch_gguf(found, name, progress)
    return fetch_files(found, onnx_files(found), progress)


def local_gguf(source: str | Path, progress: Progress = silent) -> Path:
    """The same where only a GGUF file will do."""
    name = parse_hub_name(source)
    return Path(source) if name is None else fetch_gguf(resolve(name), name, progress)


def is_shelf_of_ggufs(source: HubSource) -> bool:
    """Whether a repository has GGUF models and no ONNX files."""
    return bool(gguf_models(source)) and not any(each.path.endswith(".onnx") for each in source.files)


def onnx_files(source: HubSource) -> list[HubFile]:
    """What running a repository's ONNX graphs takes. Raises HubRefusal where it has none."""
    place = "onnx/" if any(each.path.startswith("onnx/") for each in source.files) else ""
    there = {
        each.path.removeprefix(place): each
        for each in source.files
        if each.path.rpartition("/")[0] == place[:-1]
    }
    graphs = [name for stem in _GRAPHS if (name := _first(stem, there)) is not None]
    if "model" in {name.partition(".")[0].partition("_")[0] for name in graphs}:
        graphs = graphs[:1]
    elif _first("decoder_model_merged", there) is not None:
        graphs = graphs[:2]
    if not graphs:
        raise _no_graphs(source)
    data = [name for name in there if not name.endswith(".onnx") and _is_data(name)]
    own = [name for name in data if name.startswith(tuple(graphs))]
    settings = [each for each in source.files if _SETTINGS.fullmatch(each.path)]
    return [*small_files(source), *settings, *(there[name] for name in (*graphs, *(own or data)))]


def _first(stem: str, there: dict[str, HubFile]) -> str | None:
    return next((name for name in graph_names(stem) if name in there), None)


def _is_data(name: str) -> bool:
    return ".onnx" in name or name.endswith((".data", "_data"))


def _no_graphs(source: HubSource) -> HubRefusal:
    return HubRefusal(
        f"{source.asked} has no ONNX files; expected a folder of those, as kconv to-onnx makes them",
        hint=f"make some of its checkpoint: kconv to-onnx {source.asked}, or kconv to-gguf {source.asked}",
    )
