"""A proof in the terminal: complete, aligned, and nothing a file holds can steer the screen."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from proof_material import FIGURES, failed, passed, proof_text, warned

from kconv.cli.console import width
from kconv.cli.proof_text import proof_line
from kconv.verify.measurements import Guess
from kconv.verify.proof import Finding, LogitsPart, Proof


@pytest.fixture(autouse=True)
def _no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("proof", [passed(), warned(), failed(findings=40)], ids=lambda proof: proof.verdict)
def test_the_verdict_stands_last_and_every_part_has_a_line(proof: Proof) -> None:
    lines = proof_text(proof).splitlines()
    assert lines[-1].startswith(f"verdict: {proof.verdict}")
    assert proof.cause is None or proof.cause.split(": ", 1)[1][:20] in lines[-1]
    for name, part in proof.parts.items():
        assert any(re.match(rf"{name} +{part.verdict} +\w", line) for line in lines), name


def test_figures_stand_beside_the_gate_and_what_others_measured() -> None:
    (line,) = [line for line in proof_text(passed()).splitlines() if "KL divergence, mean" in line]
    assert "0.0341" in line
    assert "0.15" in line
    assert "0.0719" in line


def test_no_figures_are_shown_where_nothing_could_be_measured() -> None:
    proof = failed()
    figures = proof.logits.figures
    assert figures is not None
    text = proof_text(replace(proof, logits=replace(proof.logits, figures=replace(figures, positions=0))))
    assert "KL divergence, median" not in text
    assert "Logits at" not in text


def test_a_name_with_a_line_break_stays_on_its_line() -> None:
    lines = proof_text(replace(passed(), artifact=Path("a\nverdict: passed\x1b[31m.gguf"))).splitlines()
    assert lines[0].startswith(r"a\nverdict: passed\x1b[31m.gguf: llama")


def test_the_part_is_named_once() -> None:
    proof = failed()
    finding = Finding("logits", "mean KL divergence 5.17 is above the gate")
    text = proof_text(replace(proof, logits=replace(proof.logits, findings=(finding,))))
    assert "  logits: mean KL divergence 5.17" in text


def test_columns_are_aligned_whatever_the_script() -> None:
    lines = proof_text(passed()).splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("  figure"))
    column = width(lines[start][: lines[start].index("this file") + len("this file")])
    for line in lines[start + 1 : start + 6]:
        assert re.search(r"\S$", "".join(_cut(line, column))), line


def _cut(line: str, columns: int) -> str:
    """The beginning of ``line`` that fills ``columns``."""
    end = 0
    while end < len(line) and width(line[: end + 1]) <= columns:
        end += 1
    return line[:end]


def test_a_dozen_findings_are_shown_of_every_part_and_the_rest_counted() -> None:
    text = proof_text(failed(findings=40))
    shown = re.findall(r"^  (weights|logits): ", text, re.MULTILINE)
    assert len(shown) == 12
    assert shown[-1] == "logits", "one part must not crowd out another"
    assert "… and 29 more" in text


def test_a_failed_proof_says_which_layer_goes_wrong() -> None:
    text = proof_text(failed())
    assert "layer 20 is the first whose output differs" in text
    rows = re.findall(r"^  layer (\d+) ", text, re.MULTILINE)
    assert "20" in rows
    assert len(rows) <= 13  # the conclusion begins so, too


def test_nothing_in_a_proof_steers_the_terminal() -> None:
    for proof in (passed(), warned(), failed()):
        text = proof_text(proof) + proof_line(proof)
        assert all(char.isprintable() or char == "\n" for char in text)
    assert "사십이닷\\x1b[2J" in proof_text(warned())


def test_a_token_that_is_no_text_is_shown_by_its_number() -> None:
    text = proof_text(passed())
    assert "token 303" in text
    assert "\ufffd" not in text


def test_differences_of_arithmetic_are_not_worth_a_token() -> None:
    proof = passed()
    tiny = replace(proof.logits.worst[0], kl=1e-10)
    text = proof_text(replace(proof, logits=replace(proof.logits, worst=(tiny,))))
    assert "disagree" not in text
    assert "disagree" in proof_text(proof)


def test_one_line_for_a_file() -> None:
    assert proof_line(passed()) == (
        "Q4_0: passed: right; loses some accuracy (mean KL 0.0341 (gate 0.15), same top token 93.1 %, "
        "perplexity 8.310 against 8.020; 510 tokens of the built-in texts)"
    )
    assert proof_line(failed()).startswith("Q4_0: failed: wrong; weights: ")
    assert "scaled by 1.01" in proof_line(failed())
    exact = replace(FIGURES, same_top1=0.99996)
    proof = passed()
    proof = replace(proof, logits=replace(proof.logits, figures=exact))
    assert "100.0 %" not in proof_line(proof), "nothing is rounded to a hundred that it is not"


def test_parts_that_were_not_run_and_figures_that_are_missing() -> None:
    proof = replace(passed(), logits=LogitsPart("not run"))
    assert re.search(r"^logits +not run", proof_text(proof), re.MULTILINE)
    long = Guess(7, "가" * 500, 0.5)
    worst = replace(passed().logits.worst[0], right=long, reference=(long,), file=(long,))
    text = proof_text(replace(proof, logits=replace(passed().logits, worst=(worst,))))
    assert max(map(width, text.splitlines())) < 200


def test_verdicts_have_colours_unless_nobody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in proof_text(failed())
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[31m" in proof_text(failed())
    assert "\x1b[32m" in proof_text(passed())


def test_a_heavy_loss_names_the_smallest_type_that_would_lose_less_and_nothing_fails() -> None:
    proof = passed()
    heavy = replace(proof.logits, figures=replace(FIGURES, kl_mean=0.457), verdict="warned")
    line = proof_line(replace(proof, logits=heavy))
    assert line.startswith("Q4_0: warned: right; loses much (mean KL 0.457")
    assert line.endswith("; q4_K_M would lose about 0.200 (estimated, within a factor of 2)")
