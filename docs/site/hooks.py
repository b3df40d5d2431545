"""The site from the pages as GitHub shows them: the same files, their links led to where the site has them.

docs/en and docs/ko are written for GitHub: their links go to files of the repository. The site of a language
holds the pages of one folder, its README as the first page and the pictures of docs/assets. A link to
another file of the repository becomes one to the repository's page, and one to a file that does not exist
is a warning, which ends ``make docs`` (``--strict``).
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.kconv")
ROOT = Path(__file__).resolve().parent.parent.parent
READMES = {"en": "README.md", "ko": "README.ko.md"}
LINK = re.compile(r"""(?P<before>\]\(|(?:src|srcset|href)=")(?P<link>[^)"\s#]+)""")
NAMED = re.compile(r"\[([a-z-]+\.md)\]\((?=\1)")
CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
LANGUAGES = re.compile(r"^\[[^\n]*\]\([^\n]*\) · \[[^\n]*\n+", re.MULTILINE)
PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img (?P<rest>[^>]*)src="(?P<light>[^"]+)">\s*</picture>'
)


def language_of(config: MkDocsConfig) -> str:
    """The language a configuration is for, which is its folder's name."""
    return Path(config.docs_dir).name


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as the first page, the pictures and the style sheet."""
    added = {"index.md": ROOT / READMES[language_of(config)], "site.css": ROOT / "docs/site/site.css"}
    added |= {f"assets/{path.name}": path for path in sorted((ROOT / "docs/assets").iterdir())}
    for name, path in added.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Take the links between the languages away (the site has a menu) and lead all others to their place."""
    language = language_of(config)
    name = page.file.src_uri
    source = READMES[language] if name == "index.md" else f"docs/{language}/{name}"
    parts = CODE.split(LANGUAGES.sub("", markdown, count=1))
    for at in range(0, len(parts), 2):  # the odd ones are code
        parts[at] = NAMED.sub(lambda found: f"[{title_of(found[1], config)}](", parts[at])
        parts[at] = LINK.sub(lambda found: found["before"] + led(found["link"], source, config), parts[at])
    return PICTURE.sub(
        r'<img \g<rest>src="\g<light>#only-light"><img \g<rest>src="\g<dark>#only-dark">', "".join(parts)
    )


def title_of(name: str, config: MkDocsConfig) -> str:
    """The heading of the page of that file name; the name where there is no such page."""
    path = Path(config.docs_dir) / name
    if not path.is_file():
        return name
    return path.read_text("utf-8").partition("\n")[0].removeprefix("# ")


def led(link: str, source: str, config: MkDocsConfig) -> str:
    """Where a link of the file ``source`` (both as the repository has them) leads on the site."""
    if re.match(r"[a-z]+:", link):
        return link
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    language = language_of(config)
    if target == READMES[language]:
        return "index.md"
    if target.startswith(f"docs/{language}/"):
        return target.removeprefix(f"docs/{language}/")
    if target.startswith("docs/assets/"):
        return target.removeprefix("docs/")
    if not (ROOT / target).exists():
        log.warning("%s links to %s, which does not exist", source, link)
    kind = "tree" if (ROOT / target).is_dir() else "blob"
    return f"{config.extra['repository']}/{kind}/main/{target}"


def on_page_context(context: dict[str, Any], page: Page, config: MkDocsConfig, **_: Any) -> dict[str, Any]:
    """Let the menu of languages lead to the same page in the other language."""
    top = "../" if language_of(config) == "ko" else ""
    for other in config.extra["alternate"]:
        own = other["lang"] == language_of(config)
        other["link"] = (page.url if own else f"{top or 'ko/'}{page.url}") or "."
    return context
