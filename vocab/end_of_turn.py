"""The token that ends an assistant's turn: ``tokenizer.ggml.eot_token_id``, where the key helps.

llama.cpp finds common ones by their texts (src/llama-vocab.cpp). The key helps where the chat format ends
turns with a token it does not know, and where it knows several tokens of the vocabulary: it then takes
whichever its hash table yields first (Llama 3: ``<|eot_id|>`` or ``<|end_of_text|>``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.errors import VocabError
from ..core.model import Note
from ..core.vocabulary import Vocab
from .context import AdapterContext
from .special_ids import looks_special, shown
from .templates import SOME_DAY, render_chat

NAME = "end-of-turn"

# Texts llama.cpp takes as end of turn, and as end of generation, without a key (src/llama-vocab.cpp).
KNOWN_END_OF_TURN = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
    "_<EOT>", "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
})  # fmt: skip
KNOWN_END_OF_GENERATION = KNOWN_END_OF_TURN | {
    "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "<|eom_id|>", "[EOS]", "<eos>", "<turn|>",
    "<|tool_response>", "[e~[",
}  # fmt: skip
_QUESTION, _ANSWER, _THOUGHT = "kconv question", "kconv answer", "kconv thought"
_RULE = "kconv rule"
_ENDS = ("<|endofturn|>", "<|stop|>")

# A key of our own: the token at which `kconv run` goes on though llama.cpp would end the answer.
GOES_ON = "kconv.goes_on_token_id"


def end_of_turn(vocab: Vocab, context: AdapterContext) -> tuple[Vocab, tuple[Note, ...]]:
    """Write the end-of-turn token of the chat template, and further stop ids of generation_config.json."""
    special = dict(vocab.special)
    written: list[str] = []
    notes: list[Note] = []
    ends = named_ends(vocab)
    for ending, index in zip(("eot", "eom"), ends, strict=False):
        special.setdefault(ending, index)
        written.append(f"answers of such models end with {shown(vocab, index)}, written as {ending}")
    if "eot" not in special and vocab.chat_template is not None:
        try:
            end = turn_end(vocab)
        except VocabError as error:
            notes.append(Note(NAME, f"{error.message}; it is copied unchanged", warning=True))
            end = None
        known = set(vocab.ids_of(KNOWN_END_OF_TURN).values())
        if end is not None and not (end == special.get("eos") and known <= {end}):
            special["eot"] = end
            written.append(f"the chat template ends turns with {shown(vocab, end)}")
    for index in _further_stops(vocab, context, special):
        role = next((role for role in ("eot", "eom") if role not in special), None)
        if role is None:
            message = (
                f"generation_config.json also stops at {shown(vocab, index)}, for which GGUF has no free key"
            )
            notes.append(Note(NAME, message, warning=True))
            continue
        special[role] = index
        written.append(f"generation_config.json also stops at {shown(vocab, index)}, written as {role}")
    thoughts = reasoning_end(vocab) if vocab.chat_template is not None else None
    if thoughts is not None:
        notes.append(_only_reasoning(vocab, thoughts))
    if written:
        notes.insert(0, Note(NAME, "; ".join(written)))
    return (vocab if special == vocab.special else replace(vocab, special=special)), tuple(notes)


def named_ends(vocab: Vocab) -> tuple[int, ...]:
    """The tokens of HyperCLOVA X that end an answer, by their texts: its files often name neither as EOS."""
    ids = vocab.ids_of((*_ENDS, "<|im_end|>"))
    return tuple(ids[text] for text in _ENDS) if len(ids) > len(_ENDS) else ()


def reasoning_end(vocab: Vocab) -> int | None:
    """The token that ends a model's reasoning, at which llama.cpp ends the answer because of its text.

    Found in the rendered template, where it stands between an assistant's reasoning and its answer.
    """
    template = vocab.chat_template or ""
    if "reasoning" not in template or not any(text in template for text in KNOWN_END_OF_GENERATION):
        return None
    answer = {"role": "assistant", "reasoning_content": _THOUGHT, "content": _ANSWER}
    try:
        rendered = _rendered(vocab, [{"role": "user", "content": _QUESTION}, answer])
    except VocabError:
        return None  # a warning says so already
    between = rendered.partition(_THOUGHT)[2]
    if _ANSWER not in between:
        return None
    end = _first_special(vocab, between.partition(_ANSWER)[0])
    return end if end is not None and vocab.tokens[end] in KNOWN_END_OF_GENERATION else None


def goes_on_metadata(vocab: Vocab) -> dict[str, int]:
    """The key by which `kconv run` knows not to stop at the end of the reasoning."""
    end = reasoning_end(vocab) if vocab.chat_template is not None else None
    return {} if end is None else {GOES_ON: end}


def _only_reasoning(vocab: Vocab, end: int) -> Note:
    message = (
        f"{shown(vocab, end)} ends this model's reasoning and not its answer, but llama.cpp ends every "
        "answer there because of its text: llama-server returns the reasoning alone, kconv run goes on"
    )
    return Note(NAME, message, warning=True)


def turn_end(vocab: Vocab) -> int | None:
    """The special token that follows an answer in the rendered chat template, if one does.

    Raises VocabError where the template cannot render one question and one answer in any way.
    """
    if vocab.chat_template is None:
        return None
    failure: VocabError | None = None
    for number, messages in enumerate(_conversations(vocab.chat_template)):
        try:
            rendered = _rendered(vocab, messages)
        except VocabError as error:
            failure = error if number == 0 else failure
            continue
        _, answered, rest = rendered.rpartition(_ANSWER)
        if answered:
            return _first_special(vocab, rest)
    try:
        if failure is not None:
            raise failure
    finally:
        failure = None  # else error and frame hold each other, and all that called this, a process among it
    return None


def _conversations(template: str) -> Iterator[list[dict[str, Any]]]:
    """A question and its answer; also with a system text first, or in parts, which some templates want."""
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    yield turns
    if "system" in template:
        yield [{"role": "system", "content": _RULE}, *turns]
    if "text" in template:
        yield [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]


def _rendered(vocab: Vocab, messages: Sequence[Mapping[str, Any]]) -> str:
    assert vocab.chat_template is not None
    return render_chat(
        vocab.chat_template,
        messages,
        bos_token=_text(vocab, "bos"),
        eos_token=_text(vocab, "eos"),
        add_generation_prompt=False,
        moment=SOME_DAY,
    )


def _first_special(vocab: Vocab, text: str) -> int | None:
    """The special token a text begins with, white space aside."""
    rest = text.lstrip()
    ends = [
        index
        for index, text in enumerate(vocab.tokens)
        if text and rest.startswith(text) and looks_special(vocab, index)
    ]
    return max(ends, key=lambda index: len(vocab.tokens[index]), default=None)


def _text(vocab: Vocab, role: str) -> str:
    index = vocab.special.get(role)
    return "" if index is None else vocab.tokens[index]


def _further_stops(vocab: Vocab, context: AdapterContext, special: dict[str, int]) -> list[int]:
    """Stop ids of generation_config.json that neither a key nor llama.cpp's own list covers."""
    value = context.generation_config.get("eos_token_id")
    stops = value if isinstance(value, list) else [value]
    covered = {special.get(role) for role in ("eos", "eot", "eom")}
    ids: list[int] = []
    for index in stops:
        if not isinstance(index, int) or isinstance(index, bool) or not looks_special(vocab, index):
            continue
        if index not in covered and vocab.tokens[index] not in KNOWN_END_OF_GENERATION:
            covered.add(index)
            ids.append(index)
    return ids
