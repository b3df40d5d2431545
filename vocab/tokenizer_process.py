"""The tokenizers library and sentencepiece, from the parent's side of ``tokenizer_child.py``.

Neither is ever loaded here: a stranger's tokenizer may panic, take exponential time or fill the memory, and
both keep megabytes of every tokenizer they have seen. Limits are on the child's processor time and memory,
generous and in proportion to what it is given, so running into one is a finding about the tokenizer.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
import weakref
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from ..core.children import Child, ChildRefused, retry_once
from ..core.cores import available_cores
from ..core.errors import ChildDied, VocabError
from ..core.input_files import quoted
from .pretokenizers import steps

SECONDS, MEMORY = 4.0, 1 << 30
"""Processor time and memory (bytes) a request may take in any case."""
A_FILES_MEGABYTE, A_TEXTS_MEGABYTE = (3.0, 1 << 26), (48.0, 1 << 30)
"""What is added for each MiB of it. Of the tokenizers in use the slowest take 0.04 s and 0.8 s, the hungriest
11 MiB and 200 MiB (twice that where every byte is a token)."""
_TRYING = 2.0
_MOST_TEXTS, _MOST_CHARACTERS = 1000, 1 << 18  # in one request, but for a single long text
_MOST_ANSWER = 1 << 29
_MOST_THREADS = 8  # each reserves address space
_HINT = "use the original tokenizer files of the base model"

Library = Literal["tokenizers", "sentencepiece"]


class TextsRefused(VocabError):
    """The library has no ids for some texts: those at ``indices``. ``found`` are the ids of all, by index."""

    def __init__(
        self, message: str, indices: Sequence[int], found: list[array[int]], *, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.indices, self.found = tuple(indices), found


class TokenizerProcess:
    """One tokenizer in a child process, which ends with the last reference to this.

    ``where`` names its file in messages. The process starts at once, so that it loads the library while the
    file is read; where it is killed another takes its place, gets the same requests again, and goes on.
    Every method raises VocabError where the library refuses what it is given or runs into a limit, and
    ChildDied where nothing is known.
    """

    def __init__(self, library: Library, where: str) -> None:
        self.where = where
        self._library = library
        self._parts: Mapping[str, Any] = {}
        self._recorded: list[tuple[Mapping[str, Any], bytes]] = []
        self._lock = threading.Lock()
        self._child = retry_once(self._start)

    def open(self, data: bytes, *, parts: Mapping[str, Any] | None = None, dropout: bool = False) -> None:
        """Read the bytes of the file. ``parts`` are its normalizer and pre_tokenizer, for messages."""
        self._parts = parts or {}
        self._send_and_record({"do": "open", "dropout": dropout}, data)

    def add(self, text: str, *, special: bool, flags: Mapping[str, bool]) -> int | None:
        """Add a token; the id the library gave it."""
        given, _ = self._send_and_record({"do": "add", "text": text, "special": special, "flags": flags})
        return given if isinstance(given, int) else None

    def vocabulary(self) -> dict[str, int]:
        """All tokens, added ones too."""
        texts, data = self._ask({"do": "vocabulary"})
        return dict(zip(map(str, texts), _numbers("q", data), strict=True))

    def added(self) -> list[tuple[int, str, bool, bool, bool, bool, bool]]:
        """Added tokens by id: id, text, special, normalized, lstrip, rstrip, single_word."""
        tokens, _ = self._ask({"do": "added"})
        return [(int(index), str(text), *map(bool, flags)) for index, text, *flags in tokens]  # type: ignore[misc]

    def around(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """The ids of each text without and with what the post-processor adds."""
        ids, _ = self._ask({"do": "around", "texts": list(texts)}, texts=texts)
        return [(list(map(int, inner)), list(map(int, full))) for inner, full in ids]

    def scores(self) -> tuple[float, ...]:
        """Scores of a unigram model by id."""
        return tuple(_numbers("d", self._ask({"do": "scores"})[1]))

    def make_bare(self, stub: bytes) -> None:
        """A second tokenizer of the same model alone, with the splits of the tokenizer.json ``stub``."""
        self._send_and_record({"do": "make_bare"}, stub)

    def encode(self, texts: Sequence[str], *, which: int = 0, parse_special: bool = True) -> list[array[int]]:
        """Token ids without BOS and EOS; ``which`` is 1 for the second tokenizer. Raises TextsRefused."""
        ids: list[array[int]] = []
        refused: dict[int, str] = {}
        request = {"do": "encode", "which": which, "parse_special": parse_special, "threads": _threads()}
        for batch in _batches(texts):
            answer, data = self._ask(request, _written(batch), texts=batch)
            refused |= {len(ids) + int(index): str(why) for index, why in answer.items()}
            ids += _ids(data, len(batch))
        if refused:
            index, why = next(iter(refused.items()))
            raise TextsRefused(
                f"{self.where} has no token ids for {len(refused)} of {len(texts)} texts, the first "
                f"being {quoted(texts[index][:60])}: {why}",
                list(refused),
                ids,
                hint="a tokenizer without an unknown token only accepts characters in its vocabulary",
            )
        return ids

    def _start(self) -> Child:
        kept = {name: value for name, value in os.environ.items() if name != "RUST_BACKTRACE"}
        child = Child(
            "kconv.vocab.tokenizer_child",
            self._library,
            library=f"the {self._library} library",
            environment={**kept, "RUST_BACKTRACE": "0", "RAYON_NUM_THREADS": str(_threads())},
        )
        weakref.finalize(self, child.close)
        return child

    def _send_and_record(self, request: Mapping[str, Any], data: bytes = b"") -> tuple[Any, bytes]:
        """Send a request that a replacement process has to receive again."""
        answer = self._ask(request, data)
        self._recorded.append((request, data))
        return answer

    def _ask(
        self, request: Mapping[str, Any], data: bytes = b"", *, texts: Sequence[str] = ()
    ) -> tuple[Any, bytes]:
        def attempt() -> tuple[Any, bytes]:
            if self._child.closed:
                self._child = self._start()
                for earlier in self._recorded:
                    self._exchange(*earlier)
            try:
                return self._exchange(request, data)
            except BaseException:  # what is underway would be taken for the next answer
                self._child.close()
                raise

        with self._lock:
            try:
                return retry_once(attempt)
            except ChildRefused as refusal:
                raise self._refused(refusal, request, data, texts) from refusal

    def _exchange(self, request: Mapping[str, Any], data: bytes) -> tuple[Any, bytes]:
        _send(self._child, request, data)
        sizes = struct.unpack("<II", self._child.receive(8))
        if max(sizes) > _MOST_ANSWER + 8 * len(data):
            made = f"the {self._library} library turns {len(data)} bytes into {sum(sizes)}"
            raise VocabError(f"{self.where}: {made}", hint=_HINT)
        answer = json.loads(self._child.receive(sizes[0]))
        return answer, bytes(self._child.receive(sizes[1]))

    def _refused(
        self, refusal: ChildRefused, request: Mapping[str, Any], data: bytes, texts: Sequence[str]
    ) -> VocabError:
        reason = refusal.words[-1] if refusal.words else "it exited without a message"
        what = f"{self.where} is rejected by the {self._library} library: {reason}"
        if refusal.limit is not None:
            limits = _limits(request, data)
            given = f"{limits['seconds']:.0f} s of processor time"
            if refusal.limit == "memory":
                given = f"{limits['memory'] / (1 << 20):.0f} MiB of memory"
            doing = f"for {len(texts)} texts" if texts else "to be read"
            what = f"{self.where}: the tokenizer needs more than {given} {doing}"
        part = self._part_at_fault(texts or ("a", "가"))
        return VocabError(f"{what}; {part} is at fault" if part else what, hint=_HINT)

    def _part_at_fault(self, texts: Sequence[str]) -> str | None:
        """The part of a tokenizer.json in which the library ends, found by trying each alone, then both."""
        parts = {name: part for name, part in self._parts.items() if part}
        tries = [*({name: part} for name, part in parts.items()), *([parts] if len(parts) > 1 else [])]
        data = _written(texts)
        number = 0
        try:
            with self._start() as child:
                _send(child, {"do": "try_parts", "tries": tries, "seconds": _TRYING}, data)
                while (number := child.receive(1)[0]) < len(tries):
                    pass
        except ChildRefused:
            return " with ".join(_named(name, part) for name, part in tries[number].items())
        except ChildDied:
            pass
        return None


def _named(name: str, part: Any) -> str:
    """A part of a tokenizer.json in words."""
    patterns = [
        pattern["Regex"]
        for step in steps(part)
        if isinstance(pattern := step.get("pattern"), dict) and isinstance(pattern.get("Regex"), str)
    ]
    spoken = name.replace("_", "-")
    if patterns:
        return f"the pattern {quoted(patterns[0])} of its {spoken}"
    return f"its {spoken} ({', '.join(dict.fromkeys(str(step.get('type')) for step in steps(part)))})"


def _threads() -> int:
    return min(available_cores(), _MOST_THREADS)


def _limits(request: Mapping[str, Any], data: bytes) -> dict[str, float]:
    texts = request["do"] in ("encode", "try_parts")
    seconds, memory = A_TEXTS_MEGABYTE if texts else A_FILES_MEGABYTE
    megabytes = len(data) / (1 << 20)
    return {"seconds": SECONDS + seconds * megabytes, "memory": int(MEMORY + memory * megabytes)}


def _send(child: Child, request: Mapping[str, Any], data: bytes) -> None:
    header = json.dumps({**_limits(request, data), **request}).encode()
    child.send(struct.pack("<II", len(header), len(data)) + header)
    child.send(data)


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = size = 0
    for at, text in enumerate(texts):
        if at > start and (at - start == _MOST_TEXTS or size + len(text) > _MOST_CHARACTERS):
            yield texts[start:at]
            start, size = at, 0
        size += len(text)
    if start < len(texts):
        yield texts[start:]


def _written(texts: Sequence[str]) -> bytes:
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return b"".join([struct.pack(f"<{len(texts) + 1}I", len(texts), *map(len, encoded)), *encoded])


def _ids(data: bytes, texts: int) -> list[array[int]]:
    numbers = _numbers("i", data)
    counts, at, ids = numbers[:texts], texts, []
    for count in counts:
        ids.append(numbers[at : at + count])
        at += count
    return ids


def _numbers(kind: str, data: bytes) -> array[Any]:
    values = array(kind, data)
    if sys.byteorder == "big":
        values.byteswap()
    return values
