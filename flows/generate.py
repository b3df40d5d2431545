"""``generate``: text from a GGUF file through llama.cpp, or from an ONNX folder through onnxruntime."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from ..core.model import Note
from ..core.progress import Progress, silent
from ..hub.artifact import local_artifact
from ..runtimes import KV_TYPES
from ..runtimes.generation import (
    Generation,
    Runtime,
    TextStream,
    choose_sampling,
    generate_text,
    sampling_in_file,
    token_bytes,
)
from ..runtimes.loading import open_artifact
from ..runtimes.masks import Fill, check_prompt, completed, ending_sentinels, read_fills
from ..runtimes.prompts import Question, checked_text, question, token_room
from ..runtimes.sampling import Sampling

# Options that are whole numbers, and the others: the least and the greatest value of each.
_WHOLE: dict[str, tuple[float, float]] = {
    "tokens": (-1, math.inf),
    "context": (1, 10_000_000),
    "threads": (1, 1024),
    "top_k": (0, 1_000_000),
    "seed": (0, 2**31 - 1),
}
_REAL = {
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (math.ulp(0.0), math.inf),
}
WISHES = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")
"""Names of the sampling options."""


@dataclass(frozen=True)
class Answer:
    """What a model generated.

    ``text`` ends before the stop string; ``ids`` are all tokens generated, the one that ended the turn
    included. ``stop_reason`` is ``end`` (the model ended its turn), ``stop`` (a stop string) or ``length``.
    ``prompt`` is what the model has read, ``chat`` whether it went through the file's chat template.
    ``prompt_seconds`` are those until the first token, ``seconds`` those after it. ``fills`` are what the
    model put in place of each mask, ``completed`` the prompt with these filled in; both are None where no
    masks were to be filled. ``notes`` are what to know of how the model runs on this machine. ``limit`` is
    how many tokens were allowed.
    """

    artifact: Path
    text: str
    ids: tuple[int, ...]
    stop_reason: str
    prompt: str
    prompt_ids: tuple[int, ...]
    chat: bool
    sampling: Sampling
    prompt_seconds: float
    seconds: float
    notes: tuple[Note, ...] = ()
    fills: tuple[Fill, ...] | None = None
    completed: str | None = None
    limit: int = 0

    @property
    def rate(self) -> float:
        """Tokens a second, the first one left out."""
        return max(0, len(self.ids) - 1) / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        values: dict[str, Any] = {
            "artifact": str(self.artifact),
            "text": self.text,
            "ids": list(self.ids),
            "stop_reason": self.stop_reason,
            "prompt": self.prompt,
            "prompt_ids": list(self.prompt_ids),
            "chat": self.chat,
            "sampling": asdict(self.sampling),
            "prompt_seconds": round(self.prompt_seconds, 3),
            "seconds": round(self.seconds, 3),
            "notes": [asdict(note) for note in self.notes],
        }
        if self.fills is not None:
            values |= {"fills": [asdict(fill) for fill in self.fills], "completed": self.completed}
        return values


def generate(
    artifact: str | Path,
    prompt: str,
    *,
    fill: bool = False,
    chat: bool | None = None,
    system: str | None = None,
    stops: Sequence[str] = (),
    echo: bool = False,
    tokens: int = 256,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repeat_penalty: float | None = None,
    seed: int | None = None,
    greedy: bool = False,
    context: int | None = None,
    kv_type: str | None = None,
    front_end: str | Path | None = None,
    threads: int | None = None,
    show: Callable[[str], None] = lambda text: None,
    announce: Callable[[Note], None] = lambda note: None,
    log: Callable[[str], None] | None = None,
    progress: Progress = silent,
) -> Answer:
    """Have a GGUF file or an ONNX folder answer or continue ``prompt``; the model runs in a child process.

    A file with a chat template is asked through it (``chat=False``: its prompt is continued as plain text),
    ``system`` being the system text. An encoder-decoder reads the prompt and answers; with ``fill`` it fills
    the masks ``<extra_id_0>``, ``<extra_id_1>`` … of the prompt.

    At most ``tokens`` tokens are generated (-1: until the model ends or its context is full), and the text
    ends before the first of ``stops``. ``temperature``, ``top_k``, ``top_p``, ``min_p`` and
    ``repeat_penalty`` (for the last 64 tokens) are by default what the file recommends, else llama.cpp's
    values, and for an encoder-decoder the likeliest token is taken. ``greedy`` is temperature 0 with
    repeat_penalty 1. The same ``seed`` gives the same text; by default it is random.

    ``context`` is the size of the context in tokens (default: what prompt and answer need), ``kv_type`` the
    type of llama.cpp's attention cache (f16, f32 or q8_0), ``front_end`` the second file of a GBST model
    where it is not beside the first, ``threads`` by default one for each core.

    ``show`` gets the text piece by piece while it is generated; with ``echo`` it first gets the prompt, if
    that is continued as plain text. ``announce`` gets notes as they come up: ``chat-template`` (the file has
    one, and it is used), ``mask-names``, ``context`` (larger than trained), ``extra-buffers``, and before the
    first token ``sampling`` and ``prompt``. ``log`` gets llama.cpp's log.

    Raises UsageError for options that make no sense or contradict each other; InputError (GgufError) for an
    artifact that is damaged or cannot do what is asked, and for a prompt that does not fit;
    EnvironmentProblem where memory runs out, ChildDied where the process with the model dies.
    """
    wishes = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
    }
    kv_type = _checked_options({**wishes, "tokens": tokens, "context": context, "threads": threads}, kv_type)
    if fill and stops:
        raise UsageError("--stop cannot be combined with --fill, whose output is split at the masks")
    loaded = open_artifact(
        local_artifact(artifact, progress),
        front_end=None if front_end is None else Path(front_end),
        context=context,
        kv_type=kv_type,
        threads=threads,
        log=log,
    )
    asked = question(
        loaded.path,
        loaded.metadata,
        checked_text(prompt, "the prompt"),
        fill=fill,
        chat=chat,
        system=system,
        echo=echo,
        announce=announce,
    )
    sampling = sampling_for(loaded.metadata, wishes, greedy=greedy, answers=asked.encoder_decoder)
    with loaded.start(progress) as runtime:
        for note in runtime.notes:
            announce(note)
        ids, count = prompt_ids(runtime, asked, tokens, context, loaded.factor, announce)
        announce(Note("sampling", str(sampling)))
        announce(Note("prompt", f"the prompt has {len(ids)} tokens: {asked.text!r}"))
        if echo and asked.template is None:
            show(asked.text)
        done = generate_text(
            runtime,
            runtime.generate(ids, sampling, count),
            TextStream((*([stops] if isinstance(stops, str) else stops), *asked.stops), trim=asked.trim),
            show,
            ends=() if asked.masks is None else ending_sentinels(asked.masks, asked.sentinels),
            names=asked.sentinels.names,
        )
        return _answer(loaded.path, asked, ids, sampling, done, runtime, count)


def _checked_options(numbers: Mapping[str, float | None], kv_type: str | None) -> str | None:
    """``kv_type`` in lower case. Raises UsageError for an option with a value it cannot have."""
    for name, value in numbers.items():
        whole = name in _WHOLE
        least, most = _WHOLE[name] if whole else _REAL[name]
        possible = isinstance(value, int) or not (whole or value is None or math.isinf(value))
        if value is None or (possible and least <= value <= most):
            continue
        expected = "a whole number" if whole else "a number"
        expected += f" from {least:.0f}" if name != "repeat_penalty" else " above 0"
        expected += f" to {most:.0f}" if most < math.inf else ""
        raise UsageError(f"{name} is {value}, expected {expected}")
    if kv_type is not None and kv_type.lower() not in KV_TYPES:
        raise UsageError(f"kv_type is {kv_type!r}, expected one of {', '.join(KV_TYPES)}")
    return None if kv_type is None else kv_type.lower()


def sampling_for(
    metadata: Mapping[str, Any], wishes: Mapping[str, float | None], *, greedy: bool, answers: bool
) -> Sampling:
    """What the user wishes, else what the file recommends; ``answers``: else the likeliest token.

    ``wishes`` are by the names of WISHES. transformers, too, samples with an encoder-decoder only where it is
    asked to.
    """
    wished = {**dict.fromkeys(WISHES), **wishes}
    if greedy:
        if wished["temperature"] or wished["repeat_penalty"] not in (None, 1):
            raise UsageError(
                "--greedy means --temp 0 --repeat-penalty 1, which contradicts the other values given"
            )
        wished |= {"temperature": 0.0, "repeat_penalty": 1.0}
    recommended = sampling_in_file(metadata)
    randomness = ("temperature", "top_k", "top_p", "min_p", "seed")
    if answers and all(recommended.get(name) is None and wished[name] is None for name in randomness):
        wished["temperature"] = 0.0
    if wished["seed"] is None:
        wished["seed"] = secrets.randbits(31)
    return choose_sampling(recommended, wished)


def prompt_ids(
    runtime: Runtime,
    asked: Question,
    tokens: int,
    context: int | None,
    factor: int,
    announce: Callable[[Note], None],
) -> tuple[list[int], int]:
    """Token ids of the prompt, and how many tokens may follow."""
    ids = runtime.tokenize(*asked.parts)
    if asked.masks is not None:
        check_prompt(ids, asked.masks, asked.sentinels)
    count = token_room(
        len(ids),
        tokens,
        runtime.context_length,
        context,
        encoder_decoder=asked.encoder_decoder,
        factor=factor,
        announce=announce,
    )
    return ids, count


def _answer(
    artifact: Path,
    asked: Question,
    ids: Sequence[int],
    sampling: Sampling,
    done: Generation,
    runtime: Runtime,
    limit: int,
) -> Answer:
    """All there is to say of what was generated."""
    fills = _fills(runtime, asked, done)
    return Answer(
        artifact=artifact,
        text=done.text,
        ids=done.ids,
        stop_reason=done.stop_reason,
        prompt=asked.text,
        prompt_ids=tuple(ids),
        chat=asked.template is not None,
        sampling=sampling,
        prompt_seconds=done.prompt_seconds,
        seconds=done.seconds,
        notes=runtime.notes,
        fills=fills,
        completed=None if asked.masks is None or fills is None else completed(asked.masks, fills),
        limit=limit,
    )


def _fills(runtime: Runtime, asked: Question, done: Generation) -> tuple[Fill, ...] | None:
    """What was put in place of each mask, None where there are none."""
    if asked.masks is None:
        return None

    def text_of(ids: Sequence[int]) -> str:
        stream = TextStream()
        texts = [stream.feed(token_bytes(runtime, token, asked.sentinels.names)) for token in ids]
        return "".join(texts) + stream.finish(cut=done.stop_reason == "length")

    ids = done.ids[:-1] if done.stop_reason == "end" else done.ids
    return tuple(read_fills(ids, asked.masks, asked.sentinels, text_of))
