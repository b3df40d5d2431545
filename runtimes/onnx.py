"""Running an ONNX folder through onnxruntime, which has a process of its own (runtimes/onnx_process.py)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..converters.families import FRONT_ENDS, family_for
from ..converters.settings import Settings
from ..converters.tokenizer import read_tokenizer
from ..core.errors import InputError
from ..core.input_files import quoted, read_json
from ..core.model import Note
from ..core.progress import Progress, silent
from ..core.vocabulary import TokenType, Vocab, gguf_keys
from ..vocab.context import AdapterContext, read_context
from ..vocab.decoding import token_bytes
from ..vocab.end_of_turn import KNOWN_END_OF_GENERATION
from ..vocab.own_vocabulary import own_vocabulary, stop_ids
from ..vocab.sampling import recommended_sampling, sampling_metadata
from ..vocab.tokenizer import Source
from .onnx_folder import OnnxFolder
from .onnx_process import OnnxProcess
from .reader import Floats, RuntimeFailure
from .sampler import Sampler
from .sampling import Sampling

_BATCH = 512
_SHOWN = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.BYTE)


@dataclass(frozen=True)
class OnnxModel:
    """A folder with what running it takes.

    ``metadata`` says under a GGUF's keys what that would say of vocabulary, template and sampling, so that
    prompts are made of the two alike. ``add`` are BOS and EOS where a prompt gets them. ``ends`` are the
    tokens that end a turn or the text, ``start`` the one a decoder behind an encoder begins with.
    The encoder has a position for ``factor`` tokens.
    """

    folder: OnnxFolder
    source: Source
    metadata: Mapping[str, Any]
    add: tuple[int | None, int | None]
    ends: frozenset[int]
    start: int
    context_length: int
    factor: int


def read_onnx_model(folder: OnnxFolder) -> OnnxModel:
    """Read a folder's files but the weights. Raises KconvError for a folder that cannot be run."""
    files = folder.without_weights
    family = family_for(folder.config)
    facts = family.read(folder.config)
    keys = Settings({**family.keys(facts), **family.from_files(facts, files)}, "config.json")
    source = read_tokenizer(files)
    context = read_context(files, rows=source.size)  # config.json may say any number
    vocab, _ = own_vocabulary(source, context)
    return OnnxModel(
        folder,
        source,
        {
            "general.architecture": family.arch,
            **gguf_keys(vocab),
            **sampling_metadata(recommended_sampling(context, vocab)),
        },
        (
            vocab.special.get("bos") if vocab.add_bos else None,
            vocab.special.get("eos") if vocab.add_eos and folder.encoder is not None else None,
        ),
        _ends(vocab, context),
        keys.integer("decoder_start_token_id", 0, least=0),
        keys.integer("context_length"),
        _factor(folder.path),
    )


def _factor(path: Path) -> int:
    """Tokens of a prompt that make one position; a folder with a front end keeps its configuration."""
    for front in FRONT_ENDS:
        config = read_json(path, front.onnx_file)
        if config is not None:
            return front.factor_of(config)
    return 1


def _ends(vocab: Vocab, context: AdapterContext) -> frozenset[int]:
    """Tokens that end a turn or the text, and those whose text llama.cpp takes for one."""
    known = (index for index, text in enumerate(vocab.tokens) if text in KNOWN_END_OF_GENERATION)
    return frozenset((*stop_ids(vocab, context)[0], *known))


class OnnxRuntime:
    """A folder loaded by onnxruntime; a context manager, see generation.Runtime for the methods.

    Raises InputError where onnxruntime refuses the folder, cannot go on or takes more than it may, and
    ChildDied where its process dies.
    """

    def __init__(self, model: OnnxModel, *, threads: int, progress: Progress = silent) -> None:
        self._model, self._progress = model, progress
        self._process = OnnxProcess(model.folder, threads=threads)
        self._encoder_decoder = model.folder.encoder is not None

    def __enter__(self) -> OnnxRuntime:
        with self._explained():
            self._process.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.__exit__(*failure)

    @property
    def notes(self) -> tuple[Note, ...]:
        """None."""
        return ()

    @property
    def context_length(self) -> int:
        """Tokens the model was trained to see at once."""
        return self._model.context_length

    def tokenize(self, *parts: str | int) -> list[int]:
        """Ids of the texts in ``parts``, and between them the numbers, which are ids already."""
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self._model.source.encode(part, True)
        bos, eos = self._model.add
        if bos is not None and ids[:1] != [bos]:  # a chat template often writes the BOS itself
            ids.insert(0, bos)
        if eos is not None and ids[-1:] != [eos]:  # as ByT5Tokenizer, which adds no second one
            ids.append(eos)
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; nothing for control tokens and rows without a token."""
        source = self._model.source
        known = 0 <= token < source.size and source.types[token] in _SHOWN
        return token_bytes(source, token) if known else b""

    def is_end(self, token: int) -> bool:
        """Whether the token ends a turn or the text."""
        return token in self._model.ends

    def generate(self, prompt: Sequence[int], sampling: Sampling, count: int) -> Iterator[int]:
        """Up to ``count`` tokens; one that ends the turn is the last. Each call begins from nothing."""
        begun = [self._model.start] if self._encoder_decoder else list(prompt)
        with self._explained():
            self._process.begin(prompt if self._encoder_decoder else ())
            for start in range(0, len(begun), _BATCH):
                self._progress("reading the prompt", start, len(begun))
                last = start + _BATCH >= len(begun)
                logits = self._process.read(begun[start : start + _BATCH], int(last))
        self._progress("reading the prompt", len(begun), len(begun))
        columns = logits.shape[1]
        with Sampler(columns, sampling, begun) as sampler:
            for position in range(count):
                token = sampler.choose(self._sound(logits[0], columns))
                yield token
                if self.is_end(token) or position + 1 == count:
                    return
                with self._explained():
                    logits = self._process.read([token])

    def _sound(self, logits: Floats, columns: int) -> Floats:
        """The logits of a token, unless samplers could not choose among them."""
        if len(logits) == columns and math.isfinite(logits.max(initial=-math.inf)):
            return logits
        problem = "logits that are not finite numbers"
        if len(logits) != columns:
            problem = f"{columns} logits, then {len(logits)}"
        hint = "check it against its checkpoint: kconv verify"
        raise InputError(f"{self._model.folder.path} gives {problem}", hint=hint)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeFailure as failure:
            raise InputError(
                f"{self._model.folder.path}: {quoted(str(failure))[1:-1]}",
                hint="make the folder again with kconv to-onnx, or use a newer onnxruntime",
            ) from failure
