"""`kconv.generate`: the function behind `kconv run`, on GGUF files and ONNX folders of real models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_material import answered

import kconv
from kconv.converters.samples import write_sample
from kconv.core.errors import InputError, UsageError
from kconv.core.model import Note

pytestmark = pytest.mark.usefixtures("kconv_server")
PROMPT = "옛날에 고양이가 살았습니다."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded Korean model of 42dot's layout."""
    return write_sample("42dot", tmp_path_factory.mktemp("generate") / "42dot")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Path:
    """The model as q8_0, with the SFT model's chat template."""
    target = checkpoint.with_name("model.gguf")
    kconv.to_gguf(checkpoint, target, types=["q8_0"], chat_template="42dot", verify=False)
    return target


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    """The model as ONNX files in f32."""
    return kconv.to_onnx(checkpoint, checkpoint.with_name("onnx"), verify=False).path


def timeless(values: dict[str, Any]) -> dict[str, Any]:
    """As it comes out of JSON, without what differs from run to run."""
    return {
        key: value for key, value in json.loads(json.dumps(values)).items() if not key.endswith("seconds")
    }


def test_a_gguf_is_asked_as_by_the_command(model: Path) -> None:
    pieces: list[str] = []
    answer = kconv.generate(
        model, "안녕", system="짧게 답한다.", tokens=24, seed=5, threads=1, show=pieces.append
    )
    assert answer.chat
    assert answer.prompt.startswith("짧게 답한다.")
    assert answer.text == "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 1
    reported = answered(model, "-p", "안녕", "--system", "짧게 답한다.", "-n", 24, "--seed", 5)
    assert timeless(answer.to_json()) == timeless(reported)
    assert list(answer.to_json()) == list(reported)


def test_a_prompt_is_continued(model: Path) -> None:
    pieces: list[str] = []
    options: dict[str, Any] = {"chat": False, "greedy": True, "threads": 1}
    free = kconv.generate(model, PROMPT, tokens=40, echo=True, show=pieces.append, **options)
    assert "".join(pieces) == PROMPT + free.text
    assert timeless(free.to_json()) | {"sampling": {}} == timeless(
        answered(model, "-p", PROMPT, "--no-chat", "-n", 40, "--greedy")
    ) | {"sampling": {}}  # a random seed, which the likeliest token does not need
    assert (free.sampling.temperature, free.sampling.repeat_penalty) == (0, 1)
    assert free.fills is free.completed is None
    stop = free.text[10:13]
    cut = kconv.generate(str(model), PROMPT, tokens=40, stops=stop, **options)
    assert (cut.text, cut.stop_reason) == (free.text.partition(stop)[0], "stop")
    assert kconv.generate(model, PROMPT, tokens=40, stops=["\x00", stop], **options).text == cut.text


def test_an_onnx_folder_is_asked_as_by_the_command(folder: Path) -> None:
    answer = kconv.generate(folder, PROMPT, tokens=24, seed=3, temperature=1.5, top_k=0, threads=1)
    reported = answered(folder, "-p", PROMPT, "-n", 24, "--seed", 3, "--temp", 1.5, "--top-k", 0)
    assert timeless(answer.to_json()) == timeless(reported)
    assert answer.text


def test_masks_are_filled(tmp_path: Path) -> None:
    checkpoint = write_sample("kebyt5", tmp_path / "kebyt5")
    (made,) = kconv.to_gguf(checkpoint, tmp_path, types=["q8_0"], verify=False).outputs
    text = "한국의 수도는 <extra_id_0>이다."
    answer = kconv.generate(made.path, text, fill=True, tokens=90, threads=1)
    reported = answered(made.path, "--fill", text, "-n", 90)
    given = timeless(answer.to_json())
    assert given | {"sampling": {}} == timeless(reported) | {"sampling": {}}
    assert answer.fills is not None
    assert answer.completed is not None
    assert answer.completed.startswith("한국의 수도는 ")
    notes: list[Note] = []
    kconv.generate(made.path, text, tokens=1, threads=1, announce=notes.append)
    assert [note.name for note in notes] == ["mask-names", "sampling", "prompt"]


def test_what_comes_up_is_announced_in_its_order(model: Path) -> None:
    notes: list[Note] = []
    kconv.generate(model, "안녕", tokens=1, context=4096, threads=1, announce=notes.append)
    assert [note.name for note in notes] == ["chat-template", "context", "sampling", "prompt"]
    assert [note.name for note in notes if note.warning] == ["context"]
    notes.clear()
    kconv.generate(model, "안녕", chat=False, tokens=1, threads=1, announce=notes.append)
    assert [note.name for note in notes] == ["sampling", "prompt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": -2}, "tokens is -2, expected a whole number from -1"),
        ({"tokens": 2.0}, "tokens is 2.0, expected a whole number from -1"),
        ({"seed": 2**31}, "seed is 2147483648, expected a whole number from 0 to 2147483647"),
        ({"temperature": float("nan")}, "temperature is nan, expected a number from 0"),
        ({"temperature": float("inf")}, "temperature is inf, expected a number from 0"),
        ({"top_p": 1.5}, "top_p is 1.5, expected a number from 0 to 1"),
        ({"repeat_penalty": 0}, "repeat_penalty is 0, expected a number above 0"),
        ({"kv_type": "q4_0"}, "kv_type is 'q4_0', expected one of f16, f32, q8_0"),
        ({"greedy": True, "temperature": 1}, "which contradicts the other values"),
        ({"chat": False, "system": "a"}, "--system is for chats"),
        ({"fill": True}, "no mask"),
        ({"fill": True, "stops": ["a"]}, "cannot be combined with --fill"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kconv.generate(model, "a", **options)


def test_what_cannot_be_asked_is_refused(model: Path, folder: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="the prompt is not UTF-8"):
        kconv.generate(model, "\ud800")
    with pytest.raises(InputError, match="the context has room for"):
        kconv.generate(model, "아주 긴 이야기 " * 2000, threads=1)
    with pytest.raises(InputError, match="is a checkpoint, which has to be converted"):
        kconv.generate(checkpoint, "a")
    with pytest.raises(UsageError, match="--kv-type is for GGUF files"):
        kconv.generate(folder, "a", kv_type="f32")
    with pytest.raises(UsageError, match="is part of a checkpoint, not a GGUF file"):
        kconv.generate(checkpoint / "config.json", "a")


def test_every_function_of_kconv_in_one_program(checkpoint: Path, tmp_path: Path) -> None:
    """As a user's program, in a process that has imported nothing else of kconv."""
    program = f"""
import kconv

planned = kconv.plan({str(checkpoint)!r}, "out")
conversion = kconv.to_gguf({str(checkpoint)!r}, "out", types=["f16"], verify=False)
f16 = conversion.outputs[0].path
assert f16.stat().st_size == next(each.bytes for each in planned.types if each.type == "f16")
smaller = kconv.quantize(f16, "smaller", types=["q4_0"]).outputs[0].path
assert smaller.stat().st_size == next(each.bytes for each in planned.types if each.type == "q4_0")
proof = kconv.prove(smaller, {str(checkpoint)!r}, tokens=64)
assert proof.verdict == "passed", proof
answer = kconv.generate(smaller, "옛날에", tokens=8)
assert len(answer.ids) == 8 or answer.stop_reason == "end"
folder = kconv.to_onnx({str(checkpoint)!r}, "onnx", verify=False).path
assert kconv.generate(folder, "옛날에", tokens=8, greedy=True).text
print(kconv.__version__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == kconv.__version__
