"""Tests side by side (pytest-xdist): how many processes, how many threads in each, which files come first.

Files stay whole (``--dist loadscope``), so what a file's fixtures make is made once. The longest come first,
or one of them would still be running when all others are done.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil
import pytest

MOST = 8
"""More processes than this wait for the longest file."""
MEMORY = 2 << 30
"""Bytes a process is given: torch, transformers and onnxruntime, and a child or two."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
"""Variables that libraries ask how many threads to start."""
LONG = (
    "damages",
    "strangers",
    "any_model",
    "t5_unigram",
    "policy_bytes",
    "run_child",
    "onnx_t5",
    "kernels",
    "t5_encoders",
    "sentence_encoders",
    "intake",
    "cluster",
    "policy_types",
    "shortage",
    "samples_small",
    "sources",
    "stream",
    "hub_commands",
    "object_store",
    "vocab_damage",
    "verify",
    "undecided",
    "onnx_causal",
    "onnx_contrib",
    "onnx_ways",
    "onnx_gbst",
    "verify_t5",
    "resume",
    "receipts",
    "long_context",
    "upload",
    "trained_xglm",
    "gptj",
    "gbst_pipeline",
    "install_llama_cpp",
    "batch",
    "pipeline",
    "onnx_weights",
    "suite",
    "plan",
    "vocab_parity",
    "faults",
    "fuzz_commands",
    "onnx_families",
    "onnx_folder",
    "policy_cli",
    "weights_part",
    "against_llama_cpp",
    "gptj_tokens",
    "quant_slabs",
    "tokenizer_process",
    "kernels_degenerate",
    "tokenizer_json",
    "tokens_part",
    "cli_verify",
    "sentencepiece_json",
    "templates",
    "native",
    "imatrix_conversion",
    "imatrix_activations",
    "compare",
    "metadata_part",
    "cli_commands",
    "run_t5",
    "cli_run",
    "cli_main",
    "gptj_quant",
    "reference",
    "quant_parity",
    "llama_reader",
    "onnx_beyond_llama_cpp",
    "leading_space",
    "full_width",
    "quantize_command",
    "template_limits",
    "self_test",
    "doctor",
    "interruption",
    "batch_command",
    "batch_hub",
    "built",
    "bad_input",
    "to_onnx",
    "onnx_verify",
    "onnx_formats",
    "onnx_t5_formats",
    "onnx_same_weights",
    "onnx_readme",
    "onnx_merged",
    "onnx_side_files",
    "onnx_inspect",
    "run_onnx",
    "run_gbst",
    "policy_width",
    "provenance",
    "quantize",
    "quantize_split",
    "t5",
    "t5_bytes",
    "t5_formats",
    "demo_model",
    "llama_logits",
    "gbst_joined",
    "stories260k",
)
"""Files that ``make test-fast`` leaves out, in the order in which they begin: about the longest first."""
_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Processors this process may use: its affinity and the quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text("ascii").split()
        count = min(count, round(int(quota) / int(period)))
    return max(count, 1)


def memory() -> int:
    """Bytes that are free here: on the machine and in its container."""
    free: int = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit, used = (int((_CGROUP / f"memory.{end}").read_text("ascii")) for end in ("max", "current"))
        kept = dict(line.split() for line in (_CGROUP / "memory.stat").read_text("ascii").splitlines())
        free = min(free, limit - used + int(kept["inactive_file"]))  # files the kernel lets go at once
    return free


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means."""
    return max(min(cores(), memory() // MEMORY, MOST), 1)


@pytest.hookimpl(tryfirst=True)  # before marks are looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the long files, and put them first."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    for item in items:
        if item.path.name in order:
            item.add_marker("long")
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: order.get(item.path.name, len(order)))


def _share_processors() -> None:
    """In a worker: it and what it starts keep to its share of the processors.

    Threads of llama.cpp, torch and onnxruntime that wait for each other turn in circles meanwhile; where two
    workers have as many as there are processors, a proof takes two to three times its processor time.
    """
    count = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if count is None:
        return
    share = max(cores() // int(count), 1)
    for name in THREADS:
        os.environ[name] = os.environ.get(name) or str(share)
    os.environ["OMP_WAIT_POLICY"] = "passive"  # tests that ask for more threads wait asleep
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))
        number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        # Where a quota leaves only some of the machine's, other containers shall not crowd on the same.
        first = number * share + (os.getppid() if len(own) > cores() else 0)
        os.sched_setaffinity(0, {own[(first + at) % len(own)] for at in range(share)})


_share_processors()  # before any library looks
