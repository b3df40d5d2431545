"""What tests of the Hub share: small repositories, and huggingface_hub sent to the test Hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_material import kconv
from hub_server import Hub
from safetensors.numpy import save_file

REPOSITORY = "kconv-tests/small-model"


def run(hub: Hub, home: Path, *words: object, **more: str) -> subprocess.CompletedProcess[Any]:
    """A command that asks this Hub and has ``home`` to itself; ``more`` goes into its environment."""
    return kconv(*words, env={**os.environ, **hub.environment(home), **more}, cwd=home)


def small_repository(folder: Path, *, shards: int = 1, size: int = 300_000) -> Path:
    """A folder as repositories have it, with weights of about ``size`` bytes in each of its files.

    It can be opened and fetched; no family has a model like that. Beside the weights lies what nobody needs.
    """
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(0)
    where = {}
    for shard in range(1, shards + 1):
        name = f"model-{shard:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        rows = size // 256
        save_file({f"layer.{shard}.weight": numbers.random((rows, 64), np.float32)}, folder / name)
        where[f"layer.{shard}.weight"] = name
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text('{"architectures": ["SmallModel"], "model_type": "small"}')
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}, "filler": "x" * 5000}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Small\n")
    for name in (
        "pytorch_model.bin",
        "tf_model.h5",
        "model.gguf",
        "original/consolidated.00.pth",
        "onnx/model.onnx",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"nobody needs this" * 100)
    (folder / "modeling_small.py").write_text("raise SystemExit('never')\n")
    return folder


NEEDED = {"config.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
"""Of a small repository, beside the weights."""


@contextmanager
def sent_to(hub: Hub, home: Path, token: str | None = None, *, many: int = 3) -> Iterator[Path]:
    """huggingface_hub of this process asks ``hub`` and keeps its cache in ``home``; yields that cache.

    It reads most of its settings when it is imported. Waits between kconv's tries are shorter, and there are
    ``many`` of them.
    """
    from huggingface_hub import constants

    from kconv.hub import tries

    said = hub.environment(home, token)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", os.path.join(said["HF_HOME"], "hub"))
        patch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
        patch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
        patch.setattr(constants, "DEFAULT_REQUEST_TIMEOUT", 0.3)
        patch.setattr(tries, "WAIT", 0.005)
        patch.setattr(tries, "MANY", many)
        yield home / "hub"


def check_blobs(cache: Path) -> None:
    """No contents in the cache have a name that is not theirs."""
    for blob in cache.glob("models--*/blobs/*"):
        if blob.name.endswith(".incomplete"):
            continue
        data = blob.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        assert blob.name in (git, hashlib.sha256(data).hexdigest()), blob


def same_files(snapshot: Path, source: Path) -> set[str]:
    """The names of a snapshot's files, all of which are those of ``source``."""
    names = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    for name in names:
        assert (snapshot / name).read_bytes() == (source / name).read_bytes(), name
    return names


def in_three_shards(checkpoint: Path, *, order: Callable[[Iterable[str]], list[str]]) -> Path:
    """Divide the weights of the folder, dealt out in that order of their names; returns the folder."""
    from safetensors.numpy import load_file

    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names, where = order(tensors), {}
    for part in range(3):
        file = f"model-{part + 1:05}-of-00003.safetensors"
        some = {name: tensors[name] for name in names[part::3]}
        save_file(some, checkpoint / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(some, file))
    index = {"metadata": {}, "weight_map": where}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    return checkpoint
