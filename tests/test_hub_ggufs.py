"""GGUF files of repositories wherever a GGUF is taken: named by path, by address, or the only one there."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_material import check_blobs, run, sent_to
from hub_server import TOKEN, Hub

from kconv.converters.samples import write_sample
from kconv.core.errors import EnvironmentProblem, HubRefusal, InputError
from kconv.flows.convert import to_gguf
from kconv.flows.quantize import quantize
from kconv.hub.artifact import local_artifact
from kconv.hub.names import HubName, parse_checkpoint_name, parse_hub_name

pytestmark = pytest.mark.usefixtures("kconv_server")
ONE, MANY, CHECKPOINT = "kconv-tests/One-GGUF", "kconv-tests/Many.GGUF", "kconv-tests/gbst"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of repositories: one GGUF in parts; several, in folders and with odd names; a GBST model."""
    top = tmp_path_factory.mktemp("made")
    folder = write_sample("42dot", top / "tiny-42dot")
    to_gguf(folder, top / "one" / "x.gguf", types=["f16"], split_max_size="100K", verify="off")
    to_gguf(folder, top / "many" / "Q8_0" / "Tiny.42dot v1.Q8_0.gguf", types=["q8_0"], verify="off")
    to_gguf(folder, top / "many" / "x-F32.gguf", types=["f32"], verify="off")
    (top / "many" / "mmproj-x.gguf").write_bytes(b"GGUF")
    gbst = write_sample("gbst-kebyt5", top / "gbst-checkpoint")
    to_gguf(gbst, top / "gbst" / "tiny.gguf", types=["f16"], verify="off")
    return top


@pytest.fixture
def hub(made: Path) -> Iterator[Hub]:
    with Hub() as hub:
        hub.add(ONE, made / "one")
        hub.add(MANY, made / "many")
        hub.add(CHECKPOINT, made / "gbst")
        yield hub


@pytest.mark.parametrize(
    ("text", "repository", "revision", "file"),
    [
        ("hf://org/name/x.gguf", "org/name", None, "x.gguf"),
        ("hf://org/name@v1/Q4_K_M/x-00001-of-00002.gguf", "org/name", "v1", "Q4_K_M/x-00001-of-00002.gguf"),
        ("hf://org/name@refs/pr/3/x.gguf", "org/name", "refs/pr/3", "x.gguf"),
        ("hf://org/name@feature%2Fx/y.gguf", "org/name", "feature/x", "y.gguf"),
        ("hf://models/org/Name.v1-GGUF/x.GGUF", "org/Name.v1-GGUF", None, "x.GGUF"),
        ("org/name/x.gguf", "org/name", None, "x.gguf"),
        ("org/name@main/a/x.gguf", "org/name", "main", "a/x.gguf"),
        ("https://huggingface.co/org/name/blob/main/x.gguf", "org/name", "main", "x.gguf"),
        (
            "https://huggingface.co/org/name/resolve/main/a/x.gguf?download=true",
            "org/name",
            "main",
            "a/x.gguf",
        ),
        ("https://hf.co/org/name/blob/refs%2Fpr%2F3/x%20y.gguf", "org/name", "refs/pr/3", "x y.gguf"),
    ],
)
def test_names_of_files(text: str, repository: str, revision: str | None, file: str) -> None:
    name = HubName(repository, revision, file)
    assert parse_hub_name(text) == name
    assert parse_hub_name(f"hf://{name}") == name
    with pytest.raises(InputError, match="is a GGUF file, expected a checkpoint"):
        parse_checkpoint_name(text)


@pytest.mark.parametrize(
    "text", ["x.gguf", "org/x.gguf", "./org/name/x.gguf", "/org/name/x.gguf", "org//x.gguf"]
)
def test_paths_of_files(text: str) -> None:
    assert parse_hub_name(text) is None


def test_a_missing_file_in_a_folder_that_is_here_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dist").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_hub_name("dist/q4/x.gguf") is None


@pytest.mark.parametrize(
    "text", [ONE, f"hf://{ONE}/x-00002-of-00004.gguf", "{page}/blob/main/x-00001-of-00004.gguf"]
)
def test_a_model_in_parts_is_fetched_whole(hub: Hub, made: Path, tmp_path: Path, text: str) -> None:
    count = len(list((made / "one").glob("*.gguf")))
    text = text.replace("of-00004", f"of-{count:05}").format(page=f"{hub.url}/{ONE}")
    with sent_to(hub, tmp_path) as cache:
        path = local_artifact(text)
        check_blobs(cache)
    names = {each.name for each in path.parent.iterdir()}
    assert names == {each.name for each in (made / "one").iterdir()}
    assert (path.parent / f"x-00001-of-{count:05}.gguf.manifest.json").is_file()


