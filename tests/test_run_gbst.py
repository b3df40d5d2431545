"""`kconv run` with a GBST model: the front end beside its body, given, missing, another model's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gbst_material import CONFIG, f32_body, random_gbswt5, random_model
from run_material import run
from t5_material import byte_ids

from kconv.converters.families import FRONT_ENDS
from kconv.converters.families.gbst.front_end import embed
from kconv.converters.families.gbst.front_end_file import front_end_path, write_front_end
from kconv.converters.families.gbst.tensors import front_end_model
from kconv.converters.front_end import front_end_of
from kconv.core.errors import GgufError, InputError
from kconv.core.gguf_file import read_header
from kconv.core.reading import open_checkpoint
from kconv.runtimes.llama import LlamaRuntime
from kconv.runtimes.sampling import Sampling
from kconv.verify import verify

pytestmark = pytest.mark.usefixtures("kconv_server")


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The f32 body of a random checkpoint, its front end beside it."""
    return f32_body(tmp_path_factory.mktemp("run-gbst"))


def greedy(ids: list[int], count: int) -> list[int]:
    """What the checkpoint's own model generates in transformers."""
    import torch

    with torch.no_grad():
        made = random_model(CONFIG).generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=count, do_sample=False, num_beams=1, decoder_start_token_id=0, eos_token_id=1,
        )  # fmt: skip
    tokens: list[int] = made[0].tolist()
    return tokens[1:]


@pytest.mark.parametrize("prompt", ["한국의 수도는 서울이다.", "a", ""])
def test_greedy_text_equals_that_of_the_whole_model(body: Path, prompt: str) -> None:
    done = run(body, "-p", prompt, "-n", 128, "--kv-type", "f32", "--json")
    assert done.returncode == 0, done.stderr
    output: dict[str, Any] = json.loads(done.stdout)
    assert output["prompt_ids"] == byte_ids(prompt)
    assert output["ids"] == greedy(output["prompt_ids"], 128)


def test_masks_go_through_the_front_end_as_sentinels(body: Path) -> None:
    done = run(body, "--fill", "한국의 수도는 <extra_id_0>이다.", "-n", 4, "--json")
    assert json.loads(done.stdout)["prompt_ids"] == byte_ids("한국의 수도는 ", 258, "이다.")


def test_the_front_end_is_needed_and_may_be_given(body: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.gguf"
    shutil.copy(body, alone)
    done = run(alone, "-p", "a")
    assert done.returncode == 3
    assert "needs its front end" in done.stderr
    front = front_end_path(body.parent, "model")
    assert run(alone, "-p", "a", "-n", 4, "--front-end", front).stdout == run(body, "-p", "a", "-n", 4).stdout
    assert run(alone, "-p", "a", "--front-end", tmp_path / "none.gguf").returncode == 3


def test_what_is_no_front_end_of_the_model_is_refused(body: Path, tmp_path: Path) -> None:
    other = open_checkpoint(random_gbswt5(tmp_path / "other", d_model=CONFIG["d_model"] + 32))
    write_front_end(tmp_path / "gbst-other.gguf", front_end_model(other))
    done = run(body, "-p", "a", "--front-end", tmp_path / "gbst-other.gguf")
    assert done.returncode == 3
    assert "another model" in done.stderr
    done = run(tmp_path / "gbst-other.gguf", "-p", "a")
    assert done.returncode == 3
    assert "pass the body" in done.stderr


def test_a_front_end_beyond_all_numbers_is_refused(body: Path) -> None:
    front_end = front_end_of(FRONT_ENDS, body, read_header(body).metadata)
    assert front_end is not None
    large = replace(front_end.front_end, embedding=np.full_like(front_end.front_end.embedding, 3e38))
    with (
        LlamaRuntime(body, threads=1, front=lambda ids: embed(large, ids).values) as runtime,
        pytest.raises(GgufError, match="NaN or infinite"),
    ):
        next(runtime.generate([3, 4, 1], Sampling(), 2))


def test_the_context_counts_positions_behind_the_front_end(body: Path) -> None:
    """Three bytes a position here: 1024 positions are 3071 bytes and EOS, for --ctx 40 it is 119."""
    assert run(body, "-p", "a" * 3071, "-n", 2).returncode == 0
    done = run(body, "-p", "a" * 3072, "-n", 2)
    assert done.returncode == 3
    assert (
        "3,073 tokens, 1,025 positions after the front end, but the context has room for 1,024" in done.stderr
    )
    short = run(body, "-p", "a" * 119, "-n", -1, "--ctx", 40, "--json")
    assert short.returncode == 0, short.stderr
    assert len(json.loads(short.stdout)["ids"]) <= 40  # what is generated is bytes
    assert run(body, "-p", "a" * 120, "-n", 2, "--ctx", 40).returncode == 3


def test_verify_reads_sources_as_long_as_the_encoder_does(body: Path) -> None:
    folder, source = body.parent / "model", "가" * 20
    proof = verify(body, folder, texts=["a" * 3071 + "\t" + source], threads=1)
    assert proof.logits.figures is not None
    assert proof.logits.figures.nmse < 1e-4
    with pytest.raises(InputError, match="the source has 3072 tokens, expected at most 3071"):
        verify(body, folder, texts=["a" * 3072 + "\t" + source], threads=1)
    with pytest.raises(InputError, match="the target has 1026 tokens, expected at most 1023"):
        verify(body, folder, texts=["a\t" + "가" * 342], threads=1)
    with pytest.raises(InputError, match=r"windows of 3073 tokens .* context of 3072"):
        verify(body, folder, window=3073, threads=1)
