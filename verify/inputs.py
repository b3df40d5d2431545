"""What ``verify`` and a conversion share: what is expected, options, windows of text, reading in fp32."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..converters.family import AnyFamily
from ..converters.manifest import versions
from ..converters.mapping import parameters
from ..converters.targets import checkpoint_name
from ..core.checkpoint import Checkpoint
from ..core.cores import available_cores
from ..core.errors import InputError
from ..core.language import phrase
from ..core.model import Model
from ..core.progress import Progress, silent
from ..core.reading import hub_origin
from ..core.vocabulary import Vocab
from ..core.windows import Window, cut
from ..reference.model import Reference
from ..reference.reading import Reading
from ..vocab.encoder_texts import built_in_texts, given_texts
from ..vocab.parity import Declared, declared
from ..vocab.sample_text import LONG, QUICK, WINDOW, sample_windows
from ..vocab.text_pairs import PairReader, built_in_pairs, default_size, text_pairs, way_of_pairing
from ..vocab.tokenizer import Source
from .cost import estimated_time
from .front_end import tokens_a_position
from .logits import Measuring
from .proof import Part

Announce = Callable[[str], None]
Texts = Sequence[str] | None
_BUILT_IN = phrase("built-in: Universal Declaration of Human Rights, Korean and English")
_BY_PARAGRAPH = phrase(
    "built-in: Universal Declaration of Human Rights, Korean and English, paragraph by paragraph"
)


@dataclass(frozen=True)
class Expected:
    """What files are proven against: a checkpoint, its tokenizer, and the model as a file should have it."""

    checkpoint: Checkpoint
    family: AnyFamily
    model: Model
    source: Source

    @property
    def vocab(self) -> Vocab:
        """The vocabulary a file should have."""
        assert self.model.vocab is not None
        return self.model.vocab

    @property
    def before(self) -> tuple[int, ...]:
        """What stands before every text: BOS, or nothing."""
        return (self.vocab.special["bos"],) if self.vocab.add_bos and "bos" in self.vocab.special else ()

    @property
    def around(self) -> Declared:
        """What stands around every text an encoder reads."""
        return declared(self.vocab)

    @property
    def context(self) -> int:
        """Tokens the model was trained to see at once."""
        value = self.model.hparams[f"{self.model.arch}.context_length"]
        assert isinstance(value, int)
        return value

    @property
    def source_context(self) -> int:
        """Tokens read at once: an encoder behind a front end has a position for several of them."""
        return self.context * tokens_a_position(self.family, self.checkpoint)


@dataclass(frozen=True)
class VerifyOptions:
    """How files are verified. ``gates`` by type replace the table's; ``diagnose`` None: of wrong files.

    Above ``max_kl``, a mean divergence in nats, a file of any type fails (None: none), an encoder's below
    ``min_cosine``, the mean cosine with the checkpoint's embeddings.

    ``part`` is told the name and the findings of each part of the proof as soon as they are known.

    ``gelu_share``: in families with a GELU, read the checkpoint once more with llama.cpp's table of it for
    files that are held to its logits themselves, to tell what the table alone does. ``measure`` compares the
    logits of a GGUF file in another way than here and now: on other machines.
    """

    gates: Mapping[str, float] = field(default_factory=dict)
    max_kl: float | None = None
    min_cosine: float | None = None
    diagnose: bool | None = None
    threads: int = field(default_factory=available_cores)
    progress: Progress = silent
    announce: Announce = lambda text: None
    part: Callable[[str, Part], None] = lambda name, part: None
    gelu_share: bool = True
    measure: Measuring | None = None


def built_in_windows(
    expected: Expected, amounts: Mapping[str, int], *, tokens: int | None = None, window: int | None = None
) -> list[Window]:
    """The built-in texts, ``amounts`` tokens of each or ``tokens``; see ``text_windows``."""
    if expected.family.encoder_only:
        scope: Literal["quick", "full"] = "quick" if amounts is QUICK else "full"
        return built_in_texts(expected.source, expected.around, _text_size(expected, window), scope, tokens)
    if expected.family.encoder_decoder:
        return built_in_pairs(_reads_pairs(expected, window), amounts, tokens=tokens)
    if tokens is not None:
        amounts = dict.fromkeys(amounts, tokens)
    size = _window_size(expected, window)
    return sample_windows(expected.source, amounts, size=size, before=expected.before)


def proof_windows(
    expected: Expected,
    scope: Literal["off", "quick", "full"],
    texts: Texts = None,
    tokens: int | None = None,
) -> tuple[Window, ...]:
    """What the proof of a conversion reads: built-in texts, or ``texts``, at most ``tokens`` of each."""
    if scope == "off":
        return ()
    if texts:
        return tuple(text_windows(expected, texts, tokens=tokens, window=None))
    return tuple(built_in_windows(expected, QUICK if scope == "quick" else LONG, tokens=tokens))


def text_windows(
    expected: Expected, texts: Sequence[str], *, tokens: int | None, window: int | None
) -> list[Window]:
    """The user's texts in windows of ``window`` tokens (default 512, or the model's context).

    An encoder-decoder reads pairs: see text_pairs.py; an encoder by itself a line at once. Raises InputError
    for windows beyond the model's context and texts without a token to predict.
    """
    if expected.family.encoder_only:
        size = _text_size(expected, window)
        return given_texts(expected.source, expected.around, size, texts, tokens)
    if expected.family.encoder_decoder:
        return text_pairs(_reads_pairs(expected, window), texts, tokens=tokens)
    size = _window_size(expected, window)
    ids = [expected.source.encode(text, True) for text in texts]
    return cut(ids, size=size, before=expected.before, tokens=tokens)


def _text_size(expected: Expected, window: int | None) -> int:
    return expected.context if window is None else _window_size(expected, window)


def _window_size(expected: Expected, window: int | None) -> int:
    longest = expected.source_context
    if window is not None and window > longest:
        raise InputError(
            f"windows of {window} tokens are longer than the model's context of {longest}",
            hint=f"pass --window {longest} or less; a longer text is read in several windows",
        )
    return min(WINDOW, longest) if window is None else window


def _reads_pairs(expected: Expected, window: int | None) -> PairReader:
    """How an encoder-decoder reads; ``window`` is then how much its encoder is given at once."""
    start = expected.model.hparams[f"{expected.model.arch}.decoder_start_token_id"]
    assert isinstance(start, int)
    eos = expected.vocab.special.get("eos") if expected.vocab.add_eos else None
    size = _window_size(expected, window)
    if window is None:
        size = default_size(size, expected.vocab.size)
    return PairReader(expected.source, start, eos, size, expected.context, expected.source_context)


def cost(expected: Expected, windows: Sequence[Window], files: int, *, passes: int = 1) -> str:
    """What reading the windows will take, in a sentence; ``passes`` are those through the checkpoint."""
    tokens = sum(window.tokens for window in windows)
    weights = parameters(expected.model)
    about = estimated_time(expected.model, windows, files, passes=passes)
    through = "the file" if files == 1 else f"{files} files"
    return (
        f"proof: {tokens:,} tokens through {weights:,} weights in fp32 and through {through}, about {about}"
    )


def read_reference(expected: Expected, options: VerifyOptions, windows: Sequence[Window]) -> Reading:
    """The checkpoint in fp32 over all windows, in one pass over its weights."""
    options.progress("starting the reference", 0, 0)
    return Reference(expected.checkpoint, expected.family, threads=options.threads).read(
        windows, progress=options.progress
    )


def compared_with(
    expected: Expected,
    windows: Sequence[Window],
    texts: Sequence[str] | None,
    runtime: str,
    packages: Sequence[str],
) -> dict[str, Any]:
    """What something was compared with: checkpoint, texts, runtime, versions, also of ``packages``."""
    repository, revision = hub_origin(expected.checkpoint.folder)
    read: str = _BUILT_IN
    if expected.family.encoder_only:
        read = _BY_PARAGRAPH
    if expected.family.encoder_decoder:
        read = f"{_BUILT_IN}, in pairs: {way_of_pairing(expected.source)}"
    return {
        "checkpoint": {
            "name": checkpoint_name(expected.checkpoint),
            "repository": repository,
            "revision": revision,
        },
        "texts": [read] if texts is None else [_digest(text) for text in texts],
        "windows": [window.tokens for window in windows],
        "runtime": runtime,
        "versions": versions(("torch", "transformers", *packages)),
    }


def _digest(text: str) -> str:
    return f"{len(text):,} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()}"
