"""kconv compare: figures that a proof of each file gives, too, from one read and one reference pass."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from command_material import kconv_here
from gbst_material import random_gbswt5

from kconv.converters.results import Options
from kconv.converters.samples import write_sample
from kconv.core.errors import InputError, OutputExists, UsageError
from kconv.flows.compare import ComparedType, Comparison, compare
from kconv.flows.plan import plan
from kconv.quant.policy import POLICIES
from kconv.report.comparison import comparison_html, write_comparison
from kconv.report.size_chart import size_chart
from kconv.report.svg import text_width
from kconv.verify import verify

TYPES = ("q3_k_m", "q4_0", "q4_k_m", "q4_k_m:pure", "q8_0")
TEXT = "대한민국의 수도는 서울이다. 서울에는 한강이 흐르고, 봄에는 벚꽃이 핀다.\n" * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("compare") / "tiny-42dot")


@pytest.fixture(scope="module")
def stages() -> list[tuple[str, int, int]]:
    """What the comparison told of its progress."""
    return []


@pytest.fixture(scope="module")
def comparison(folder: Path, stages: list[tuple[str, int, int]]) -> Comparison:
    return compare(
        folder,
        folder.parent / "kept",
        options=Options(TYPES),
        texts=[TEXT],
        keep=True,
        threads=2,
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )


def test_the_figures_are_those_of_verify(comparison: Comparison, folder: Path) -> None:
    for each in (comparison.types[0], comparison.types[3]):
        assert each.path is not None
        assert each.figures is not None
        alone = verify(each.path, folder, texts=[TEXT], threads=2).logits.figures
        assert alone is not None
        for name in ("positions", "kl_mean", "kl_99", "same_top1", "log_ratio", "perplexity_reference"):
            assert getattr(each.figures, name) == pytest.approx(getattr(alone, name), rel=1e-6), name
        ratio = alone.perplexity_file / alone.perplexity_reference
        assert each.perplexity_ratio[0] == pytest.approx(ratio, rel=1e-6)


def test_the_checkpoint_is_read_once_for_all_types(
    comparison: Comparison, stages: list[tuple[str, int, int]]
) -> None:
    assert sum(stage == "reference" and done == 0 for stage, done, _ in stages) == 1
    assert len({total for stage, _, total in stages if stage == "write"}) == 1
    assert sum(stage == "write" and done == total for stage, done, total in stages) == 1
    assert len(comparison.types) == len(TYPES)


def test_sizes_are_the_plans_and_files_lie_where_they_were_asked(
    comparison: Comparison, folder: Path
) -> None:
    planned = plan(folder, options=Options(TYPES))
    assert [(each.type, each.bytes) for each in comparison.types] == [
        (each.type, each.bytes) for each in planned.types
    ]
    for each in comparison.types:
        assert each.path is not None
        assert each.path.parent == folder.parent / "kept"
        assert each.path.stat().st_size == each.bytes


def test_stock_recipes_are_told_from_changed_ones(comparison: Comparison, folder: Path) -> None:
    assert [each.type for each in comparison.types if not each.stock] == ["q4_K_M:pure"]
    assert {each.type: each.published is not None for each in comparison.types} == {
        "q3_K_M": True,
        "q4_0": True,
        "q4_K_M": True,
        "q4_K_M:pure": False,
        "q8_0": True,
    }


def kl(each: ComparedType) -> float:
    assert each.figures is not None
    return each.figures.kl_mean


def test_finer_types_are_nearer(comparison: Comparison) -> None:
    by_type = {each.type: kl(each) for each in comparison.types}
    assert by_type["q3_K_M"] > by_type["q4_K_M"] > by_type["q8_0"]


class Page(HTMLParser):
    """Tags, text, and the classes and tooltips of a drawing."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.discs = 0
        self.squares = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        kind = dict(attrs).get("class")
        self.discs += (tag, kind) == ("circle", "stock")
        self.squares += (tag, kind) == ("rect", "variant")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_every_type_and_marks_what_was_changed(comparison: Comparison) -> None:
    page = Page(comparison_html(comparison))
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert (page.discs, page.squares) == (4, 2)  # one square in the legend
    for each in comparison.types:
        assert each.type in page.text
        assert f"{each.type}: {each.bytes:,} bytes, mean KL" in page.text
    assert comparison_html(comparison) == comparison_html(comparison)


