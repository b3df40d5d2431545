"""Small, named corrections between a checkpoint's tokenizer and what llama.cpp needs.

Each adapter is a pure function ``(Vocab, AdapterContext) -> (Vocab, Notes)``. It acts on what the files say,
reports what it changed, and leaves ordinary models alone. ``adapt`` applies them in the order of ADAPTERS.

Why special ids are always written: where a key is missing llama.cpp assumes BOS 1, EOS 2, unknown 0 for
``llama`` vocabularies and BOS = EOS = 11 for ``gpt2`` ones (src/llama-vocab.cpp), and id 11 of a Korean
vocabulary is an ordinary piece of text that would end every answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from ..core.errors import UsageError, VocabError
from ..core.model import Note
from ..core.vocabulary import UNIGRAM, TokenType, Vocab
from .added_words import added_words
from .broken_template import without_broken
from .context import AdapterContext
from .end_of_turn import end_of_turn
from .extra_tokens import refuse_extra
from .generation_tags import without_generation_tags
from .special_ids import MISSING_DEFAULTS, shown, special_ids
from .templates import DOT42_TOKENS, likely_template, recognise_template, resolve_template

Adaptation = tuple[Vocab, tuple[Note, ...]]

_BYTE_TOKENS = frozenset(f"<0x{value:02X}>" for value in range(256))
_DOT42_ROLES = {
    "bos": "<||bos||>",
    "eos": "<|endoftext|>",
    "padding": "<||pad||>",
    "unknown": "<||unk||>",
}
_KOGPT_ROLES = {"bos": "[BOS]", "eos": "[EOS]", "unknown": "[UNK]", "padding": "[PAD]", "mask": "[MASK]"}
_LLAMA3_TOKENS = frozenset({"<|begin_of_text|>", "<|end_of_text|>"})
_LLAMA3_SIZE = 128256
_PAD_SCORE = -10000.0  # never the best merge


@dataclass(frozen=True)
class Adapter:
    """One adapter: its name for ``--no-adapter``, what it does in one line, and the function."""

    name: str
    summary: str
    apply: Callable[[Vocab, AdapterContext], Adaptation]


def dot42_specials(vocab: Vocab, context: AdapterContext) -> Adaptation:
    """42dot's four special tokens, recognised by their texts: typed CONTROL, with their roles.

    added_tokens.json, where the folder has only that, gives ids without flags. Roles the tokenizer itself
    gives to other tokens stay. BOS is added if tokenizer_config.json says so (42dot's says no).
    """
    ids = vocab.ids_of(DOT42_TOKENS)
    if len(ids) != len(DOT42_TOKENS):
        return vocab, ()
    changes: list[str] = []
    types = list(vocab.types)
    for index in sorted(ids.values()):
        if types[index] is not TokenType.CONTROL:
            types[index] = TokenType.CONTROL
            changes.append(f"{shown(vocab, index)} typed control")
    special = dict(vocab.special)
    for role, text in _DOT42_ROLES.items():
        if role not in special:
            special[role] = ids[text]
            changes.append(f"{role} is {shown(vocab, ids[text])}")
    configured = context.tokenizer_config.get("add_bos_token")
    add_bos = configured if isinstance(configured, bool) else vocab.add_bos
    if add_bos != vocab.add_bos:
        changes.append(f"BOS is {'' if add_bos else 'not '}added, as set in tokenizer_config.json")
    if not changes:
        return vocab, ()
    adapted = replace(vocab, types=tuple(types), special=special, add_bos=add_bos)
    return adapted, (Note("42dot-specials", f"42dot's special tokens: {'; '.join(changes)}"),)


def kogpt_specials(vocab: Vocab, context: AdapterContext) -> Adaptation:
    """The roles of KoGPT's five special tokens, recognised by their texts, where no tokenizer file says them.

    Its card has users name them by hand. Their types stay: whether a text that spells one is cut into pieces
    is the tokenizer's to say.
    """
    ids = vocab.ids_of(_KOGPT_ROLES.values())
    missing = {
        role: ids[text] for role, text in _KOGPT_ROLES.items() if text in ids and role not in vocab.special
    }
    if len(ids) != len(_KOGPT_ROLES) or not missing:
        return vocab, ()
    missing_text = "; ".join(f"{role} is {shown(vocab, index)}" for role, index in missing.items())
    adapted = replace(vocab, special={**vocab.special, **missing})
    return adapted, (Note("kogpt-specials", f"KoGPT's special tokens: {missing_text}"),)


def unify_bos_eos(vocab: Vocab, context: AdapterContext) -> Adaptation:
    """One token for both BOS and EOS where the tokenizer has it so (EAGLE), or has no BOS at all.

    Such a tokenizer often has no padding token; an unknown token that byte fallback makes unreachable serves,
    as EAGLE's card recommends.
    """
    eos, bos = vocab.special.get("eos"), vocab.special.get("bos")
    if eos is None or (bos is not None and bos != eos) or (bos is None and vocab.add_bos):
        return vocab, ()
    if bos is None and vocab.model == UNIGRAM:  # llama.cpp takes none there by itself
        return vocab, ()
    special = {**vocab.special, "bos": eos}
    changes: list[str] = []
    if bos is None:
        default = MISSING_DEFAULTS.get(vocab.model, {}).get("bos", -1)
        taken = (
            (f", for which llama.cpp would use {shown(vocab, default)}") if 0 <= default < vocab.size else ""
        )
        changes.append(f"the tokenizer has no BOS{taken}; EOS {shown(vocab, eos)} is written as both")
    unknown = special.get("unknown")
    if "padding" not in special and unknown not in (None, eos) and vocab.ids.keys() >= _BYTE_TOKENS:
        assert unknown is not None
        special["padding"] = unknown
        changes.append(
            f"BOS and EOS are both {shown(vocab, eos)}; padding is {shown(vocab, unknown)}, which byte "
            "fallback never produces"
        )
    if vocab.add_bos:
        source = "tokenizer_config.json" if "add_bos_token" in context.tokenizer_config else "the tokenizer"
        changes.append(f"as set by {source}, llama.cpp will begin every text with {shown(vocab, eos)}")
    if not changes:
        return vocab, ()
    return replace(vocab, special=special), (Note("unify-bos-eos", "; ".join(changes)),)


def chat_template(vocab: Vocab, context: AdapterContext) -> Adaptation:
    """The template the user asked for; else the model's own; else a named one, recognised with certainty."""
    if context.chat_template is not None:
        template = resolve_template(context.chat_template)
        if template == vocab.chat_template:
            return vocab, ()
        action = "without a chat template" if template is None else f"chat template {context.chat_template!r}"
        former = ", instead of the checkpoint's own" if vocab.chat_template is not None else ""
        return replace(vocab, chat_template=template), (
            Note("chat-template", (f"{action}, as requested{former}")),
        )
    if vocab.chat_template is not None:
        return vocab, ()
    recognised = recognise_template(context, vocab)
    if recognised is not None:
        prompt_format, evidence = recognised
        message = (
            f"the checkpoint has no chat template; {prompt_format.name!r} is written instead, the prompt "
            f"format of {prompt_format.model}, identified by its special tokens and its name ({evidence})"
        )
        return replace(vocab, chat_template=prompt_format.template), (Note("chat-template", message),)
    likely = likely_template(context, vocab)
    if likely is None:
        return vocab, ()
    return vocab, (
        Note("chat-template", f"the checkpoint has no chat template and none is written; {likely.hint}"),
    )


def pad_rows(vocab: Vocab, context: AdapterContext) -> Adaptation:
    """Unused tokens ``[PAD{id}]`` for embedding rows without a token and for holes between ids.

    llama.cpp takes the number of rows from the number of tokens (LLAMA_LOAD_LOCALS, src/llama-model.h).
    """
    missing = [index for index, text in enumerate(vocab.tokens) if not text]
    missing += range(vocab.size, context.rows)
    if not missing:
        return vocab, ()
    extra = max(0, context.rows - vocab.size)
    tokens = [*vocab.tokens, *[""] * extra]
    types = [*vocab.types, *[TokenType.UNUSED] * extra]
    scores = [*vocab.scores, *[_PAD_SCORE] * extra] if vocab.scores else []
    taken = set(vocab.tokens)
    for index in missing:
        text = f"[PAD{index}]"
        while text in taken:  # llama.cpp aborts on two tokens of one text
            text = f"[{text}]"
        taken.add(text)
        tokens[index], types[index] = text, TokenType.UNUSED
        if scores:
            scores[index] = _PAD_SCORE
    message = (
        f"{len(missing)} unused token{'s' if len(missing) > 1 else ''} [PAD…] for ids {_ranges(missing)}: "
        f"the tokenizer has {vocab.size - len(missing) + extra} tokens, the embedding {context.rows} rows"
    )
    adapted = replace(vocab, tokens=tuple(tokens), types=tuple(types), scores=tuple(scores))
    return adapted, (Note("pad-rows", message),)


def _ranges(ids: Iterable[int]) -> str:
    """``3, 7-9`` for 3, 7, 8, 9; at most eight ranges."""
    runs: list[list[int]] = []
    for index in ids:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return ", ".join(parts[:8]) + (f" and {len(parts) - 8} more ranges" if len(parts) > 8 else "")


def rope_theta(vocab: Vocab, context: AdapterContext) -> Adaptation:
    """A warning where a Llama-3 vocabulary meets the rotary base of Llama 2; nothing is changed."""
    if vocab.size < _LLAMA3_SIZE or not vocab.ids.keys() >= _LLAMA3_TOKENS:
        return vocab, ()
    parameters = context.config.get("rope_parameters")
    nested = parameters.get("rope_theta") if isinstance(parameters, dict) else None
    theta = context.config.get("rope_theta", nested)
    if theta is not None and theta != 10000:
        return vocab, ()
    stated = "has no rope_theta (so 10000)" if theta is None else f"has rope_theta {theta:g}"
    message = (
        f"config.json {stated}, but the vocabulary is Llama 3's, which was trained with 500000; "
        "converted unchanged: compare with the base model's config.json if answers, or only long "
        "ones, come out broken"
    )
    return vocab, (Note("rope-theta", message, warning=True),)


ADAPTERS: tuple[Adapter, ...] = (
    Adapter("42dot-specials", "42dot's special tokens by their texts", dot42_specials),
    Adapter("kogpt-specials", "KoGPT's special tokens by their texts", kogpt_specials),
    Adapter("special-ids", "special token ids from the tokenizer where config.json is outdated", special_ids),
    Adapter("added-words", "words among the special tokens, which llama.cpp prints as nothing", added_words),
    Adapter(
        "unify-bos-eos", ("one token as both BOS and EOS where the tokenizer does so (EAGLE)"), unify_bos_eos
    ),
    Adapter("chat-template", "the prompt format of a model identified with certainty", chat_template),
    Adapter("broken-template", "removal of a chat template that does not compile", without_broken),
    Adapter(
        "generation-tags",
        ("removal of transformers' training tags from the chat template"),
        without_generation_tags,
    ),
    Adapter("end-of-turn", "the token that ends a turn of the chat template", end_of_turn),
    Adapter("pad-rows", "unused tokens to match the number of embedding rows", pad_rows),
    Adapter("rope-theta", "a warning for Llama 2's rope_theta on Llama 3's vocabulary", rope_theta),
)


def adapter_names() -> tuple[str, ...]:
    """The names ``--no-adapter`` takes, in the order of application."""
    return tuple(adapter.name for adapter in ADAPTERS)


def enabled_adapters(disabled: Iterable[str] = ()) -> frozenset[str]:
    """All adapters but those named. Raises UsageError for a name there is no adapter of."""
    off = frozenset(disabled)
    _refuse_unknown(off)
    return frozenset(adapter_names()) - off


def _refuse_unknown(names: Collection[str]) -> None:
    unknown = sorted(set(names) - set(adapter_names()))
    if unknown:
        raise UsageError(
            f"unknown adapter {', '.join(map(repr, unknown))}",
            hint=f"adapters are {', '.join(adapter_names())}",
        )


def adapt(
    vocab: Vocab, context: AdapterContext, enabled: Collection[str] | None = None
) -> tuple[Vocab, tuple[Note, ...]]:
    """Apply the adapters named in ``enabled`` (None: all); returns notes on what they did.

    Raises VocabError where the vocabulary has more tokens than the embedding has rows or a special id lies
    outside it; UsageError for unknown names, or where an adapter that is switched off was needed for a file
    that loads.
    """
    chosen = frozenset(adapter_names() if enabled is None else enabled)
    _refuse_unknown(chosen)
    if context.chat_template is not None and "chat-template" not in chosen:
        raise UsageError("--chat-template needs the adapter 'chat-template', which is switched off")
    refuse_extra(vocab, context.rows)
    for role, index in vocab.special.items():
        if not 0 <= index < context.rows:
            raise VocabError(f"the {role} token has id {index}, outside the embedding's {context.rows} rows")
    notes: list[Note] = []
    for adapter in ADAPTERS:
        if adapter.name in chosen:
            vocab, new_notes = adapter.apply(vocab, context)
            notes.extend(new_notes)
    if vocab.size != context.rows:
        raise UsageError(
            f"the tokenizer has {vocab.size} tokens, the embedding {context.rows} rows, and llama.cpp "
            "only loads models where the two are equal",
            hint="do not switch off the adapter 'pad-rows'",
        )
    return vocab, tuple(notes)
