"""`kconv run` on real models: streamed text, prompts, chats, stops, seeds."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from run_material import KCONV, answered, run, with_metadata

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.gguf_file import read_header, write_header

pytestmark = pytest.mark.usefixtures("kconv_server")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded Korean model of 42dot's layout as q8_0, with the SFT model's chat template."""
    folder = tmp_path_factory.mktemp("run")
    checkpoint = write_sample("42dot", folder / "42dot")
    target = folder / "model.gguf"
    to_gguf(checkpoint, target, types=["q8_0"], chat_template="42dot", verify=False)
    return target


@pytest.fixture(scope="module")
def base(model: Path) -> Path:
    """The same without a chat template, as a base model is."""
    return with_metadata(model, model.with_name("base.gguf"), tokenizer__chat_template=None)


def test_plain_text_is_completed_and_streamed(base: Path) -> None:
    done = run(base, "-p", "옛날에", "-n", 40, "--greedy")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answer = answered(base, "-p", "옛날에", "-n", 40, "--greedy")
    assert done.stdout == answer["text"] + "\n"
    assert "\ufffd" not in done.stdout
    assert any("가" <= letter <= "힣" for letter in done.stdout)
    assert answer["chat"] is False
    assert answer["prompt"] == "옛날에"
    assert run(base, "-p", "옛날에", "-n", 40, "--greedy", "--echo").stdout == "옛날에" + done.stdout


