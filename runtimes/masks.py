"""Masks in a text, and what an encoder-decoder fills them with.

T5 models are trained to fill masks. Masks are written as transformers writes them, ``<extra_id_0>``,
``<extra_id_1>`` and so on in the order of the text. What stands for them is a *sentinel*, a token id:

- with a SentencePiece vocabulary the tokens of these names;
- with a byte vocabulary (ByT5, KEByT5) ids 258, 257, 256 …, which are the bytes 0xFF, 0xFE, 0xFD … that no
  UTF-8 text holds. Its tokens named ``<extra_id_N>`` (259 and up) are others, unseen in pre-training.

The model answers with sentinel 0, what it puts there, sentinel 1, and so on; the first sentinel that stands
for no mask ends it. Sources: Xue et al., ByT5 (arXiv 2105.13626), section 3; transformers' docs on ByT5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import InputError, UsageError

_MASK = re.compile(r"<extra_id_([0-9]{1,6})>")
_LAST_BYTE = 258  # id = byte + 3, after <pad> </s> <unk>
_NO_TEXT = 11  # bytes 0xFF down to 0xF5 never occur in UTF-8 (RFC 3629), 0xF4 does


@dataclass(frozen=True)
class Sentinels:
    """The tokens of a vocabulary that stand for masks: ``ids`` by number of the mask.

    ``bytewise`` marks a byte vocabulary, whose sentinels have no spelling. ``names`` are how sentinels are
    shown where a model writes them into ordinary text: by id (``<258>``) with a byte vocabulary, where
    ``<extra_id_0>`` might be either kind.
    """

    ids: tuple[int, ...]
    bytewise: bool
    names: Mapping[int, str]


@dataclass(frozen=True)
class MaskedText:
    """A text with masks: ``texts`` are the pieces around them, one more than there are masks."""

    texts: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of masks."""
        return len(self.texts) - 1


@dataclass(frozen=True)
class Fill:
    """What the model put in place of one mask: token ``ids`` and their ``text``, None where it put nothing.

    ``sentinel`` is the id that stood for the mask.
    """

    mask: int
    sentinel: int
    ids: tuple[int, ...]
    text: str | None


def masked_text(text: str) -> MaskedText:
    """``text`` cut at its masks. Raises UsageError where there is none or their numbers are not 0, 1, 2 …"""
    pieces = _MASK.split(text)
    numbers = pieces[1::2]
    if not numbers:
        raise UsageError(
            "--fill: the text contains no mask", hint="write masks as <extra_id_0>, <extra_id_1> …"
        )
    for place, number in enumerate(numbers):
        if number != str(place):
            raise UsageError(
                f"--fill: mask {place + 1} of the text is <extra_id_{number}>, expected <extra_id_{place}>",
                hint="number the masks 0, 1, 2 … in the order of the text",
            )
    return MaskedText(tuple(pieces[::2]))


