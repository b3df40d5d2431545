"""What `verify` says of a folder kconv made: weights by their names, and files that are not as written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kconv.converters import to_onnx
from kconv.converters.samples import write_sample
from kconv.core.errors import InputError
from kconv.verify import Proof, verify

DECODER = "decoder_with_past_model.onnx"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of KEByT5's kind and its folder."""
    place = tmp_path_factory.mktemp("weights")
    checkpoint = write_sample("kebyt5", place / "kebyt5")
    return checkpoint, to_onnx(checkpoint, place / "onnx", type="q8_0", verify=False, threads=1).path


@pytest.fixture
def copy(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Both, to damage."""
    return shutil.copytree(made[0], tmp_path / "kebyt5"), shutil.copytree(made[1], tmp_path / "onnx")


def proven(pair: tuple[Path, Path], **options: Any) -> Proof:
    return verify(pair[1], pair[0], tokens=40, threads=1, **options)


def edited(path: Path, edit: Callable[[Any], object]) -> None:
    model = onnx.load_model(path, load_external_data=False)
    edit(model.graph)
    path.write_bytes(model.SerializeToString())


def named(graph: Any, name: str) -> Any:
    return next(each for each in graph.initializer if each.name == name)


def test_an_untouched_folder_passes_with_its_hashes(made: tuple[Path, Path]) -> None:
    proof = proven(made)
    assert proof.verdict == "passed"
    digests = proof.provenance["artifact"]["sha256"]
    assert {"model.onnx_data", DECODER, "config.json", "tokenizer.json"} <= digests.keys()
    assert {"pytorch_model.bin"} <= {each["name"] for each in proof.provenance["checkpoint"]["files"]}


def test_a_missing_tensor_is_named(copy: tuple[Path, Path]) -> None:
    name = "decoder.block.1.layer.2.DenseReluDense.wo.weight"

    def rename(graph: Any) -> None:
        for each in graph.initializer:
            each.name = each.name.replace(name, "wo")
        for node in graph.node:
            node.input[:] = [each.replace(name, "wo") for each in node.input]

    edited(copy[1] / DECODER, rename)
    part = proven(copy, ignore_manifest=True).weights
    assert part.verdict == "failed"
    missing, extra = part.findings
    assert (missing.where, missing.found) == (name, "missing")
    assert extra.message == f"{DECODER} has a tensor wo that the checkpoint does not have there"


def test_a_damaged_tensor_is_named(copy: tuple[Path, Path]) -> None:
    model = onnx.load_model(copy[1] / DECODER, load_external_data=False)
    name = "decoder.block.0.layer.0.SelfAttention.q.weight"
    entries = {e.key: e.value for e in named(model.graph, f"{name}.blocks").external_data}
    data = np.memmap(copy[1] / "model.onnx_data", "u1", "r+", int(entries["offset"]), (64,))
    data += 17
    data.flush()
    proof = proven(copy)
    assert [finding.where for finding in proof.weights.findings] == [name]
    assert proof.metadata.findings == ()  # the manifest holds no hash of weights


def test_a_tensor_of_another_shape_is_named(copy: tuple[Path, Path]) -> None:
    name = "encoder.final_layer_norm.weight"

    def halve(graph: Any) -> None:
        tensor = named(graph, name)
        tensor.dims[0] //= 2
        next(each for each in tensor.external_data if each.key == "length").value = str(4 * tensor.dims[0])

    edited(copy[1] / "encoder_model.onnx", halve)
    assert proven(copy, ignore_manifest=True).weights.findings[0].where == name


def test_changed_and_missing_files_of_the_folder_only_warn(copy: tuple[Path, Path]) -> None:
    (copy[1] / "special_tokens_map.json").unlink()
    (copy[1] / "tokenizer_config.json").write_bytes(b"{}")
    text = (copy[1] / "config.json").read_bytes()
    (copy[1] / "config.json").write_bytes(text.replace(b"\n  ", b"\n\t ", 1))
    with (copy[1] / "model.onnx_data").open("ab") as file:
        file.write(b"0")
    findings = {finding.where: finding for finding in proven(copy).metadata.findings}
    assert "has other contents than in the manifest" in findings["config.json"].message
    assert "has another size than in the manifest" in findings["model.onnx_data"].message
    assert "not in the folder" in findings["special_tokens_map.json"].message
    assert findings["tokenizer_config.json"].found == "2 bytes"
    assert not any(finding.grave for finding in findings.values())
    assert proven(copy, ignore_manifest=True).metadata.verdict == "passed"


def test_a_checkpoint_of_another_kind_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_sample("42dot", tmp_path / "42dot")
    with pytest.raises(InputError, match=r"onnx has an encoder, .*42dot \(Llama\) has no encoder"):
        verify(made[1], other, tokens=40, ignore_manifest=True)


def test_a_checkpoint_that_has_changed_is_refused_unless_asked_for(copy: tuple[Path, Path]) -> None:
    with (copy[0] / "tokenizer_config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match=r"no longer, the checkpoint that was converted.*tokenizer_config"):
        proven(copy)
    assert proven(copy, ignore_manifest=True).verdict == "passed"


@pytest.mark.parametrize(
    "files", ["", '[{"name": "../x", "bytes": 1, "sha256": "' + 64 * "0" + '"}]', '{"model.onnx": 3}']
)
def test_a_manifest_of_nonsense_is_refused(copy: tuple[Path, Path], files: str) -> None:
    text = (copy[1] / "kconv.manifest.json").read_text(encoding="utf-8")
    start = text.index('"files": [')
    end = text.index("]", start) + 1
    (copy[1] / "kconv.manifest.json").write_text(text[:start] + f'"files": {files or 3}' + text[end:])
    with pytest.raises(InputError, match=r"output\.files"):
        proven(copy)