def test_text_appears_while_it_is_made(base: Path) -> None:
    options = ["--threads", "1", "-p", "옛날에", "-n", "400", "--ctx", "512", "--seed", "1", "--temp", "3"]
    pieces = []
    with subprocess.Popen([*KCONV, "run", str(base), *options], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        while piece := os.read(child.stdout.fileno(), 1 << 16):
            pieces.append(piece)
    assert child.returncode == 0
    assert len(pieces) > 1
    for end in range(1, len(pieces)):  # never half a syllable
        b"".join(pieces[:end]).decode("utf-8")


def test_prompt_from_standard_input_loses_one_newline_only(base: Path) -> None:
    answer = answered(base, "-p", "고양이가\n", "-n", 4, "--greedy")
    for given in ("고양이가\n\n", "고양이가\n\r\n"):
        assert answered(base, "-p", "-", "-n", 4, "--greedy", input=given)["prompt"] == answer["prompt"]


def test_standard_input_that_is_no_utf8_is_refused(base: Path) -> None:
    done = run(base, "-p", "-", input="한국어".encode("cp949"), text=False)
    assert done.returncode == 3
    assert b"iconv" in done.stderr


def test_text_that_is_no_utf8_is_refused(model: Path, base: Path, tmp_path: Path) -> None:
    cp949 = os.fsdecode("한국어".encode("cp949"))
    assert run(base, "-p", cp949).returncode == 2
    assert run(model, "-p", "안녕", "--system", cp949).returncode == 2
    data = model.read_bytes()
    hangul = "호기심".encode()
    (tmp_path / "bad.gguf").write_bytes(data.replace(hangul, b"\xff" * len(hangul)))
    assert data.count(hangul) == 1
    assert run(tmp_path / "bad.gguf", "-p", "안녕").returncode == 3
    assert run(tmp_path / "bad.gguf", "-p", "안녕", "--no-chat", "-n", 1).returncode == 0


def test_seeds_repeat_and_greedy_needs_none(base: Path) -> None:
    def ids(*options: object) -> Any:
        return answered(base, "-p", "옛날에", "-n", 24, *options)["ids"]

    assert ids("--seed", 5) == ids("--seed", 5)
    assert len({tuple(ids("--seed", seed, "--temp", 2)) for seed in range(4)}) > 1
    assert (
        ids("--greedy") == ids("--temp", 0, "--repeat-penalty", 1) == ids("--top-k", 1, "--repeat-penalty", 1)
    )


def test_contradicting_greedy_is_wrong_usage(base: Path) -> None:
    assert run(base, "-p", "a", "--greedy", "--temp", 1).returncode == 2
    assert run(base, "-p", "a", "--system", "b").returncode == 2


def test_recommended_sampling_of_the_file_is_used_and_can_be_overruled(model: Path) -> None:
    sampling = answered(model, "-p", "안녕", "-n", 1)["sampling"]
    assert {key: sampling[key] for key in ("temperature", "top_p", "top_k", "repeat_penalty")} == {
        "temperature": 0.5, "top_p": 0.95, "top_k": 20, "repeat_penalty": 1.2,
    }  # fmt: skip
    assert answered(model, "-p", "안녕", "-n", 1, "--temp", 0.9)["sampling"]["temperature"] == 0.9
    verbose = run(model, "-p", "안녕", "-n", 1, "--verbose")
    assert "temperature=0.5" in verbose.stderr
    assert "llama_model_loader" in verbose.stderr


def test_a_chat_goes_through_the_files_own_template(model: Path) -> None:
    answer = answered(model, "-p", "서울의 명소를 알려줘.", "-n", 8)
    assert answer["chat"] is True
    assert answer["prompt"].endswith("<human>: 서울의 명소를 알려줘. <bot>:")
    assert answer["prompt"].startswith("호기심 많은 인간")
    assert answer["text"] == answer["text"].lstrip()
    own = answered(model, "-p", "안녕", "--system", "짧게 답한다.", "-n", 1)["prompt"]
    assert own.startswith("짧게 답한다.")
    assert answered(model, "-p", "안녕", "--no-chat", "-n", 1)["prompt"] == "안녕"


def test_chat_without_a_template_is_refused(base: Path) -> None:
    done = run(base, "-p", "a", "--chat")
    assert done.returncode == 3
    assert "no chat template" in done.stderr


def test_a_template_that_cannot_render_is_refused(model: Path, tmp_path: Path) -> None:
    bad = with_metadata(model, tmp_path / "bad.gguf", tokenizer__chat_template="{{ raise_exception('no') }}")
    assert run(bad, "-p", "a").returncode == 3


def test_stop_strings_end_the_text(base: Path) -> None:
    free = answered(base, "-p", "옛날에", "-n", 40, "--greedy")
    stop = free["text"][10:13]
    cut = answered(base, "-p", "옛날에", "-n", 40, "--greedy", "--stop", stop)
    assert cut["text"] == free["text"].partition(stop)[0]
    assert cut["stop_reason"] == "stop"
    assert free["stop_reason"] in ("length", "end")


def test_the_next_turn_of_a_known_prompt_format_ends_the_answer(model: Path) -> None:
    answer = answered(model, "-p", "안녕", "-n", 200, "--temp", 3, "--top-k", 0, "--top-p", 1, "--min-p", 0)
    assert "<human>:" not in answer["text"]


def test_generation_ends_with_the_turn(base: Path) -> None:
    header = read_header(base)
    tokens = header.metadata["tokenizer.ggml.tokens"]
    end = header.metadata["tokenizer.ggml.eos_token_id"]
    for seed in range(20):
        answer = answered(base, "-p", "옛날에", "-n", -1, "--seed", seed, "--temp", 1)
        assert end not in answer["ids"][:-1]
        assert tokens[end] not in answer["text"]
        if answer["stop_reason"] == "end":
            assert answer["ids"][-1] == end
            return
        assert len(answer["prompt_ids"]) + len(answer["ids"]) == header.metadata["llama.context_length"]
    pytest.fail("no text of twenty came to an end")


def test_bos_is_what_the_file_says_and_never_doubled(base: Path, tmp_path: Path) -> None:
    bos = read_header(base).metadata["tokenizer.ggml.bos_token_id"]
    text = read_header(base).metadata["tokenizer.ggml.tokens"][bos]

    def ids(path: Path, prompt: str) -> Any:
        return answered(path, "-p", prompt, "-n", 0)["prompt_ids"]

    adding = with_metadata(base, tmp_path / "bos.gguf", tokenizer__ggml__add_bos_token=True)
    without = with_metadata(base, tmp_path / "none.gguf", tokenizer__ggml__add_bos_token=False)
    plain = ids(without, "옛날에")
    assert bos not in plain
    assert (
        ids(adding, "옛날에")
        == ids(adding, text + "옛날에")
        == ids(without, text + "옛날에")
        == [bos, *plain]
    )
    assert ids(adding, "") == [bos]
    done = run(without, "-p", "")
    assert done.returncode == 2
    assert "empty" in done.stderr


def test_a_file_that_needs_a_leading_space_gets_it(base: Path, tmp_path: Path) -> None:
    spaced = with_metadata(base, tmp_path / "space.gguf", kconv__leading_space=True)
    assert answered(spaced, "-p", "옛날에", "-n", 0)["prompt"] == " 옛날에"


def test_a_prompt_longer_than_the_context_is_refused(base: Path) -> None:
    done = run(base, "-p", "-", input="아주 긴 이야기 " * 2000)
    assert done.returncode == 3
    assert "the context has room for" in done.stderr
    assert run(base, "-p", "가나다라 마바사 아자차카", "--ctx", 2).returncode == 3


def test_a_larger_context_than_trained_warns(base: Path) -> None:
    done = run(base, "-p", "가", "-n", 1, "--ctx", 4096)
    assert done.returncode == 0
    assert "warning" in done.stderr


def test_vocabulary_without_weights_is_refused(base: Path, tmp_path: Path) -> None:
    header = read_header(base)
    metadata = {key: value for key, value in header.metadata.items() if key != "general.architecture"}
    write_header(tmp_path / "vocab.gguf", header.arch, metadata, [])
    done = run(tmp_path / "vocab.gguf", "-p", "a")
    assert done.returncode == 3
    assert "no weights" in done.stderr


def test_what_llama_cpp_refuses_is_told_with_its_reason(base: Path, tmp_path: Path) -> None:
    bad = with_metadata(base, tmp_path / "bad.gguf", llama__feed_forward_length=99)
    done = run(bad, "-p", "a", "--json")
    assert done.returncode == 3, done.stderr
    message = json.loads(done.stdout)["error"]["message"]
    assert f"llama.cpp refuses {bad}: tensor 'blk.0.ffn_gate.weight' has wrong shape" in message


def test_the_published_text_of_stories260k(real: Path, tmp_path: Path) -> None:
    target = tmp_path / "stories.gguf"
    to_gguf(real / "hf_stories260K", target, types=["f32"], verify=False)
    answer = answered(target, "-p", "", "-n", 256, "--greedy", "--kv-type", "f32")
    golden = json.loads((real / "golden" / "stories260K_greedy_ids.json").read_text())["ids"]
    assert answer["prompt_ids"] + answer["ids"] == golden
    published = (real / "golden" / "stories260K_greedy.txt").read_text()
    assert answer["text"].strip() == published.strip()
