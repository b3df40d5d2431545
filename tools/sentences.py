"""The sentences of the code that no catalogue function marks: errors, hints, notes, lines of prose, help.

Errors and notes are f-strings where they arise, which is how they are read, searched for and checked; whoever
shows them finds their Korean by their fixed words (core/recognition.py). So that the catalogue has all of
them, every text of two words and more counts as a sentence that people may meet, but for docstrings,
patterns, keys and what unsaid.py names; and every text of an error, a hint, an option or the header of a
table, however short. An f-string becomes ``{path}: {count} tensors``, places named after what stands in them;
one of two texts chosen within a sentence makes two sentences.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from enum import Enum, auto

from unsaid import unsaid

MARKS = ("_", "phrase", "phrases", "ngettext")
COUNTED = "plural"
_SENTENCE = re.compile(r"[A-Za-z][A-Za-z']+,?\s+[a-z]{2,}|[a-z]{2,}\s+[A-Za-z]{2,}")
_WORD = re.compile(r"[A-Za-z]{2,}")
_PLACE = re.compile(r"\{.*?\}")
_COMMAND = re.compile(r"click\.(command|group)|group\.command")
_PATTERNS = (
    *("re.compile", "re.search", "re.match", "re.fullmatch", "re.sub", "re.split", "re.findall"),
    *("re.finditer", "regex.compile", "TypeVar", "cast", "click.Choice"),
)
_EXAMPLES = "\b\n"  # how a list of examples begins, which click does not wrap
_MOST = 3  # more forms than this of one sentence, and what is chosen from stands as a place

Message = tuple[str, ...]


class Kind(Enum):
    """What is known of a text by where it stands."""

    TEXT = auto()
    SAID = auto()  # of an error or a hint; one word alone is the name of a key
    WORD = auto()  # of the header of a table
    HELP = auto()


def sentences(source: str, name: str) -> Iterator[Message]:
    """Sentences in the Python file ``name``, and counted words as singular and plural."""
    not_said = unsaid(name)
    for node, kind in _outermost(ast.parse(source), Kind.TEXT):
        if isinstance(node, ast.Call):
            word = node.args[1]
            if isinstance(word, ast.Constant) and isinstance(word.value, str):
                yield f"{{count}} {word.value}", f"{{count}} {word.value}s"
            continue
        for form in forms(node):
            is_help = kind is Kind.HELP or form.startswith(_EXAMPLES)
            for text in _paragraphs(form) if is_help else (form,):
                words = _SENTENCE if kind is Kind.TEXT and not is_help else _WORD
                known = words.search(_PLACE.sub("", text)) and (kind is not Kind.SAID or " " in text)
                if known and not (not_said and not_said.search(text)):
                    yield (text,)


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of a help page, and of lists of examples what is not indented (see cli/help_text.py)."""
    for block in re.split(r"\n[ \t]*\n", text.strip("\n")):
        lines = block.splitlines() or [""]
        if lines[0].strip() == "\b":
            yield from (line for line in lines[1:] if line[:1] not in (" ", "\b"))
        else:
            yield " ".join(line.strip() for line in lines)


def _outermost(node: ast.AST, kind: Kind) -> Iterator[tuple[ast.expr, Kind]]:
    """Expressions that are texts, none within another."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
        yield from _of_definition(node)
    elif isinstance(node, ast.Assert | ast.Compare) or (
        isinstance(node, ast.Call) and ast.unparse(node.func) in _PATTERNS
    ):
        return
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # what is said of a constant
    elif isinstance(node, ast.Subscript | ast.AnnAssign):
        if node.value is not None:
            yield from _outermost(node.value, kind)
    elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).lower().endswith("header"):
        texts = (each for each in ast.walk(node.value) if isinstance(each, ast.Constant | ast.JoinedStr))
        yield from ((each, Kind.WORD) for each in texts)
    elif isinstance(node, ast.expr) and forms(node):
        yield node, kind
        for child in ast.walk(node):
            if isinstance(child, ast.FormattedValue) and not forms(child.value):
                yield from _outermost(child.value, Kind.TEXT)
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    else:
        for child in node.values if isinstance(node, ast.Dict) else ast.iter_child_nodes(node):
            yield from _outermost(child, Kind.TEXT)


def _of_definition(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module,
) -> Iterator[tuple[ast.expr, Kind]]:
    """What stands in it but for its docstring, which is the help of a command."""
    body = list(node.body)
    docstring = ast.get_docstring(node)
    decorators = getattr(node, "decorator_list", [])
    if docstring is not None:
        body.pop(0)
        if any(_COMMAND.search(ast.unparse(each)) for each in decorators):
            yield ast.Constant(docstring), Kind.HELP
    for each in [*decorators, *body]:
        yield from _outermost(each, Kind.TEXT)


def _of_call(node: ast.Call) -> Iterator[tuple[ast.expr, Kind]]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name == COUNTED and len(node.args) == 2:
        yield node, Kind.WORD
        return
    yield from _outermost(node.func, Kind.TEXT)
    is_class = bool(re.match("[A-Z][a-z]", name))  # such as an error's
    for number, argument in enumerate([] if name in MARKS else node.args):
        yield from _outermost(argument, Kind.SAID if is_class and number == 0 else Kind.TEXT)
    kinds = {"help": Kind.HELP, "short_help": Kind.HELP, "epilog": Kind.HELP, "hint": Kind.SAID}
    for keyword in node.keywords:
        if keyword.arg != "metavar":
            yield from _outermost(keyword.value, kinds.get(keyword.arg or "", Kind.TEXT))


def forms(node: ast.AST, names: dict[str, str] | None = None) -> list[str]:
    """The templates of a text: several where a part is chosen from two; none if it is no text."""
    if isinstance(node, ast.Constant):
        return [node.value.replace("{", "{{").replace("}", "}}")] if isinstance(node.value, str) else []
    if isinstance(node, ast.IfExp):
        one, other = forms(node.body, names), forms(node.orelse, names)
        return [*one, *other] if one and other else []
    if isinstance(node, ast.JoinedStr):
        return _joined(node.values, {} if names is None else names)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [node.left, node.right]
        return _joined(parts, {} if names is None else names) if any(map(forms, parts)) else []
    return []


def _joined(parts: list[ast.expr], names: dict[str, str]) -> list[str]:
    made = [""]
    for part in parts:
        value = part.value if isinstance(part, ast.FormattedValue) else part
        chosen = forms(value, names)
        if not chosen or len(chosen) * len(made) > _MOST:
            chosen = [f"{{{_place(value, names)}}}"]
        made = [before + form for before in made for form in chosen]
    return made


def _place(value: ast.expr, names: dict[str, str]) -> str:
    """What the place of ``value`` is called: after what it shows, each expression by a name of its own."""
    source = ast.unparse(value)
    name = base = _name(value).strip("_") or "value"
    number = 2
    while names.setdefault(name, source) != source:
        name, number = f"{base}{number}", number + 1
    return name


def _name(value: ast.expr) -> str:
    if isinstance(value, ast.Name):
        return value.id
    if isinstance(value, ast.Attribute):
        return value.attr
    if isinstance(value, ast.Subscript | ast.Starred | ast.Await):
        return _name(value.value)
    if isinstance(value, ast.Call):
        inner = [_name(each) for each in value.args if not isinstance(each, ast.Constant)]
        return next(filter(None, inner), "") or _name(value.func)
    if isinstance(value, ast.BinOp):
        return _name(value.left) or _name(value.right)
    if isinstance(value, ast.GeneratorExp | ast.ListComp):
        return _name(value.generators[0].iter)
    return ""
