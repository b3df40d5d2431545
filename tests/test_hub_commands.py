"""Commands given a name of the Hub: as for a folder, to the byte, and looked at before much is fetched."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_material import kconv
from hub_material import check_blobs, sent_to
from hub_server import TOKEN, Hub, hub_file

from kconv.converters.results import Options
from kconv.converters.samples import write_sample
from kconv.core.errors import EnvironmentProblem, KconvError
from kconv.flows.convert import to_gguf
from kconv.flows.plan import plan
from kconv.hub.source import resolve

pytestmark = pytest.mark.usefixtures("kconv_server")
NAME = "kconv-tests/llama"
SNAPSHOT = "import sys, huggingface_hub; print(huggingface_hub.snapshot_download(sys.argv[1]))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with weights in two files."""
    return write_sample("llama-3-ko", tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Hub]:
    """A Hub that has it."""
    with Hub() as hub:
        hub.add(NAME, folder)
        yield hub


def run(hub: Hub, home: Path, *words: object, **more: str) -> subprocess.CompletedProcess[Any]:
    """A command of kconv that asks this Hub."""
    environment = {**os.environ, **hub.environment(home), **more}
    return kconv(*words, env=environment, cwd=home)


def asked(hub: Hub) -> int:
    """Requests; one that was sent on from one place to another is one."""
    return len(hub.asked("^(GET|HEAD) /(api/models/|[^/]+/[^/]+/resolve/)"))


@pytest.mark.parametrize("name", ["llama-3-ko", "kebyt5", "umt5"])
def test_a_plan_is_that_of_the_folder_from_few_requests(tmp_path: Path, name: str) -> None:
    source = write_sample(name, tmp_path / name)
    shards = len([*source.glob("*.safetensors"), *source.glob("pytorch_model*.bin")])
    with Hub() as hub, sent_to(hub, tmp_path / "home"):
        hub.add(NAME, source)
        planned = plan(NAME, tmp_path, options=Options(("q8_0",)))
        assert asked(hub) <= 10 + 2 * shards
        weights = hub.repositories[NAME].commits[resolve(NAME).commit]
        for path, file in weights.items():
            if path.endswith((".safetensors", ".bin")):
                assert all(each.range is not None for each in hub.asked(f"/cdn/{file.sha256}"))
        hub.heal()
        done = to_gguf(NAME, tmp_path, types=["q8_0"], verify="off")
        sizes = [each.path.stat().st_size for each in done.outputs]
    assert [each.bytes for each in planned.types] == sizes
    assert (planned.arch, planned.parameters) == (done.arch, done.parameters)


