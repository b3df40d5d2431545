"""What a model is to see: the prompt as the user gave it, through a chat template or as plain text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..converters.families import reads_with_encoder
from ..core.errors import GgufError, InputError, UsageError
from ..core.model import Note
from ..vocab.broken_template import LEFT_OUT
from ..vocab.normal_form import as_trained
from .masks import MaskedText, Sentinels, check_masks, masked_text, prompt_parts, sentinels_of

_THROUGH_TEMPLATE = Note(
    "chat-template", "using the file's chat template; pass --no-chat to complete plain text"
)
_MASK_NAMES = Note(
    "mask-names",
    "with -p, <extra_id_0> is the token of that name, which byte models did not see as a mask in "
    "pre-training; use --fill for masks",
)


@dataclass(frozen=True)
class Question:
    """What a model is to see, and how its answer is to be read.

    ``parts`` are what the runtime tokenizes, ``text`` the same for people. ``template`` is the chat template
    it went through, ``stops`` are texts that end the answer under it. ``trim``: white space the answer begins
    with belongs to the format, not to the answer. ``masks`` are those the answer is to fill.
    """

    parts: tuple[str | int, ...]
    text: str
    template: str | None = None
    stops: tuple[str, ...] = ()
    trim: bool = False
    encoder_decoder: bool = False
    masks: MaskedText | None = None
    sentinels: Sentinels = field(default_factory=lambda: Sentinels((), False, {}))


def question(
    artifact: Path,
    metadata: Mapping[str, Any],
    text: str,
    *,
    fill: bool,
    chat: bool | None,
    system: str | None,
    echo: bool,
    announce: Callable[[Note], None],
    history: Sequence[Mapping[str, str]] = (),
) -> Question:
    """The question ``text`` is to a model: a user's turn, a text to continue, a source or a text with masks.

    ``history`` are the turns before it (``role``, ``content``), for a file with a chat template only.

    ``announce`` gets a note on what the user may not expect (``chat-template``, ``mask-names``). Raises
    UsageError and InputError where it cannot be asked, GgufError where the file's template is damaged.
    """
    arch = str(metadata.get("general.architecture", ""))
    masks = masked_text(text) if fill else None
    if reads_with_encoder(arch):
        _refuse_turns(artifact, chat=chat, system=system, echo=echo)
        _refuse_deep_decoder(artifact, arch, metadata)
        return _source(metadata, text, masks, announce)
    if masks is not None:
        raise InputError(
            f"{artifact} completes text and cannot fill masks (its architecture is {arch})",
            hint="use an encoder-decoder such as KEByT5, or pass the text with -p",
        )
    template = _chosen_template(artifact, metadata, chat=chat, system=system)
    if template is not None and chat is None:
        announce(_THROUGH_TEMPLATE)
    whole = as_trained(metadata, _whole_prompt(metadata, template, text, system, history))
    stops = _template_stops(template)
    return Question((whole,), whole, template, stops, trim=template is not None or not text)


def _source(
    metadata: Mapping[str, Any], text: str, masks: MaskedText | None, announce: Callable[[Note], None]
) -> Question:
    """What an encoder is to read."""
    sentinels = sentinels_of(metadata)
    parts: list[str | int] = [text]
    if masks is not None:
        check_masks(masks, sentinels)
        parts = prompt_parts(masks, sentinels)
    elif sentinels.bytewise and "<extra_id_" in text:
        announce(_MASK_NAMES)
    parts = [as_trained(metadata, part) if isinstance(part, str) else part for part in parts]
    parts[0] = _leading_space(metadata) + str(parts[0])
    trim = not sentinels.bytewise
    return Question(tuple(parts), text, trim=trim, encoder_decoder=True, masks=masks, sentinels=sentinels)


def _refuse_deep_decoder(artifact: Path, arch: str, metadata: Mapping[str, Any]) -> None:
    """Raises GgufError where llama.cpp would end the process: it keeps room for the encoder's layers only."""
    layers = metadata.get(f"{arch}.block_count")
    decoder_layers = metadata.get(f"{arch}.decoder_block_count", layers)
    if isinstance(layers, int) and isinstance(decoder_layers, int) and decoder_layers > layers:
        raise GgufError(
            f"{artifact}: the decoder has {decoder_layers} layers and the encoder {layers}; llama.cpp "
            "supports at most as many as the encoder has",
            hint="this model cannot run on stock llama.cpp",
        )


def checked_text(text: str, what: str) -> str:
    """``text``, if it is text; UsageError where it holds bytes that were no UTF-8."""
    if _has_surrogates(text):
        raise UsageError(f"{what} is not UTF-8", hint="set the terminal's encoding to UTF-8")
    return text


