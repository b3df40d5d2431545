"""The README's Python for ONNX folders runs as it stands and says what transformers says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kconv.converters import to_onnx
from kconv.converters.samples import write_sample

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_for_onnxruntime_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    section = README.partition("\n## ONNX\n")[2].partition("\n## ")[0]
    code, _ = re.findall(r"```python\n(.*?)```", section, re.DOTALL)  # the other needs optimum
    (folder,) = re.findall(r'folder = "(.*?)"', code)
    (prompt,) = re.findall(r'encode\("(.*?)"\)', code)
    checkpoint = write_sample("42dot", tmp_path / "checkpoint")
    to_onnx(checkpoint, tmp_path / folder, type="f32", verify=False)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    given = torch.tensor([tokenizer(prompt)["input_ids"]])
    made = model.generate(given, max_new_tokens=32, min_new_tokens=32, do_sample=False, eos_token_id=None)
    right = tokenizer.decode(made[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert capsys.readouterr().out == right + "\n"


def test_the_licence_counts_among_the_files(tmp_path: Path) -> None:
    checkpoint = write_sample("42dot", tmp_path / "checkpoint")
    (checkpoint / "LICENSE").write_text("Permission is hereby granted")
    made = to_onnx(checkpoint, tmp_path / "onnx", verify=False)
    assert made.files["LICENSE"] == 28
    assert {str(path.relative_to(made.path)) for path in made.path.rglob("*.*")} - set(made.files) <= {
        "kconv.manifest.json"
    }
