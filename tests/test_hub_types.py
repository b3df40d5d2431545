"""GGUF files of the Hub by their type, as llama.cpp and Ollama name them, and cards and uploads of such."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_material import kconv
from hub_material import run, sent_to
from hub_server import TOKEN, Hub
from hub_uploads import Uploads
from llama_material import random_llama

from kconv.core.errors import HubRefusal, InputError, UsageError
from kconv.flows.convert import to_gguf
from kconv.hub.artifact import local_artifact
from kconv.hub.gguf_files import gguf_models
from kconv.hub.gguf_types import models_of_type
from kconv.hub.names import HubName, parse_checkpoint_name, parse_hub_name
from kconv.hub.source import HubFile, HubSource

pytestmark = pytest.mark.usefixtures("kconv_server")
SHELF, MUTE = "other/small-GGUF", "other/mute-GGUF"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    """A shelf with one type in a file, one in parts, both proven; and files whose names tell no type."""
    top = tmp_path_factory.mktemp("made")
    source = random_llama(top / "small", small_tokenizer)
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- ko\n---\n# Small\n", "utf-8")
    shelf = top / "shelf"
    assert to_gguf(source, shelf, types=["q8_0"], modelfile=True).verdict in ("passed", "warned")
    to_gguf(source, shelf / "F16", types=["f16"], split_max_size="100K")
    mute = top / "mute"
    to_gguf(source, mute / "one.gguf", types=["q4_0"], verify="off")
    to_gguf(source, mute / "two.gguf", types=["q8_0"], verify="off")
    return top


@pytest.fixture
def hub(made: Path) -> Iterator[Hub]:
    with Hub() as hub:
        hub.add(SHELF, made / "shelf")
        hub.add(MUTE, made / "mute")
        yield hub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name:Q4_K_M", HubName("org/name", type="Q4_K_M")),
        ("org/name@v1:q4_k_m", HubName("org/name", "v1", type="q4_k_m")),
        ("org/name@refs/pr/1:UD-Q4_K_XL", HubName("org/name", "refs/pr/1", type="UD-Q4_K_XL")),
        ("hf://org/name:Q8_0", HubName("org/name", type="Q8_0")),
        ("hf://models/org/name@a%2Fb:Q8_0", HubName("org/name", "a/b", type="Q8_0")),
        ("hf.co/org/name:Q8_0", HubName("org/name", type="Q8_0")),
        ("huggingface.co/org/name", HubName("org/name")),
        ("https://huggingface.co/org/name:Q8_0", HubName("org/name", type="Q8_0")),
    ],
)
def test_names_with_a_type(text: str, expected: HubName) -> None:
    assert parse_hub_name(text) == expected
    assert parse_hub_name(f"hf://{expected}") == expected
    if expected.type is not None:
        with pytest.raises(InputError, match="is a GGUF file, expected a checkpoint"):
            parse_checkpoint_name(text)


@pytest.mark.parametrize("text", ["dist/x.gguf:Q4_K_M", "./org/name:Q4_K_M", "name:Q4_K_M", "C:/a/b"])
def test_what_is_no_name(text: str) -> None:
    assert parse_hub_name(text) is None


@pytest.mark.parametrize("text", ["org/name:", "hf://org/name:a b", "org/name:Q4:K", "hf://org/name:../x"])
def test_types_that_can_be_none(text: str) -> None:
    with pytest.raises(UsageError, match="can be no type"):
        parse_hub_name(text)


NAMES = [
    "m-Q4_K_M.gguf",
    "m-IQ4_XS.gguf",
    "m.Q4_K.gguf",
    "M-UD-Q4_K_XL.gguf",
    "BF16/m-BF16-00001-of-00002.gguf",
    "BF16/m-BF16-00002-of-00002.gguf",
    "Q5_0/m.gguf",
    "m-fp16.gguf",
    "m-F32-imatrix.gguf",
    "mmproj-F32.gguf",
    "m-q6_k-i1.gguf",
    "m-f32.to.Q2_K.gguf",
    "m-F32.gguf",
]


@pytest.mark.parametrize(
    ("type_name", "found"),
    [
        ("q4_k_m", ["m-Q4_K_M.gguf"]),
        ("Q4_K", ["m.Q4_K.gguf"]),
        ("Q4_XS", []),
        ("IQ4_XS", ["m-IQ4_XS.gguf"]),
        ("ud-q4_k_xl", ["M-UD-Q4_K_XL.gguf"]),
        ("bf16", ["BF16/m-BF16-00001-of-00002.gguf"]),
        ("Q5_0", ["Q5_0/m.gguf"]),
        ("F16", ["m-fp16.gguf"]),
        ("FP16", ["m-fp16.gguf"]),
        ("f32", ["m-F32.gguf"]),
        ("Q6_K", ["m-q6_k-i1.gguf"]),
        ("Q2_K", ["m-f32.to.Q2_K.gguf"]),
        ("Q3_K_M", []),
    ],
)
def test_the_type_of_a_file_is_a_word_of_its_name(type_name: str, found: list[str]) -> None:
    files = tuple(HubFile(name, 1, "0" * 40) for name in NAMES)
    source = HubSource(HubName("org/name"), "0" * 40, files)
    assert models_of_type(source, gguf_models(source), type_name) == found


@pytest.mark.parametrize("text", [f"{SHELF}:q8_0", f"hf://{SHELF}@main:Q8_0", f"hf.co/{SHELF}:Q8_0"])
def test_a_forgotten_command(text: str) -> None:
    done = kconv(text)
    assert done.returncode == 2
    assert f"kconv run {text} opens a conversation" in done.stderr


def test_commands_take_a_type(hub: Hub, made: Path, tmp_path: Path) -> None:
    said = json.loads(run(hub, tmp_path, "inspect", f"{SHELF}:q8_0", "--json").stdout)
    assert said["path"].endswith("small-Q8_0.gguf")
    assert not [each for each in hub.asked("/cdn/") if not each.range]  # no file came as a whole
    against = ("--against", made / "small", "--tokens", "40", "--json")
    proof = run(hub, tmp_path, "verify", f"hf.co/{SHELF}:F16", *against)
    assert json.loads(proof.stdout)["verdict"] in ("passed", "warned"), proof.stderr
    answer = run(hub, tmp_path, "run", f"hf://{SHELF}:Q8_0", "-p", "서울", "-n", "2")
    assert answer.returncode == 0, answer.stderr


def test_a_model_in_parts_is_fetched_whole(hub: Hub, made: Path, tmp_path: Path) -> None:
    with sent_to(hub, tmp_path):
        path = local_artifact(f"{SHELF}:F16")
    assert {each.name for each in path.parent.iterdir()} == {
        each.name for each in (made / "shelf" / "F16").iterdir()
    }


def test_where_names_are_silent_headers_tell(hub: Hub, tmp_path: Path) -> None:
    with sent_to(hub, tmp_path):
        assert local_artifact(f"{MUTE}:Q4_0").name == "one.gguf"
        assert local_artifact(f"{MUTE}:q8_0").name == "two.gguf"


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        (f"{SHELF}:Q4_K_M", "has no GGUF of type Q4_K_M; its GGUF models are ", "00001-of-"),
        (f"{MUTE}:f16", "has no GGUF of type f16; its GGUF models are one.gguf, two.gguf", "one.gguf"),
        ("other/twice:q8_0", "has 2 GGUF models of type q8_0: a-q8_0.gguf, b-q8_0.gguf", "a-q8_0.gguf"),
    ],
)
def test_none_or_several_are_one_sentence(
    hub: Hub, made: Path, tmp_path: Path, text: str, words: str, hint: str
) -> None:
    (tmp_path / "twice").mkdir()
    for name in "ab":
        shutil.copy(made / "mute" / "two.gguf", tmp_path / "twice" / f"{name}-q8_0.gguf")
    hub.add("other/twice", tmp_path / "twice")
    with sent_to(hub, tmp_path), pytest.raises(HubRefusal) as refused:
        local_artifact(text)
    assert words in refused.value.message
    assert hint in str(refused.value.hint)
    assert ":" not in str(refused.value.hint).removeprefix("give it as hf://")
    done = run(hub, tmp_path, "inspect", text)
    assert done.returncode == 3
    assert words in done.stderr


def test_a_card_of_files_on_the_hub_fetches_no_weights(hub: Hub, made: Path, tmp_path: Path) -> None:
    there = run(hub, tmp_path, "card", f"hf://{SHELF}/small-Q8_0.gguf", f"{SHELF}:F16")
    assert there.returncode == 0, there.stderr
    first = next(each for each in (made / "shelf" / "F16").glob("*-00001-of-*.gguf"))
    here = kconv("card", made / "shelf" / "small-Q8_0.gguf", first)
    assert there.stdout == here.stdout
    assert "ollama" in there.stdout
    for each in hub.asked("/cdn/"):
        assert each.range or ".manifest.json" in each.path


def test_files_on_the_hub_are_published_elsewhere(hub: Hub, made: Path, tmp_path: Path) -> None:
    uploads = Uploads(hub, tmp_path / "received")
    said = {**os.environ, **hub.environment(tmp_path / "home", TOKEN, HF_HUB_DISABLE_XET="1")}
    words = ("upload", f"{SHELF}:q8_0", f"{SHELF}:F16", "tester/mine-GGUF")
    done = kconv(*words, env=said, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    there = uploads.files("tester/mine-GGUF")
    shelf = made / "shelf"
    expected = {path.name: path.read_bytes() for path in shelf.rglob("*") if path.is_file()}
    assert {name: data for name, data in there.items() if name in expected} == expected
    assert set(there) - set(expected) <= {"README.md", ".gitattributes"}
    assert hub.repositories["tester/mine-GGUF"].private
    again = kconv(*words, "--json", env=said, cwd=tmp_path)
    assert json.loads(again.stdout)["sent"] == []


def test_what_cannot_be_published_from_the_hub_is_one_sentence(hub: Hub, made: Path, tmp_path: Path) -> None:
    hub.add("other/small", made / "small")
    for text in ("other/small", "other/none:q8_0", "hf://other/small-GGUF/none.gguf"):
        done = run(hub, tmp_path, "card", text)
        assert done.returncode == 3, done.stderr
        assert done.stderr.count("\n") <= 2, done.stderr
