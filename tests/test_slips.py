"""Words of other tools and of haste: each answered with kconv's own word, exit code 2, and nothing done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_material import kconv

from kconv.cli.commands import COMMANDS
from kconv.cli.slip_words import COMMANDS as _COMMANDS
from kconv.cli.slip_words import OPTIONS as _OPTIONS
from kconv.converters.families.gbst.front_end_file import front_end_path
from kconv.converters.samples import write_sample
from kconv.core.errors import UsageError
from kconv.core.gguf_split import parse_split_size
from kconv.quant.formats import nearest
from kconv.quant.policy import POLICIES

pytestmark = pytest.mark.usefixtures("kconv_server")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, whose name has a space and Hangul, and a GGUF made of it."""
    folder = tmp_path_factory.mktemp("slips")
    write_sample("42dot", folder / "내 모델 1.3B")
    done = kconv("to-gguf", folder / "내 모델 1.3B", "-q", "q8_0", "--no-verify", "-o", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_spaces_and_hangul_stay_in_the_name_of_the_file(place: Path) -> None:
    assert (place / "내 모델 1.3B-Q8_0.gguf").is_file()
    done = kconv("run", place / "내 모델 1.3B-Q8_0.gguf", "-p", "서울", "-n", "2")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["to-ggf", "{model}"], "use kconv to-gguf"),
        (["quantise", "{file}"], "use kconv quantize"),
        (["upload", "{file}"], "ORG/NAME"),
        (["convert", "{model}"], "use kconv to-gguf or kconv to-onnx"),
        (["to_gguf", "{model}"], "use kconv to-gguf"),
        (["chat", "{file}"], "use kconv run"),
        (["zzz"], "see `kconv --help`"),
        (["version"], "use kconv --version"),
        (["download", "org/name"], "kconv to-gguf ORG/NAME"),
        (["verify", "{file}"], "for example: kconv verify"),
        (["verify", "{file}", "{model}"], "kconv verify '{file}' --against '{model}'"),
        (["imatrix", "{model}"], "for example: kconv imatrix"),
        (["to-gguf", "-q", "q4_0"], "for example: kconv to-gguf"),
        (["to-gguf", "{model}", "--verify", "none"], "--no-verify"),
        (["help", "plen"], "use kconv plan"),
        (["to-gguf", "{file}"], "kconv quantize"),
        (["to-gguf", "{file}", "-q", "q4_0"], "kconv quantize"),
        (["to-onnx", "{file}"], "the checkpoint it was made from"),
        (["quantize", "{model}", "-q", "q4_0"], "kconv to-gguf"),
        (["to-gguf", "{model}", "--outfile", "x.gguf"], "use --output"),
        (["to-gguf", "{model}", "--outtype", "q8_0"], "use --type"),
        (["to-gguf", "{model}", "--output_dir", "x"], "use --output"),
        (["to-gguf", "{model}", "--thread", "2"], "use --threads"),
        (["run", "{file}", "-p", "a", "--max-tokens", "3"], "use --tokens"),
        (["run", "{file}", "-p", "a", "--temperature", "0"], "use --temp"),
        (["to-gguf", "{model}", "-q", "int4"], "did you mean q4_0 or q4_K_M?"),
        (["to-gguf", "{model}", "-q", "4bit"], "did you mean q4_0 or q4_K_M?"),
        (["to-gguf", "{model}", "-q", "fp16"], "did you mean f16?"),
        (["to-onnx", "{model}", "-q", "int4"], "did you mean q4_0?"),
        (["quantize", "{file}", "out.gguf", "q4_0"], "-o out.gguf -q q4_0"),
        (["quantize", "{file}", "Q4_K_M", "4"], "-q Q4_K_M"),
        (["--lang", "ko", "quantize", "{file}", "Q4_K_M"], "kconv quantize '{file}' -q Q4_K_M"),
        (["to-gguf", "{model}", "q4_0"], "-q q4_0"),
        (["to-gguf", "{model}", "out.gguf"], "-o out.gguf"),
        (["to-gguf", "{model}", "-o", "X.GGUF"], "pass -o X.gguf"),
        (["quantize", "{file}", "-q", "q4_0", "-o", "X.GGUF"], "pass -o X.gguf"),
        (["to-gguf", "{model}", "-o", "y.onnx"], "kconv to-onnx"),
        (["to-onnx", "{model}", "-o", "y.onnx"], "pass -o y"),
        (["to-gguf", "{model}", "--split-max-size", "2GB"], "write it as 2G"),
    ],
)
def test_a_slip_is_answered_with_the_right_word(place: Path, words: list[str], answer: str) -> None:
    names = {"model": place / "내 모델 1.3B", "file": place / "내 모델 1.3B-Q8_0.gguf"}
    before = sorted(path.name for path in place.iterdir())
    done = kconv(*(word.format(**names) for word in words), cwd=place)
    assert done.returncode == 2, done.stderr
    assert answer.format(**names) in done.stderr
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "answer"),
    [("내 모델 1.3", "did you mean 내 모델 1.3B?"), ("42dot_LLM-SFT-1.3B", "is named ORG/NAME")],
)
def test_a_folder_that_does_not_exist(place: Path, given: str, answer: str) -> None:
    done = kconv("to-gguf", given, "-q", "q4_0", cwd=place)
    assert done.returncode == 3
    assert answer in done.stderr


