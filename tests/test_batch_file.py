"""The list ``kconv batch`` takes: mistakes are named with their line before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_material import kconv

from kconv.cli.batch_file import JobsFile
from kconv.cli.batch_steps import steps_of
from kconv.core.errors import UsageError
from kconv.flows.batch_fingerprint import options_record
from kconv.flows.batch_jobs import shard_of
from kconv.quant.wish import Wanted

pytestmark = pytest.mark.usefixtures("kconv_server")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[[jobs]]\nsource = 'a'\ntypes = [\n", "jobs.toml is not valid TOML: ", "--help"),
        ("[[jobs]]\nsource = 'a'\n[job]\n", "unknown table 'job'", "did you mean jobs?"),
        ("", "has no jobs", "[[jobs]]"),
        ("[[jobs]]\ntypes = 'q8_0'\n", "line 1 (job 1) has no source", "source ="),
        ("[[jobs]]\nsource = 'a'\n\n[[jobs]]\nsource = 'b'\nchat-templat = 1", "line 6 (job 2): unknown key",
         "did you mean chat-template?"),
        ("[defaults]\nthread = 2\n[[jobs]]\nsource = 'a'", "line 2 ([defaults]): unknown key 'thread'",
         "did you mean threads?"),
        ("[[jobs]]\nsource = 'a'\nthreads = 0", "line 3 (job 1): Invalid value for '--threads'", "to-gguf"),
        ("[defaults]\nverify = 'no'\n[[jobs]]\nsource = 'a'", "line 2 ([defaults]): Invalid", "to-gguf"),
        ("[[jobs]]\nsource = 'a'\npure = 'yes'", "line 3 (job 1): pure is 'yes', expected true or false", ""),
        ("[[jobs]]\nsource = 'a'\nforce = true", "force is no key of a job", "pass --force to kconv batch"),
        ("[[jobs]]\nsource = 'a'\nlayout = 'optimum'", "layout is an option of kconv to-onnx", "[defaults]"),
        ("[[jobs]]\nsource = 'a'\nformats = ['gguf', 'onx']", "unknown format 'onx'", "gguf, onnx"),
        ("[[jobs]]\nsource = 'a'\ntypes = ['q8_0', 'q4_l']", "line 3 (job 1): unknown type 'q4_l'",
         "did you mean"),
        ("[[jobs]]\nsource = 'a'\nformats = ['gguf', 'onnx']\ntypes = ['q4_k_m']", "'q4_k_m' for ONNX",
         "types.onnx"),
        ("[[jobs]]\nsource = 'a'\n[[jobs]]\nsource = 'b/a'\ntypes = ['Q4_K', 'auto']", "would both write",
         "output of its own"),
        ("[[jobs]]\nsource = 'a'\noutput = 'x.gguf'\ntypes = ['q8_0', 'f16']", "(job 1): -o ", "a folder"),
        ("[[jobs]]\nsource = 'a'\nverify = 'full'\nno_verify = true", "cannot be combined", "leave one"),
    ],
)  # fmt: skip
def test_mistakes_in_the_list_are_named_before_anything_is_done(
    text: str, message: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / "jobs.toml").write_text(text, "utf-8")
    done = kconv("batch", tmp_path / "jobs.toml", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert hint in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.toml"]


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_list_on_the_page_of_the_manual_is_one(language: str, tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / language / "batch.md").read_text("utf-8")
    text = page.partition("```toml\n")[2].partition("```")[0]
    steps = steps_of(JobsFile(text, "jobs.toml", tmp_path))
    assert [(step.job, step.format, step.types) for step in steps] == [
        (1, "gguf", ("q8_0", "q4_k_m")),
        (2, "gguf", ("q8_0", "q4_k_m")),
        (3, "gguf", ("q4_k_m", "iq3_m")),
        (4, "gguf", ("q8_0",)),
        (4, "onnx", ("f32",)),
        (4, "onnx", ("q4_0",)),
    ]
    assert steps[1].source == "kakaobrain/kogpt@KoGPT6B-ryan1.5b-float16"
    assert steps[2].source == str(tmp_path / "eagle-3b-preview")
    assert steps[2].options["calibrate"] == (tmp_path / "korean.txt",)
    assert steps[0].options["modelfile"]


def test_a_job_comes_before_defaults_and_a_source_is_in_one_shard(tmp_path: Path) -> None:
    text = """
[defaults]
no-verify = true
imatrix = "kept.gguf"
types = ["q4_k_m"]
revision = "v1"
[[jobs]]
source = "org/name"
verify = "full"
calibrate = "a.txt"
[[jobs]]
source = "hf://org/other@v2"
revision = "v2"
threads = 3
[[jobs]]
source = "https://huggingface.co/org/name/tree/v1"
output = "elsewhere"
"""
    first, second, third = steps_of(JobsFile(text, "jobs.toml", tmp_path), "--no-verify")
    assert first.options["verify"] == "off"
    assert (first.options["imatrix"], first.options["calibrate"]) == (None, (tmp_path / "a.txt",))
    assert [each.source for each in (first, second, third)] == ["org/name@v1", "org/other@v2", "org/name@v1"]
    assert (second.threads, second.options["imatrix"]) == (3, tmp_path / "kept.gguf")
    assert third.output == tmp_path / "elsewhere"
    assert [step.job for step in shard_of([first, second, third], 1, 2)] == [1, 3]  # one source, one shard
    assert [step.job for step in shard_of([first, second, third], 2, 2)] == [2]


def test_files_of_chosen_formats_are_outputs_of_a_job(tmp_path: Path) -> None:
    text = """
[defaults]
calibrate = "a.txt"
[[jobs]]
source = "one"
target-size = ["3M", "4.5 bpw"]
target_kl = 0.1
menu = "q4_K,q8_0"
[[jobs]]
source = "two"
types = ["q8_0"]
policy = "kept.policy.toml"
optimize = true
"""
    first, second = steps_of(JobsFile(text, "jobs.toml", tmp_path))
    assert first.types == ("3M", "4.5bpw", "KL0.1")
    assert first.gguf_options().types == ()
    assert first.gguf_options().chosen == Wanted(("3M", "4.5 bpw"), (0.1,), ("q4_K", "q8_0"))
    left = first.with_types(["KL0.1"])
    assert left.gguf_options().chosen == Wanted((), (0.1,), ("q4_K", "q8_0"))
    assert options_record(left) == options_record(first)
    assert second.types == ("q8_0", "kept")
    assert second.gguf_options().chosen == Wanted(policy=str(tmp_path / "kept.policy.toml"))
    assert second.gguf_options().optimize
    alone = second.with_types(["q8_0"])
    assert alone.gguf_options().chosen == Wanted()
    assert options_record(alone) == options_record(second)
    assert len({*first.keys, *second.keys}) == 5


@pytest.mark.parametrize("key", ["target-size = '3 gallons'", "target_kl = -1.0", "menu = 'q4_K'"])
def test_targets_that_cannot_be_are_told_with_their_line(key: str, tmp_path: Path) -> None:
    text = f"[[jobs]]\nsource = 'a'\ncalibrate = 'a.txt'\n{key}\n"
    with pytest.raises(UsageError, match="jobs"):
        steps_of(JobsFile(text, "jobs.toml", tmp_path))
