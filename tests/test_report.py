"""The HTML report: complete, safe to open, well-formed, equal from run to run, bounded in size."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import report_material as material

from kconv.core.errors import OutputExists, UsageError
from kconv.report.figure_words import figure_rows
from kconv.report.html import report_html, write_report
from kconv.report.text import number, percent, plain, small_percent, visible, with_error
from kconv.verify.measurements import Positions
from kconv.verify.proof import Diagnosis, Finding, LayerError, LogitsPart, Proof, TokensPart, WeightsPart
from kconv.vocab.parity import Difference

VOID = {"meta", "br", "link", "img", "hr", "input"}
CASES: dict[str, Callable[[], list[Proof]]] = {
    "passed": lambda: [material.passed()],
    "warned": lambda: [material.warned()],
    "failed": lambda: [material.failed()],
    "refused by llama.cpp": lambda: [material.refused()],
    "quick": lambda: [material.quick()],
    "nothing run": lambda: [material.nothing()],
    "three files": lambda: [material.passed("f32"), material.passed("q8_0"), material.warned()],
    "one layer": lambda: [material.passed("q4_0", 1, (2,))],
    "128 layers": lambda: [material.passed("q4_0", 128, (31,) * 100)],
}


class Page(HTMLParser):
    """A strict reader: every tag opened is closed in order, no attribute twice."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {self.get_starttag_text()}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module", params=CASES)
def page(request: pytest.FixtureRequest) -> str:
    return report_html(CASES[request.param]())


