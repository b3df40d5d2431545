"""`kconv run` with encoder-decoder models: answers, masks, bytes to text, what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_material import kconv
from run_material import KCONV, answered, run, with_metadata
from shared_material import shared
from t5_material import KNOWN, byte_ids, random_byt5, trained_byt5, transformers_greedy

from kconv.converters import to_gguf
from kconv.core.errors import GgufError
from kconv.core.gguf_file import read_header
from kconv.runtimes.llama import LlamaRuntime
from kconv.runtimes.sampling import Sampling

pytestmark = pytest.mark.usefixtures("kconv_server")
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 값 👨‍👩‍👧"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run-t5")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    """A random ByT5."""
    return random_byt5(folder / "random")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Path:
    """The same as f32."""
    target = checkpoint.with_suffix(".gguf")
    to_gguf(checkpoint, target, types=["f32"], verify=False)
    return target


@pytest.fixture(scope="module")
def known(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ByT5 that knows a few answers by heart, as f32."""
    target = folder / "known.gguf"
    shutil.copytree(shared(tmp_path_factory, "trained-byt5", trained_byt5), folder / "known")
    to_gguf(folder / "known", target, types=["f32"], verify=False)
    return target


@pytest.fixture(scope="module")
def pieces(folder: Path, real: Path) -> Path:
    """A small T5 with a SentencePiece vocabulary, as f32."""
    target = folder / "pieces.gguf"
    # its vocabulary normalizes some combined letters in a way llama.cpp does not
    to_gguf(real / "hf_t5x_tiny", target, types=["f32"], verify=False, allow_tokenizer_mismatch=True)
    return target


def test_greedy_text_equals_that_of_transformers(model: Path, checkpoint: Path) -> None:
    for prompt in (KOREAN, "a", ""):
        answer = answered(model, "-p", prompt, "-n", 128, "--greedy", "--kv-type", "f32")
        assert answer["prompt_ids"] == byte_ids(prompt)
        assert len(answer["ids"]) > 20
        assert answer["ids"] == transformers_greedy(checkpoint, answer["prompt_ids"], 128)
        assert answer["chat"] is False


def test_greedy_text_of_another_depth_start_and_vocabulary(folder: Path) -> None:
    """Fine-tunes begin with 259, and some have other numbers of rows."""
    settings = {"num_layers": 2, "num_decoder_layers": 1, "vocab_size": 392, "decoder_start_token_id": 259}
    checkpoint = random_byt5(folder / "other", **settings)
    to_gguf(checkpoint, folder / "other.gguf", types=["f32"], verify=False)
    answer = answered(folder / "other.gguf", "-p", "안녕", "-n", 128, "--kv-type", "f32")
    assert answer["ids"] == transformers_greedy(checkpoint, answer["prompt_ids"], 128)


def test_greedy_text_with_a_sentencepiece_vocabulary(pieces: Path, real: Path) -> None:
    prompt = "translate English to German: The house is wonderful."
    answer = answered(pieces, "-p", prompt, "-n", 128, "--kv-type", "f32")
    assert answer["prompt_ids"][-1] == 1
    assert answer["ids"] == transformers_greedy(real / "hf_t5x_tiny", answer["prompt_ids"], 128)
    assert not answer["text"].startswith(" ")


def test_the_likeliest_token_is_taken_unless_something_is_wished(model: Path, tmp_path: Path) -> None:
    def temperature(path: Path, *options: object) -> Any:
        return answered(path, "-p", "a", "-n", 1, *options)["sampling"]["temperature"]

    assert temperature(model) == 0
    assert temperature(model, "--repeat-penalty", 1.2) == 0
    assert temperature(model, "--top-k", 5) == temperature(model, "--seed", 5) == 0.8
    recommending = with_metadata(model, tmp_path / "told.gguf", general__sampling__temp=0.5)
    assert temperature(recommending) == 0.5
    assert temperature(recommending, "--temp", 0.25) == 0.25


def test_seeds_repeat(model: Path) -> None:
    def ids(seed: int, *options: object) -> Any:
        wishes = ("--temp", 1.5, "--top-k", 100, "--top-p", 0.99, "--min-p", 0, "--repeat-penalty", 1.1)
        return answered(model, "-p", "a", "-n", 24, "--seed", seed, *wishes, *options)["ids"]

    assert ids(5) == ids(5)
    assert len({tuple(ids(seed)) for seed in range(3)}) > 1


def test_a_penalty_counts_what_was_generated_and_not_the_prompt(model: Path, checkpoint: Path) -> None:
    """As transformers' repetition_penalty, which sees the decoder's tokens."""
    free = answered(model, "-p", KOREAN, "-n", 100)["ids"]
    first = answered(model, "-p", KOREAN, "-n", 100, "--repeat-penalty", 1000)["ids"]
    assert len(set(free)) < len(free)
    assert first[0] == free[0]
    assert len(set(first[:63])) == len(first[:63])


