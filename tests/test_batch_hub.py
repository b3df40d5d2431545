"""``kconv batch`` with checkpoints of the Hub: what it fetches it takes away again, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from command_material import until
from hub_server import Hub

from kconv.converters.samples.synthetic import write_eagle, write_llama_3_ko


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_eagle(folder / "one", vocab_size=600)
    write_llama_3_ko(folder / "two", base_vocab=500)
    return folder


@pytest.fixture
def hub(models: Path) -> Iterator[Hub]:
    with Hub() as served:
        served.add("korean/one", models / "one")
        served.add("korean/two", models / "two")
        yield served


def batch(hub: Hub, folder: Path, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    if text is not None:
        defaults = "[defaults]\noutput = 'dist'\ntypes = ['q8_0']\nno-verify = true\n"
        (folder / "jobs.toml").write_text(defaults + text, "utf-8")
    return subprocess.run(
        [sys.executable, "-m", "kconv", "batch", "jobs.toml", *words],
        cwd=folder,
        env=environment(hub, folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def environment(hub: Hub, folder: Path) -> Mapping[str, str]:
    return {**os.environ, **hub.environment(folder / "home")}


def cached(folder: Path) -> set[str]:
    """Repositories in the cache, and files of contents."""
    place = folder / "home" / "hub"
    contents = {path.name for path in place.glob("models--*/blobs/*")}
    return contents | {path.name for path in place.glob("models--*")}


def test_each_source_is_fetched_once_and_deleted_in_the_end(hub: Hub, models: Path, tmp_path: Path) -> None:
    text = f"""
[[jobs]]
source = "korean/one"
types.gguf = ["q8_0", "q4_0"]
types.onnx = ["q4_0"]
formats = ["gguf", "onnx"]
[[jobs]]
source = "hf://korean/two@main"
[[jobs]]
source = '{models / "two"}'
output = "here"
"""
    done = batch(hub, tmp_path, text=text)
    assert done.returncode == 0, done.stderr
    assert "5 outputs: 5 done" in done.stdout
    assert cached(tmp_path) == set()
    for name in ("one-Q8_0.gguf", "one-Q4_0.gguf", "two-Q8_0.gguf"):
        manifest = json.loads((tmp_path / "dist" / f"{name}.manifest.json").read_text("utf-8"))
        assert manifest["source"]["repository"] == f"korean/{name[:3]}"
        assert manifest["source"]["revision"] == hub.repositories[f"korean/{name[:3]}"].refs["main"]
    (onnx,) = tmp_path.glob("dist/one-Q4_0-ONNX/kconv.manifest.json")
    assert json.loads(onnx.read_text("utf-8"))["source"]["repository"] == "korean/one"
    fetched = [each.path for each in hub.asked("GET /cdn/") if each.range in (None, "bytes=0-")]
    assert len(fetched) == len(set(fetched))
    here, there = tmp_path / "here" / "two-Q8_0.gguf", tmp_path / "dist" / "two-Q8_0.gguf"
    assert here.stat().st_size != there.stat().st_size or here.read_bytes() != there.read_bytes()

    hub.heal()
    again = batch(hub, tmp_path)
    assert "5 outputs: 5 done before" in again.stdout, again.stderr
    assert not hub.asked("resolve|cdn")
    assert len(hub.requests) <= 6  # a conversion asks for the commit; lists of files went with the rest
    assert cached(tmp_path) == set()

    shutil.copytree(models / "two", tmp_path / "newer")
    card = tmp_path / "newer" / "README.md"
    card.write_text(card.read_text("utf-8") + "\nmore\n", "utf-8")
    hub.add("korean/two", tmp_path / "newer")
    third = batch(hub, tmp_path)
    assert "the source's commit was" in third.stderr
    assert "5 outputs: 1 done, 4 done before" in third.stdout
    assert cached(tmp_path) == set()


def test_a_name_on_the_hub_is_no_folder_that_is_called_the_same(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "korean" / "two").mkdir(parents=True)
    done = batch(hub, tmp_path, text='[[jobs]]\nsource = "hf://korean/two"\n')
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "dist" / "two-Q8_0.gguf.manifest.json").read_text("utf-8"))
    assert manifest["source"]["repository"] == "korean/two"


def test_what_was_in_the_cache_before_stays(hub: Hub, tmp_path: Path) -> None:
    fetch = "from kconv.hub.checkpoint import local_checkpoint; local_checkpoint('korean/one')"
    subprocess.run([sys.executable, "-c", fetch], env=environment(hub, tmp_path), check=True)
    before = cached(tmp_path)
    assert len(before) > 3
    text = "[[jobs]]\nsource = 'korean/one'\n[[jobs]]\nsource = 'korean/two'\n"
    assert batch(hub, tmp_path, "--dry-run", text=text).returncode == 0
    assert cached(tmp_path) == before
    done = batch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert cached(tmp_path) == before
    (tmp_path / "dist" / "two-Q8_0.gguf").unlink()
    assert batch(hub, tmp_path, "--keep-downloads").returncode == 0
    kept = cached(tmp_path)
    assert "models--korean--two" in kept
    assert "2 done before" in batch(hub, tmp_path).stdout
    assert cached(tmp_path) == kept


def test_refusals_of_the_hub_and_a_budget_stop_nothing_else(hub: Hub, models: Path, tmp_path: Path) -> None:
    hub.add("korean/gated", models / "two", gated="asked")
    names = ("gated", "missing", "one", "two")
    text = "".join(f"[[jobs]]\nsource = 'korean/{name}'\n" for name in names)
    done = batch(hub, tmp_path, "--disk", "8M", text=text)
    assert done.returncode == 1
    lines = [line for line in done.stdout.splitlines() if ": failed: " in line or ": not done: " in line]
    assert [line.partition(":")[0] for line in lines] == ["korean/gated", "korean/missing", "korean/one"]
    assert "that --disk allows are left" in lines[2]
    assert {path.name for path in (tmp_path / "dist").glob("*.gguf")} == {"two-Q8_0.gguf"}


def test_killed_while_it_fetches_it_goes_on_and_deletes_all_the_same(hub: Hub, tmp_path: Path) -> None:
    hub.fail("GET /cdn/", "stall", after=1 << 20, seconds=20, skip=2, times=1)
    text = "[[jobs]]\nsource = 'korean/one'\n"
    batch(hub, tmp_path, "--dry-run", text=text)
    run = subprocess.Popen(
        [sys.executable, "-m", "kconv", "batch", "jobs.toml"],
        cwd=tmp_path,
        env=environment(hub, tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    place = tmp_path / "home" / "hub" / "models--korean--one" / "blobs"
    until(lambda: any(each.stat().st_size >= 1 << 19 for each in place.glob("*.kconv.incomplete")))
    run.kill()
    run.wait()
    hub.heal()
    done = batch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert cached(tmp_path) == set()
