"""The catalogues of kconv's messages: ``python tools/catalogue.py`` brings them up to date, ``--check`` asks.

Messages are the literals given to ``_``, ``ngettext``, ``phrase`` and ``phrases`` in Python and in the
templates of the reports. New ones are added to every ``core/data/locale/LANGUAGE/LC_MESSAGES/kconv.po`` with
an empty translation, those no longer used are dropped, and the ``kconv.mo`` beside it, which is what an
installed kconv reads, is compiled. Standard library and jinja2 only; GNU gettext reads the same files.
"""

from __future__ import annotations

import argparse
import ast
import re
import string
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rooms import ROOMS
from sentences import sentences

ROOT = Path(__file__).parent.parent
LOCALE = ROOT / "core" / "data" / "locale"
GRAMMAR = ("verb",)
"""Places that hold grammar in English, which other languages may leave out."""
SINGLE, PLURAL = ("_", "phrase"), ("ngettext", "phrases")
HEADER = {
    "ko": "Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\nLanguage: ko\n"
    "Plural-Forms: nplurals=1; plural=0;\n",
}

Message = tuple[str, ...]
"""What a message is found by: its text, or singular and plural."""


@dataclass(frozen=True)
class Catalogue:
    """Translations in the order of the file; those marked fuzzy are named apart."""

    entries: Mapping[Message, tuple[str, ...]]
    fuzzy: frozenset[Message]


def used() -> dict[Message, str]:
    """Every message of the code with the file it is in first. Raises ValueError where one is no literal."""
    found: dict[Message, str] = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*")):
            name = str(path.relative_to(ROOT))
            if path.suffix == ".py" and name != "core/language.py":
                source = path.read_text("utf-8")
                messages = chain(_of_python(source, name), sentences(source, name))
            elif path.name.endswith(".jinja"):
                messages = _of_template(path.read_text("utf-8"), name)
            else:
                continue
            for message in messages:
                found.setdefault(message, name)
    return found


def _of_python(source: str, name: str) -> Iterator[Message]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        forms = 1 if node.func.id in SINGLE else 2 if node.func.id in PLURAL else 0
        if forms:
            texts = [each.value for each in node.args[:forms] if isinstance(each, ast.Constant)]
            if len(texts) < forms or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{name}:{node.lineno}: a message has to be a literal")
            yield tuple(map(str, texts))


def _of_template(source: str, name: str) -> Iterator[Message]:
    from jinja2 import Environment, nodes

    for node in Environment().parse(source).find_all(nodes.Call):
        called = node.node.name if isinstance(node.node, nodes.Name) else ""
        forms = 1 if called in SINGLE else 2 if called in PLURAL else 0
        if forms:
            texts = [each.value for each in node.args[:forms] if isinstance(each, nodes.Const)]
            if len(texts) < forms:
                raise ValueError(f"{name}:{node.lineno}: a message has to be a literal")
            yield tuple(texts)


def read(path: Path) -> Catalogue:
    """A .po file. Raises ValueError for a line that is none of one."""
    entries: dict[Message, tuple[str, ...]] = {}
    fuzzy = set()
    for block in re.split(r"\n\s*\n", path.read_text("utf-8")):
        fields: dict[str, str] = {}
        field = ""
        for line in block.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            match = re.fullmatch(r'(?:(msgid|msgid_plural|msgstr(?:\[\d\])?) )?(".*")', line)
            if match is None:
                raise ValueError(f"{path}: {line}")
            field = match[1] or field
            fields[field] = fields.get(field, "") + ast.literal_eval(match[2])
        if fields.get("msgid"):
            message = tuple(fields[key] for key in ("msgid", "msgid_plural") if key in fields)
            entries[message] = tuple(text for key, text in fields.items() if key.startswith("msgstr"))
            if re.search(r"^#,.*\bfuzzy\b", block, re.MULTILINE):
                fuzzy.add(message)
    return Catalogue(entries, frozenset(fuzzy))


def written(messages: Mapping[Message, str], known: Catalogue, language: str) -> str:
    """The .po file of these messages, in order of the files they are in, with the translations known."""
    parts = [
        "# kconv's messages; tools/catalogue.py keeps this file and compiles it.\n" + _field("msgid", "")
    ]
    parts[0] += _field("msgstr", HEADER[language])
    for message, place in messages.items():
        entry = f"#: {place}\n" + ("#, fuzzy\n" if message in known.fuzzy else "")
        entry += "".join(
            _field(key, text) for key, text in zip(("msgid", "msgid_plural"), message, strict=False)
        )
        texts = known.entries.get(message, ("",))
        names = ["msgstr"] if len(message) == 1 else [f"msgstr[{at}]" for at in range(len(texts))]
        parts.append(entry + "".join(map(_field, names, texts)))
    return "\n".join(parts)


def _field(name: str, text: str) -> str:
    def quoted(line: str) -> str:
        escaped = line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"\n'

    lines = text.splitlines(keepends=True)
    return f"{name} " + (quoted(text) if len(lines) < 2 else '""\n' + "".join(map(quoted, lines)))


def compiled(catalogue: Catalogue, language: str) -> bytes:
    """The .mo file: tables of sorted originals and of translations (GNU gettext's format, revision 0)."""
    texts = {"": HEADER[language]}
    texts |= {"\0".join(each): "\0".join(said) for each, said in catalogue.entries.items() if all(said)}
    pairs = sorted((key.encode(), value.encode()) for key, value in texts.items())
    start = 28 + 16 * len(pairs)
    tables, data = [b"", b""], b""
    for which in (0, 1):
        for pair in pairs:
            tables[which] += struct.pack("<II", len(pair[which]), start + len(data))
            data += pair[which] + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, start)
    return head + tables[0] + tables[1] + data


def placeholders(text: str) -> list[str]:
    """Names in braces with how they are formatted: ``{size:.3g}``."""
    return sorted(f"{name}!{how}:{form}" for _, name, form, how in string.Formatter().parse(text) if name)


def problems(
    messages: Mapping[Message, str], catalogue: Catalogue, compiled_now: bytes, language: str
) -> list[str]:
    """What is wrong with a catalogue: missing, unused, fuzzy, other placeholders, not compiled."""
    found = [f"missing: {each[0]}" for each in messages if not all(catalogue.entries.get(each, ("",)))]
    found += [f"unused: {each[0]}" for each in catalogue.entries if each not in messages]
    found += [f"fuzzy: {each[0]}" for each in catalogue.fuzzy]
    for message, said in catalogue.entries.items():
        wanted = placeholders(message[-1])
        allowed = (wanted, [each for each in wanted if each.split("!")[0] not in GRAMMAR])
        found += [
            f"other placeholders: {text}" for text in said if text and placeholders(text) not in allowed
        ]
    if compiled_now != compiled(catalogue, language):
        found.append("the .mo file is not that of the .po file")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Bring all catalogues up to date, or say what is wrong with them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, say what is wrong")
    check = parser.parse_args(arguments).check
    messages, wrong = used(), 0
    for language in HEADER:
        folder = LOCALE / language / "LC_MESSAGES"
        source, binary = folder / "kconv.po", folder / "kconv.mo"
        if not check:
            folder.mkdir(parents=True, exist_ok=True)
            known = read(source) if source.exists() else Catalogue({}, frozenset())
            source.write_text(written(messages, known, language), "utf-8")
            binary.write_bytes(compiled(read(source), language))
        found = problems(messages, read(source), binary.read_bytes(), language)
        print("\n".join(f"{language}: {each}" for each in found) or f"{language}: {len(messages)} messages")
        wrong += len(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