def test_a_header_longer_than_the_first_range(tmp_path: Path, folder: Path) -> None:
    """One more request for that file, for what was missing."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    shard = copy / "model-00001-of-00002.safetensors"
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length] + b" " * 300_000
    shard.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    with Hub() as hub, sent_to(hub, tmp_path / "home"):
        hub.add(NAME, copy)
        planned = plan(NAME, tmp_path, options=Options(("q8_0",)))
        assert asked(hub) <= 10 + 2 + 3
        assert len(hub.asked(f"/resolve/.*{shard.name}")) == 2
    expected = plan(folder, tmp_path, options=Options(("q8_0",)))
    assert planned.types[0].formats == expected.types[0].formats
    assert planned.parameters == expected.parameters


def test_commands_take_names(hub: Hub, folder: Path, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "to-gguf", f"{hub.url}/{NAME}/tree/main", "-q", "q8_0", "--no-verify", "--json")
    assert done.returncode == 0, done.stderr
    commit = next(iter(hub.repositories[NAME].commits))
    source = json.loads((tmp_path / "llama-Q8_0.gguf.manifest.json").read_text())["source"]
    assert (source["repository"], source["revision"]) == (NAME, commit)
    sums = {each["name"]: each["sha256"] for each in source["files"]}
    assert sums == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sums}
    shown = json.loads(run(hub, tmp_path, "inspect", "llama-Q8_0.gguf", "--json").stdout)["metadata"]
    assert shown["general.source.repo_url"] == f"https://huggingface.co/{NAME}"
    assert shown["general.source.url"] == f"https://huggingface.co/{NAME}/tree/{commit}"
    hub.heal()
    described = json.loads(run(hub, tmp_path, "inspect", f"hf://{NAME}", "--json").stdout)
    assert described["path"] == f"{NAME}@{commit}"
    here = json.loads(run(hub, tmp_path, "inspect", folder, "--json").stdout)
    assert described["tensors"] == here["tensors"]
    assert described["bytes"] == here["bytes"]
    assert not hub.asked("/cdn/")  # it is in the cache


def test_types_of_a_name_are_compared(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "compare", NAME, "-q", "q8_0,q4_0", "--tokens", "64", "--json")
    assert done.returncode == 0, done.stderr
    assert [each["type"] for each in json.loads(done.stdout)["types"]] == ["q8_0", "q4_0"]


def test_a_name_that_cannot_be_compared_costs_no_weights(tmp_path: Path) -> None:
    with Hub() as hub:
        hub.add(NAME, write_sample("bert", tmp_path / "bert"))
        done = run(hub, tmp_path, "compare", NAME, "-q", "q8_0,q4_0")
        assert done.returncode == 2
        assert "write no text" in done.stderr
        assert all(each.range is not None for each in hub.asked("/cdn/"))


@pytest.mark.parametrize("command", ["to-gguf", "to-onnx"])
def test_what_can_be_refused_is_refused_before_it_is_fetched(hub: Hub, tmp_path: Path, command: str) -> None:
    place = tmp_path / ("llama-Q8_0.gguf" if command == "to-gguf" else "llama-Q8_0-ONNX")
    place.write_text("mine")
    done = run(hub, tmp_path, command, NAME, "-q", "q8_0")
    assert done.returncode == 3
    assert "already exists" in done.stderr or "is a file" in done.stderr
    assert all(each.range is not None for each in hub.asked("/cdn/"))
    assert place.read_text() == "mine"


def test_a_revision_of_a_folder_makes_no_sense(hub: Hub, folder: Path, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "plan", folder, "--revision", "v1")
    assert done.returncode == 2
    assert "--revision is for repositories of the Hub" in done.stderr
    done = run(hub, tmp_path, "plan", NAME, "--revision", "v9", "--json")
    assert done.returncode == 3
    assert "has no revision 'v9'; there are: main" in json.loads(done.stdout)["error"]["message"]
    assert not (tmp_path / "hub").exists() or not list((tmp_path / "hub").rglob("*.safetensors"))


@pytest.mark.parametrize("fault", [("status", {"code": 503}), ("drop", {}), ("corrupt", {})])
def test_no_file_is_made_of_what_did_not_come(
    hub: Hub, tmp_path: Path, fault: tuple[str, Mapping[str, Any]]
) -> None:
    hub.fail("GET /cdn/", fault[0], **fault[1])
    with sent_to(hub, tmp_path / "home", TOKEN) as cache:
        with pytest.raises(KconvError) as refused:
            to_gguf(NAME, tmp_path / "out", types=["q8_0"], verify="off")
        check_blobs(cache)
    assert isinstance(refused.value, EnvironmentProblem) or fault[0] == "corrupt"
    assert not list(tmp_path.glob("out/*"))
    assert TOKEN not in str(refused.value)


def test_one_flipped_bit_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    """The length is right and the name of the blob, too: the conversion hashes what it reads."""
    with sent_to(hub, tmp_path / "home"):
        to_gguf(NAME, tmp_path / "first", types=["q8_0"], verify="off")
        commit = resolve(NAME).commit
        snapshot = tmp_path / "home" / "hub" / "models--kconv-tests--llama" / "snapshots" / commit
        blob = (snapshot / "model-00002-of-00002.safetensors").resolve()
        data = bytearray(blob.read_bytes())
        data[-1] ^= 1
        blob.write_bytes(data)
        for source in (NAME, snapshot):
            with pytest.raises(EnvironmentProblem, match="is damaged") as refused:
                to_gguf(source, tmp_path / "second", types=["q8_0"], verify="off")
            assert blob.name in str(refused.value)
            assert hashlib.sha256(data).hexdigest() in str(refused.value)
            assert str(snapshot / "model-00002-of-00002.safetensors") in str(refused.value)
    assert not list(tmp_path.glob("second/*"))


def test_from_the_shared_store_of_xet_as_from_a_folder(tmp_path: Path) -> None:
    """huggingface_hub fetched it: two links, the second into a store that names contents by another hash."""
    source = write_sample("42dot", tmp_path / "42dot")
    with Hub() as hub:
        hub.add("kconv-tests/42dot", source)
        hub.offer_xet(tmp_path / "store")
        environment = {**os.environ, **hub.environment(tmp_path)}
        words = [sys.executable, "-c", SNAPSHOT, "kconv-tests/42dot"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        snapshot = Path(done.stdout.strip())
        stored = next(path for path in snapshot.glob("*.safetensors")).resolve()
        assert stored.parent.parent == tmp_path / "hub" / "blobs"
        for place in (snapshot, source):
            for command, words in (
                ("to-gguf", ["-o", f"{place.name}.gguf"]),
                ("to-onnx", ["-o", f"{place.name}-o"]),
            ):
                made = run(hub, tmp_path, command, place, "-q", "q8_0", "--no-verify", *words)
                assert made.returncode == 0, made.stderr
        here, there = (read_tensors(tmp_path / f"{place.name}.gguf") for place in (source, snapshot))
        assert here == there
        here_folder, there_folder = (tmp_path / f"{place.name}-o" for place in (source, snapshot))
        names = {path.name for path in here_folder.iterdir()} - {"kconv.manifest.json", "README.md"}
        assert {path.name for path in there_folder.iterdir()} >= names
        for name in names:
            assert (here_folder / name).read_bytes() == (there_folder / name).read_bytes(), name
        check_onnx_on_the_hub(hub, tmp_path, here_folder, source)


def check_onnx_on_the_hub(hub: Hub, home: Path, folder: Path, source: Path) -> None:
    """A folder of ONNX files whose weights lie in the shared store is run, proven and described."""
    assert hub_file(folder / "model.onnx_data", "model.onnx_data").large
    hub.add("kconv-tests/42dot-ONNX", folder)
    hub.offer_xet(home / "store2")
    environment = {**os.environ, **hub.environment(home)}
    words = [sys.executable, "-c", SNAPSHOT, "kconv-tests/42dot-ONNX"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    snapshot = Path(done.stdout.strip())
    assert (snapshot / "model.onnx_data").resolve().parent.parent == home / "hub" / "blobs"
    hub.heal()
    for place in (snapshot, "kconv-tests/42dot-ONNX"):
        ran = run(hub, home, "run", place, "-p", "서울", "-n", "2", "--json")
        assert ran.returncode == 0, ran.stderr
        described = run(hub, home, "inspect", place, "--json")
        assert json.loads(described.stdout)["kind"] == "onnx", described.stderr
    proof = run(
        hub, home, "verify", "kconv-tests/42dot-ONNX", "--against", source, "--tokens", "40", "--json"
    )
    assert json.loads(proof.stdout)["verdict"] in ("passed", "warned"), proof.stdout
    assert not hub.asked("/resolve/")


def read_tensors(path: Path) -> dict[str, bytes]:
    """The bytes of each tensor of a GGUF file."""
    import gguf

    return {each.name: each.data.tobytes() for each in gguf.GGUFReader(path).tensors}


def test_ctrl_c_keeps_what_has_come(hub: Hub, tmp_path: Path) -> None:
    hub.fail("GET /cdn/", "trickle", seconds=0.05)
    done = subprocess.Popen(
        [sys.executable, "-m", "kconv", "to-gguf", NAME, "-q", "q8_0", "-o", str(tmp_path / "o.gguf")],
        env={**os.environ, **hub.environment(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60

    def come() -> list[int]:
        return [path.stat().st_size for path in tmp_path.rglob("*.kconv.incomplete")]

    while max(come(), default=0) < 100_000 and time.monotonic() < until:
        time.sleep(0.02)
    done.send_signal(signal.SIGINT)
    _, said = done.communicate(timeout=20)
    assert done.returncode == 130, said
    assert said.strip().endswith("kconv: interrupted")
    assert max(come()) >= 100_000
    assert not list(tmp_path.glob("*.gguf"))


def test_a_repository_without_a_model_at_its_top(tmp_path: Path, folder: Path) -> None:
    below = tmp_path / "repository"
    for name in ("first", "second"):
        (below / name).mkdir(parents=True)
        for path in folder.iterdir():
            (below / name / path.name).symlink_to(path)
    (below / "README.md").write_text("two models\n")
    with Hub() as hub, sent_to(hub, tmp_path / "home"):
        hub.add(NAME, below)
        with pytest.raises(
            KconvError, match="has no model at its top, but folders in it have: first, second"
        ):
            plan(NAME, tmp_path)
        assert not hub.asked("/cdn/")
