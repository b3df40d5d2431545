"""`kconv inspect` on ONNX folders, and hostile ones, refused before onnxruntime opens anything."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from command_material import kconv
from onnx import StringStringEntryProto, TensorProto, helper

from kconv.converters import to_onnx
from kconv.converters.samples import write_sample
from kconv.core.errors import InputError
from kconv.core.reading import open_checkpoint
from kconv.runtimes.onnx_folder import open_onnx

pytestmark = pytest.mark.usefixtures("kconv_server")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("kebyt5", tmp_path_factory.mktemp("inspect") / "kebyt5")


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    made = to_onnx(checkpoint, checkpoint.with_name("onnx"), type="q4_0", verify=False, threads=1)
    return made.path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def inspect(*words: object) -> subprocess.CompletedProcess[str]:
    return kconv("inspect", *words)


def test_what_is_said_is_what_the_onnx_package_reads(checkpoint: Path, folder: Path) -> None:
    description = json.loads(inspect(folder, "--json").stdout)
    opened = open_checkpoint(checkpoint)
    own = {tensor.name: list(tensor.shape) for tensor in opened.tensors.values()}
    names = {line["name"]: line["shape"] for line in description["tensors"]}
    assert names == {name: shape for name, shape in own.items() if name in names}
    assert all("embed_tokens" in name for name in own.keys() - names.keys())
    assert description["parameters"] == sum(map(math.prod, names.values()))
    assert (description["kind"], description["file_type"], description["license"]) == (
        "onnx",
        "q4_0",
        "apache-2.0",
    )
    assert {role: each["id"] for role, each in description["vocabulary"]["special"].items()}["eos"] == 1
    assert description["bytes"] == sum(
        path.stat().st_size for path in folder.iterdir() if ".onnx" in path.name
    )
    for graph in description["graphs"]:
        model = onnx.load_model(folder / graph["file"], load_external_data=False)
        assert graph["operators"] == Counter(
            f"{node.domain}.{node.op_type}".removeprefix(".") for node in model.graph.node
        )
        assert graph["opsets"]["ai.onnx"] == 23
        for title, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
            assert [each["name"] for each in graph[title]] == [each.name for each in values]


def test_the_text_names_graphs_and_licence(folder: Path) -> None:
    text = inspect(folder).stdout
    assert "licence          apache-2.0" in text
    assert "Graph decoder_with_past_model.onnx (opset ai.onnx 23, com.microsoft 1)" in text
    assert "past_key_values.N.encoder.value" in text


def changed(folder: Path, edit: Callable[[Any], object], name: str = "decoder_model.onnx") -> None:
    model = onnx.load_model(folder / name, load_external_data=False)
    edit(model)
    (folder / name).write_bytes(model.SerializeToString())


def last(model: Any) -> Any:
    return model.graph.initializer[-1]


def elsewhere(key: str, value: str) -> StringStringEntryProto:
    return StringStringEntryProto(key=key, value=value)


def in_function(model: Any) -> None:
    tensor = TensorProto(
        name="t", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL,
        external_data=[elsewhere("location", "../secret")],
    )  # fmt: skip
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    model.functions.append(helper.make_function("own", "f", [], ["y"], [node], model.opset_import[:1]))


def linked(folder: Path) -> None:
    data = folder / "model.onnx_data"
    data.rename(folder.parent / "elsewhere")
    data.symlink_to(folder.parent / "elsewhere")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (linked, "is a link to"),
    "pipe": (
        lambda f: ((f / "model.onnx_data").unlink(), os.mkfifo(f / "model.onnx_data")),
        "not a regular file",
    ),
    "huge shape": (
        lambda f: changed(f, lambda m: last(m).dims.__setitem__(0, 1 << 60)), "expected .* for their type"
    ),
    "huge shape inline": (
        lambda f: changed(f, lambda m: m.graph.initializer[0].dims.extend([1 << 40])),
        "more numbers than the file contains",
    ),
    "negative shape": (lambda f: changed(f, lambda m: last(m).dims.__setitem__(0, -1)), "have the shape"),
    "length that does not fit": (
        lambda f: changed(f, lambda m: setattr(last(m).external_data[2], "value", "4")),
        "expected .* for their type and shape",
    ),
    "two places": (
        lambda f: changed(f, lambda m: last(m).external_data.append(elsewhere("location", "config.json"))),
        "expected two whole numbers",
    ),
    "place without the flag": (
        lambda f: changed(f, lambda m: (last(m).ClearField("data_location"),
                                        setattr(last(m).external_data[0], "value", "../x"))),
        "expected the name of a file",
    ),
    "in a function": (lambda f: changed(f, in_function), "expected the name of a file"),
    "operator of a library": (
        lambda f: changed(f, lambda m: setattr(m.graph.node[3], "domain", "evil.ops")), "unknown operator"
    ),
    "one name twice": (
        lambda f: changed(f, lambda m: m.graph.initializer.append(last(m))), "with the same name"
    ),
    "cut off": (
        lambda f: (f / "decoder_model.onnx").write_bytes((f / "decoder_model.onnx").read_bytes()[:5000]),
        "is not an ONNX file",
    ),
    "empty": (lambda f: (f / "decoder_model.onnx").write_bytes(b""), "contains no graph"),
    "Git LFS": (
        lambda f: (f / "decoder_model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS pointer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_a_sentence(name: str, copy: Path) -> None:
    damage, message = HOSTILE[name]
    damage(copy)
    with pytest.raises(InputError, match=message):
        open_onnx(copy, runs=False)
    done = inspect(copy)
    assert (done.returncode, "Traceback" in done.stderr) == (3, False)


def test_links_as_in_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "revision"
    snapshot.mkdir(parents=True)
    shutil.copytree(folder, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    assert open_onnx(snapshot).type == "q4_0"


def test_a_checkpoint_with_onnx_files_beside_it_stays_a_checkpoint(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    both = Path(shutil.copytree(checkpoint, tmp_path / "both"))
    shutil.copytree(folder, both / "onnx")
    assert json.loads(inspect(both, "--json").stdout)["kind"] == "checkpoint"


@pytest.mark.parametrize("command", [["inspect"], ["run", "-p", "가"], ["verify", "--against", "."]])
def test_a_graph_in_place_of_its_folder_is_told_apart(command: list[str], folder: Path) -> None:
    done = kconv(*command, folder / "encoder_model.onnx")
    assert done.returncode == 3
    assert "is an ONNX graph" in done.stderr
    assert "take the whole folder" in done.stderr
