"""Running a GGUF in llama.cpp, in a process of its own (``llama_generate.py`` is its side)."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..core.children import Child, ChildRefused, retry_once
from ..core.errors import ChildDied, GgufError
from ..core.model import Note
from ..core.progress import Progress, silent
from . import KV_TYPES
from . import llama_generate as protocol
from .llama_errors import no_context, refused
from .llama_facts import Facts, check_start
from .llama_sampling import int32s
from .sampling import Sampling
from .self_test import extra_buffers

_BATCH = 512
_PATIENCE = 86400.0  # seconds; an encoder reads a text of any length at once, and whoever waits has Ctrl-C
_TO_STOP = 10.0  # seconds, for a token or a batch of the prompt
_MOST_BYTES = 1 << 30  # of an answer
_WITHOUT_BUFFERS = Note(
    "extra-buffers",
    "llama.cpp's own buffers for weights do not work on this machine, so the model is loaded without them, "
    "which is slower; kconv doctor shows how to fix it",
    warning=True,
)
_Result = TypeVar("_Result")


class LlamaRuntime:
    """A model loaded by llama.cpp; a context manager, see ``generation.Runtime`` for the methods.

    A decoder continues the prompt, or answers what an encoder reads: token ids, or with ``front`` what that
    makes of them, float32 ``(positions, width)``, at most a position for each token.

    ``context`` is the size to use, None for what a generation needs. ``kv_type`` f32 also switches flash
    attention off: slower, and as close to the checkpoint's arithmetic as llama.cpp comes. ``log`` is given
    llama.cpp's log as it comes. ``notes`` are what its user should know. With ``stays`` the process outlives
    an answer of which not all is taken.

    Raises GgufError where llama.cpp refuses the file, with the reason it gives. Every method raises ChildDied
    where the process has died twice.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        context: int | None = None,
        kv_type: str = "f16",
        log: Callable[[str], None] | None = None,
        front: Callable[[Sequence[int]], Any] | None = None,
        stays: bool = False,
        progress: Progress = silent,
    ) -> None:
        self._path, self._threads = path, threads
        self._context, self._kv_type = context, kv_type
        self._log, self._front, self._progress, self._stays = log, front, progress, stays
        self._extra = extra_buffers()
        self._child: Child | None = None
        self._generating = False
        self._known: dict[int, tuple[bool, bytes]] = {}  # of tokens: whether one ends the text, its bytes
        self._facts: Facts | None = None
        try:
            self._try(lambda child: None)
            check_start(self._path, self._file_facts())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LlamaRuntime:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process at once, whatever it is computing."""
        if self._child is not None:
            self._child.close()
        self._child, self._generating = None, False

    @property
    def notes(self) -> tuple[Note, ...]:
        """That llama.cpp runs without its own buffers, where those do not work on this machine."""
        return () if self._extra else (_WITHOUT_BUFFERS,)

    @property
    def context_length(self) -> int:
        """Tokens the model was trained to see at once."""
        return self._file_facts().context_length

    def tokenize(self, *parts: str | int) -> list[int]:
        """Ids of the texts in ``parts``, and between them the numbers, which are ids already.

        BOS in front if the file asks for it and the text does not begin with one; likewise, for an encoder
        only, EOS at the end: a decoder would take the text for finished.
        """
        ids = [token for part in parts for token in self._ids(part)]
        facts = self._file_facts()
        # a chat template often writes the BOS itself; a second one spoils the answer
        if facts.add_bos and facts.bos >= 0 and ids[:1] != [facts.bos]:
            ids.insert(0, facts.bos)
        if facts.encoder and facts.add_eos and facts.eos >= 0 and ids[-1:] != [facts.eos]:
            ids.append(facts.eos)  # as ByT5Tokenizer, which adds no second one
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; nothing for control tokens."""
        return self._known_of(token)[1]

    def is_end(self, token: int) -> bool:
        """Whether the token ends a turn or the text."""
        return self._known_of(token)[0]

    def generate(self, prompt: Sequence[int], sampling: Sampling, count: int) -> Iterator[int]:
        """Up to ``count`` tokens; one that ends the turn is the last.

        With a ``context`` of one size a prompt that begins as the one before, its answer included, is read
        from where they part. Whoever does not take all tokens ends the process (or, if it ``stays``, its
        work), as does whoever asks for something else meanwhile; what is asked next starts another. Raises
        EnvironmentProblem where the context does not fit in memory. A process that dies before its first
        token is started once more; where one dies later, ChildDied says that the answer is not whole.
        """
        request = self._request(prompt, sampling, count)
        child, tokens = self._try(lambda child: (child, self._first(child, request)))
        given, whole = 0, False
        try:
            while tokens:
                for token in tokens:
                    given += 1
                    yield token
                tokens = self._take_tokens(child)
            whole, self._generating = True, False
        except ChildRefused as refusal:
            raise refused(self._path, refusal) from refusal
        except ChildDied as death:
            after = f"{given} token{'' if given == 1 else 's'}"
            raise ChildDied(
                f"{death.message}; the answer was cut off after {after}", hint=death.hint
            ) from death
        finally:
            if not whole and child is self._child:
                self._stop(child) if self._stays else self.close()

    def _stop(self, child: Child) -> None:
        """Have what is being generated end before its next token, or else the process."""
        try:
            child.send(protocol.REQUEST.pack(protocol.STOP, 0))
            child.patience = _TO_STOP
            while self._take_tokens(child):
                pass
            child.patience, self._generating = _PATIENCE, False
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):  # impatient
                raise

    def _first(self, child: Child, request: bytes) -> list[int]:
        self._generating = True
        child.send(request)
        return self._take_tokens(child)

    def _take_tokens(self, child: Child) -> list[int]:
        """The next tokens, none after the last. Raises EnvironmentProblem where there is no context."""
        kind, size, data = self._answer(child, "reading the prompt")
        if kind == protocol.NO_CONTEXT:
            self._generating = False
            raise no_context(size, child.words())
        return [] if kind == protocol.DONE else self._learn(data)

    def _learn(self, data: bytearray) -> list[int]:
        """The tokens of an answer; what it says of them is kept for ``piece`` and ``is_end``."""
        pieces, place = [], 0
        while place < len(data):
            token, end, length = protocol.TOKEN.unpack_from(data, place)
            place += protocol.TOKEN.size
            self._known[token] = end, bytes(data[place : place + length])
            place += length
            pieces.append(token)
        return pieces

    def _request(self, prompt: Sequence[int], sampling: Sampling, count: int) -> bytes:
        """What the child is asked for. Raises GgufError where the front end does not fit the model."""
        facts = self._file_facts()
        embedded = facts.encoder and self._front is not None
        source: bytes = struct.pack(f"<{len(prompt)}i", *prompt)
        positions = len(prompt)
        if embedded:
            rows = self._embedded(prompt)
            source, positions = rows.astype("<f4", order="C", copy=False).tobytes(), len(rows)
        # an encoder reads its text at once, and its positions take none of the decoder's
        needed = max(positions, count) if facts.encoder else positions + count
        size = self._context or needed
        batch = positions if facts.encoder else _BATCH
        settings = protocol.SETTINGS.pack(count, size, batch, KV_TYPES.index(self._kv_type), embedded)
        data = settings + sampling.packed() + source
        return protocol.REQUEST.pack(protocol.GENERATE, len(data)) + data

    def _embedded(self, prompt: Sequence[int]) -> Any:
        """What the front end makes of the prompt, float32 ``(positions, width)``. Raises GgufError."""
        assert self._front is not None
        values, width = self._front(prompt), self._file_facts().width
        if values.ndim != 2 or values.shape[1] != width or not 0 < len(values) <= len(prompt):
            raise GgufError(
                f"the front end gives {values.shape} for {len(prompt)} tokens, but the model is {width} wide",
                hint="use the front end of this model",
            )
        if not abs(values).max() < math.inf:
            raise GgufError(
                "the front end gives NaN or infinite values for this text",
                hint="prove the file against its checkpoint: kconv verify",
            )
        return values

    def _file_facts(self) -> Facts:
        assert self._facts is not None
        return self._facts

    def _try(self, attempt: Callable[[Child], _Result]) -> _Result:
        """What ``attempt`` gives with a process that has loaded the file; a death is followed by one more."""

        def once() -> _Result:
            try:
                return attempt(self._running())
            except ChildRefused as refusal:
                self.close()
                raise refused(self._path, refusal) from refusal
            except ChildDied:
                self.close()
                raise

        return retry_once(once)

    def _running(self) -> Child:
        """A process that has loaded the file and waits to be asked."""
        if self._generating:  # whoever began that did not take all of it
            self.close()
        if self._child is None:
            self._child = Child(
                "kconv.runtimes.llama_generate",
                str(self._path.absolute()),
                str(self._threads),
                str(int(self._extra)),
                str(int(self._log is not None)),
                library="llama.cpp",
                patience=_PATIENCE,
            )
            _, _, data = self._answer(self._child, "loading")
            self._facts = Facts(*protocol.FACTS.unpack(data))
        return self._child

    def _answer(self, child: Child, stage: str = "") -> tuple[int, int, bytearray]:
        """Kind, number and data of the next answer that is neither progress of ``stage`` nor log.

        Raises ChildRefused, ChildDied.
        """
        while True:
            kind, number, other, size = protocol.ANSWER.unpack(child.receive(protocol.ANSWER.size))
            if size > _MOST_BYTES:
                raise ChildDied(f"the process that runs llama.cpp gave an answer of {size} bytes")
            data = child.receive(size)
            if kind == protocol.PROGRESS:
                self._progress(stage, number, other)
            elif kind == protocol.LOG:
                if self._log is not None:
                    self._log(data.decode("utf-8", "replace"))
            else:
                return kind, number, data

    def _ask(self, what: int, data: bytes) -> bytearray:
        def ask(child: Child) -> bytearray:
            child.send(protocol.REQUEST.pack(what, len(data)) + data)
            return self._answer(child)[-1]

        return self._try(ask)

    def _ids(self, part: str | int) -> list[int]:
        if isinstance(part, int):
            return [part]
        data = self._ask(protocol.TEXT, part.encode("utf-8"))
        return int32s(data)

    def _known_of(self, token: int) -> tuple[bool, bytes]:
        if token not in self._known:
            data = self._ask(protocol.PIECE, struct.pack("<i", token))
            self._learn(data)
        return self._known[token]
