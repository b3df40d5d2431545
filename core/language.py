"""In which language kconv speaks: gettext catalogues, and messages that can be said in another one later.

A message is written where it arises, whole, in English, with names for its values:

    phrase("the file has {found} tokens, but the checkpoint has {expected}").of(found=3, expected=4)

That is a ``str``, the English sentence, for everything programs read (``--json``, manifests); it also
remembers its template, and ``translated`` says it in the language people chose. Where text is shown at once,
``_`` does both. Errors, notes and help need no marks: core/recognition.py knows them by their words.

Catalogues are ``data/locale/LANGUAGE/LC_MESSAGES/kconv.mo``, compiled from the ``.po`` beside it
(tools/catalogue.py); a message that is not in them is said in English.

As a library kconv speaks English; the command chooses by ``--lang``, ``KCONV_LANG`` or the locale.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gettext import NullTranslations

LANGUAGES = ("en", "ko")
VARIABLE = "KCONV_LANG"
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")  # POSIX: the first that is set decides
_KOREAN = ("ko", "kor", "korean")

_spoken = "en"


class Phrase(str):
    """An English sentence that remembers the template and the values it was made of."""

    template: tuple[str, ...]
    values: Mapping[str, Any]

    def __new__(
        cls, text: str, template: tuple[str, ...] = (), values: Mapping[str, Any] | None = None
    ) -> Phrase:
        """``text`` in English; ``template`` is what catalogues list: one form, or singular and plural."""
        made = super().__new__(cls, text)
        made.template, made.values = template, values or {}
        return made

    def of(self, **values: Any) -> Phrase:
        """With these values in their places, and those it has; places without a value stay as they are."""
        values = {**self.values, **values}
        form = self.template[len(self.template) > 1 and values[""] != 1]
        return Phrase(form.format_map(_Values(values)), self.template, values)


class _Values(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return f"{{{name}}}"


def phrase(template: str, /) -> Phrase:
    """The English message; other languages are found by ``template``, so it has to be a literal."""
    return Phrase(template, (template,))


def phrases(one: str, many: str, count: int, /) -> Phrase:
    """The message for ``count`` things, which is ``{count}`` in it (``1,200``)."""
    return Phrase(one, (one, many), {"": count}).of(count=f"{count:,}")


def translated(text: str) -> str:
    """``text`` in the language spoken now: a phrase by its template, with its values.

    A text that is no phrase (any more) is recognized where it is a sentence of kconv's, else unchanged.
    """
    if _spoken == "en":
        return text
    if not isinstance(text, Phrase):
        from .recognition import said

        return said(text) if isinstance(text, str) and " " in text else text
    if len(text.template) > 1:
        one, many = text.template
        found = _catalogue(_spoken).ngettext(one, many, text.values[""])
    else:
        found = _catalogue(_spoken).gettext(text.template[0])
    values = {name: translated(value) if name else value for name, value in text.values.items()}
    return found.format_map(_Values(values)) if values else found


def template(text: str, /) -> str:
    """The template of that name in the language spoken now, for those who fill it in themselves."""
    return text if _spoken == "en" else _catalogue(_spoken).gettext(text)


def _(text: str, /, **values: Any) -> str:
    """The message in the language spoken now."""
    return translated(phrase(text).of(**values) if values else phrase(text))


def ngettext(one: str, many: str, count: int, /, **values: Any) -> str:
    """The message for ``count`` things in the language spoken now."""
    return translated(phrases(one, many, count).of(**values))


def spoken() -> str:
    """The language spoken now: ``en`` or ``ko``."""
    return _spoken


def speak(language: str) -> None:
    """Speak ``language`` from now on, one of ``LANGUAGES``."""
    global _spoken
    assert language in LANGUAGES
    _spoken = language


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Speak ``language`` for a while."""
    before = _spoken
    speak(language)
    try:
        yield
    finally:
        speak(before)


def chosen(environment: Mapping[str, str] = os.environ) -> str:
    """The language the user's surroundings ask for: ``KCONV_LANG``, else the locale; English if neither."""
    for name in (VARIABLE, *_LOCALE):
        value = environment.get(name, "")
        if value:
            return "ko" if re.split(r"[_.@-]", value)[0].lower() in _KOREAN else "en"
    return "en"


def catalogue_bytes(language: str) -> bytes:
    """The compiled catalogue, which is a .mo file of GNU gettext's."""
    from importlib import resources

    place = resources.files(__package__) / "data" / "locale" / language / "LC_MESSAGES" / "kconv.mo"
    return place.read_bytes()


@cache
def _catalogue(language: str) -> NullTranslations:
    from gettext import GNUTranslations
    from io import BytesIO

    return GNUTranslations(BytesIO(catalogue_bytes(language)))
