"""``run`` of a model that writes no text: the embedding of one, by the file's own way of pooling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.cores import available_cores
from ..core.errors import InputError
from ..core.gguf_split import read_model
from ..core.windows import Window
from ..runtimes.llama_encoder import LlamaEncoder
from ..runtimes.onnx_folder import open_onnx
from ..runtimes.onnx_process import OnnxProcess
from ..runtimes.reader import Floats, RuntimeFailure
from ..verify.onnx_parts import folder_source
from ..vocab.probe import LlamaProbe, ProbeFailure, Request


@dataclass(frozen=True)
class Embedded:
    """``embedding`` has the length 1, as llama.cpp's programs give it; ``ids`` are the tokens read."""

    artifact: Path
    ids: tuple[int, ...]
    embedding: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"artifact": str(self.artifact), "ids": list(self.ids), "embedding": list(self.embedding)}


def embed(artifact: str | Path, text: str, *, threads: int | None = None) -> Embedded:
    """The embedding of ``text`` in its runtime, in a child process.

    Raises InputError for a text that does not fit the model's context and for a file that does not say how
    hidden states become an embedding, ChildDied where the process with the model dies.
    """
    path, workers = Path(artifact), threads or available_cores()
    try:
        ids, vector = (_by_onnxruntime if path.is_dir() else _by_llama_cpp)(path, text, workers)
    except (RuntimeFailure, ProbeFailure) as failure:
        raise InputError(
            f"{path}: {failure}", hint="prove it against its checkpoint: kconv verify"
        ) from failure
    if vector is None:
        raise InputError(
            f"{path} does not say how hidden states become an embedding (pooling)",
            hint="the checkpoint has no modules.json; llama-server --embedding takes --pooling mean or cls",
        )
    made = vector.astype(np.float64) / max(float(np.linalg.norm(vector)), 1e-12)
    return Embedded(path, tuple(ids), tuple(float(f"{value:.7g}") for value in made))


def _by_llama_cpp(path: Path, text: str, threads: int) -> tuple[list[int], Floats | None]:
    header = read_model(path).header
    with LlamaProbe(path) as probe:
        ids = list(probe.encode([Request(text, parse_special=False, add_special=True)])[0])
    _fits(path, ids, header.metadata.get(f"{header.arch}.context_length"))
    with LlamaEncoder(path, threads=threads) as reader:
        return ids, reader.embedding(Window(0, tuple(ids)))


def _by_onnxruntime(path: Path, text: str, threads: int) -> tuple[list[int], Floats | None]:
    folder = open_onnx(path)
    source = folder_source(folder)
    special, table = source.special, source.table
    before = [special["bos"]] if table.add_bos and "bos" in special else []
    after = [special["eos"]] if table.add_eos and "eos" in special else []
    ids = [*before, *source.encode(text, False), *after]
    _fits(path, ids, folder.config.get("max_position_embeddings"))
    with OnnxProcess(folder, threads=threads) as process:
        _, embeddings = process.embed(ids)
    return ids, None if embeddings is None else embeddings[0]


def _fits(path: Path, ids: list[int], context: object) -> None:
    if not isinstance(context, int) or len(ids) <= context:
        return
    raise InputError(
        f"the text has {len(ids):,} tokens, but {path} was trained with {context:,}", hint="shorten the text"
    )
