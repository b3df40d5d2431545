"""Where code asks for a family, an architecture or a model_type by its name, read off the syntax tree.

The names are those of kconv's own families, also where a text begins with one ("t5-small"), those of their
samples, and all that llama.cpp and transformers know. A finding is a comparison, a match case, a dictionary's
key or a look-up, a prefix, a pattern or a field such as ``arch`` with one of them, written out or by way of a
constant, and an import of one family's module or value. What belongs to a family may stand in that family's
own file or folder.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import gguf
from transformers.models.auto import configuration_auto, modeling_auto

from kconv.converters import families
from kconv.converters.family import AnyFamily, Family
from kconv.converters.samples import SAMPLES

FOLDER = ("converters", "families")
_LOOK_UPS = frozenset({"get", "pop", "setdefault", "fromkeys", "index", "count", "__eq__", "__contains__"})
_SETS = frozenset({"intersection", "isdisjoint", "issubset", "issuperset", "difference"})
_AFFIXES = frozenset({"startswith", "endswith", "removeprefix", "removesuffix"})
_PATTERNS = frozenset({"compile", "match", "fullmatch", "search"})
_FIELDS = frozenset({"arch", "architecture", "architectures", "family", "model_type", "hf_classes"})
_COLLECTIONS = frozenset({"frozenset", "set", "tuple", "list", "dict", "sorted", "str", "MappingProxyType"})
_SAME = frozenset({"lower", "upper", "casefold", "strip", "items", "keys", "copy"})

Place = tuple[str, ...]
"""A module: the parts of its path, without ``.py`` or ``__init__``."""


@cache
def plain(name: str) -> str:
    """A name as it is compared: GPT-NeoX, gpt_neox and gptneox are one."""
    return re.sub(r"[-_. ]", "", name).casefold()


@cache
def known_names() -> Mapping[str, frozenset[str]]:
    """Every name in its plain form, with the file or folder below converters/families it belongs to."""
    owners: dict[str, set[str]] = {}
    for place, family in registered():
        for name in (family.name, family.title, family.arch, *family.hf_classes, family.reference.name):
            owners.setdefault(plain(name), set()).add(place)
    tables = (table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES"))
    classes = (each for table in tables for each in table.values())
    others = (
        *families.NEAR,
        *SAMPLES,
        *gguf.MODEL_ARCH_NAMES.values(),
        *configuration_auto.CONFIG_MAPPING_NAMES,
        *(name for each in classes for name in ((each,) if isinstance(each, str) else each)),
    )
    for name in others:
        owners.setdefault(plain(name), set())
    return {name: frozenset(places) for name, places in owners.items()}


def registered() -> Iterator[tuple[str, AnyFamily]]:
    """The families of the registry, each with the file or folder it is imported from."""
    for node in ast.walk(ast.parse(Path(families.__file__).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            for each in node.names:
                value = getattr(families, each.name)
                if isinstance(value, Family):
                    yield "/".join((*FOLDER, node.module.split(".")[0])), value


@dataclass(frozen=True, order=True)
class Finding:
    """``code`` is the expression, or what matters of it, as Python writes it."""

    path: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.code}"


@dataclass
class Scope:
    """What names stand for in a module, a class or a function; for parameters, that is not known."""

    outer: Scope | None = None
    bound: dict[str, list[ast.expr]] = field(default_factory=dict)
    of_class: bool = False


class Module:
    """One file: its nodes, each with its scope, and where it has imported names from."""

    def __init__(self, path: str, text: str) -> None:
        parts = path.removesuffix(".py").split("/")
        self.path = path
        self.place: Place = tuple(parts[:-1] if parts[-1] == "__init__" else parts)
        self.scope = Scope()
        self.nodes: list[tuple[ast.AST, Scope]] = []
        self.imported: dict[str, tuple[Place, str]] = {}
        self.classes: list[Scope] = []
        self.constants: dict[int, str] = {}  # nodes of the values of the module's own names
        self._read(ast.parse(text), self.scope)

    def _read(self, parent: ast.AST, scope: Scope) -> None:
        for node in ast.iter_child_nodes(parent):
            self.nodes.append((node, scope))
            for name, value in _bindings(node):
                scope.bound.setdefault(name, []).append(value)
                if scope is self.scope:
                    self.constants |= {id(each): name for each in ast.walk(value)}
            if isinstance(node, ast.ImportFrom):
                for each in node.names:
                    self.imported[each.asname or each.name] = (self.target(node), each.name)
            self._read(node, self._inner(node, scope))

    def _inner(self, node: ast.AST, scope: Scope) -> Scope:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                given = [each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)]
                outer = scope.outer if scope.of_class else scope  # methods do not see names of their class
                return Scope(outer, {name: [] for name in given})
            case ast.ClassDef():
                self.classes.append(Scope(scope, of_class=True))
                return self.classes[-1]
        return scope

    def target(self, node: ast.ImportFrom) -> Place:
        """The module that is imported from."""
        named = tuple(node.module.split(".")) if node.module else ()
        if node.level == 0:
            return named[1:] if named[:1] == ("kconv",) else ("", *named)
        parts = self.path.split("/")
        return (*parts[: len(parts) - node.level], *named)


def _bindings(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """What gets a name: values that are assigned, and collections that are gone through."""
    match node:
        case ast.Assign(targets, value):
            pairs = [(each, value) for each in targets]
        case ast.AnnAssign(target, _, ast.expr() as value) | ast.NamedExpr(target, value):
            pairs = [(target, value)]
        case ast.For(target, value) | ast.comprehension(target, value):
            pairs = [(target, value)]
        case _:
            return
    for target, value in pairs:
        several = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            fit = len(target.elts) == len(value.elts)
            several = list(zip(target.elts, value.elts, strict=True)) if fit else several
        for each, of in several:
            yield from ((name.id, of) for name in ast.walk(each) if isinstance(name, ast.Name))


class Search:
    """A search through texts of files, by their paths from the root.

    ``excepted`` are paths with the names of constants, or the code of findings, that are none; ``used``
    gathers those that were met.
    """

    def __init__(self, sources: Mapping[str, str], excepted: Collection[tuple[str, str]] = ()) -> None:
        read = (Module(path, text) for path, text in sources.items())
        self.modules = {module.place: module for module in read}
        self.excepted = frozenset(excepted)
        self.used: set[tuple[str, str]] = set()

    def findings(self) -> list[Finding]:
        """All of them, by path and line."""
        found = []
        for module in self.modules.values():
            for node, scope in module.nodes:
                constant = module.constants.get(id(node), "")
                for code in _Reader(self, module, scope).asks(node):
                    if not (self.excuses(module, constant) or self.excuses(module, code)):
                        found.append(Finding(module.path, getattr(node, "lineno", 0), code))
        return sorted(found)

    def excuses(self, module: Module, what: str) -> bool:
        """Whether it is one of the exceptions."""
        exception = (module.path, what)
        self.used |= self.excepted & {exception}
        return exception in self.excepted


class _Reader:
    """Reads the nodes of one scope of a module."""

    def __init__(self, search: Search, module: Module, scope: Scope) -> None:
        self._search, self._module, self._scope = search, module, scope

    def asks(self, node: ast.AST) -> Iterator[str]:
        """What of a node asks for a family, as code."""
        match node:
            case ast.Compare(left, _, others):
                if self._names(left, *others) or any(self._is_family(each) for each in (left, *others)):
                    yield ast.unparse(node)
            case ast.BinOp(left, ast.BitAnd(), right) if self._names(left, right):
                yield ast.unparse(node)
            case ast.MatchValue(value) if names := self._names(value):
                yield f"case {names}"
            case ast.MatchMapping(keys) | ast.Dict(keys):
                if names := self._names(*(key for key in keys if key is not None)):
                    yield f"{{{names}: …}}"
            case ast.DictComp(key) if names := self._names(key):
                yield f"{{{names}: …}}"
            case ast.Subscript(_, key) if names := self._names(key):
                yield f"[{names}]"
            case ast.Call():
                yield from self._call(node)
            case ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                yield from self._field(name, value)
            case ast.arguments():
                for name, value in _defaults(node):
                    yield from self._field(name, value)
            case ast.Import() | ast.ImportFrom() if self._imports_family(node):
                yield ast.unparse(node)

    def _call(self, node: ast.Call) -> Iterator[str]:
        called = _called(node)
        if called in _LOOK_UPS | _SETS | _AFFIXES and (names := self._names(*node.args)):
            yield f"{called}({names})"
        if (
            called in _SETS
            and isinstance(node.func, ast.Attribute)
            and (names := self._names(node.func.value))
        ):
            yield f"{names}.{called}"
        if called in _PATTERNS:
            given = (text for each in node.args for text in self._strings(each, self._scope))
            pieces = (piece.strip("^$()?:\\b") for text in given for piece in text.split("|"))
            if names := self._foreign(pieces):
                yield f"{called}({names})"
        if called == "dict" and (names := self._foreign(each.arg or "" for each in node.keywords)):
            yield f"dict({names})"
        for each in node.keywords:
            yield from self._field(each.arg or "", each.value)

    def _field(self, name: str, value: ast.expr) -> Iterator[str]:
        if name in _FIELDS and (names := self._names(value)):
            yield f"{name}={names}"

    def _imports_family(self, node: ast.Import | ast.ImportFrom) -> bool:
        """Whether it is one family's module or value, outside of the families."""
        if self._module.place[:2] == FOLDER:
            return False
        names = [each.name for each in node.names]
        if isinstance(node, ast.Import):
            return any(name.startswith(".".join(("kconv", *FOLDER, ""))) for name in names)
        target = self._module.target(node)
        modules = any((*target, name) in self._search.modules for name in names)
        values = any(isinstance(getattr(families, name, None), Family) for name in names)
        return target[:2] == FOLDER and (len(target) > 2 or modules or values)

    def _names(self, *nodes: ast.AST) -> str:
        """The names in expressions that have no place in this file, as Python writes them; else nothing."""
        return self._foreign(text for node in nodes for text in self._strings(node, self._scope))

    def _foreign(self, texts: Iterable[str]) -> str:
        return ", ".join(repr(text) for text in sorted({text for text in texts if self._is_foreign(text)}))

    def _is_foreign(self, text: str) -> bool:
        """Whether it is a name, or begins with a family's, and does not belong to this file."""
        known, word = known_names(), re.split(r"[-_. ]", text)[0]
        if plain(text).startswith("llamacpp"):  # the library
            return False
        owners = known.get(plain(text), known.get(plain(word)) or None)
        path = self._module.path
        return owners is not None and not any(
            path == f"{each}.py" or path.startswith(f"{each}/") for each in owners
        )

    def _is_family(self, node: ast.expr) -> bool:
        """Whether it is a family's value, imported from where it is defined or registered."""
        place, name = self._module.imported.get(getattr(node, "id", ""), ((), ""))
        return place[:2] == FOLDER and isinstance(getattr(families, name, None), Family)

    def _strings(self, node: ast.AST, scope: Scope, seen: frozenset[int] = frozenset()) -> Iterator[str]:
        """The strings an expression is or holds (of dictionaries: the keys), also by names of constants."""
        strings: list[ast.expr] = []
        match node:
            case ast.Constant(str(text)):
                yield text
            case ast.JoinedStr([ast.Constant(str(text)), *_]):
                yield text
            case ast.Tuple(strings) | ast.List(strings) | ast.Set(strings) | ast.BoolOp(values=strings):
                pass
            case ast.Dict(keys, values):
                strings = [value if key is None else key for key, value in zip(keys, values, strict=True)]
            case ast.BinOp(left, _, right) | ast.IfExp(_, left, right):
                strings = [left, right]
            case ast.Starred(value) | ast.NamedExpr(_, value) | ast.ListComp(value) | ast.SetComp(value):
                strings = [value]
            case ast.GeneratorExp(value) | ast.DictComp(value):
                strings = [value]
            case ast.Call(_, arguments, keywords) if _called(node) in _COLLECTIONS:
                yield from (each.arg for each in keywords if each.arg is not None)
                strings = [*arguments, *(each.value for each in keywords if each.arg is None)]
            case ast.Call(ast.Attribute(value, called)) if called in _SAME:
                strings = [value]
            case ast.Name(name):
                yield from self._named(name, self._module, scope, seen)
            case ast.Attribute(value, name):
                yield from self._attribute(value, name, seen)
        for each in strings:
            yield from self._strings(each, scope, seen)

    def _named(self, name: str, module: Module, scope: Scope | None, seen: frozenset[int]) -> Iterator[str]:
        """The strings a name stands for, in the innermost scope that has it or where it is imported from."""
        while scope is not None and (name not in scope.bound or scope.of_class):
            scope = scope.outer
        if scope is None:
            place, original = module.imported.get(name, ((), ""))
            if place in self._search.modules and id(place) not in seen:
                origin = self._search.modules[place]
                yield from self._named(original, origin, origin.scope, seen)
            return
        for value in scope.bound[name]:
            if id(value) not in seen:
                texts = list(_Reader(self._search, module, scope)._strings(value, scope, seen | {id(value)}))
                if not (
                    scope is module.scope and self._foreign(texts) and self._search.excuses(module, name)
                ):
                    yield from texts

    def _attribute(self, value: ast.expr, name: str, seen: frozenset[int]) -> Iterator[str]:
        """The strings of a constant of a module or, by its capitals, of a class here or in that module."""
        place, original = self._module.imported.get(getattr(value, "id", ""), ((), ""))
        if (origin := self._search.modules.get((*place, original))) is not None:
            yield from self._named(name, origin, origin.scope, seen)
        if not name.isupper():
            return
        for module in (self._module, self._search.modules.get(place)):
            for scope in module.classes if module else ():
                for each in scope.bound.get(name, ()):
                    if id(each) not in seen:
                        yield from _Reader(self._search, module, scope)._strings(
                            each, scope, seen | {id(each)}
                        )


def _called(node: ast.Call) -> str:
    """The name of the function or method."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _defaults(node: ast.arguments) -> Iterator[tuple[str, ast.expr]]:
    """Names of parameters and their defaults."""
    placed = [*node.posonlyargs, *node.args]
    pairs = [
        *zip(placed[len(placed) - len(node.defaults) :], node.defaults, strict=True),
        *zip(node.kwonlyargs, node.kw_defaults, strict=True),
    ]
    return ((argument.arg, value) for argument, value in pairs if value is not None)