def test_names_in_a_crowd_stand_clear_of_each_other_and_of_the_marks(comparison: Comparison) -> None:
    """As many as there are recipes, close together; the room of letters as the drawing estimates it."""
    first = comparison.types[0]
    assert first.figures is not None
    many = []
    for at, name in enumerate(POLICIES):
        figures = replace(first.figures, kl_mean=2.0 ** -(at % 12))
        logits = replace(first.proof.logits, figures=figures)
        proof = replace(first.proof, logits=logits)
        many.append(replace(first, type=name, bytes=10**6 + 40_000 * at, proof=proof))
    drawing = str(size_chart(many))
    marks = [
        (float(x), float(y)) for x, y in re.findall(r'<circle class="stock" cx="(.*?)" cy="(.*?)"', drawing)
    ]
    names = re.findall(r'<text class="name" x="(.*?)" y="(.*?)" text-anchor="(.*?)">(.*?)<', drawing)
    share = {"start": 0.0, "middle": 0.5, "end": 1.0}
    boxes = []
    for x, y, anchor, words in names:
        left = float(x) - share[anchor] * text_width(words)
        boxes.append((left, float(y) - 8, left + text_width(words), float(y)))
    assert len(marks) == len(POLICIES)
    assert len(names) > 0.9 * len(POLICIES)
    for at, (left, top, right, bottom) in enumerate(boxes):
        assert not any(left < x < right and top < y < bottom for x, y in marks), names[at]
        for other in boxes[:at]:
            assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1], names[at]


def test_a_page_is_not_overwritten(comparison: Comparison, tmp_path: Path) -> None:
    write_comparison(comparison, tmp_path / "a.html")
    with pytest.raises(OutputExists):
        write_comparison(comparison, tmp_path / "a.html")
    write_comparison(comparison, tmp_path / "a.html", force=True)


def test_importance_data_are_told_and_make_small_types(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "글.txt"
    text.write_text(TEXT, "utf-8")
    with pytest.raises(InputError, match="importance"):
        compare(folder, tmp_path, options=Options(("q2_k_s", "q4_0")), texts=[TEXT], tokens=8)
    options = Options(("q2_k_s", "q4_0"), calibrate=(str(text),))
    comparison = compare(folder, tmp_path, options=options, texts=[TEXT], tokens=32)
    assert comparison.importance == "글.txt"
    assert all(np.isfinite(kl(each)) for each in comparison.types)
    assert "글.txt" in Page(comparison_html(comparison)).text


def test_a_model_with_a_companion(tmp_path: Path) -> None:
    folder = random_gbswt5(tmp_path / "model")
    comparison = compare(folder, tmp_path / "new", options=Options(("f32", "q8_0")), tokens=32, threads=1)
    assert kl(comparison.types[0]) < 1e-6 < kl(comparison.types[1])
    assert not comparison.companions
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return kconv_here("compare", *arguments, "--threads", "1")


def test_the_command_leaves_nothing_but_the_report(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    words = (folder, "-q", "q4_0,q8_0", "-o", tmp_path, "--text", tmp_path / "text.txt", "--tokens", "40")
    done = run(*words, "--json", "--report", tmp_path / "types.html")
    output = json.loads(done.stdout)
    assert done.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "types.html"]
    assert [(each["type"], each["path"], each["stock"]) for each in output["types"]] == [
        ("q4_0", None, True),
        ("q8_0", None, True),
    ]
    assert output["types"][0]["kl_mean"] > output["types"][1]["kl_mean"] > 0
    assert sum(output["read"]["windows"]) >= 40
    again = run(*words, "--report", tmp_path / "types.html")
    assert again.returncode == 3  # the report is there already


def test_calls_that_make_no_sense(folder: Path, tmp_path: Path) -> None:
    once = ("q4_k_m", "Q4_K_M", "q4_k")  # one type by all of its names
    for types, output in ((("q4_0",), None), (once, None), (("q4_0", "q8_0"), tmp_path / "one.gguf")):
        with pytest.raises(UsageError):
            compare(folder, output, options=Options(types), tokens=8)
    assert run(folder, "-q", "q4_0,q4_9").returncode == 2
    assert run(folder).returncode == 2
