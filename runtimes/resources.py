"""Disk, memory and folders, as ``kconv doctor`` looks at them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..core import machine
from ..core.system_processes import file_limits
from .finding import Finding

_LITTLE_MEMORY = 2 << 30  # libtorch and a layer of a large model
_LITTLE_DISK = 1 << 30
_FEW_FILES = 128
_GIB = 1 << 30


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


def memory() -> Finding:
    """Memory of the machine, of the container and of a process."""
    available = machine.memory()
    limits = {"container": "allowed in the container", "address_space": "allowed per process (ulimit -v)"}
    free = None if available.available is None else _gib(available.available)
    texts = [f"{free} are free" if free is not None else "free memory is unknown"]
    if free is not None and available.total is not None:
        texts = [f"{free} of {_gib(available.total)} are free"]
    for name, words in limits.items():
        size = getattr(available, name)
        texts += [f"{words} {_gib(size)}"] if size is not None else []
    little = available.most is not None and available.most < _LITTLE_MEMORY
    figures = {"total": available.total, "available": available.available}
    figures |= {"container": available.container, "address_space": available.address_space}
    if not little:
        return Finding("memory", "; ".join(texts), figures=figures)
    mend = "raise the limit, or pass --no-verify if the proof does not fit"
    return Finding("memory", "; ".join(texts), "warning", mend, figures)


def limits() -> Finding:
    """Limits on files that would end a conversion."""
    found = file_limits()
    if found is None:
        return Finding("limits", "none known")
    size, count = found
    figures = {"open_files": count}
    few = 0 <= count < _FEW_FILES
    text = f"{count} open files"
    if size is not None:
        figures["file_size"] = size
        text += f"; no file larger than {_gib(size)} (ulimit -f)"
        return Finding("limits", text, "warning", "ulimit -f unlimited", figures)
    return Finding("limits", text, "warning" if few else "ok", "ulimit -n 1024" if few else None, figures)


def working_folder() -> Finding:
    """Free disk where kconv was started, where files go without -o."""
    try:
        folder = os.getcwd()
    except OSError:
        return Finding("disk", "the current folder no longer exists", "broken", 'cd "$HOME"')
    free = shutil.disk_usage(folder).free
    figures = {"folder": folder, "free": free, "writable": os.access(folder, os.W_OK)}
    text = f"{_gib(free)} are free in {folder}"
    if not figures["writable"]:
        text += ", which is not writable"
        return Finding("disk", text, "warning", "choose another folder with -o", figures)
    if free < _LITTLE_DISK:
        return Finding("disk", text, "warning", "choose a folder on another disk with -o", figures)
    return Finding("disk", text, figures=figures)


def temporary_folder() -> Finding:
    """The folder for temporary files: whether it takes some bytes."""
    named = os.environ.get("TMPDIR")
    mend = "export TMPDIR=/some/folder (writable, with free space)"
    try:
        with tempfile.TemporaryFile() as file:
            file.write(bytes(1 << 16))
            file.flush()
        folder = tempfile.gettempdir()
    except OSError as error:
        text = f"temporary files cannot be written: {error.strerror or error}"
        return Finding("temporary files", text, "broken", mend, {"named": named})
    free = shutil.disk_usage(folder).free
    figures = {"folder": folder, "free": free, "named": named}
    text = f"{_gib(free)} are free in {folder}"
    if named and os.path.realpath(named) != os.path.realpath(folder):
        text = f"TMPDIR={named} cannot be written; {text}"
        return Finding("temporary files", text, "warning", mend, figures)
    return Finding("temporary files", text, figures=figures)


def hub_cache() -> Finding:
    """Where checkpoints of the Hugging Face Hub are kept, as huggingface_hub decides it."""
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = os.environ.get("HF_HOME") or os.path.join(home, "huggingface")
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    folder = Path(os.path.expandvars(os.path.expanduser(named or os.path.join(home, "hub"))))
    figures: dict[str, Any] = {"folder": str(folder), "exists": folder.is_dir()}
    if not folder.is_dir():
        return Finding("Hub cache", f"{folder} (does not exist)", figures=figures)
    models = sum(entry.name.startswith("models--") for entry in os.scandir(folder))
    free = shutil.disk_usage(folder).free
    figures |= {"models": models, "free": free}
    text = f"{folder}: {models} model{'' if models == 1 else 's'}, {_gib(free)} are free"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        text, figures["offline"] = f"{text}; offline (HF_HUB_OFFLINE)", True
    return Finding("Hub cache", text, figures=figures)