def _has_surrogates(text: str) -> bool:
    """Whether some of it stands for bytes that were no UTF-8."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def _chosen_template(
    artifact: Path, metadata: Mapping[str, Any], *, chat: bool | None, system: str | None
) -> str | None:
    """The file's chat template if the prompt is to go through it, else None."""
    template = metadata.get("tokenizer.chat_template")
    left_out = metadata.get(LEFT_OUT)
    if chat is not False and not template and isinstance(left_out, str):
        raise InputError(
            f"{artifact} has no chat template: the checkpoint's was left out, since it does not compile "
            f"({left_out})",
            hint="pass --no-chat to complete plain text, or convert again with --chat-template",
        )
    if chat is False or (chat is None and not template):
        if system is not None:
            raise UsageError("--system is for chats, but this prompt is completed as plain text")
        return None
    if not isinstance(template, str) or not template:
        raise InputError(
            f"{artifact} has no chat template",
            hint="leave out --chat, or convert again with --chat-template",
        )
    if _has_surrogates(template):
        raise GgufError(f"{artifact}: tokenizer.chat_template is not UTF-8", hint="pass --no-chat")
    return template


def _whole_prompt(
    metadata: Mapping[str, Any],
    template: str | None,
    text: str,
    system: str | None,
    history: Sequence[Mapping[str, str]],
) -> str:
    """What the model is to see, as text."""
    if template is None:
        return _leading_space(metadata) + text
    from ..vocab.templates import render_chat

    messages = [{"role": "system", "content": checked_text(system, "--system")}] if system is not None else []
    messages += [dict(turn) for turn in history]
    messages.append({"role": "user", "content": text})
    return render_chat(
        template,
        messages,
        bos_token=_token(metadata, "bos"),
        eos_token=_token(metadata, "eos"),
    )


def _leading_space(metadata: Mapping[str, Any]) -> str:
    """The space this vocabulary cannot put in front, though the checkpoint's tokenizer does.

    Converters write this key; chat templates of such files begin with the space themselves.
    """
    return " " if metadata.get("kconv.leading_space") is True else ""


def _token(metadata: Mapping[str, Any], role: str) -> str:
    """Text of the special token of that role, empty where the file names none."""
    tokens, number = metadata.get("tokenizer.ggml.tokens"), metadata.get(f"tokenizer.ggml.{role}_token_id")
    if isinstance(tokens, tuple) and isinstance(number, int) and 0 <= number < len(tokens):
        return str(tokens[number]).encode("utf-8", "replace").decode()
    return ""


def _template_stops(template: str | None) -> tuple[str, ...]:
    """Texts that end an answer under a prompt format we know."""
    if template is None:
        return ()
    from ..vocab.templates import format_of_template

    known = format_of_template(template)
    return () if known is None else known.stop


def _refuse_turns(artifact: Path, *, chat: bool | None, system: str | None, echo: bool) -> None:
    """Raises UsageError for options of a conversation or a continued text: an encoder-decoder has neither."""
    options = {"--chat": chat is True, "--system": system is not None, "--echo": echo}
    given = [option for option, is_given in options.items() if is_given]
    if given:
        raise UsageError(
            f"{' and '.join(given)} given, but {artifact} is an encoder-decoder: it reads the prompt "
            "and answers, with neither chat turns nor text completion",
            hint=f"leave out {' and '.join(given)}",
        )


def token_room(
    prompt: int,
    wanted: int,
    trained: int,
    context: int | None,
    *,
    encoder_decoder: bool = False,
    factor: int = 1,
    announce: Callable[[Note], None],
) -> int:
    """How many tokens may be generated, at most ``wanted`` (all there is room for if negative).

    An encoder's prompt and what its decoder generates may each fill the context. Behind a front end a
    position of the encoder stands for ``factor`` tokens of the prompt; what is generated is not down-sampled.
    ``announce`` gets a note on a context larger than the model was trained with.
    """
    if prompt == 0:
        raise UsageError(
            "the prompt is empty, and this model adds no tokens of its own",
            hint="give a prompt, or none at all for a conversation",
        )
    limit = context or trained
    taken, read = 0 if encoder_decoder else prompt, -(-prompt // factor)
    if read > limit or taken == limit:
        behind = f", {read:,} positions after the front end" if factor > 1 else ""
        raise InputError(
            f"the prompt has {prompt:,} tokens{behind}, but the context has room for {limit:,}"
            + ("" if encoder_decoder else " including at least one to generate"),
            hint="shorten the prompt"
            if context is None and not encoder_decoder
            else "shorten the prompt or pass a larger --ctx",
        )
    if limit > trained:
        message = f"the model was trained with {trained:,} tokens, but --ctx sets {limit:,}"
        announce(Note("context", message, warning=True))
    return limit - taken if wanted < 0 else min(wanted, limit - taken)
