"""Numbers and foreign text as the report shows them: one place, so that all pages speak alike.

Text from files is hostile: nothing in it may be obeyed, hidden or endless. ``visible`` gives markup in which
control, direction and format characters, line breaks and half characters stand as marks one can see.
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections.abc import Iterator
from itertools import groupby, islice

from markupsafe import Markup, escape

from ..core.language import _, ngettext, spoken

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SYMBOLS = {"\n": "↵", "\t": "⇥", "\r": "\\r", " ": "␣"}
_HALF = re.compile(r"\\x[89a-f][0-9a-f]")  # how vocab.decoding writes bytes that make no character
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK = "\u115f\u1160\u3164\uffa0\u2800"  # letters without ink
_MOST_MARKS = 60  # in one text
_SCALES = {
    "en": ((10**12, " trillion"), (10**9, " billion"), (10**6, " million")),
    "ko": ((10**12, "조"), (10**8, "억"), (10**4, "만")),
}
_MANY_MARKS = 3  # combining characters on one letter; more would climb over the lines around


def number(value: float, digits: int = 3, *, exact: bool = False) -> str:
    """``0.00123``, ``12,345``, ``1.20 × 10⁻⁷``; ``digits`` are significant ones, zeros at the end as well.

    ``exact``: no zeros at the end, for numbers people chose (``0.005``).
    """
    if math.isnan(value):
        return _("not a number")
    if abs(value) >= sys.float_info.max:  # what stands for infinity where JSON allows none
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size > 8:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = _no_zeros(mantissa) if exact else mantissa
        return f"{mantissa}\u00a0×\u00a0{power(int(exponent))}".replace("-", "−")
    text = f"{value:,.{min(max(digits - 1 - size, 0), 12)}f}".replace("-", "−")
    return _no_zeros(text) if exact else text


def _no_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def with_error(value: float, error: float) -> str:
    """``0.01150 ± 0.00026``: both to the error's second digit."""
    if not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return number(value)
    places = 1 - math.floor(math.log10(error))
    if not 0 <= places <= 7:
        return f"{number(value)} ± {number(error, 2)}"
    return f"{value:,.{places}f} ± {error:,.{places}f}".replace("-", "−")


def power(exponent: int) -> str:
    """``10⁻³``."""
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


def percent(share: float, digits: int = 2) -> str:
    """A share of one in percent: ``97.68 %`` (with a hard space); never rounded up to 100."""
    if not math.isfinite(share):
        return number(share)
    text = f"{100 * share:.{digits}f}"
    if share < 1 and text == f"{100:.{digits}f}":
        text = f"{100 - 10**-digits:.{digits}f}"
    return f"{text.replace('-', '−')}\u00a0%"


def small_percent(share: float, *, sign: bool = False) -> str:
    """A share that may be very small in percent, to three digits; ``sign`` shows a plus too."""
    plus = "+" if sign and share > 0 and math.isfinite(share) else ""
    return f"{plus}{number(100 * share)}\u00a0%"


def count(amount: int) -> str:
    """``1,200``."""
    return f"{amount:,}"


def large(amount: int) -> str:
    """A large number as people say it: ``1.44 billion``, ``14.4억``."""
    for step, word in _SCALES[spoken()]:
        if amount >= step:
            value = amount / step
            return f"{value:.3g}{word}" if value < 1000 else f"{value:,.0f}{word}"
    return count(amount)


def weights(amount: int) -> str:
    """A number of weights as people say it: ``1.44 billion weights``."""
    return ngettext("{number} weight", "{number} weights", amount, number=large(amount))


def seconds(value: float) -> str:
    """``0.8 s``, ``12 s``, ``3 min 05 s``, with hard spaces."""
    whole = round(value)
    if whole >= 60:
        text = _("{minutes} min {seconds} s", minutes=whole // 60, seconds=f"{whole % 60:02d}")
    else:
        text = _("{seconds} s", seconds=f"{value:.1f}" if value < 10 else whole)
    return text.replace(" ", "\u00a0")


def plain(text: str, limit: int = 200) -> str:
    """``text`` for places that hold no markup (titles, labels): the same marks, as characters."""
    shown = "".join(sign or character for character, sign in _signs(text[:limit]))
    return shown + ("…" if len(text) > limit else "")


def visible(text: object, limit: int = 400, *, spaces: bool = False, tail: bool = False) -> Markup:
    """``text`` as markup in which all that would be unseen is seen.

    ``spaces`` marks each space too (for single tokens); what goes beyond ``limit`` characters is left out and
    counted, at the beginning where ``tail`` is set. Korean is declared as such for fonts and speech.
    """
    full = str(text)
    cut = len(full) - limit
    kept = full if cut <= 0 else full[-limit:] if tail else full[:limit]
    parts, last = [], 0
    for half in islice(_HALF.finditer(kept), _MOST_MARKS):
        parts += [_marked(kept[last : half.start()], spaces), _span(half.group(), _("half a character"))]
        last = half.end()
    parts.append(_marked(kept[last:], spaces))
    if cut > 0:
        more = ngettext("{count} character more", "{count} characters more", cut)
        left_out = Markup('<i class="cut" title="{}">{}</i>').format(
            more, "…" if limit < 100 else f"… {more}"
        )
        parts = [left_out, Markup(" "), *parts] if tail else [*parts, Markup(" "), left_out]
    language = Markup(' lang="ko"') if _HANGUL.search(kept) else Markup("")
    return Markup("<bdi{}>{}</bdi>").format(language, Markup("").join(parts))


def _marked(text: str, spaces: bool) -> Markup:
    signs = list(_signs(text, spaces))
    if sum(sign is not None for _, sign in signs) > _MOST_MARKS:  # not text at all: keep the page small
        return escape("".join(sign or character for character, sign in signs))
    parts: list[Markup] = []
    for unseen, group in groupby(signs, key=lambda pair: pair[1] is not None):
        if unseen:
            parts += [_span(sign or "", _name(character)) for character, sign in group]
        else:
            parts.append(escape("".join(character for character, _ in group)))
    return Markup("").join(parts)


def _signs(text: str, spaces: bool = False) -> Iterator[tuple[str, str | None]]:
    """Each character with what stands for it if it would not be seen, or not be seen as it is, else None.

    Conjoining jamo are set apart, since browsers draw them like the syllables of composed Hangul; combining
    characters where there are many on a letter, or none before them.
    """
    combining = 0
    for at, character in enumerate(text):
        category = unicodedata.category(character)
        combining = combining + 1 if category in ("Mn", "Me") else 0
        if character == " ":
            yield character, _SYMBOLS[" "] if spaces else None
        elif character in _SYMBOLS:
            yield character, _SYMBOLS[character]
        elif category in _HIDDEN or character in _BLANK or character.isspace():
            yield character, _escape(character)
        elif combining:
            alone = combining > _MANY_MARKS or at == 0
            yield character, _escape(character) if alone else None
        else:
            yield character, character if "\u1100" <= character <= "\u11ff" else None


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x7F else character.encode("unicode_escape").decode("ascii")


def _name(character: str) -> str:
    return f"U+{ord(character):04X} {unicodedata.name(character, '')}".strip()


def _span(sign: str, name: str) -> Markup:
    return Markup('<span class="mark" title="{}">{}</span>').format(name, sign)


def sentence(text: str) -> str:
    """``text`` with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
