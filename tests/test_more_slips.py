"""More slips: what people type who know other tools. Each gets one error with the right word, and exit 2."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from command_material import kconv

from kconv.cli.slip_words import COMMANDS as MEANT
from kconv.cli.slip_words import INSTEAD, OPTIONS, OTHERWISE, SOURCES
from kconv.converters.samples import write_sample
from kconv.quant.formats import suggested
from kconv.quant.policy import POLICIES

pytestmark = pytest.mark.usefixtures("kconv_server")

SLIPS = [
    # commands
    ("to gguf {model}", "use kconv to-gguf"),
    ("ToGGUF {model}", "use kconv to-gguf"),
    ("llama-server {file}", "use kconv serve"),
    ("merge {file}", "-q copy splits"),
    ("push {file} me/x", "use kconv upload"),
    ("login", "hf auth login"),
    ("bench {file}", "use kconv compare"),
    ("upgrade", "pip installs and upgrades it"),
    ("{file}", "kconv run {file} opens a conversation"),
    ("{model}", "kconv to-gguf {model} converts"),
    ("org/name", "kconv to-gguf org/name"),
    ("to-gguf help", "kconv help to-gguf"),
    ("help zzz", "see `kconv --help`"),
    ("demo-checkpoint 42dott x", "did you mean 42dot?"),
    # options
    ("to-gguf {model} --hlep", "use --help"),
    ("-v", "use --version"),
    ("run -?", "use --help"),
    ("to-gguf {model} --ouput x", "use --output; see"),
    ("to-gguf {model} --out_file x", "use --output; see"),
    ("to-gguf --model {model}", "CHECKPOINT is given without an option"),
    ("run -m {file}", "ARTIFACT is given without an option"),
    ("to-gguf {model} -t 4", "use --threads"),
    ("to-gguf {model} --bits 4", "use --type"),
    ("to-gguf {model} --remote", "kconv to-gguf ORG/NAME"),
    ("to-gguf {model} --trust-remote-code", "nothing in a checkpoint is ever executed"),
    ("to-gguf {model} --token abc", "HF_TOKEN"),
    ("to-gguf {model} --dry-run", "kconv plan"),
    ("run {file} --file p.txt", "kconv run FILE < prompt.txt"),
    ("run {file} -ngl 99", "on the processor alone"),
    ("run {file} -cnv", "opens a conversation"),
    ("run {file} --top_k 5", "use --top-k; see"),
    ("run {file} --max_length 5", "use --tokens"),
    ("serve {file} -p 8000", "use --port"),
    ("serve {file} --api-key x", "KCONV_API_KEY"),
    ("verify {file} --base {model}", "use --against"),
    ("to-gguf {model} --type", "see `kconv to-gguf --help`"),
    # the order of arguments
    ("to-gguf {model} out.gguf q4_0", "kconv to-gguf {model} -o out.gguf -q q4_0"),
    ("to-gguf q4_0 {model}", "kconv to-gguf {model} -q q4_0"),
    ("to-gguf {model} q4_0 q8_0", "kconv to-gguf {model} -q q4_0,q8_0"),
    ("to-onnx {model} outdir", "kconv to-onnx {model} -o outdir"),
    ("quantize {file} out.gguf", "kconv quantize {file} -o out.gguf -q TYPE"),
    ("quantize {file} q4_0 out.gguf", "kconv quantize {file} -o out.gguf -q q4_0"),
    ("quantize {file} out.gguf Q4KM", "-o out.gguf -q q4_K_M"),
    ("quantize {file} out.gguf 15", "-o out.gguf -q q4_K_M"),
    ("quantize --allow-requantize {file} out.gguf Q4_K_M 4", "-o out.gguf -q Q4_K_M --allow-requantize"),
    ("quantize {model} Q4_K_M", "kconv to-gguf {model} -q Q4_K_M"),
    ("verify {model} {file}", "kconv verify {file} --against {model}"),
    ("imatrix {model} text.txt", "kconv imatrix {model} --text text.txt"),
    ("compare {model} q4_0 q8_0", "kconv compare {model} -q q4_0,q8_0"),
    ("plan {model} q4_0", "kconv plan {model} -q q4_0"),
    ("compare {model} q4_0,Q8", "kconv compare {model} -q q4_0,q8_0"),
    ("to-gguf {model} -o a b", "see `kconv to-gguf --help`"),
    ("to-gguf {model} -oa b q4_0", "see `kconv to-gguf --help`"),
    ("quantize {file} -o a.gguf b.gguf q4_0", "see `kconv quantize --help`"),
    ("upload me/x {file}", "kconv upload {file} me/x"),
    # files of another kind
    ("to-gguf {model}/model.safetensors", "pass the folder {model}"),
    ("to-gguf {model}/tokenizer_config.json", "pass the folder {model}"),
    ("quantize {model}/model.safetensors -q q4_0", "kconv to-gguf {model} -q q4_k_m"),
    ("run {model}/model.safetensors -p a", "kconv to-gguf {model} -q q4_k_m"),
    ("quantize onnx -q q4_0", "kconv to-onnx CHECKPOINT"),
    ("quantize {file} -q copy -o {file}", "choose another -o"),
    # types and sizes
    ("to-gguf {model} -q q4_0~q8_0", "-q q4_0,q8_0"),
    ("to-gguf {model} -q copy", "auto keeps the weights"),
    ("quantize {file} -q auto", "copy keeps the weights"),
    ("to-gguf {model} -q q4_K_L", "did you mean q4_K_M?"),
    ("to-gguf {model} -q q4_0,q8_0 -o x.gguf", "give a folder with -o, or a single type"),
    ("to-gguf {model} -q q4_0 -o x.ggfu", "pass -o x.gguf, or a folder"),
    ("to-gguf {model} -q q4_0 --split-max-size 1.5~GiB", "write it as 1500M"),
    ("to-gguf {model} --target-size 4 --calibrate text.txt", "write it as 4bpw"),
    # numbers
    ("to-gguf {model} --threads abc", "--threads abc: expected a whole number from 1 to 1024"),
    ("to-gguf {model} --threads -4", "--threads -4: expected a whole number from 1 to 1024"),
    ("to-gguf {model} --target-kl 1%", "--target-kl 1%: expected a number"),
    ("run {file} -p a -n 0", "-n -1: until the model ends"),
    ("run {file} -p a -n abc", "--tokens abc: expected a whole number, -1 or more"),
    ("run {file} -p a --temp -1", "--temp -1.0: expected a number, 0 or more"),
    ("run {file} -p a --repeat-penalty 0", "--repeat-penalty 0.0: expected a number above 0"),
    ("run {file} -p a --top-p 90", "--top-p 90.0: expected a number from 0 to 1"),
    # paths and languages
    ("to-gguf ''", "is a variable of the shell unset?"),
    ("--lang kr models", "use --lang en or --lang ko"),
    ("verify {file} --against {model} --report x.pdf", "pass --report x.html"),
]
"""A command line, ``~`` for a space within a word, and what the answer says."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a GGUF made of it, and a folder of ONNX."""
    folder = tmp_path_factory.mktemp("more-slips")
    write_sample("42dot", folder / "model")
    done = kconv("to-gguf", folder / "model", "-q", "q8_0", "--no-verify", "-o", folder / "m.gguf")
    assert done.returncode == 0, done.stderr
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "onnx" / "model.onnx").write_bytes(b"")
    return folder


