"""The documentation as a site: built by the real mkdocs, nothing from elsewhere, broken links end it."""

from __future__ import annotations

import functools
import http.server
import json
import queue
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LANGUAGES = {"en": "mkdocs.yml", "ko": "mkdocs.ko.yml"}
LOADED = {"script": "src", "img": "src", "link": "href", "source": "srcset", "iframe": "src"}


def build(root: Path, language: str) -> subprocess.CompletedProcess[str]:
    """Build one language of the clone ``root`` as ``make docs`` does."""
    config = root / "docs" / "site" / LANGUAGES[language]
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def copied(folder: Path) -> Path:
    """A clone with nothing but what the site is made of, and what its pages name of the code."""
    shutil.copytree(ROOT / "docs", folder / "docs")
    code = (*ROOT.glob("converters/**/*.py"), *ROOT.glob("core/*.py"), *ROOT.glob(".github/**/*.yml"))
    for name in (*ROOT.glob("*.md"), *code):
        (folder / name.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, folder / name.relative_to(ROOT))
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    root = copied(tmp_path_factory.mktemp("clone"))
    for language in LANGUAGES:
        done = build(root, language)
        assert done.returncode == 0, done.stderr
    return root / "build" / "site"


class Page(HTMLParser):
    """What a page loads (``loaded``) and where its links lead (``links``)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        loaded = found.get(LOADED.get(tag, ""))
        if loaded and found.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.loaded.append(loaded)


def test_every_page_is_there_in_both_languages_and_loads_nothing_from_elsewhere(site: Path) -> None:
    names = {path.stem for path in (ROOT / "docs" / "en").glob("*.md")} | {"index"}
    for folder in (site, site / "ko"):
        assert names <= {path.stem for path in folder.glob("*.html")}
    for path in site.rglob("*.html"):
        page = Page(path.read_text("utf-8"))
        assert page.loaded
        for name in page.loaded:
            assert not re.match(r"[a-z]+:|//", name), f"{path}: {name}"
            if path.stem != "404":  # served under any address, so its own are absolute
                assert (path.parent / re.split("[#?]", name)[0]).is_file(), f"{path}: {name}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text("utf-8"))


def test_the_menu_of_languages_leads_to_the_same_page(site: Path) -> None:
    assert "ko/hub.html" in Page((site / "hub.html").read_text("utf-8")).links
    assert "../hub.html" in Page((site / "ko" / "hub.html").read_text("utf-8")).links
    for page, other in (
        (site / "index.html", "ko/index.html"),
        (site / "ko" / "index.html", "../index.html"),
    ):
        assert other in Page(page.read_text("utf-8")).links


def test_links_to_other_files_of_the_repository_lead_to_its_page(site: Path) -> None:
    links = Page((site / "add-a-family.html").read_text("utf-8")).links
    assert "https://github.com/kconv/kconv/blob/main/converters/families/qwen3.py" in links
    text = (site / "ko" / "commands.html").read_text("utf-8")
    assert "prove.html#한국어로-보기" in text
    assert ">GGUF로 변환</a>" in text  # its title in place of convert.md


WRONG = {
    "no-such-page.md": "[a page](no-such-page.md)",
    "no-such-part": "[a part](prove.md#no-such-part)",
    "no/such/file.py": "[a file](../../no/such/file.py)",
    "none.png": "![a picture](../assets/none.png)",
}


def test_broken_links_end_it_and_each_is_named(site: Path, tmp_path: Path) -> None:
    root = copied(tmp_path)
    with (root / "docs" / "en" / "run.md").open("a", encoding="utf-8") as page:
        page.write("\n" + "\n\n".join(WRONG.values()) + "\n")
    done = build(root, "en")
    assert done.returncode == 1
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == len(WRONG)
    for told in WRONG:
        assert any(told in line for line in warnings), done.stderr


def test_the_korean_search_index_holds_korean_and_no_english_page(site: Path) -> None:
    index = json.loads((site / "ko" / "search" / "search_index.json").read_text("utf-8"))
    assert index["config"]["lang"] == ["ko", "en"]
    assert any("토크나이저" in each["text"] for each in index["docs"])
    titles = {each["title"] for each in index["docs"]}
    assert "검증" in titles
    assert "Prove a file" not in titles


TYPED = """<!doctype html><iframe id="site" src="/ko/index.html" width="1200" height="800"></iframe><script>
const site = document.getElementById("site");
site.onload = () => {
  const page = site.contentDocument, field = page.querySelector("input[name=query]");
  const again = setInterval(() => {
    field.focus();
    field.value = "토크나이저";
    field.dispatchEvent(new Event("input", {bubbles: true}));
    field.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
    const found = page.querySelector(".md-search-result__meta").textContent;
    if (/[0-9]/.test(found)) { clearInterval(again); fetch("/found", {method: "POST", body: found}); }
  }, 200);
};
</script>"""


class Served(http.server.SimpleHTTPRequestHandler):
    """The site, a page that types into its search, and where it says what was found."""

    found: queue.Queue[str]

    def do_GET(self) -> None:
        if self.path != "/typed":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(TYPED.encode())
        return None

    def do_POST(self) -> None:
        self.found.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_browser_finds_korean_words(site: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    Served.found = queue.Queue()
    handler = functools.partial(Served, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        command += ["--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/typed"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as browser:
            try:
                found = Served.found.get(timeout=60)
            finally:
                browser.kill()
                server.shutdown()
    count = re.search(r"(\d+)개의 일치하는 문서", found)
    assert count is not None, found
    assert int(count[1]) > 3