def test_commands_take_files(hub: Hub, made: Path, tmp_path: Path) -> None:
    source = made / "many" / "x-F32.gguf"
    here = run(hub, tmp_path, "inspect", source, "--json")
    there = run(hub, tmp_path, "inspect", f"hf://{MANY}/x-F32.gguf", "--json")
    assert there.returncode == 0, there.stderr
    said = json.loads(there.stdout)
    assert said["path"].endswith("/x-F32.gguf")
    assert said["path"].startswith(f"hf://{MANY}@")
    for key in ("tensors", "metadata", "vocabulary", "bytes", "name"):
        assert said[key] == json.loads(here.stdout)[key]
    assert not [each for each in hub.asked("/cdn/") if not each.range]  # nothing came as a whole
    proof = run(
        hub,
        tmp_path,
        "verify",
        f"{MANY}/x-F32.gguf",
        "--against",
        made / "tiny-42dot",
        "--tokens",
        "40",
        "--json",
    )
    assert json.loads(proof.stdout)["verdict"] in ("passed", "warned"), proof.stdout + proof.stderr
    ran = run(
        hub, tmp_path, "run", f"hf://{MANY}/Q8_0/Tiny.42dot v1.Q8_0.gguf", "-p", "서울", "-n", "2", "--json"
    )
    assert ran.returncode == 0, ran.stderr
    with sent_to(hub, tmp_path):
        done = quantize(f"hf://{MANY}/x-F32.gguf", tmp_path / "o.gguf", types=["q8_0"])
    quantize(source, tmp_path / "p.gguf", types=["q8_0"])
    assert (tmp_path / "o.gguf").read_bytes() == (tmp_path / "p.gguf").read_bytes()
    assert TOKEN not in done.outputs[0].manifest.read_text()


def test_a_companion_comes_along_and_is_no_choice(hub: Hub, made: Path, tmp_path: Path) -> None:
    assert len(list((made / "gbst").glob("*.gguf"))) == 2
    ran = run(hub, tmp_path, "run", CHECKPOINT, "-p", "서울", "-n", "2", "--json")
    assert ran.returncode == 0, ran.stderr


def test_several_models_are_named(hub: Hub, tmp_path: Path) -> None:
    with sent_to(hub, tmp_path), pytest.raises(HubRefusal) as refused:
        local_artifact(f"hf://{MANY}")
    assert "2 GGUF models" in refused.value.message
    assert "mmproj" not in refused.value.message
    (hint,) = shlex.split(str(refused.value.hint).removeprefix("give it as "))
    assert parse_hub_name(hint) == HubName(MANY, None, "Q8_0/Tiny.42dot v1.Q8_0.gguf")


def test_a_named_file_keeps_the_revision_and_is_one_word(hub: Hub, made: Path, tmp_path: Path) -> None:
    """A slash in the name of a branch would else be where the path begins."""
    hub.add(MANY, made / "many", refs=("main", "feature/x"))
    with sent_to(hub, tmp_path), pytest.raises(HubRefusal) as refused:
        local_artifact(f"hf://{MANY}@feature/x")
    (hint,) = shlex.split(str(refused.value.hint).removeprefix("give it as "))
    assert parse_hub_name(hint) == HubName(MANY, "feature/x", "Q8_0/Tiny.42dot v1.Q8_0.gguf")
    with pytest.raises(InputError) as error:
        parse_checkpoint_name(hint)
    assert f"kconv quantize '{hint}' -q" in str(error.value.hint)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"hf://{MANY}/X-F32.gguf", "has no file X-F32.gguf; its GGUF models are"),
        (f"hf://{MANY}@nope/x-F32.gguf", "nope"),
        ("hf://kconv-tests/none/x.gguf", "shows no repository kconv-tests/none"),
        (f"hf://{ONE}/x-00001-of-00099.gguf", "has no file"),
    ],
)
def test_what_is_not_there_is_said(hub: Hub, tmp_path: Path, text: str, words: str) -> None:
    for command in (["inspect", text], ["run", text, "-p", "x"], ["quantize", text, "-q", "q8_0"]):
        done = run(hub, tmp_path, *command)
        assert done.returncode == 3, done.stderr
        assert words in done.stderr
    assert not hub.asked("/cdn/")


def test_a_part_the_repository_lacks_is_named(hub: Hub, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "one", tmp_path / "some")
    parts = sorted((tmp_path / "some").glob("*.gguf"))
    parts[1].unlink()
    hub.add("kconv-tests/some", tmp_path / "some")
    with sent_to(hub, tmp_path), pytest.raises(HubRefusal, match=f"lacks {parts[1].name}"):
        local_artifact(f"hf://kconv-tests/some/{parts[0].name}")
    assert not hub.asked("/cdn/")


@pytest.mark.parametrize("place", [0, 5000, -1])
def test_one_flipped_bit_is_found(hub: Hub, tmp_path: Path, place: int) -> None:
    repository = hub.repositories[MANY]
    size = repository.commits[repository.refs["main"]]["x-F32.gguf"].size
    hub.fail("GET /cdn/", "corrupt", at=place % size, times=2)
    with sent_to(hub, tmp_path), pytest.raises(EnvironmentProblem, match="other contents than the Hub lists"):
        local_artifact(f"hf://{MANY}/x-F32.gguf")
    assert not list(tmp_path.rglob("*.gguf"))


def test_offline_what_is_in_the_cache_runs(hub: Hub, tmp_path: Path) -> None:
    assert run(hub, tmp_path, "run", ONE, "-p", "x", "-n", "1").returncode == 0
    hub.heal()
    asked = len(hub.requests)
    done = run(hub, tmp_path, "run", ONE, "-p", "x", "-n", "1", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    done = run(hub, tmp_path, "run", f"hf://{MANY}/x-F32.gguf", "-p", "x", "-n", "1", HF_HUB_OFFLINE="1")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert len(hub.requests) == asked
