"""Which instructions the CPU code of the installed libggml was compiled with."""

from __future__ import annotations

import contextlib
import ctypes
import functools

from ..core.errors import EnvironmentProblem
from .ggml import library_path

# In the order of their age, by the names of ggml-cpu.h: ggml_cpu_has_avx2().
_FEATURES = (
    "sse3", "ssse3", "avx", "f16c", "fma", "avx2", "bmi2", "avx_vnni", "avx512", "avx512_vbmi", "avx512_vnni",
    "avx512_bf16", "amx_int8", "neon", "arm_fma", "fp16_va", "dotprod", "matmul_int8", "sve", "sme",
    "riscv_v", "vsx", "vxe", "wasm_simd",
)  # fmt: skip


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """Their names; none where the library does not say. To be asked only where llama.cpp has run here.

    A library made for another processor might end the process when it is loaded.
    """
    found = []
    with contextlib.suppress(OSError, EnvironmentProblem):
        base = library_path()
        library = ctypes.CDLL(str(base.with_name(base.name.replace("ggml-base", "ggml-cpu"))))
        for name in _FEATURES:
            function = getattr(library, f"ggml_cpu_has_{name}", None)
            if function is not None and function():
                found.append(name)
    return tuple(found)
