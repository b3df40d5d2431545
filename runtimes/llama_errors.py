"""Errors that say in llama.cpp's own words why it does not run a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..core.children import ChildRefused
from ..core.errors import EnvironmentProblem, GgufError, KconvError, UnsupportedModel
from . import llama_generate as protocol

_TELLING = ("GGML_ASSERT", "GGML_ABORT", "what():")
# where llama.cpp was built, and the functions that pass an error on
NOISE = re.compile(r"^\S*/llama\.cpp/|^(?:\w+: |error loading model: )+")


def refused(path: Path, refusal: ChildRefused) -> KconvError:
    """What it means that a process that runs ``path`` ended itself over it."""
    if refusal.code == protocol.NO_DECODER:
        return UnsupportedModel(
            f"{path} contains only an encoder, which cannot generate text",
            hint="use a decoder-only model or an encoder-decoder",
        )
    words = [NOISE.sub("", line) for line in refusal.words] or ["no reason given"]
    # the first error names the cause, the others pass it on; an abort comes last and has words of its own
    reason = next((line for line in words if any(sign in line for sign in _TELLING)), words[0])
    if refusal.code == protocol.STUCK:
        reasons = ": ".join(dict.fromkeys((refusal.words[-1], reason)))
        return EnvironmentProblem(f"llama.cpp cannot continue ({reasons})", hint="pass a smaller --ctx")
    how = "refuses" if refusal.code == protocol.REFUSED else "fails an internal check on"
    return GgufError(
        f"llama.cpp {how} {path}: {reason}",
        hint="convert the checkpoint again, or use a newer llama-cpp-python",
    )


def no_context(size: int, words: Sequence[str]) -> EnvironmentProblem:
    """That there is no room for so many tokens; ``words`` are the child's last ones."""
    reason = NOISE.sub("", words[-1]) if words else "no reason given"
    return EnvironmentProblem(
        f"llama.cpp cannot set up a context of {size:,} tokens: {reason}",
        hint="pass a smaller --ctx or -n, or free some memory",
    )
