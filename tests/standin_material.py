"""A llama.cpp that fails as AMX code does that a compiler broke, for any processor: the real one, behind a
library of the same name that passes everything on.

Where a graph multiplies quantized weights of a model that was loaded with the library's own buffers
(``use_extra_bufts``), it does what ``how`` says; all else works. Whatever loads llama.cpp by the variable
LLAMA_CPP_LIB_PATH takes it. Beside it: environments with other packages, compilers, processors.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from compiled_material import shared_library

DIES = "__builtin_trap();"  # an illegal instruction, SIGILL
FAULTS = "*(volatile int *)8 = 0;"  # SIGSEGV, as a tile configuration of rubbish may do
ABORTS = 'fputs("x.c:1: GGML_ASSERT(tiles) failed\\n", stderr); abort();'
IS_KILLED = "raise(SIGKILL);"
COMPUTES_RUBBISH = "rubbish = 1;"

_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ggml.h, as of llama-cpp-python 0.3.36 */
struct tensor {
    int type; void *buffer; int64_t ne[4]; size_t nb[4]; int op; int32_t op_params[16]; int32_t flags;
    struct tensor *src[10]; struct tensor *view_src; size_t view_offs; float *data;
};
struct parameters { _Alignas(8) char bytes[SIZE]; };
int ggml_graph_n_nodes(void *); struct tensor *ggml_graph_node(void *, int);
const char *ggml_op_name(int); _Bool ggml_is_quantized(int); size_t ggml_nbytes(struct tensor *);

static int own_buffers;

void *llama_model_load_from_file(const char *path, struct parameters parameters) {
    void *(*real)(const char *, struct parameters) = dlsym(RTLD_NEXT, "llama_model_load_from_file");
    own_buffers = parameters.bytes[OFFSET];
    return real(path, parameters);
}

int ggml_graph_compute(void *graph, void *plan) {
    int (*real)(void *, void *) = dlsym(RTLD_NEXT, "ggml_graph_compute");
    int rubbish = 0, status;
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        struct tensor *node = ggml_graph_node(graph, i);
        if (WHEN && !strcmp(ggml_op_name(node->op), "MUL_MAT") && ggml_is_quantized(node->src[0]->type)) {
            HOW
        }
    }
    status = real(graph, plan);
    if (rubbish) {
        struct tensor *last = ggml_graph_node(graph, ggml_graph_n_nodes(graph) - 1);
        for (size_t i = 0; i < ggml_nbytes(last) / sizeof(float); i++) last->data[i] = (float)(i * i % 7);
    }
    return status;
}
"""


CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C
flags\t\t: fpu sse2 avx2 avx512f amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: another
flags\t\t: fpu
"""

# Writes assembly: the rows where it keeps the stores, nothing of them where it drops them.
_COMPILER = """#!/bin/sh
for word; do
    case $word in
        --version) echo "standin 1.0"; exit 0;;
        -mamx-tile) {amx};;
        -DROWS=*) rows=$word;;
        *.s) out=$word;;
    esac
done
echo "{writes}" > "$out"
"""


def standin_compiler(folder: Path, *, writes: str, amx: str = ":") -> Path:
    """A C++ compiler, "standin 1.0": its assembly is ``writes``; asked for AMX it runs ``amx``."""
    path = folder / "c++"
    path.write_text(_COMPILER.format(writes=writes, amx=amx))
    path.chmod(0o755)
    return path


def libraries() -> Path:
    """The folder of the real llama.cpp."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)), "lib")


def standin_library(folder: Path, how: str = DIES, *, when: str = "own_buffers") -> Path:
    """Make ``folder`` with the libraries; ``when`` is a condition in C, "1" without own buffers, too."""
    if not sys.platform.startswith("linux"):
        pytest.skip("not Linux: no library can be put before llama.cpp's")
    real = libraries()
    folder.mkdir(parents=True)
    for file in real.glob("libggml*.so"):
        (folder / file.name).symlink_to(file)
    bundled = real.parent.parent / "llama_cpp_python.libs"  # of a repaired wheel; looked for from the links
    if bundled.is_dir() and not (beside := folder.parent.parent / bundled.name).exists():
        beside.symlink_to(bundled)
    size, offset = _layout()
    source = folder / "standin.c"
    source.write_text(_SOURCE, "utf-8")
    options = ["-w", f"-DSIZE={size}", f"-DOFFSET={offset}", f"-DWHEN={when}", f"-DHOW={how}"]
    options += ["-Wl,--no-as-needed", f"-L{real}", f"-Wl,-rpath,{real}"]
    options += [f"-l:lib{name}.so" for name in ("llama", "ggml-cpu", "ggml-base")]
    shared_library(folder / "libllama.so", [source], *options)
    return folder


@functools.cache
def _layout() -> tuple[int, int]:
    """Bytes of llama_model_params and where use_extra_bufts lies, told by a process that loads llama.cpp."""
    code = (
        "from kconv.core import child\n"
        "layout = child.llama_cpp().llama_model_params\n"
        "import ctypes; print(ctypes.sizeof(layout), layout.use_extra_bufts.offset)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    command = [sys.executable, "-c", code]
    listing = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    size, offset = map(int, listing.split())
    return size, offset


def standin_python(folder: Path, packages: Mapping[str, Path], *, alone: bool = False) -> Path:
    """The python of an environment with these packages, and all others this one has unless ``alone``."""
    command = [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)]
    subprocess.run(command, check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name, package in packages.items():
        (site / name).symlink_to(package)
    others = [path for path in sys.path if path.endswith("site-packages") and not alone]
    (site / "others.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in others))
    return folder / "bin" / "python"


def standin_package(folder: Path, library: Path) -> Path:
    """``folder`` as an installed llama_cpp package with another ``library`` folder."""
    folder.mkdir()
    for file in libraries().parent.glob("*.py"):
        (folder / file.name).symlink_to(file)
    (folder / "lib").symlink_to(library)
    return folder


@pytest.fixture(scope="session")
def dying_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for LLAMA_CPP_LIB_PATH whose own buffers end in SIGILL."""
    return standin_library(tmp_path_factory.mktemp("standin") / "lib")
