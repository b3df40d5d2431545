"""A conversation with a GGUF file or an ONNX folder: the model is loaded once, and every turn is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from ..core.model import Note
from ..core.progress import Progress, silent
from ..hub.artifact import local_artifact
from ..runtimes.generation import Runtime, TextStream, generate_text
from ..runtimes.loading import CONTEXT, Artifact, open_artifact
from ..runtimes.prompts import checked_text, question
from .generate import prompt_ids, sampling_for


@dataclass(frozen=True)
class Turn:
    """An answer: its text, its tokens, those of the prompt before it, and the size of the context.

    ``stop_reason`` is ``end``, ``stop``, ``length``, or ``interrupted``. ``seconds`` are those after the
    first token, ``prompt_seconds`` those before it.
    """

    text: str
    tokens: int
    prompt_tokens: int
    context: int
    stop_reason: str
    prompt_seconds: float
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second, the first one left out."""
        return max(0, self.tokens - 1) / self.seconds if self.seconds > 0 else 0.0


@dataclass
class Conversation:
    """Turns of a user and of a model.

    ``system`` is the system text, ``history`` are the turns (``role``, ``content``), which may be changed
    between answers. Without a chat template, or for an encoder-decoder, every prompt stands alone. ``wishes``
    are sampling options as in ``generate``; ``tokens`` is the most an answer may have (-1: all there is room
    for).
    """

    loaded: Artifact
    runtime: Runtime
    context: int
    wishes: Mapping[str, float | None]
    greedy: bool = False
    tokens: int = -1
    chat: bool | None = None
    system: str | None = None
    stops: Sequence[str] = ()
    announce: Callable[[Note], None] = lambda note: None
    history: list[dict[str, str]] = field(default_factory=list)

    @property
    def chats(self) -> bool:
        """Whether what is asked goes through a chat template."""
        return self.chat is not False and bool(self.loaded.metadata.get("tokenizer.chat_template"))

    def ask(self, text: str, show: Callable[[str], None] = lambda text: None) -> Turn:
        """Have the model answer ``text``; ``show`` gets the answer piece by piece.

        An interrupt (Ctrl-C) ends the answer, and what there is of it is kept. Raises what ``generate``
        raises; the conversation then is as before.
        """
        asked = question(
            self.loaded.path,
            self.loaded.metadata,
            checked_text(text, "the prompt"),
            fill=False,
            chat=self.chat,
            system=self.system,
            echo=False,
            announce=lambda note: None,
            history=self.history,
        )
        ids, room = prompt_ids(
            self.runtime, asked, self.tokens, self.context, self.loaded.factor, self.announce
        )
        answers = asked.encoder_decoder
        sampling = sampling_for(self.loaded.metadata, self.wishes, greedy=self.greedy, answers=answers)
        stream = TextStream((*self.stops, *asked.stops), trim=asked.trim)
        tokens = self.runtime.generate(ids, sampling, room)
        turn = self._answer(len(ids), tokens, stream, show, asked.sentinels.names)
        if asked.template is not None:
            self.history += [{"role": "user", "content": text}, {"role": "assistant", "content": turn.text}]
        return turn

    def regenerate(self, show: Callable[[str], None] = lambda text: None) -> Turn:
        """Another answer to the last turn. Raises UsageError where there is none."""
        if len(self.history) < 2:
            raise UsageError("there is no answer yet that could be made again")
        before = list(self.history)
        text = self.history[-2]["content"]
        del self.history[-2:]
        try:
            return self.ask(text, show)
        except BaseException:
            self.history[:] = before
            raise

    def _answer(
        self,
        prompt_tokens: int,
        tokens: Iterator[int],
        stream: TextStream,
        show: Callable[[str], None],
        names: Mapping[int, str],
    ) -> Turn:
        parts: list[str] = []

        def shown(text: str) -> None:
            parts.append(text)
            show(text)

        try:
            done = generate_text(self.runtime, tokens, stream, shown, names=names)
        except BaseException as error:
            _close(tokens)
            if not isinstance(error, KeyboardInterrupt):
                raise
            return Turn("".join(parts), len(parts), prompt_tokens, self.context, "interrupted", 0.0, 0.0)
        return Turn(
            done.text,
            len(done.ids),
            prompt_tokens,
            self.context,
            done.stop_reason,
            done.prompt_seconds,
            done.seconds,
        )


def _close(tokens: Any) -> None:
    """End what a runtime still generates."""
    if hasattr(tokens, "close"):
        tokens.close()


@contextlib.contextmanager
def open_conversation(
    artifact: str | Path,
    *,
    system: str | None = None,
    chat: bool | None = None,
    stops: Sequence[str] = (),
    tokens: int = -1,
    wishes: Mapping[str, float | None] | None = None,
    greedy: bool = False,
    context: int | None = None,
    kv_type: str | None = None,
    front_end: str | Path | None = None,
    threads: int | None = None,
    announce: Callable[[Note], None] = lambda note: None,
    log: Callable[[str], None] | None = None,
    progress: Progress = silent,
) -> Iterator[Conversation]:
    """``artifact``, loaded for a conversation until the ``with`` block ends; options as in ``generate``.

    Raises GgufError, InputError, UsageError and EnvironmentProblem as that does.
    """
    loaded = open_artifact(
        local_artifact(artifact, progress),
        front_end=None if front_end is None else Path(front_end),
        context=context,
        kv_type=kv_type,
        threads=threads,
        log=log,
        stays=True,
    )
    with loaded.start(progress) as runtime:
        for note in runtime.notes:
            announce(note)
        size = context or min(CONTEXT, runtime.context_length)
        yield Conversation(
            loaded, runtime, size, wishes or {}, greedy, tokens, chat, system, tuple(stops), announce
        )
