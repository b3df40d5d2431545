"""What generating text means, whatever runs the model: sampling, tokens to text, stop strings."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .sampling import Sampling

if TYPE_CHECKING:
    from ..core.model import Note


def sampling_in_file(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a GGUF's own metadata recommends, by the names of Sampling's fields; senseless values left out."""
    from ..vocab.sampling import sampling_in_metadata

    sampling: dict[str, Any] = dict(sampling_in_metadata(metadata))
    last = metadata.get("general.sampling.penalty_last_n")
    if isinstance(last, int) and not isinstance(last, bool) and 0 <= last <= 1_000_000:
        sampling["repeat_last_n"] = last
    return sampling


def choose_sampling(recommended: Mapping[str, Any], wished: Mapping[str, Any]) -> Sampling:
    """llama.cpp's defaults, overruled by the file's, overruled by what the user wished (None: no wish)."""
    wishes = {name: value for name, value in wished.items() if value is not None}
    return Sampling(**{**recommended, **wishes})


class Runtime(Protocol):
    """Something that runs a model. Token ids in, token ids out."""

    @property
    def notes(self) -> tuple[Note, ...]:
        """What the user should know of how it runs here."""

    @property
    def context_length(self) -> int:
        """Tokens the model was trained to see at once; an encoder and its decoder, each."""

    def tokenize(self, *parts: str | int) -> list[int]:
        """Ids of the texts, special tokens written in them recognised; numbers between them are ids already.

        BOS in front if the file says so, and EOS at the end of what an encoder reads.
        """

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for, often not a whole character; nothing for control tokens."""

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""

    def generate(self, prompt: Sequence[int], sampling: Sampling, count: int) -> Iterator[int]:
        """Up to ``count`` tokens that follow the prompt; one that ends the turn is the last.

        An encoder-decoder's follow its decoder's start token, which is not among them.
        """


@dataclass(frozen=True)
class Generation:
    """What was generated.

    ``ids`` include the token that ended the turn; ``text`` does not include the stop string.
    ``stop_reason`` is ``end`` (the model ended its turn), ``stop`` (a stop string) or ``length``.
    """

    text: str
    ids: tuple[int, ...]
    stop_reason: str
    prompt_seconds: float
    seconds: float


def generate_text(
    runtime: Runtime,
    tokens: Iterator[int],
    stream: TextStream,
    show: Callable[[str], None],
    *,
    ends: Collection[int] = (),
    names: Mapping[int, str] | None = None,
) -> Generation:
    """Turn ``tokens`` into text, handing it to ``show`` as it comes.

    Besides what the vocabulary says, a token of ``ends`` ends the text. ``names`` are how tokens are shown
    that have no text, or only bytes that are none.
    """
    made: list[int] = []
    texts: list[str] = []
    begun = time.monotonic()
    first = 0.0
    reason = "length"
    for token in tokens:
        first = first or time.monotonic()
        made.append(token)
        if token in ends or runtime.is_end(token):
            reason = "end"
            break
        texts.append(stream.feed(token_bytes(runtime, token, names)))
        show(texts[-1])
        if stream.stopped is not None:
            reason = "stop"
            break
    texts.append(stream.finish(cut=reason == "length"))
    show(texts[-1])
    now = time.monotonic()
    return Generation("".join(texts), tuple(made), reason, (first or now) - begun, now - (first or now))


def token_bytes(runtime: Runtime, token: int, names: Mapping[int, str] | None = None) -> bytes:
    """What a token is shown as: its name in ``names``, else its bytes."""
    name = (names or {}).get(token)
    return runtime.piece(token) if name is None else name.encode()


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

    def finish(self, *, cut: bool = False) -> str:
        """The text that was still waiting, now that no more comes.

        Bytes that are not yet a character are left out where the text was ``cut`` off, else they are an error
        of the model and shown as one.
        """
        last = self._advance(self._decoder.decode(b"", final=not cut))
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
