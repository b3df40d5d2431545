"""The Python of docs/en/onnx.md for ONNX folders runs as it stands and says what transformers says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_material import kconv
from tokenizers import Tokenizer

from kconv.converters import to_onnx
from kconv.converters.samples import write_sample

pytestmark = pytest.mark.usefixtures("kconv_server")
PAGE = Path(__file__).parent.parent / "docs" / "en" / "onnx.md"

EXAMPLES = re.findall(
    r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
)  # the last needs optimum


def test_the_example_for_onnxruntime_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    code = EXAMPLES[0]
    (folder,) = re.findall(r'folder = "(.*?)"', code)
    (prompt,) = re.findall(r'encode\("(.*?)"\)', code)
    checkpoint = write_sample("42dot", tmp_path / "checkpoint")
    to_onnx(checkpoint, tmp_path / folder, type="f32", verify=False)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {})
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    given = torch.tensor([tokenizer(prompt)["input_ids"]])
    made = model.generate(given, max_new_tokens=32, min_new_tokens=32, do_sample=False, eos_token_id=None)
    right = tokenizer.decode(made[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert capsys.readouterr().out == right + "\n"


@pytest.mark.parametrize("family", ["kebyt5", "gbst-kebyt5"])
def test_the_example_for_encoder_decoders(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """KEByT5 against transformers; GBST, which transformers has not, against ``kconv run``."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, ByT5Tokenizer

    code = EXAMPLES[1]
    (folder,) = re.findall(r'folder = "(.*?)"', code)
    (prompt,) = re.findall(r'encode\("(.*?)"\)', code)
    checkpoint = write_sample(family, tmp_path / "checkpoint")
    to_onnx(checkpoint, tmp_path / folder, type="f32", verify=False)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out
    if family == "kebyt5":
        model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint, dtype=torch.float32)
        tokenizer = ByT5Tokenizer.from_pretrained(checkpoint)
        given = torch.tensor([tokenizer(prompt)["input_ids"]])
        made = model.generate(given, max_new_tokens=64, do_sample=False)[0]
        assert printed == Tokenizer.from_file(f"{folder}/tokenizer.json").decode(made.tolist()) + "\n"
    else:
        done = kconv("run", folder, "-p", prompt, "-n", "64", "--greedy")
        assert done.returncode == 0, done.stderr
        assert printed == re.sub(r"<\d+>", "", done.stdout)


def test_the_licence_counts_among_the_files(tmp_path: Path) -> None:
    checkpoint = write_sample("42dot", tmp_path / "checkpoint")
    (checkpoint / "LICENSE").write_text("Permission is hereby granted")
    made = to_onnx(checkpoint, tmp_path / "onnx", verify=False)
    assert made.files["LICENSE"] == 28
    assert {str(path.relative_to(made.path)) for path in made.path.rglob("*.*")} - set(made.files) <= {
        "kconv.manifest.json"
    }