def _words(line: str) -> list[str]:
    given = line.format(model="model", file="m.gguf").split()
    return ["" if word == "''" else word.replace("~", " ") for word in given]


@pytest.mark.parametrize(("line", "answer"), SLIPS)
def test_a_slip(place: Path, line: str, answer: str) -> None:
    before = sorted(path.name for path in place.iterdir())
    done = kconv(*_words(line), cwd=place)
    assert done.returncode == 2, done.stderr
    assert answer.format(model="model", file="m.gguf") in done.stderr
    assert done.stderr.count("kconv: error:") == 1
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize("line", [line for line, _ in SLIPS[:: len(SLIPS) // 12]])
def test_in_korean(place: Path, line: str) -> None:
    """One error whose first line is Korean, as is the second unless it is a command."""
    done = kconv("--lang", "ko", *_words(line.removeprefix("--lang kr ")), cwd=place)
    if line.startswith("--lang"):
        return
    assert done.returncode == 2, done.stderr
    first, *rest = done.stderr.strip().splitlines()[-2:]
    assert re.search("[가-힣]", first.partition(":")[2])
    assert all(re.search("[가-힣]", each.partition(":")[2]) or "kconv " in each for each in rest)


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (b"", "is empty"),
        (bytes(range(256)) * 64, "is not UTF-8"),
        (None, "does not exist"),
        ("folder", "is a folder"),
    ],
)
def test_texts_to_calibrate_on(place: Path, tmp_path: Path, content: bytes | str | None, answer: str) -> None:
    text = tmp_path / "내 글 'x' 😀.txt"
    if content == "folder":
        text.mkdir()
    elif isinstance(content, bytes):
        text.write_bytes(content)
    done = kconv("to-gguf", place / "model", "-q", "q4_0", "--calibrate", text, "-o", tmp_path / "x.gguf")
    assert done.returncode == 3
    assert answer in done.stderr
    assert "내 글 'x' 😀.txt" in done.stderr
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("given", ["model ", " model", '"model"', "modle"])
def test_nearly_the_name_of_a_folder(place: Path, given: str) -> None:
    done = kconv("to-gguf", given, cwd=place)
    assert done.returncode == 3
    assert "did you mean model?" in done.stderr


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("it's 우리 모델 😀", "it_s 우리 모델 _-Q4_0.gguf"),  # as all systems and shells can have it
        ('a "b" c', "a _b_ c-Q4_0.gguf"),
        ("끝/", "끝-Q4_0.gguf"),
    ],
)
def test_odd_names(place: Path, tmp_path: Path, name: str, file: str) -> None:
    shutil.copytree(place / "model", tmp_path / name)
    done = kconv("to-gguf", name, "-q", "q4_0", "--no-verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / file).is_file()


def test_a_folder_for_the_output_is_made(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "not" / "yet" / "x.gguf"
    done = kconv("to-gguf", place / "model", "-q", "q4_0", "--no-verify", "-o", output)
    assert done.returncode == 0, done.stderr
    assert output.is_file()


def test_a_folder_may_have_a_point_in_its_name(place: Path, tmp_path: Path) -> None:
    done = kconv("to-gguf", place / "model", "-q", "q4_0", "--no-verify", "-o", tmp_path / "out-1.3B")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out-1.3B" / "model-Q4_0.gguf").is_file()


def test_help_of_help() -> None:
    assert kconv("help", "help").stdout == kconv("help", "--help").stdout


def test_no_arguments() -> None:
    done = kconv()
    assert done.returncode == 2
    assert "no command given" in done.stderr
    assert "Usage: kconv" in done.stderr


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("Q4KM", ["q4_K_M"]),
        ("int8", ["q8_0"]),
        ("8bit", ["q8_0"]),
        ("fp16", ["f16"]),
        ("f8", ["q8_0"]),
        ("iq4nl", ["iq4_nl"]),
        ("iq4xs", ["iq4_xs"]),
        ("q4_K_L", ["q4_K_M"]),
        ("UD-Q4_K_XL", ["q4_K_M"]),
        ("q4-k-s", ["q4_K_S"]),
        ("int4", ["q4_0", "q4_K_M"]),
    ],
)
def test_types_others_say(word: str, meant: list[str]) -> None:
    assert suggested(word, list(POLICIES)) == meant


def test_words_of_the_tables_are_no_own_words() -> None:
    assert not set(MEANT) & set(OTHERWISE)
    assert not {key for key in INSTEAD if " " not in key} & set(OPTIONS)
    assert not set(SOURCES) & {*OPTIONS, *INSTEAD}
