"""What generating text means, whatever runs the model: sampling, tokens to text, stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are llama.cpp's (common/common.h).

    Temperature 0 takes the most likely token; ``repeat_penalty`` 1 and ``top_k`` 0 switch those off.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int = 0


def sampling_in_file(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a GGUF's own metadata recommends, by the names of Sampling's fields; senseless values left out."""
    from ..vocab.sampling import sampling_in_metadata

    found: dict[str, Any] = dict(sampling_in_metadata(metadata))
    last = metadata.get("general.sampling.penalty_last_n")
    if isinstance(last, int) and not isinstance(last, bool) and 0 <= last <= 1_000_000:
        found["repeat_last_n"] = last
    return found


def choose_sampling(recommended: Mapping[str, Any], wished: Mapping[str, Any]) -> Sampling:
    """llama.cpp's defaults, overruled by the file's, overruled by what the user wished (None: no wish)."""
    wishes = {name: value for name, value in wished.items() if value is not None}
    return Sampling(**{**recommended, **wishes})


class Runtime(Protocol):
    """Something that runs a model. Token ids in, token ids out."""

    @property
    def context_length(self) -> int:
        """Tokens the model was trained to see at once."""

    def tokenize(self, text: str) -> list[int]:
        """Ids of ``text``, special tokens written in it recognised, BOS in front if the file says so."""

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for, often not a whole character; nothing for control tokens."""

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""

    def generate(self, prompt: Sequence[int], sampling: Sampling, count: int) -> Iterator[int]:
        """Up to ``count`` tokens that follow the prompt; one that ends the turn is the last."""


class TextStream:
    """Turns the bytes of tokens into text that can be shown at once.

    A Hangul syllable may be spread over several tokens: its bytes wait until it is whole. Text that
    could be the beginning of a stop string waits until it is clear whether it is one. ``stopped`` is the
    stop string that ended the text; nothing from it on is ever given out. ``trim`` drops white space at
    the beginning, which separates an answer from its prompt.
    """

    def __init__(self, stops: Sequence[str] = (), *, trim: bool = False) -> None:
        self._stops = [stop for stop in stops if stop]
        self._trim = trim
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting = ""
        self.stopped: str | None = None

    def feed(self, piece: bytes) -> str:
        """Take the bytes of one token and give the text that is certain by now."""
        return self._advance(self._decoder.decode(piece))

    def finish(self) -> str:
        """The text that was still waiting, now that no more comes."""
        last = self._advance(self._decoder.decode(b"", final=True))
        rest, self._waiting = self._waiting, ""
        return last + rest

    def _advance(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        self._waiting += text
        if self._trim:
            self._waiting = self._waiting.lstrip()
            self._trim = not self._waiting
        hits = [
            (place + len(stop), place, stop)
            for stop in self._stops
            if (place := self._waiting.find(stop)) >= 0
        ]
        if hits:  # the one complete first ends the text, however its bytes were spread
            _, place, self.stopped = min(hits)
            ready, self._waiting = self._waiting[:place], ""
            return ready
        keep = max((_overlap(self._waiting, stop) for stop in self._stops), default=0)
        cut = len(self._waiting) - keep
        ready, self._waiting = self._waiting[:cut], self._waiting[cut:]
        return ready


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
