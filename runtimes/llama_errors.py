"""Errors that say in llama.cpp's own words why it does not run a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..core.children import ChildRefused
from ..core.errors import EnvironmentProblem, GgufError, KconvError, UnsupportedModel
from . import llama_child
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


_ENDINGS: dict[int | None, str] = {
    llama_child.REFUSED: "llama.cpp refuses the file",
    llama_child.NO_CONTEXT: "llama.cpp cannot set up a context of this size",
    llama_child.NOT_DECODED: "llama.cpp cannot read the text with this file",
    llama_child.NOT_SUPPORTED: "kconv cannot measure this kind of model in llama.cpp",
}


def reason_of(refusal: ChildRefused) -> str:
    """What a refusal says of the file, with llama.cpp's own words."""
    lines = [line for word in refusal.words if (line := NOISE.sub("", word))]
    if refusal.limit is not None:
        how = f"llama.cpp needs more {refusal.limit} than kconv allows"
    else:
        how = _ENDINGS.get(refusal.code, "llama.cpp failed an internal check")
    # the first error of a request names the cause, the last one a check
    words = lines[:1] if refusal.code in _ENDINGS else lines[-2:]
    return ": ".join([how, *([" / ".join(words)] if words else [])])
