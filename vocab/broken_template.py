"""Chat templates that do not compile: left out, or replaced by the one the model was certainly trained with.

llama-server does not start with such a template, and without one it has one of its own.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from ..core.model import Note
from ..core.vocabulary import Vocab
from .context import AdapterContext
from .generation_tags import replaced_tags
from .rendering import TemplateFailure, render_all
from .templates import recognise_template

NAME = "broken-template"
LEFT_OUT = "kconv.chat_template.left_out"
"""A key of our own: why the checkpoint's chat template is not in the file, for `kconv run`."""


@functools.lru_cache(maxsize=8)
def failure(template: str) -> str | None:
    """Line and Jinja's reason where a template does not compile, None where it does.

    transformers' tags for training text count as known. Raises TemplateLimit and ChildDied, as render_all.
    """
    try:
        render_all(replaced_tags(template), [])
    except TemplateFailure as why:
        return str(why)
    return None


def without_broken(vocab: Vocab, context: AdapterContext) -> tuple[Vocab, tuple[Note, ...]]:
    """The vocabulary without a template that does not compile, or with another; a warning."""
    reason = None if vocab.chat_template is None else failure(vocab.chat_template)
    if reason is None:
        return vocab, ()
    recognised = recognise_template(context, vocab)
    if recognised is None:
        done = "it is left out; --chat-template takes a corrected one"
        return replace(vocab, chat_template=None), (_note(reason, done),)
    prompt_format, evidence = recognised
    done = (
        f"{prompt_format.name!r} is written instead, the prompt format of {prompt_format.model}, identified "
        f"by its special tokens and its name ({evidence})"
    )
    return replace(vocab, chat_template=prompt_format.template), (_note(reason, done),)


def _note(reason: str, done: str) -> Note:
    return Note(NAME, f"the checkpoint's chat template does not compile ({reason}); {done}", warning=True)


def left_out_metadata(own: str | None, vocab: Vocab) -> dict[str, str]:
    """The key of a file whose checkpoint has the template ``own``, which does not compile."""
    reason = failure(own) if own is not None and vocab.chat_template is None else None
    return {} if reason is None else {LEFT_OUT: reason}