def test_a_folder_of_onnx_files_is_no_model_to_convert(place: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").write_text("{}")
    (tmp_path / "made" / "model.onnx").write_bytes(b"")
    (tmp_path / "model").symlink_to(place / "내 모델 1.3B")
    done = kconv("to-gguf", ".", "-q", "q4_0", cwd=tmp_path)
    assert done.returncode == 3
    assert "give the one you want: model" in done.stderr
    assert "made" not in done.stderr


def test_help_of_a_command_is_its_own() -> None:
    assert kconv("help", "plan").stdout == kconv("plan", "--help").stdout
    assert kconv("help").stdout == kconv("--help").stdout


def test_temperature_0_is_greedy(place: Path) -> None:
    file = place / "내 모델 1.3B-Q8_0.gguf"
    words = ["run", file, "-p", "서울의", "-n", "12", "--repeat-penalty", "1"]
    assert kconv(*words, "--temp", "0").stdout == kconv(*words, "--greedy").stdout


def test_too_little_text_to_calibrate_on_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "little.txt").write_text("서울은 한국의 수도이다.", encoding="utf-8")
    model = place / "내 모델 1.3B"
    for words in (
        ["to-gguf", model, "-q", "q4_0", "--calibrate", tmp_path / "little.txt", "-o", tmp_path],
        ["imatrix", model, "--text", tmp_path / "little.txt", "-o", tmp_path / "x.gguf"],
    ):
        done = kconv(*words)
        assert done.returncode == 3
        assert "too few to measure by: at least 128 are needed" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["little.txt"]


def test_a_front_ends_name_says_gbst_once() -> None:
    assert front_end_path(Path(), "kebyt5-base").name == "gbst-kebyt5-base.gguf"
    assert front_end_path(Path(), "gbst-kebyt5-base").name == "gbst-kebyt5-base-front-end.gguf"


def test_suggestions_name_what_there_is() -> None:
    commands = [name for names in _COMMANDS.values() for name in names]
    assert set(commands) <= set(COMMANDS)
    assert not set(_COMMANDS) & set(COMMANDS)
    assert all(name.startswith("--") for names in _OPTIONS.values() for name in names)


@pytest.mark.parametrize("word", ["INT8", "8-bit", "q4km", "Q6", "bfloat16", "FP8"])
def test_usual_names_of_types(word: str) -> None:
    assert nearest(word, list(POLICIES)).startswith("did you mean ")


@pytest.mark.parametrize(
    ("text", "right"), [("2GB", "2G"), ("500 MB", "500M"), ("2GiB", "2G"), ("2T", "2G or")]
)
def test_sizes(text: str, right: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_split_size(text)
    assert raised.value.hint is not None
    assert f"write it as {right}" in raised.value.hint


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script(shell: str) -> None:
    done = kconv("completion", shell)
    assert done.returncode == 0
    assert f"_KCONV_COMPLETE={shell}_complete" in done.stdout


def test_the_script_for_bash_completes_commands(tmp_path: Path) -> None:
    """In a real bash: its completion function asked for what follows ``kconv to-``."""
    bin_ = Path(sys.executable).parent
    script = (
        f'PATH="{bin_}:$PATH"; eval "$(kconv completion bash)"; COMP_WORDS=(kconv to-); COMP_CWORD=1; '
        '_kconv_completion kconv; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "to-gguf" in done.stdout.split()
    assert "to-onnx" in done.stdout.split()