def test_a_known_answer_is_streamed_in_whole_characters(known: Path) -> None:
    done = run(known, "-p", "한국")
    assert done.stdout == "서울 😀 값\n", done.stderr
    options = ["-p", "한국", "--threads", "1"]
    shown = []
    reading, writing = os.pipe2(os.O_DIRECT)  # a read gives what one write gave, however late it comes
    with subprocess.Popen([*KCONV, "run", str(known), *options], stdout=writing):
        os.close(writing)
        while piece := os.read(reading, 1 << 16):
            shown.append(piece)
    os.close(reading)
    assert len(shown) > 1
    for end in range(1, len(shown)):  # never half a syllable
        b"".join(shown[:end]).decode("utf-8")
    assert b"".join(shown).decode("utf-8") == done.stdout


def test_bytes_that_are_no_text_and_sentinels_are_shown(known: Path) -> None:
    answer = answered(known, "-p", "깨진")
    assert answer["text"] == "가\ufffd나<258><261>\ufffd"
    assert answer["ids"] == KNOWN[-1][1]
    assert answer["stop_reason"] == "end"
    assert answered(known, "-p", "깨진", "--stop", "<258>")["text"] == "가\ufffd나"


def test_a_text_cut_off_within_a_character_ends_before_it(known: Path) -> None:
    for count in range(1, 7):
        answer = answered(known, "-p", "한국", "-n", count)
        assert answer["text"] == "서울"[: count // 3]
        assert len(answer["ids"]) == count


def test_stop_strings_end_the_text(known: Path) -> None:
    answer = answered(known, "-p", "한국", "--stop", "😀")
    assert (answer["text"], answer["stop_reason"]) == ("서울 ", "stop")


def test_the_prompt_may_come_from_standard_input(known: Path) -> None:
    assert run(known, "-p", "-", input="한국\n").stdout == "서울 😀 값\n"
    assert "서울이다." in run(known, "--fill", "-", input="한국의 수도는 <extra_id_0>이다.\n").stdout
    for option in ("-p", "--fill"):
        done = run(known, option, "-", input="한국".encode("cp949"), text=False)
        assert done.returncode == 3
        assert b"iconv" in done.stderr


def test_masks_are_filled(known: Path) -> None:
    done = run(known, "--fill", "한국의 수도는 <extra_id_0>이다.")
    assert done.stdout == "<extra_id_0>: 서울\n한국의 수도는 서울이다.\n"
    assert done.stderr == ""
    done = run(known, "--fill", "<extra_id_0>의 수도는 <extra_id_1>이다.")
    assert done.stdout == "<extra_id_0>: 한국\n<extra_id_1>: 서울\n한국의 수도는 서울이다.\n"


def test_masks_go_in_and_come_out_as_the_sentinels_of_pretraining(known: Path) -> None:
    answer = answered(known, "--fill", "<extra_id_0>의 수도는 <extra_id_1>이다.")
    assert answer["prompt_ids"] == KNOWN[2][0]
    assert answer["ids"] == KNOWN[2][1][:-1]  # ends with the first sentinel that is none of the text's
    assert answer["fills"] == [
        {"mask": 0, "sentinel": 258, "ids": byte_ids("한국")[:-1], "text": "한국"},
        {"mask": 1, "sentinel": 257, "ids": byte_ids("서울")[:-1], "text": "서울"},
    ]
    assert answer["completed"] == "한국의 수도는 서울이다."
    assert answer["prompt"] == "<extra_id_0>의 수도는 <extra_id_1>이다."
    assert answer["stop_reason"] == "end"
    assert answer["sampling"]["temperature"] == 0


def test_a_mask_the_model_leaves_out_stays(known: Path) -> None:
    done = run(known, "--fill", "두 도시: <extra_id_0>, <extra_id_1>")
    assert done.returncode == 0
    assert done.stdout == "<extra_id_1>: 부산\n두 도시: <extra_id_0>, 부산\n"
    assert "the model filled in nothing for <extra_id_0>" in done.stderr
    answer = answered(known, "--fill", "두 도시: <extra_id_0>, <extra_id_1>")
    assert answer["fills"][0] == {"mask": 0, "sentinel": 258, "ids": [], "text": None}


def test_names_of_masks_in_a_prompt_are_the_tokens_of_these_names(known: Path) -> None:
    done = run(known, "-p", "가<extra_id_0>나", "-n", 1)
    assert "--fill" in done.stderr
    answer = answered(known, "-p", "가<extra_id_0>나</s>", "-n", 1)
    assert answer["prompt_ids"] == byte_ids("가", 259, "나")  # no second end


def test_masks_with_a_sentencepiece_vocabulary(pieces: Path) -> None:
    answer = answered(pieces, "--fill", "The <extra_id_0> is <extra_id_1>.", "-n", 8)
    ids = [fill["sentinel"] for fill in answer["fills"]]
    tokens = read_header(pieces).metadata["tokenizer.ggml.tokens"]
    assert [tokens[token] for token in ids] == ["<extra_id_0>", "<extra_id_1>"]
    assert [token for token in answer["prompt_ids"] if token in ids] == ids


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("가나다", 2, "no mask"),
        ("", 2, "no mask"),
        ("가 <extra_id_1>", 2, "expected <extra_id_0>"),
        ("<extra_id_0> <extra_id_2>", 2, "expected <extra_id_1>"),
        ("<extra_id_0> <extra_id_0>", 2, "expected <extra_id_1>"),
        ("<extra_id_00>", 2, "expected <extra_id_0>"),
        (
            "".join(f"가<extra_id_{number}>" for number in range(12)),
            3,
            "12 masks, but the vocabulary has only 11",
        ),
    ],
)
def test_masks_that_cannot_be_are_refused(known: Path, text: str, code: int, words: str) -> None:
    done = run(known, "--fill", text)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_options_that_make_no_sense_are_refused(known: Path) -> None:
    masked = ("--fill", "가 <extra_id_0>")
    for options in (
        ("-p", "가", "--chat"),
        ("-p", "가", "--system", "나"),
        ("-p", "가", "--echo"),
        (*masked, "--chat"),
        (*masked, "--stop", "나"),
        (*masked, "-p", "나"),
        ("-p", "가", "--temp", "nan"),
        ("-p", "가", "--top-p", "nan"),
        ("-p", "가", "--repeat-penalty", "inf"),
        (),
    ):
        done = run(known, *options)
        assert (done.returncode, done.stdout) == (2, ""), options
    assert run(known, "-p", "한국", "--no-chat").stdout == "서울 😀 값\n"


