"""Loading torch: its library with Python's lock released, its modules without looking for garbage."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ..core.cores import few_spins


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Do not look for garbage meanwhile: importing torch and transformers makes a million objects, all of
    which stay, and looking through them again and again takes a fifth of the time. Afterwards they count as
    old, or they would be looked through twice more before they did.
    """
    enabled, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules and not gc.get_freeze_count():  # what somebody froze stays frozen
            gc.freeze()
            gc.unfreeze()
        if enabled:
            gc.enable()


def load_torch_library() -> None:
    """What ``import torch`` would load first, if nobody has yet; where that cannot be done, import does it.

    The import holds Python's lock while the linker maps and relocates hundreds of megabytes: 0.4 s on a quiet
    machine, seconds where it is busy or the disk cold, and the line that says what is being done stands
    still. A function called through ctypes releases the lock, and so does dlopen. The order and the flags are
    those of ``torch._load_global_deps``; neither library calls Python as it is loaded.
    """
    if "torch" in sys.modules or not sys.platform.startswith("linux"):
        return
    with few_spins(), contextlib.suppress(OSError, AttributeError, ImportError, ValueError):
        spec = find_spec("torch")
        if spec is None or spec.origin is None:
            return
        dlopen = ctypes.CDLL(None).dlopen
        dlopen.restype, dlopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
        folder = Path(spec.origin).parent / "lib"
        for name, scope in (
            ("libtorch_global_deps.so", os.RTLD_GLOBAL),
            ("libtorch_cpu.so", os.RTLD_LOCAL),
        ):
            dlopen(os.fsencode(folder / name), os.RTLD_LAZY | scope)