def sentinels_of(metadata: Mapping[str, Any]) -> Sentinels:
    """The sentinels of a GGUF's vocabulary; none where it has none."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, tuple):
        return Sentinels((), False, {})
    spelled: dict[int, int] = {}
    for place, token in enumerate(tokens):
        # the vocabulary of mT5 holds them as pieces that begin a word
        if "<extra_id_" in str(token) and (match := _MASK.fullmatch(str(token).removeprefix("▁"))):
            spelled.setdefault(int(match[1]), place)
    if _is_bytewise(tokens):
        ids = range(_LAST_BYTE, _LAST_BYTE - _NO_TEXT, -1)
        return Sentinels(tuple(ids), True, {token: f"<{token}>" for token in (*ids, *spelled.values())})
    count = next(number for number in range(len(spelled) + 1) if number not in spelled)
    names = {token: f"<extra_id_{number}>" for number, token in spelled.items()}
    return Sentinels(tuple(spelled[number] for number in range(count)), False, names)


def check_masks(masks: MaskedText, sentinels: Sentinels) -> None:
    """Raises InputError where the vocabulary has fewer sentinels than the text has masks."""
    if not sentinels.ids:
        raise InputError(
            "--fill: the file's vocabulary has no mask tokens",
            hint="use a T5, ByT5 or KEByT5 model",
        )
    if masks.count > len(sentinels.ids):
        why = ", the bytes that never occur in UTF-8 text" if sentinels.bytewise else ""
        raise InputError(
            f"--fill: the text has {masks.count:,} masks, but the vocabulary has only "
            f"{len(sentinels.ids)} mask tokens{why}",
            hint="fill the text in parts",
        )


def prompt_parts(masks: MaskedText, sentinels: Sentinels) -> list[str | int]:
    """What a runtime is to tokenize, with the sentinels as ids where no text spells them."""
    if not sentinels.bytewise:
        # whole: a SentencePiece tokenizer treats the beginning of a text in its own way
        return [_joined(masks, [mask_name(number) for number in range(masks.count)])]
    parts: list[str | int] = [masks.texts[0]]
    for sentinel, text in zip(sentinels.ids, masks.texts[1:], strict=False):
        parts += [sentinel, text]
    return parts


def check_prompt(ids: Sequence[int], masks: MaskedText, sentinels: Sentinels) -> None:
    """Raises InputError where the masks did not become sentinels, each once and in order."""
    known = set(sentinels.ids[: masks.count])
    if [token for token in ids if token in known] != list(sentinels.ids[: masks.count]):
        raise InputError(
            "--fill: llama.cpp's tokenizer does not find the masks of the text in this vocabulary",
            hint="convert the checkpoint again with kconv",
        )


def ending_sentinels(masks: MaskedText, sentinels: Sentinels) -> frozenset[int]:
    """The sentinels that stand for no mask of the text: a model that gives one has filled them all."""
    return frozenset(sentinels.ids[masks.count :])


def read_fills(
    ids: Sequence[int],
    masks: MaskedText,
    sentinels: Sentinels,
    text_of: Callable[[Sequence[int]], str],
) -> list[Fill]:
    """What the output ``ids`` put in place of each mask; ids before the first sentinel belong to none.

    A sentinel that returns adds nothing. ``text_of`` makes text of token ids.
    """
    numbers = {token: number for number, token in enumerate(sentinels.ids)}
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in ids:
        number = numbers.get(token)
        if number is None:
            current.append(token)
        elif number >= masks.count:
            break
        else:
            current = []
            spans.setdefault(number, current)
    fills = []
    for number, sentinel in enumerate(sentinels.ids[: masks.count]):
        span = spans.get(number)
        text = None if span is None else _fitted(text_of(span), masks.texts[number], sentinels)
        fills.append(Fill(number, sentinel, tuple(span or ()), text))
    return fills


def completed(masks: MaskedText, fills: Sequence[Fill]) -> str:
    """The text with its masks filled; one the model left out stays as it was."""
    return _joined(masks, [mask_name(fill.mask) if fill.text is None else fill.text for fill in fills])


def mask_name(number: int) -> str:
    """How a mask is written in texts."""
    return f"<extra_id_{number}>"


def _joined(masks: MaskedText, marks: Sequence[str]) -> str:
    """The text with ``marks`` in place of its masks."""
    pairs = zip(marks, masks.texts[1:], strict=True)
    return masks.texts[0] + "".join(mark + text for mark, text in pairs)


def _fitted(text: str, before: str, sentinels: Sentinels) -> str:
    """A filled text as it follows ``before``.

    SentencePiece keeps the space before a word with the word: `` 서울`` fills ``수도는 <extra_id_0>``, which
    has the space already. A byte model fills exactly.
    """
    space = not before or before[-1].isspace()
    return text.lstrip() if space and not sentinels.bytewise else text


def _is_bytewise(tokens: tuple[Any, ...]) -> bool:
    """Whether tokens 3 to 258 are the bytes 0 to 255, in the symbols of byte-level vocabularies."""
    from ..vocab.decoding import byte_symbols

    byte_of = byte_symbols()
    return [byte_of.get(token) for token in tokens[_LAST_BYTE - 255 : _LAST_BYTE + 1]] == list(range(256))
