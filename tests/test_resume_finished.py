"""--resume of a conversion that is finished: nothing is written, and the same command ends well."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command_material import kconv
from hub_server import Hub

import kconv as library
from kconv.converters.samples import write_sample
from kconv.core.errors import AlreadyFinished, OutputExists
from kconv.quant.formats import FORMATS
from kconv.quant.policy_file import Choice

pytestmark = pytest.mark.usefixtures("kconv_server")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("finished") / "checkpoint")


@pytest.fixture(scope="module")
def made(source: Path) -> Path:
    """Two files, proven."""
    folder = source.parent / "made"
    assert kconv("to-gguf", source, "-q", "q8_0", "-q", "q4_0", "-o", folder).returncode == 0
    return folder


@pytest.fixture
def dist(made: Path, tmp_path: Path) -> Path:
    """A copy to do harm to, with its times."""
    return Path(shutil.copytree(made, tmp_path / "dist"))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.*")}


def again(source: Path, dist: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return kconv("to-gguf", source, "-q", "q8_0", "-q", "q4_0", "--resume", "-o", dist, *more)


def test_the_same_command_says_so_and_ends_well(source: Path, dist: Path) -> None:
    before = state(dist)
    done = again(source, dist)
    assert (done.returncode, done.stdout) == (0, "")
    assert "finished already by this command; nothing was written" in done.stderr
    assert "error" not in done.stderr
    one = kconv("to-gguf", source, "-q", "q4_0", "--resume", "--json", "-o", dist)  # of the two
    paths = [str(dist / "checkpoint-Q4_0.gguf")]
    assert json.loads(one.stdout) == {"finished": paths, "exit_code": 0}
    assert again(source, dist, "--no-verify").returncode == 0  # it asks for less
    assert state(dist) == before


def flip(path: Path) -> None:
    """Another bit, the time of change as it was."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def manifest(path: Path) -> Path:
    return path.with_name(f"{path.name}.manifest.json")


def rewritten(path: Path, key: str, value: object) -> None:
    content = json.loads(manifest(path).read_text("utf-8"))
    manifest(path).write_text(json.dumps({**content, key: value}), "utf-8")


HARM: dict[str, Callable[[Path], object]] = {
    "a bit": flip,
    "its manifest": lambda path: manifest(path).unlink(),
    "its proof": lambda path: rewritten(path, "proof", {"verdict": "not run"}),
    "versions": lambda path: rewritten(path, "versions", {"kconv": "0.0.9"}),
}


@pytest.mark.parametrize("what", HARM)
def test_files_that_are_others_are_refused_as_before(what: str, source: Path, dist: Path) -> None:
    HARM[what](dist / "checkpoint-Q8_0.gguf")
    before = state(dist)
    refused = again(source, dist)
    assert refused.returncode == 3, refused.stderr
    assert "checkpoint-Q8_0.gguf already exists" in refused.stderr
    assert state(dist) == before


@pytest.mark.parametrize("option", [("--pure",), ("--verify", "full"), ("--chat-template", "42dot")])
def test_other_options_are_refused_as_before(option: tuple[str, ...], source: Path, made: Path) -> None:
    refused = again(source, made, *option)
    assert refused.returncode == 3
    assert "already exists" in refused.stderr


def test_another_checkpoint_is_refused_as_before(source: Path, made: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    assert again(other, made).returncode == 0  # a copy is the same
    flip(other / "model.safetensors")
    refused = again(other, made)
    assert refused.returncode == 3
    assert "already exists" in refused.stderr


def test_quantize_onnx_and_parts(source: Path, made: Path, tmp_path: Path) -> None:
    words = ["quantize", made / "checkpoint-Q8_0.gguf", "--allow-requantize", "-q", "q4_0", "-o", tmp_path]
    assert kconv(*words).returncode == 0
    assert kconv(*words, "--resume").returncode == 0
    unproven = kconv(*words, "--resume", "--against", source)
    assert unproven.returncode == 3
    assert "kconv verify" in unproven.stderr
    words = ["to-onnx", source, "-q", "q8_0", "--no-verify", "-o", tmp_path / "onnx"]
    assert kconv(*words).returncode == 0
    before = state(tmp_path / "onnx")
    assert kconv(*words, "--resume").returncode == 0
    assert state(tmp_path / "onnx") == before
    assert kconv(*words, "--resume", "--accuracy-level", "0").returncode == 3
    words = [
        "to-gguf",
        source,
        "-q",
        "f32",
        "--no-verify",
        "--split-max-size",
        "4M",
        "-o",
        tmp_path / "parts",
    ]
    assert kconv(*words).returncode == 0
    assert kconv(*words, "--resume").returncode == 0


def test_from_python_it_can_be_told_from_the_other_refusals(source: Path, made: Path) -> None:
    with pytest.raises(AlreadyFinished) as finished:
        library.to_gguf(source, made, types=["q4_0"], resume=True)
    assert finished.value.paths == (made / "checkpoint-Q4_0.gguf",)
    with pytest.raises(OutputExists) as exists:
        library.to_gguf(source, made, types=["q4_0"])
    assert not isinstance(exists.value, AlreadyFinished)


def test_another_policy_in_the_same_file_is_another_command(source: Path, tmp_path: Path) -> None:
    """Manifests have the policy's name, not what it says."""
    policy, out = tmp_path / "own.policy.toml", tmp_path / "out"
    for name in ("q8_0", "q4_0"):
        formats = {f"blk.{layer}.attn_q.weight": FORMATS[name] for layer in range(2)}
        policy.write_text(Choice("own", "llama", formats, 0.01).to_toml(), "utf-8")
        if name == "q8_0":
            library.to_gguf(source, out, types=[], policy=policy, verify=False)
    with pytest.raises(OutputExists) as exists:
        library.to_gguf(source, out, types=[], policy=policy, verify=False, resume=True)
    assert not isinstance(exists.value, AlreadyFinished)


def test_of_a_repository_of_the_hub_no_weights_are_fetched_again(source: Path, tmp_path: Path) -> None:
    name = "kconv-tests/model"
    words = ("to-gguf", name, "-q", "q8_0", "--no-verify", "-o", tmp_path / "dist")
    with Hub() as hub:
        hub.add(name, source)
        first, again = ({**os.environ, **hub.environment(tmp_path / home)} for home in ("first", "again"))
        assert kconv(*words, env=first, cwd=tmp_path).returncode == 0
        hub.heal()
        resumed = kconv(*words, "--resume", env=again, cwd=tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        assert "finished already" in resumed.stderr
        assert not list((tmp_path / "again").rglob("*.safetensors"))
        other = Path(shutil.copytree(source, tmp_path / "other"))
        (other / "README.md").write_text("another commit", "utf-8")
        hub.add(name, other)
        refused = kconv(*words, "--resume", env=again, cwd=tmp_path)
        assert refused.returncode == 3
        assert "already exists" in refused.stderr
