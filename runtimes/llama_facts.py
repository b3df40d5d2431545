"""What the process that runs llama.cpp says of the file it has loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..core.errors import GgufError

_NO_TOKEN = -1  # llama.h, LLAMA_TOKEN_NULL


@dataclass(frozen=True)
class Facts:
    """What the child says of the file, see ``llama_generate.FACTS``."""

    context_length: int
    width: int
    tokens: int
    bos: int
    eos: int
    start: int
    add_bos: bool
    add_eos: bool
    encoder: bool


def check_start(path: Path, facts: Facts) -> None:
    """Raises GgufError where the decoder behind an encoder cannot begin.

    llama.cpp's programs take the BOS where the file names no start. Such a vocabulary rarely has one, and
    llama.cpp then guesses, which spoils the answer.
    """
    if facts.encoder and not 0 <= facts.start < facts.tokens:
        raise GgufError(
            f"{path}: the decoder's start token (decoder_start_token_id) is "
            + ("missing" if facts.start == _NO_TOKEN else f"{facts.start}, which is not in the vocabulary"),
            hint="convert the checkpoint again, with a decoder_start_token_id in its config.json",
        )
