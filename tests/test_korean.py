"""Everything kconv says, said in Korean: help, errors, notes; and a catalogue that lacks none of it."""

from __future__ import annotations

import ast
import json
import os
import re
import string
import subprocess
import sys
import unicodedata
from importlib import import_module
from pathlib import Path
from typing import get_args

import click
import pytest

from kconv.cli.batch_text import _STATES, summary
from kconv.cli.commands import COMMANDS, cli
from kconv.cli.help_text import SpokenContext, paragraphs
from kconv.cli.inspection import _proof_text
from kconv.cli.main import main
from kconv.cli.models import _encoders
from kconv.core.errors import KconvError
from kconv.core.language import phrase, speaking
from kconv.core.recognition import one_sentence, said
from kconv.flows.batch_board import Batch, BatchOutput, State

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import catalogue  # noqa: E402
import sentences  # noqa: E402
from rooms import ROOMS  # noqa: E402

HANGUL = re.compile("[가-힣]")
KNOWN = catalogue.read(ROOT / "core/data/locale/ko/LC_MESSAGES/kconv.po").entries


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_is_korean(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help", "--lang", "ko"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"사용법: kconv {name}")
    assert "옵션:" in page
    # whole sentences are in Korean; names, values and examples stay
    text = page[: page.index("\n  예:")] if "\n  예:" in page else page
    english = re.sub(r"<[^>]*>|\S+-of-\S+", "", text)
    assert not re.search(r"\b(the|of|with|and|is|are|from|this)\b", english), text
    prose = [line for line in text.splitlines() if HANGUL.search(line)]
    assert max(map(columns, prose)) <= 80
    assert main([name, "--help"]) == 0
    english = capsys.readouterr().out
    assert not HANGUL.search(re.sub(r"[\"'].*?[\"']", "", english))
    examples = [line for line in english.splitlines() if line.startswith("    kconv ")]
    assert [line for line in page.splitlines() if line.startswith("    kconv ")] == examples


def test_every_text_of_the_real_commands_is_in_the_catalogue() -> None:
    """Asked of click itself, whatever the search in the source finds."""
    lacking = []
    commands = [cli, *(import_module(f"kconv.cli.{module}").command for module in COMMANDS.values())]
    for command in commands:
        with speaking("ko"):
            shown = [command.get_short_help_str(200)] if command.short_help else []
            for text in (command.help, command.epilog):
                for is_list, lines in paragraphs(click.core.inspect.cleandoc(text or "")):
                    shown += (
                        [line for line in lines if line[:1] not in ("", " ")]
                        if is_list
                        else [" ".join(lines)]
                    )
            shown += [
                option.help for option in command.params if isinstance(option, click.Option) and option.help
            ]
            lacking += [(command.name, text) for text in shown if one_sentence(text) is None]
    assert lacking == []


def test_help_by_its_command_and_of_the_whole_is_korean(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # sentences stay in one line
    assert main(["--lang", "ko", "help", "plan"]) == 0
    assert capsys.readouterr().out.startswith("사용법: kconv plan")
    assert main(["--lang", "ko", "help"]) == 0
    page = capsys.readouterr().out
    assert "체크포인트 폴더를 GGUF 파일로 변환합니다." in page
    assert "종료 코드: 0 완료" in page
    with SpokenContext(cli, info_name="kconv") as context, speaking("en"):
        assert cli.get_help(context).startswith("Usage: kconv")


def errors_raised() -> set[str]:
    """Names of all classes below KconvError, also of those that other rooms derive."""
    names = {"KconvError"}
    classes = [
        node
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    for _ in range(4):
        names |= {each.name for each in classes if {ast.unparse(base) for base in each.bases} & names}
    return names


def test_every_literal_message_and_hint_of_an_error_has_its_korean() -> None:
    """Of every call of a class of errors, what it is given as text, wherever the search looks."""
    names, lacking, seen = errors_raised(), [], 0
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in names:
                continue
            for given in [*node.args[:1], *(each.value for each in node.keywords if each.arg == "hint")]:
                for text in sentences.forms(given):
                    if re.search("[A-Za-z]{2}", re.sub(r"\{.*?\}", "", text)) and " " in text:
                        seen += 1
                        if not all(KNOWN.get((text,), ("",))):
                            lacking.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text}")
    assert lacking == []
    assert seen > 900


def test_every_entry_is_recognized_in_the_english_it_stands_for() -> None:
    """Filled with values of its own, each sentence is found again and keeps the values."""
    lost = []
    with speaking("ko"):
        for message, (korean, *_) in KNOWN.items():
            fields = {name for _, name, _, _ in string.Formatter().parse(message[-1]) if name}
            fixed = re.sub(r"\{.*?\}|[^A-Za-z]", "", message[-1])
            if not fields or len(fixed) < 12 or len(message) > 1:
                continue
            values = {name: f"7{at}.gguf" for at, name in enumerate(sorted(fields))}
            english = re.sub(r"\{(\w+)(![rs])?(:[^}]*)?\}", r"{\1}", message[0]).format_map(values)
            shown = said(english)
            wanted = re.sub(r"\{(\w+)(![rs])?(:[^}]*)?\}", r"{\1}", korean).format_map(values)
            if shown != wanted:
                lost.append((english, shown))
    assert len(lost) < 12, lost  # two sentences that differ by a value's words alone


def test_the_summary_of_a_batch_is_korean() -> None:
    batch = Batch(())
    for state in get_args(State):
        batch.outputs[state] = BatchOutput(
            state, 1, "모델", "gguf", "q4_0", "x.gguf", state, 1_000, verdict="passed"
        )
    assert set(_STATES) == set(get_args(State))
    with speaking("ko"):
        shown = said(summary(batch))
    assert not re.search(r"\b(done|before|failed|running|planned|passed|to do|not|output)\b", shown), shown
    assert shown.endswith("완료 1개, 이전에 완료 1개, 실패 1개, 완료하지 못함 1개, 실행 중 1개, 할 일 1개")
    assert "1 done before, 1 failed" in summary(batch)


def test_kernels_and_proofs_are_told_in_korean() -> None:
    kernels = {"equal": ["q8_0", "q4_0", "q4_0 with importance"], "name": "avx2", "different": ["q2_K"]}
    proof = {"verdict": "passed", "scope": "quick", "kl_mean": 0.0372, "cause": None}
    with speaking("ko"):
        told = _encoders({**kernels, "why": "the widest instruction set that runs here"})
        assert _proof_text(proof) == "통과 (quick), 평균 KL 0.0372"
    assert not re.search(r"\b(the|to|by|other|without)\b", told), told
    assert _proof_text(proof) == "passed (quick), mean KL 0.0372"
    assert _proof_text({**proof, "verdict": "someone's own"}) == "someone's own (quick), mean KL 0.0372"


def test_errors_are_korean_in_a_terminal_and_english_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "없는 모델"
    assert main(["plan", str(missing), "--lang", "ko"]) == 3
    first, *rest = capsys.readouterr().err.splitlines()
    assert (
        first == f"kconv: 오류: {missing}: 없습니다. config.json과 가중치가 있는 체크포인트 폴더여야 합니다"
    )
    assert all(line.startswith("  해결 방법: ") for line in rest)
    assert main(["--lang", "ko", "plan", str(missing), "--json"]) == 3
    captured = capsys.readouterr()
    assert '"CheckpointError"' in captured.out
    assert "does not exist, expected a checkpoint folder" in captured.out
    assert "없습니다" in captured.err


@pytest.mark.parametrize(
    ("words", "korean"),
    [
        (["plan"], "인수 'CHECKPOINT'이(가) 없습니다."),
        (["plan", "a", "--threads", "x"], "--threads x: 1부터 1024까지의 정수여야 합니다"),
        (["plan", "a", "--threads", "0"], "--threads 0: 1부터 1024까지의 정수여야 합니다"),
        (["to-ggf", "a"], "알 수 없는 명령 'to-ggf'"),
        (["plan", "a", "--outfile", "b"], "kconv plan에 --outfile이라는 옵션은 없습니다"),
        (["verify", "a", "--against"], "옵션 '--against'에는 값이 필요합니다."),
        ([], "명령을 주지 않았습니다"),
        (["to-gguf", "a", "-q", "int9"], "알 수 없는 타입"),
    ],
)
def test_slips_are_answered_in_korean(
    words: list[str], korean: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KCONV_LANG", "ko")
    assert main(words) == 2
    text = capsys.readouterr().err
    assert korean in text
    assert "kconv: 오류: " in text


def test_the_language_is_known_before_the_command_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plann", "x", "--lang", "ko"]) == 2
    assert "알 수 없는 명령" in capsys.readouterr().err
    assert main(["plann", "x", "--lang=en"]) == 2
    assert "unknown command" in capsys.readouterr().err


def test_values_and_foreign_text_stay_as_they_are() -> None:
    with speaking("ko"):
        assert said("weights/tokens does not exist").startswith("weights/tokens: ")
        assert said("the file is right, says /tmp/the gate") == "the file is right, says /tmp/the gate"
        assert said(KconvError("a\nb").message) == "a\nb"
        nested = "the imatrix a.gguf: contains no activations (tensors named *.in_sum2): it is not an imatrix"
        assert (
            said(nested) == "imatrix a.gguf: 활성값(이름이 *.in_sum2인 텐서)이 없습니다. imatrix가 아닙니다"
        )
        table = "limits           20000 open files\nmemory           17.7 GiB"  # cells are said one by one
        assert said(table) == table
        assert said("20000 open files") == "열린 파일 20000개"
        listed = "3 tensors Q4_0 instead of Q2_K, 2 tensors IQ4_NL instead of IQ2_S"
        assert "개는" not in said(listed)
        braces = "{x}.json does not exist"
        assert said(braces) == "{x}.json: 없습니다"
        assert said(phrase("not decided")) == "미정"
        hostile = "does not exist " * 50_000
        assert said(hostile)
    assert said("a.json does not exist") == "a.json does not exist"


def test_the_locale_alone_makes_help_and_errors_korean() -> None:
    environment = {**os.environ, "LC_ALL": "ko_KR.UTF-8", "PYTHONUTF8": "1"}
    environment.pop("KCONV_LANG", None)
    done = subprocess.run(
        [sys.executable, "-m", "kconv.cli.main", "plan", "nowhere"],
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 3
    assert done.stderr.startswith("kconv: 오류: nowhere: 없습니다.")


JSON_SAMPLE = json.dumps(
    {"이름": "한글 모델 漢 é", "emoji": "\U0001f600", "bidi": "a\u202eb\u009b", "lone": "\udcff"}
)


@pytest.mark.parametrize(
    ("encoding", "shown", "escaped"),
    [
        ("utf-8", ["한글 모델 漢 é", "😀"], ["\\u202e", "\\u009b", "\\udcff"]),
        ("ascii", [], ["\\ud55c\\uae00", "\\u00e9", "\\ud83d\\ude00", "\\u202e"]),
        ("euc-kr", ["한글 모델 漢"], ["\\u00e9", "\\ud83d\\ude00"]),
        ("latin-1", ["é"], ["\\ud55c\\uae00", "\\ud83d\\ude00", "\\u009b"]),
    ],
)
def test_json_has_hangul_wherever_the_output_can_hold_it(
    encoding: str, shown: list[str], escaped: list[str]
) -> None:
    code = "import json, sys; from kconv.cli.commands import _prepare_streams; _prepare_streams(); "
    code += f"from kconv.cli.console import emit_json; emit_json(json.loads(r'''{JSON_SAMPLE}'''))"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    for each in (*shown, *escaped):
        assert each in text
    assert json.loads(text) == json.loads(JSON_SAMPLE)


def test_plans_manifests_and_journals_have_hangul(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kconv.converters.samples import write_sample

    checkpoint = write_sample("42dot", tmp_path / "한국어 모델")
    assert main(["plan", str(checkpoint), "-q", "q8_0", "--json"]) == 0
    plan = capsys.readouterr().out
    assert "한국어 모델" in plan
    assert json.loads(plan)["types"]
    words = [
        "to-gguf",
        str(checkpoint),
        "-q",
        "q8_0",
        "-o",
        str(tmp_path / "출력.gguf"),
        "--no-verify",
        "--json",
    ]
    assert main(words) == 0
    assert "출력.gguf" in capsys.readouterr().out
    (manifest,) = tmp_path.glob("*.manifest.json")
    assert "한국어 모델" in manifest.read_text("utf-8")
    assert main(["plan", str(tmp_path / "없음"), "--json"]) == 3
    assert "없음" in capsys.readouterr().out


def test_ascii_output_gets_escapes_and_utf_8_output_does_not(tmp_path: Path) -> None:
    """As a whole, under LC_ALL=C: Python would make UTF-8 of it, unless told not to."""
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "LANG")}
    c_locale = {**plain, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    texts = []
    for environment in (c_locale, {**plain, "LC_ALL": "C.UTF-8"}):
        words = [sys.executable, "-m", "kconv.cli.main", "plan", str(tmp_path / "없음"), "--json"]
        done = subprocess.run(words, env=environment, capture_output=True)
        assert done.returncode == 3
        assert json.loads(done.stdout)["error"]["message"].startswith(str(tmp_path / "없음")) or (
            environment is c_locale  # whose file names are not UTF-8 either
        )
        texts.append(done.stdout)
    assert texts[0].isascii()
    assert "없음".encode() in texts[1]
