"""README, ARCHITECTURE and docs/ say what the code does, in both languages, and their links are good."""

from __future__ import annotations

import functools
import re
import subprocess
import unicodedata
from pathlib import Path

import pytest
from command_material import kconv

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("kconv_server")
LANGUAGES = ("en", "ko")
READMES = ("README.md", "README.ko.md")
PAGES = sorted({path.name for path in (ROOT / "docs").glob("*/*.md")})
USERS = (*READMES, *(f"docs/{language}/{page}" for language in LANGUAGES for page in PAGES))
ALL = ("ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", *USERS)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    """The code of that language (``sh``, ``python``; empty: none named)."""
    return [code for kind, code in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) if kind in languages]


@functools.cache
def shown(*words: str) -> str:
    """What a command that must succeed prints."""
    if words[0] == "kconv":
        done = kconv(*words[1:], cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@functools.cache
def anchors(name: str) -> frozenset[str]:
    """The names GitHub gives a page's headings."""
    prose = re.sub(r"```.*?```", "", text_of(name), flags=re.DOTALL)
    collected = set()
    for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE):
        plain = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()
        kept = [c for c in plain if c in "-_ " or unicodedata.category(c)[0] in "LNM"]
        collected.add("".join(kept).replace(" ", "-"))
    return frozenset(collected)


@pytest.mark.parametrize("name", READMES)
def test_model_table_is_the_generated_one(name: str) -> None:
    options = ("--markdown", "--lang", "ko") if name == "README.ko.md" else ("--markdown",)
    marker = f"<!-- models: kconv models {' '.join(options)} -->"
    table = re.search(rf"{re.escape(marker)}\n(.*?)<!-- /models -->", text_of(name), re.DOTALL)
    assert table is not None
    assert table[1].strip() == shown("kconv", "models", *options).strip()


def test_korean_table_has_no_english_between_names() -> None:
    for row in shown("kconv", "models", "--markdown", "--lang", "ko").splitlines():
        models = row.split("|")[2]
        assert not re.search(r"\b(?:and|or|of|to|from|but|for|alone|only|without|in)\b", models), models


@pytest.mark.parametrize("name", READMES)
def test_a_readme_is_short(name: str) -> None:
    assert len(text_of(name).splitlines()) < 200


@pytest.mark.parametrize("name", USERS)
def test_every_make_target_and_option_named_exists(name: str) -> None:
    text = text_of(name)
    offered = shown("make", "help")
    for target in set(re.findall(r"\bmake ([a-z][a-z-]*)", "\n".join([*blocks(text, "sh"), *spans(text)]))):
        assert f"make {target} " in offered
    code = "\n".join([*blocks(text, "sh"), *spans(text)])
    for command in set(re.findall(r"^kconv ([a-z][a-z-]+)", code, re.MULTILINE)):
        assert shown("kconv", command, "--help")
    for command, rest in re.findall(r"^kconv ([a-z][a-z-]+) (.*?)(?:  +#.*)?$", code, re.MULTILINE):
        offered = shown("kconv", command, "--help")
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", " " + rest):
            assert re.search(rf"(?<![\w-]){re.escape(option)}\b", offered), f"{option} of {command} {rest}"


def spans(text: str) -> list[str]:
    """What stands between single backticks outside blocks of code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def test_every_option_of_kconv_named_in_prose_exists() -> None:
    """Options named alone, as ``--keep-wo``, are of some command or of a program that is named beside it."""
    commands = re.findall(
        r"^  ([a-z][a-z-]+)  ", shown("kconv", "--help").partition("Commands:")[2], re.MULTILINE
    )
    offered = "\n".join(shown("kconv", command, "--help") for command in commands)
    for name in USERS:
        for span in spans(text_of(name)):
            option = re.match(r"--[a-z][a-z-]*", span)
            assert option is None or re.search(rf"{option[0]}\b", offered), f"{name}: {span}"


@pytest.mark.parametrize("name", ALL)
def test_links_lead_somewhere(name: str) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text_of(name), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.is_relative_to(ROOT), f"{name}: {link}"
        assert target.exists(), f"{name}: {link}"
        if anchor:
            assert anchor in anchors(str(target.relative_to(ROOT))), f"{name}: {link}"


@pytest.mark.parametrize("name", ALL)
def test_files_named_exist(name: str) -> None:
    """``core/tensor.py`` and the like; ``NAME`` stands for a name of the reader's."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    for span in spans(text_of(name)):
        path = re.fullmatch(r"([\w.-]+)/([\w./*-]*)", span)
        if path is not None and path[1] in folders and "NAME" not in span and path[1] != "dist":
            files = list(ROOT.glob(span)) if "*" in span else [ROOT / span]
            assert files, f"{name}: {span}"
            assert all(each.exists() for each in files), f"{name}: {span}"


def test_every_page_is_in_both_languages_and_in_both_readmes() -> None:
    for language, readme in zip(LANGUAGES, READMES, strict=True):
        assert {path.name for path in (ROOT / "docs" / language).iterdir()} == set(PAGES)
        linked = set(re.findall(rf"\(docs/{language}/([\w-]+\.md)", text_of(readme)))
        assert linked == set(PAGES)


@pytest.mark.parametrize("pair", [READMES, *((f"docs/en/{page}", f"docs/ko/{page}") for page in PAGES)])
def test_both_languages_say_the_same(pair: tuple[str, str]) -> None:
    """The same headings, commands, programs and, in tables, figures of two digits and more."""
    english, korean = map(text_of, pair)
    for text in (english, korean):
        assert not re.search(r"[ \t]$", text, re.MULTILINE)
    assert blocks(english, "python") == blocks(korean, "python")
    assert [commands(code) for code in blocks(english, "sh", "")] == [
        commands(code) for code in blocks(korean, "sh", "")
    ]
    outside = [re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in (english, korean)]
    headings = [re.findall(r"^(#+) ", text, re.MULTILINE) for text in outside]
    assert headings[0] == headings[1]
    tables = [re.findall(r"^\|.*$", text, re.MULTILINE) for text in outside]
    assert [row.count("|") for row in tables[0]] == [row.count("|") for row in tables[1]]
    figures = [[re.findall(r"\d[\d.,]*\d", row) for row in rows] for rows in tables]
    assert [sorted(row) for row in figures[0]] == [sorted(row) for row in figures[1]]


def commands(code: str) -> list[str]:
    """The lines without their comments."""
    lines = [re.sub(r"\s*#.*", "", line) for line in code.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("name", ["README.ko.md", *(f"docs/ko/{page}" for page in PAGES)])
def test_korean_uses_one_word_for_one_thing(name: str) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text_of(name), flags=re.DOTALL)
    for word in ("토큰 번호", "양자화 자료형", "조합", "거절"):
        assert word not in prose, word
