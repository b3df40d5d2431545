"""A conversion loads what reads a checkpoint in fp32, or chooses formats, only where that is done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kconv.converters.samples import write_sample

LIGHT = {"kconv.verify", "kconv.verify.findings", "kconv.reference", "kconv.runtimes"}
CODE = """
import sys
from kconv.flows.convert import to_gguf
to_gguf({checkpoint!r}, {output!r}, types=["q8_0"], verify="off")
rooms = ("kconv.verify", "kconv.reference", "kconv.runtimes", "kconv.report")
stages = {{"kconv.flows.choose", "kconv.flows.calibrate", "kconv.flows.full_statistics", "kconv.flows.prove"}}
print(*(name for name in sys.modules if name.startswith(rooms) or name in stages))
heavy = {{"torch", "transformers", "scipy", "onnx", "gguf", "sentencepiece", "tokenizers", "tomllib"}}
unused = {{"quant.policy_file", "quant.optimize", "quant.full_statistics", "quant.imatrix_file"}}
unused |= {{"flows.spread", "flows.executor", "core.torch_file"}}
print(*((heavy | {{f"kconv.{{name}}" for name in unused}}) & sys.modules.keys()))
"""


@pytest.mark.parametrize("name", ["42dot", "bert"])
def test_a_conversion_without_proof_loads_nothing_of_the_proof(name: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    write_sample(name, checkpoint)
    code = CODE.format(checkpoint=str(checkpoint), output=str(tmp_path / "model.gguf"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    *_, ours, heavy = done.stdout.splitlines()
    assert set(ours.split()) <= LIGHT
    assert heavy == ""