def test_nothing_is_executed_or_fetched(page: str) -> None:
    read = Page(page)
    assert not {tag for tag, _ in read.tags} & {"script", "iframe", "object", "embed", "base", "form", "img"}
    for tag, attributes in read.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("style", "src", "srcset", "background", "action", "xlink:href"), (tag, name)
            assert "javascript:" not in (value or "").lower() or name in ("title", "aria-label")
        assert attributes.get("href", "#").startswith("#")  # type: ignore[union-attr]
    (css,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert "url(" not in css
    assert "@import" not in css
    assert "default-src 'none'" in page.split("<title>")[0]


def test_tags_are_balanced_and_headings_in_order(page: str) -> None:
    read = Page(page)
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert dict(read.tags)["html"]["lang"] == "en"
    assert all(attributes.get("scope") for tag, attributes in read.tags if tag == "th")
    identifiers = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_drawings_are_well_formed_and_say_what_they_show(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert drawings
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("aria-hidden") == "true" or (root.get("role") == "img" and root.get("aria-label"))
        width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
        for shape in root.iter():
            for name in ("x", "cx"):
                assert -1 <= float(shape.get(name, 0)) <= width + 1, ElementTree.tostring(shape)
            for name in ("y", "cy"):
                assert -1 <= float(shape.get(name, 0)) <= height + 1, ElementTree.tostring(shape)
            assert "nan" not in shape.get("d", "").lower()


def test_hostile_text_stays_text_and_is_seen() -> None:
    page = report_html([material.failed(), material.failed()])
    read = Page(page)
    text = "".join(read.text)
    assert "</script><script>alert(1)</script><img src=x onerror=alert(2)>" in text
    assert "{{ 7*7 }}" in text
    assert "49" not in re.findall(r"evil.example/x\) (\S+)", text)
    unseen = [c for c in page if c != "\n" and (not c.isprintable() and c != "\u00a0")]
    assert not unseen, sorted({f"U+{ord(c):04X}" for c in unseen})
    for sign in ("\\u202e", "\\x1b", "\\x00", "\\ud800", "\\ufeff", "\\u2028", "↵", "⇥"):
        assert sign in text


def test_same_proofs_same_bytes(tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        write_report([material.failed(), material.passed()], tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    later = report_html([replace(material.passed(), seconds=12.3)])
    assert later.replace("12\u00a0s", "1\u00a0min\u00a011\u00a0s") == report_html([material.passed()])


def test_figures_gate_and_published_figures_are_there() -> None:
    proof = material.passed()
    figures, gate = proof.logits.figures, proof.logits.gate
    assert figures is not None
    assert gate is not None
    text = "".join(Page(report_html([proof])).text)
    for value in (
        figures.kl_median,
        figures.kl_99,
        figures.kl_999,
        figures.kl_max,
        figures.nmse,
        figures.logit_max,
    ):
        assert number(value) in text
    for share in (figures.same_top1, figures.top5_overlap):
        assert percent(share) in text
    assert f"{number(figures.perplexity_reference, 5)} → {number(figures.perplexity_file, 5)}" in text
    assert small_percent(figures.dp_rms) in text
    assert with_error(figures.kl_mean, figures.kl_mean_error) in text
    assert "warns above 0.005" in text
    assert number(gate.published["kl_mean of Llama-3-8B q8_0"], exact=True) in text  # type: ignore[arg-type]
    assert "Llama-2-7B q8_0" in text
    assert f"kconv verify {proof.artifact} --against {proof.checkpoint}" in text
    assert "a1" * 32 in text


def test_a_failed_proof_says_what_where_and_what_to_do() -> None:
    page = report_html([material.failed()])
    text = "".join(Page(page).text)
    assert "Do not use or distribute this file" in text
    for words in (
        "llama.rope.freq_base",
        "500000.0",
        "10000.0",
        "blk.7.attn_q.weight",
        "Layer 7 is the first",
    ):
        assert words in text
    assert page.count('class="cross"') == 3  # two tensors and the legend
    assert "first to differ: layer 7" in text
    assert text.index("Where it goes wrong") < text.index("Predictions, in figures")


def test_byte_level_pieces_are_shown_as_text() -> None:
    from tokenizers import pre_tokenizers

    def symbols(text: str) -> str:
        return "".join(
            piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
        )

    expected = ("<s>", symbols("요일"), symbols(" 질문"), symbols("가")[:2], symbols("가")[2:])
    difference = Difference(
        "요일 질문가", True, True, (1, 2, 3, 4, 5), (1, 2, 9), expected, (*expected[:2], "Ġ")
    )
    page = report_html(
        [replace(material.failed(), tokens=TokensPart("failed", material.parity(9, difference)))]
    )
    text = "".join(Page(page).text)
    assert "요일 2" in text
    assert "␣질문 3" in text
    assert "\\xea\\xb0 4" in text
    assert "Ġ" not in text
    other = replace(difference, text="something else")
    page = report_html([replace(material.failed(), tokens=TokensPart("failed", material.parity(9, other)))])
    assert symbols(" 질문") in page


def test_what_was_not_run_is_said() -> None:
    text = "".join(Page(report_html([material.quick()])).text)
    assert "Not checked: Weights" in text
    assert "Not checked in this run." in text
    text = "".join(Page(report_html([material.nothing()])).text)
    assert "Nothing has been checked." in text
    assert "Fit for use" not in text


def test_several_files_are_compared_first() -> None:
    proofs = CASES["three files"]()
    page = report_html(proofs)
    assert "Of 3 files: 2 passed, 1 warned." in page
    links = [a["href"] for tag, a in Page(page).tags if tag == "a"]
    assert links == ["#file-1", "#file-2", "#file-3"]
    assert all(f'id="{link[1:]}"' in page for link in links if link)


def test_numbers_that_are_none_break_nothing() -> None:
    bad = float("nan")
    proof = material.failed()
    figures = proof.logits.figures
    assert figures is not None
    names = [name for name in vars(figures) if isinstance(getattr(figures, name), float)]
    broken = replace(figures, **dict.fromkeys(names, bad), dp_percentiles=((5, bad), (95, -bad)))  # type: ignore[arg-type]
    positions = Positions((0, 0, 1), (0, 1, 0), (bad, float("inf"), 0.0), (bad, 0.1, -1.0))
    tensors = tuple(
        replace(tensor, error=bad if at % 2 else float("inf"), own_error=bad, slope=bad, worst_row_error=bad)
        for at, tensor in enumerate(proof.weights.tensors)
    )
    layers = (LayerError(0, bad, 0.0), LayerError(1, float("inf"), -1.0))
    logits = LogitsPart(
        "failed", broken, proof.logits.gate, (), positions, (), Diagnosis(layers, bad, bad, 1, (), "")
    )
    page = report_html([replace(proof, logits=logits, weights=WeightsPart("failed", tensors))])
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        for shape in ElementTree.fromstring(drawing).iter():
            places = " ".join(shape.get(name, "") for name in ("d", "x", "y", "cx", "cy", "width"))
            assert not re.search(r"nan|inf", places)


def test_nothing_measured_is_no_zero() -> None:
    """Where every logit of a file is NaN no position counts, and the sums over none are 0: no good news."""
    proof = material.failed()
    figures, gate = proof.logits.figures, proof.logits.gate
    assert figures is not None
    assert gate is not None
    names = [name for name in vars(figures) if isinstance(getattr(figures, name), (int, float))]
    none = replace(figures, **dict.fromkeys(names, 0))  # type: ignore[arg-type]
    logits = LogitsPart("failed", none, gate, (Finding("logits", "all are NaN"),))
    page = report_html([replace(proof, logits=logits), proof])
    assert "Predictions could not be compared at any position." in page
    assert page.count("The figure that the gate applies to") == 1
    assert {row.value for row in figure_rows(none, gate)} == {"–"}


def test_layers_beyond_all_numbers_are_drawn() -> None:
    """What stands for infinity in JSON, the largest float, rounds up to a decade that is none."""
    proof = material.failed()
    limit = sys.float_info.max
    layers = (LayerError(0, 0.1, 0.0), LayerError(1, limit, limit))
    logits = replace(proof.logits, diagnosis=Diagnosis(layers, limit, 1e-20, 1, (), ""))
    page = report_html([replace(proof, logits=logits)])
    assert "layer 1, by weights: NMSE ∞" in page
    assert "10³⁰⁸" not in page.split("layer 1, by weights", 1)[1]


def test_size_is_bounded() -> None:
    page = report_html([material.passed("q4_0", 111, (512,) * 8)]).encode()
    assert len(page) < 2_000_000
    junk = Finding("\u200b" * 900, "\u202e\u0301" * 900, "\x00" * 900, "\ud800" * 900)
    mess = replace(material.failed().tokens, findings=(junk,) * 3000)
    assert len(report_html([replace(material.failed(), tokens=mess)]).encode()) < 2_000_000
    long = replace(
        material.passed(), notes=("긴 글 " * 100_000,) * 5000, provenance={"k": ["x" * 10**6] * 1000}
    )
    assert len(report_html([long]).encode()) < 1_000_000


def test_refuses_to_overwrite_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "보고서.html"
    write_report([material.quick()], path)
    before = path.read_bytes()
    with pytest.raises(OutputExists):
        write_report([material.nothing()], path)
    assert path.read_bytes() == before
    write_report([material.nothing()], path, force=True)
    assert path.read_bytes() != before
    with pytest.raises(UsageError):
        write_report([], tmp_path / "none.html")
    monkeypatch.setattr("kconv.report.html.report_html", lambda proofs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report([material.quick()], tmp_path / "broken.html")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (0.00123, "0.00123"), (0.1, "0.100"), (1234.5, "1,234"), (-0.5, "−0.500"),
        (1.2e-7, "1.20\u00a0×\u00a010⁻⁷"), (9.999e-5, "1.00\u00a0×\u00a010⁻⁴"),
        (float("nan"), "not a number"), (float("inf"), "∞"),
    ],
)  # fmt: skip
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


def test_numbers_keep_their_promises() -> None:
    assert percent(0.99999) == "99.99\u00a0%"  # never 100 while something is missing
    assert percent(1.0) == "100.00\u00a0%"
    assert small_percent(-1.2e-9, sign=True) == "−1.20\u00a0×\u00a010⁻⁷\u00a0%"
    assert with_error(0.01149, 0.00026) == "0.01149 ± 0.00026"
    assert number(0.15, exact=True) == "0.15"


def test_what_would_be_unseen_is_made_visible() -> None:
    assert str(visible("가\n")) == '<bdi lang="ko">가<span class="mark" title="U+000A">↵</span></bdi>'
    assert ">ᄒ</span><span" in visible("\u1112\u1161\u11ab")  # decomposed Hangul is not drawn as composed
    assert ">\\xec</span>" in visible("\\xec\\x95")
    assert visible("x" * 500, 100).count("x") == 100
    assert "400 characters more" in visible("x" * 500, 100)
    assert str(visible("abc", 2, tail=True)).endswith("bc</bdi>")
    assert visible("e" + "\u0301" * 50).count("mark") == 47
    assert plain("a\u202eb\n") == "a\\u202eb↵"
    assert plain("\u3164\u115f") == "\\u3164\\u115f"  # Hangul fillers


def test_chromium_shows_it_without_complaint(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    write_report([material.failed(), material.passed("q4_0", 2, (31,))], tmp_path / "report.html")
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", "--v=0", "--dump-dom", (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "Where it goes wrong" in done.stdout
    assert "CONSOLE" not in done.stderr, done.stderr
