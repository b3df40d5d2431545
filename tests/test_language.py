"""Verdicts and reports in Korean, the choice of the language, and catalogues that have every message."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import proof_material
import pytest
import report_material as material
from proof_material import proof_text

from kconv.cli.main import main
from kconv.cli.proof_text import proof_line
from kconv.converters.circumstances import Circumstances
from kconv.core.language import Phrase, chosen, ngettext, phrase, phrases, speaking, spoken, translated
from kconv.core.machine import processor
from kconv.report.html import report_html
from kconv.verify.gates import gate_for, judge
from kconv.verify.proof import Finding, Proof, WeightsPart

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import catalogue  # noqa: E402

KOREAN = ROOT / "core/data/locale/ko/LC_MESSAGES"
HANGUL = re.compile("[가-힣]")


def figures_in(text: str) -> list[str]:
    return sorted(re.findall(r"\d+\.\d+", text))


@pytest.fixture(autouse=True)
def _no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")


def test_every_message_of_the_code_is_in_the_catalogue_and_no_other() -> None:
    source = catalogue.read(KOREAN / "kconv.po")
    binary = (KOREAN / "kconv.mo").read_bytes()
    assert catalogue.problems(catalogue.used(), source, binary, "ko") == []


def test_the_check_sees_what_is_wrong(tmp_path: Path) -> None:
    used = {("{count} of it",): "a.py", ("new",): "a.py", ("one", "many"): "a.py"}
    (tmp_path / "a.po").write_text(
        'msgid ""\nmsgstr "x"\n\nmsgid "{count} of it"\nmsgstr "{amount}"\n\n'
        'msgid "gone"\nmsgstr "weg"\n\n#, fuzzy\nmsgid "one"\nmsgid_plural "many"\nmsgstr[0] "viele"\n',
        "utf-8",
    )
    known = catalogue.read(tmp_path / "a.po")
    assert {each.split(":")[0] for each in catalogue.problems(used, known, b"", "ko")} == {
        *("missing", "unused", "fuzzy", "other placeholders", "the .mo file is not that of the .po file"),
    }


def test_gnu_gettext_compiles_the_same(tmp_path: Path) -> None:
    try:
        done = subprocess.run(["msgfmt", "--check", "-o", "-", KOREAN / "kconv.po"], capture_output=True)
    except FileNotFoundError:
        return  # the tool is not needed for anything else
    assert done.returncode == 0, done.stderr
    from gettext import GNUTranslations
    from io import BytesIO

    with (KOREAN / "kconv.mo").open("rb") as file:
        ours = GNUTranslations(file)
    theirs = GNUTranslations(BytesIO(done.stdout))
    for message in catalogue.used():
        if len(message) == 1:
            assert ours.gettext(*message) == theirs.gettext(*message)
        else:
            assert ours.ngettext(*message, 3) == theirs.ngettext(*message, 3)


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "ko"}, "ko"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "kok_IN"}, "en"),  # Konkani
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "ko_KR.EUC-KR"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "ko_KR.UTF-8", "LC_ALL": ""}, "ko"),
        ({"LC_ALL": "ko_KR.UTF-8", "KCONV_LANG": "en"}, "en"),
        ({"KCONV_LANG": "ko"}, "ko"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
    ],
)
def test_the_language_by_the_environment(environment: dict[str, str], language: str) -> None:
    assert chosen(environment) == language


def test_a_phrase_is_english_and_remembers_what_it_was_made_of() -> None:
    said = phrase("the file has {found} tokens, but the checkpoint has {expected}").of(found=3, expected=4)
    assert said == "the file has 3 tokens, but the checkpoint has 4"
    assert json.dumps({"message": said}) == json.dumps({"message": str(said)})
    for other in (copy.deepcopy(said), pickle.loads(pickle.dumps(said))):
        assert isinstance(other, Phrase)
        with speaking("ko"):
            assert translated(other) == "토큰이 파일에는 3개, 체크포인트에는 4개 있습니다"
    assert translated(said) == said
    assert phrase("{name} is all zeros").of(other=1) == "{name} is all zeros"  # filled in later
    assert phrases("{count} token", "{count} tokens", 1200) == "1,200 tokens"
    assert ngettext("{count} token", "{count} tokens", 1) == "1 token"
    nested = phrase("{message}; allowed at the conversion").of(message=said)
    with speaking("ko"):
        assert translated(nested).startswith("토큰이 파일에는")
        assert translated("no message of ours") == "no message of ours"
        assert translated(phrase("a message without a translation")) == "a message without a translation"
    assert spoken() == "en"


def test_a_verdict_line_in_korean() -> None:
    with speaking("ko"):
        line = proof_line(proof_material.passed())
    assert line == (
        "Q4_0: 통과: 올바름; 손실 다소 있음 (평균 KL 0.0341(기준값 0.15), 1순위 토큰 일치율 93.1 %, "
        "퍼플렉서티 8.310(체크포인트 8.020); 내장 텍스트의 토큰 510개)"
    )
    assert "right; loses some accuracy" in proof_line(proof_material.passed())


def test_the_terminal_in_korean_has_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = replace(proof_material.passed().logits, gate=gate_for("q4_0"))
    proof = replace(proof_material.passed(), seconds=71.4, logits=logits)
    english = proof_text(proof)
    with speaking("ko"):
        korean = proof_text(proof)
        monkeypatch.delenv("NO_COLOR")
        assert "\x1b[32m\x1b[1m통과" in proof_text(proof)
    assert figures_in(korean.replace("302만", "3.02 million")) == figures_in(english)
    assert korean.splitlines()[-1].startswith("판정: 통과 (1분 11초): 올바름; 손실 다소 있음")
    words = re.sub(r'".*?"|\S*Q4_0\S*|llama\.cpp|KL|NMSE|NLL|nat|Llama-3-8B', "", korean)
    assert "mean KL" not in korean
    assert not re.search(r"\b(passed|tokens|metadata|weights|gate|the|of|and|is)\b", words), words


def test_findings_and_their_values_in_korean() -> None:
    gate = gate_for("q4_0", overrides={"": 0.01})
    (finding,) = judge(proof_material.FIGURES, gate)
    assert finding.message.startswith("mean KL divergence 0.0341 is above the limit of 0.01 for q4_0")
    name = phrase("{name} is scaled by {factor}").of(name="blk.0.attn_q.weight", factor="1.0100")
    wrong = WeightsPart("failed", findings=(Finding("blk.0.attn_q.weight", name),))
    proof = replace(proof_material.passed(), weights=wrong)
    with speaking("ko"):
        assert translated(finding.message).startswith(
            "평균 KL 발산 0.0341이(가) q4_0의 한계 0.01을(를) 넘습니다"
        )
        assert translated(finding.expected or "") == "0.01 이하"
        assert "실패: 잘못됨; 가중치: blk.0.attn_q.weight의 배율이 1.0100배로 바뀌었습니다" in proof_line(
            proof
        )
        page = report_html([proof])
        assert proof.cause == "weights: blk.0.attn_q.weight is scaled by 1.0100"  # for programs
        assert proof.to_json()["verdict"] == "failed"
        assert not HANGUL.search(json.dumps(proof.to_manifest()["weights"], ensure_ascii=False))
    assert "가중치: blk.0.attn_q.weight의 배율이" in re.sub("<.*?>", "", page)


CIRCUMSTANCES = Circumstances(
    "2026-11-30T06:15:09Z", "A & B <CPU>", 2, ("avx2", "avx512_vnni"), 25 << 30, "cc-by-nc-4.0"
)


def shown(proof: Proof, language: str) -> str:
    """The text of a report's page, without its marks."""
    with speaking(language):
        page = report_html([replace(proof, circumstances=CIRCUMSTANCES)])
    assert f'<html lang="{language}">' in page
    return re.sub(r"\s+", " ", re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", page))


def test_a_report_in_korean_has_both_answers_and_the_same_figures() -> None:
    korean, english = shown(material.passed("q4_0"), "ko"), shown(material.passed("q4_0"), "en")
    for words in ("파일이 올바른가?", "정확도를 얼마나 잃는가?", "올바름: 토큰, 메타데이터, 가중치."):
        assert words in korean
    for words in (
        "Is the file right?",
        "How much does it lose?",
        "As it should be: Tokens, Metadata, Weights.",
    ):
        assert words in english
    # Koreans count large numbers by another unit
    assert figures_in(korean.replace("14.4억", "1.44 billion")) == figures_in(english)
    for words in ("Predictions", "checkpoint predicts", "Weights", "passed", "tokens"):
        assert words not in korean


def test_a_report_names_date_machine_and_licence() -> None:
    english, korean = shown(material.passed(), "en"), shown(material.passed(), "ko")
    machine = "A &amp; B &lt;CPU&gt;; 2 cores; 25.0 GiB of memory; llama.cpp compiled for AVX2, AVX512-VNNI"
    for text, date, licence in ((english, "Date", "Licence"), (korean, "날짜", "라이선스")):
        assert f"{date} 2026-11-30 06:15 UTC" in text
        assert f"{licence} cc-by-nc-4.0" in text
    assert machine in english
    assert "코어 2개; 메모리 25.0 GiB" in korean


def test_a_report_shows_no_dump_of_options() -> None:
    options = {"texts": 0, "tokens": None, "window": 256, "gates": [], "diagnose": None, "max_kl": 0.1}
    proof = material.passed()
    text = shown(replace(proof, provenance={**proof.provenance, "options": options}), "en")
    assert "diagnose" not in text
    assert "--window 256 --max-kl 0.1" in text
    assert "4 windows, 2,000 tokens" in text


@pytest.mark.parametrize("language", ["en", "ko"])
def test_foreign_text_stays_text_in_every_language(language: str) -> None:
    with speaking(language):
        page = report_html([material.failed(), material.warned(), material.nothing()])
    assert "<script" not in page
    assert "<img" not in page


def test_the_command_speaks_the_language_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import kconv
    from kconv.converters.samples import write_sample

    checkpoint = write_sample("42dot", tmp_path / "42dot")
    (done,) = kconv.to_gguf(checkpoint, tmp_path / "a.gguf", types=["q8_0"], verify=False).outputs
    words = ["verify", str(done.path), "--against", str(checkpoint), "--tokens", "40"]
    page = tmp_path / "report.html"
    assert main(["--lang", "ko", *words, "--report", str(page)]) == 0
    text = capsys.readouterr().out
    assert "판정: " in text
    assert "올바름" in text
    assert '<html lang="ko">' in page.read_text("utf-8")
    assert processor().model in page.read_text("utf-8")
    assert spoken() == "en"  # as it was before
    monkeypatch.setenv("KCONV_LANG", "ko")
    assert main([*words, "--json"]) == 0
    machine = json.loads(capsys.readouterr().out)
    assert machine["right"] == "passed"
    assert machine["circumstances"]["cores"] >= 1
    assert not HANGUL.search(json.dumps([machine["metadata"], machine["weights"]], ensure_ascii=False))
    assert main([*words, "--lang", "en"]) == 0  # behind the command, too
    assert "verdict: " in capsys.readouterr().out
    assert main([*words, "--lang", "fr"]) == 2
    assert "--lang" in capsys.readouterr().err


def test_help_costs_nothing_more() -> None:
    code = "import sys; from kconv.cli.main import main; main(['--lang', 'ko', '--help']); "
    code += "sys.exit('kconv.core.language' not in sys.modules or 'kconv.report' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--lang" in done.stdout