def test_prompts_and_texts_may_each_fill_the_context(model: Path, tmp_path: Path) -> None:
    short = with_metadata(model, tmp_path / "short.gguf", t5__context_length=64)
    done = run(short, "-p", "a" * 64, "-n", 1)
    assert done.returncode == 3
    assert "the prompt has 65 tokens, but the context has room for 64" in done.stderr
    answer = answered(short, "-p", "a" * 63, "-n", -1)
    assert len(answer["prompt_ids"]) == len(answer["ids"]) == 64
    done = run(short, "-p", "a" * 700, "-n", 300, "--ctx", 800)
    assert done.returncode == 0
    assert "warning" in done.stderr
    assert run(short, "-p", "abc", "--ctx", 3).returncode == 3
    assert len(answered(short, "-p", "ab", "-n", 8, "--ctx", 3)["ids"]) == 3


def test_an_empty_prompt_needs_an_end_token(model: Path, tmp_path: Path) -> None:
    bare = with_metadata(model, tmp_path / "bare.gguf", tokenizer__ggml__add_eos_token=False)
    assert answered(bare, "-p", "a", "-n", 0)["prompt_ids"] == [100]
    done = run(bare, "-p", "")
    assert done.returncode == 2
    assert "empty" in done.stderr


def test_files_that_cannot_run_are_refused(model: Path, tmp_path: Path) -> None:
    start = with_metadata(model, tmp_path / "start.gguf", t5__decoder_start_token_id=None)
    done = run(start, "-p", "a")
    assert done.returncode == 3
    assert "decoder_start_token_id" in done.stderr
    wrong = with_metadata(model, tmp_path / "wrong.gguf", t5__decoder_start_token_id=384)
    assert run(wrong, "-p", "a").returncode == 3
    more = with_metadata(model, tmp_path / "more.gguf", t5__decoder_block_count=4)
    done = run(more, "-p", "a")
    assert done.returncode == 3
    assert "decoder_block_count says 4 layers" in done.stderr
    deep = with_metadata(
        model, tmp_path / "deep.gguf", without=("enc.blk.1.", "enc.blk.2."), t5__block_count=1
    )
    done = run(deep, "-p", "a")
    assert done.returncode == 3
    assert "the decoder has 2 layers and the encoder 1" in done.stderr


def test_a_conversion_says_how_to_run_it(known: Path, tmp_path: Path) -> None:
    done = kconv("to-gguf", known.with_suffix(""), "-o", tmp_path / "a.gguf", "--no-verify")
    assert done.returncode == 0, done.stderr
    assert "--fill" in done.stdout
    assert "llama-server" not in done.stdout  # which never calls the encoder


def test_masks_need_an_encoder_decoder(folder: Path, small_tokenizer: Path) -> None:
    from llama_material import random_llama

    target = folder / "llama.gguf"
    to_gguf(random_llama(folder / "llama", small_tokenizer), target, types=["f32"], verify=False)
    done = run(target, "--fill", "가 <extra_id_0>")
    assert done.returncode == 3
    assert "cannot fill masks" in done.stderr


def test_an_encoder_reads_what_a_front_end_makes_of_the_tokens(known: Path, folder: Path) -> None:
    from safetensors.numpy import load_file

    embedding = load_file(folder / "known" / "model.safetensors")["shared.weight"]
    with LlamaRuntime(known, threads=1, front=lambda ids: embedding[list(ids)]) as runtime:
        source, answer = KNOWN[0]
        assert list(runtime.generate(source, Sampling(temperature=0), 40)) == answer
    for wrong in (embedding[:4, :-1], embedding[:0], embedding):
        with (
            LlamaRuntime(known, threads=1, front=lambda ids, made=wrong: made) as runtime,
            pytest.raises(GgufError),
        ):
            list(runtime.generate([100, 101, 102, 1], Sampling(temperature=0), 1))
