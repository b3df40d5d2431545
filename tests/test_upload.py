"""``kconv upload`` to a Hub on this machine, through an unmodified huggingface_hub: plain HTTP and Xet."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_material import kconv
from hub_server import TOKEN, Hub
from hub_uploads import Uploads
from llama_material import random_llama

from kconv.converters.licences import terms_of
from kconv.flows.convert import to_gguf
from kconv.flows.to_onnx import to_onnx

pytestmark = pytest.mark.usefixtures("kconv_server")

REPOSITORY = "tester/small-GGUF"
CARD = "---\nlicense: {licence}\nlanguage:\n- ko\n---\n# A small model\n"


@dataclass
class Place:
    """A Hub that takes uploads, and the way there."""

    hub: Hub
    uploads: Uploads
    environment: dict[str, str]

    def run(self, *words: object, code: int = 0) -> subprocess.CompletedProcess[Any]:
        """``kconv upload WORDS``; whatever comes of it, it does not show the token."""
        done = kconv("upload", *words, env=self.environment)
        assert done.returncode == code, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done

    def written(self) -> list[str]:
        """The requests that change something."""
        return [each.line for each in self.hub.asked(r"^(POST|PUT|DELETE) ")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    """A folder with a model in two types and as ONNX, all proven."""
    folder = tmp_path_factory.mktemp("made")
    source = random_llama(folder / "작은 model", small_tokenizer)
    (source / "README.md").write_text(CARD.format(licence="apache-2.0"), "utf-8")
    conversion = to_gguf(source, folder / "dist", types=["f16", "q8_0"], modelfile=True)
    assert conversion.verdict in ("passed", "warned")
    assert to_onnx(source, folder / "dist" / "onnx-f32", type="f32").proof is not None
    return folder / "dist"


@pytest.fixture
def dist(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(made, tmp_path / "dist"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Hub() as hub:
        uploads = Uploads(hub, tmp_path / "received", part=50_000)
        said = hub.environment(tmp_path / "home", TOKEN, HF_HUB_DISABLE_XET="1")
        yield Place(hub, uploads, {**os.environ, **said})


def gguf(dist: Path, type: str = "Q8_0") -> Path:
    return dist / f"작은 model-{type}.gguf"


def test_what_is_there_afterwards_is_what_was_here(dist: Path, place: Place) -> None:
    done = place.run(gguf(dist), gguf(dist, "F16"), dist / "onnx-f32", REPOSITORY, "--json")
    there = place.uploads.files(REPOSITORY)
    beside = [f"작은 model-{type}{end}" for type in ("Q8_0", "F16") for end in (".gguf", ".Modelfile")]
    for name in [*beside, "작은 model-Q8_0.gguf.manifest.json", "onnx-f32/model.onnx_data"]:
        assert there[name] == (dist / name).read_bytes()
    assert there["README.md"].decode() == json.loads(done.stdout)["card"]
    assert place.hub.repositories[REPOSITORY].private
    assert len(place.uploads.commits) == 4  # two files, the folder, the card
    assert all(TOKEN.encode() not in contents for contents in there.values())
    assert {each.host for each in place.hub.asked("PUT /lfs/")} == {"localhost"}
    assert not any("authorization" in each.headers for each in place.hub.asked("PUT /lfs/"))
    again = json.loads(place.run(gguf(dist), gguf(dist, "F16"), REPOSITORY, "--json").stdout)
    assert again["sent"] == []
    assert set(again["there"]) >= {"작은 model-Q8_0.gguf", "README.md"}


def test_a_proof_leaves_the_hashes_of_what_it_proved(made: Path) -> None:
    """All files of an ONNX folder, the weights too."""
    manifest = json.loads((made / "onnx-f32" / "kconv.manifest.json").read_text("utf-8"))
    assert {"model.onnx", "model.onnx_data"} <= {each["name"] for each in manifest["output"]["files"]}
    for each in manifest["output"]["files"]:
        data = (made / "onnx-f32" / each["name"]).read_bytes()
        assert (each["bytes"], each["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_later_type_joins_the_card(dist: Path, place: Place) -> None:
    place.run(gguf(dist), REPOSITORY, "--public", "--lang", "en")
    assert not place.hub.repositories[REPOSITORY].private
    place.run(gguf(dist, "F16"), REPOSITORY, "--lang", "en")
    card = place.uploads.files(REPOSITORY)["README.md"].decode()
    assert card.count("| `작은 model-") == 2
    assert "한국어" not in card


@pytest.mark.parametrize(
    ("fault", "details"), [("drop", {}), ("cut", {"after": 20_000}), ("status", {"code": 503})]
)
def test_passing_faults_are_sat_out(dist: Path, place: Place, fault: str, details: dict[str, Any]) -> None:
    for request in ("PUT /lfs/", "POST /api/models/[^ ]*/commit"):
        place.hub.fail(request, fault, times=1, **details)
    place.run(gguf(dist), REPOSITORY)
    assert place.uploads.files(REPOSITORY)[gguf(dist).name] == gguf(dist).read_bytes()


def test_an_interrupted_upload_goes_on(dist: Path, place: Place) -> None:
    """Killed while the second model is on its way: the first is not sent again, nor are parts of parts."""
    place.hub.fail("PUT /lfs/", "slow", skip=3, seconds=60)
    words = ["upload", gguf(dist), gguf(dist, "F16"), REPOSITORY]
    process = subprocess.Popen(
        [sys.executable, "-m", "kconv", *map(str, words)],
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while len(place.hub.asked("PUT /lfs/")) < 4 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert TOKEN.encode() not in b"".join(process.communicate())
    first = hashlib.sha256(gguf(dist).read_bytes()).hexdigest()
    assert gguf(dist).name in place.uploads.files(REPOSITORY)
    before = place.uploads.put[first]
    place.hub.heal()
    done = json.loads(place.run(*words[1:], "--json").stdout)
    assert place.uploads.put[first] == before
    assert gguf(dist).name in done["there"]
    assert gguf(dist, "F16").name in done["sent"]
    assert place.uploads.files(REPOSITORY)[gguf(dist, "F16").name] == gguf(dist, "F16").read_bytes()


def test_a_dry_run_asks_for_nothing(dist: Path, place: Place) -> None:
    done = place.run(gguf(dist), dist / "onnx-f32", REPOSITORY, "--dry-run")
    assert place.hub.requests == []
    assert "# 작은 model · GGUF · ONNX" in done.stdout
    assert "작은 model-Q8_0.gguf.manifest.json" in done.stdout
    assert "nothing was sent" in done.stdout


def changed(dist: Path, **keys: Any) -> Path:
    """The manifest of the Q8_0 with other values."""
    path = Path(f"{gguf(dist)}.manifest.json")
    manifest = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**manifest, **keys}), "utf-8")
    return path


def test_refused_unless_forced(dist: Path, place: Place) -> None:
    manifest = json.loads(Path(f"{gguf(dist)}.manifest.json").read_text("utf-8"))
    source, proof = manifest["source"], manifest["proof"]
    for keys, reason in (
        ({"proof": {**proof, "verdict": "failed"}}, "its proof failed"),
        ({"proof": {**proof, "verdict": "not decided"}}, "was not decided"),
        ({"proof": {"verdict": "not run"}}, "has no proof"),
        ({"source": {**source, "license": "cc-by-nc-nd-4.0"}}, "may not be distributed"),
        ({"source": {**source, "license": None}}, None),  # the file itself names it
    ):
        changed(dist, **{**manifest, **keys})
        done = place.run(gguf(dist), REPOSITORY, "--dry-run", code=0 if reason is None else 3)
        assert reason is None or reason in done.stderr
    changed(dist, **manifest)
    data = bytearray(gguf(dist).read_bytes())
    data[-5] ^= 1
    gguf(dist).write_bytes(data)
    assert "another SHA-256" in place.run(gguf(dist), REPOSITORY, code=3).stderr
    Path(f"{gguf(dist)}.manifest.json").unlink()
    assert "has no proof" in place.run(gguf(dist), REPOSITORY, code=3).stderr
    assert place.hub.requests == []
    done = place.run(gguf(dist), REPOSITORY, "--force")
    assert "forced: " in done.stderr
    assert "**not proven**" in place.uploads.files(REPOSITORY)["README.md"].decode()


def test_login_and_rights_are_one_sentence(dist: Path, place: Place) -> None:
    def refused(*words: object) -> str:
        done = place.run(gguf(dist), *words, code=3)
        error, hint = done.stderr.strip().splitlines()[-2:]
        assert error.startswith("kconv: error: ")
        return f"{error} {hint}"

    full = place.environment
    place.environment = {**full, "HF_TOKEN": ""}
    assert "hf auth login" in refused(REPOSITORY)
    assert place.hub.requests == []
    place.environment = {**full, "HF_TOKEN": "hf_somebodyelsestokenwithoutworth"}
    said = refused(REPOSITORY)
    assert "hf auth login" in said
    assert "hf_somebody" not in said
    for odd in ("\x01", "\u00fc"):
        place.environment = {**full, "HF_TOKEN": f"{TOKEN}{odd}"}
        assert "hf auth login" in refused(REPOSITORY, "--verbose")
    place.environment = {**full, "HF_HUB_OFFLINE": "1"}
    assert "HF_HUB_OFFLINE" in refused(REPOSITORY)
    place.environment = full
    assert "may not write to other/small-GGUF" in refused("other/small-GGUF")
    place.uploads.role = "read"
    assert "may only read" in refused(REPOSITORY)
    assert "org/name" in place.run(gguf(dist), "no-org", code=2).stderr
    assert place.uploads.put == {}


def test_a_token_in_an_answer_is_not_repeated(dist: Path, place: Place) -> None:
    """A proxy may echo what it was sent."""
    place.hub.fail("whoami", "status", code=418, headers={"X-Error-Message": f"no {TOKEN} here"})
    done = place.run(gguf(dist), REPOSITORY, "--verbose", code=4)
    assert "no hf_*** here" in done.stderr


def test_others_files_and_words_are_kept(dist: Path, place: Place, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "README.md").write_text("---\nlicense: mit\n---\n# My own words\n", "utf-8")
    (theirs / gguf(dist).name).write_bytes(b"another file")
    place.hub.add(REPOSITORY, theirs)
    assert "--replace puts these" in place.run(gguf(dist), REPOSITORY, code=3).stderr
    done = place.run(gguf(dist), REPOSITORY, "--replace")
    assert "README.md there was kept" in done.stderr
    there = place.uploads.files(REPOSITORY)
    assert there["README.md"] == (theirs / "README.md").read_bytes()
    assert there[gguf(dist).name] == gguf(dist).read_bytes()
    place.run(gguf(dist), REPOSITORY, "--replace-card")
    assert b"My own words" not in place.uploads.files(REPOSITORY)["README.md"]


def test_a_pull_request(dist: Path, place: Place, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text("{}", "utf-8")
    place.hub.add("other/small-GGUF", theirs)
    done = place.run(gguf(dist), "other/small-GGUF", "--create-pr", "--message", "Proven", "--json")
    assert json.loads(done.stdout)["url"].endswith("/other/small-GGUF/discussions/1")
    assert "--revision refs/pr/1" in done.stderr
    there = place.uploads.files("other/small-GGUF", "refs/pr/1")
    assert there[gguf(dist).name] == gguf(dist).read_bytes()
    assert "README.md" in there
    assert set(place.uploads.files("other/small-GGUF")) == {"config.json"}
    assert {each["summary"] for each in place.uploads.commits} == {"Proven"}
    again = place.run(gguf(dist), "other/small-GGUF", "--revision", "refs/pr/1", "--json")
    assert json.loads(again.stdout)["sent"] == []


def test_what_a_gitignore_leaves_out_is_noticed(dist: Path, place: Place) -> None:
    place.uploads.ignored = frozenset({f"{gguf(dist).name}.manifest.json"})
    assert ".gitignore" in place.run(gguf(dist), REPOSITORY, code=4).stderr


def test_xet(dist: Path, place: Place, tmp_path: Path) -> None:
    """Contents go to the store, from where hf_xet has them back."""
    import hf_xet

    place.uploads.offer_xet(tmp_path / "store")
    for path in dist.rglob("*"):
        if path.is_file():
            place.uploads.claims[hashlib.sha256(path.read_bytes()).hexdigest()] = path
    place.environment = {**place.environment, "HF_HUB_DISABLE_XET": "0"}
    done = place.run(gguf(dist), dist / "onnx-f32", REPOSITORY)
    assert place.hub.asked("xet-write-token")
    assert not place.hub.asked("PUT /lfs/|info/lfs")
    (known,) = hf_xet.hash_files([str(gguf(dist))])
    back = tmp_path / "back.gguf"
    with hf_xet.XetSession().new_file_download_group(endpoint=place.uploads.xet_store) as group:
        group.start_download_file(hf_xet.XetFileInfo(known.hash, gguf(dist).stat().st_size), str(back))
    assert back.read_bytes() == gguf(dist).read_bytes()
    assert TOKEN not in done.stderr
    assert json.loads(place.run(gguf(dist), REPOSITORY, "--json").stdout)["sent"] == []


@pytest.mark.parametrize(
    ("licence", "name", "distribution"),
    [
        ("cc-by-nc-nd-4.0", None, "no"),
        ("cc-by-nd-4.0", None, "no"),
        ("cc-by-nc-4.0", None, "conditions"),
        ("cc-by-4.0", None, "yes"),
        ("apache-2.0", None, "yes"),
        ("mit", None, "yes"),
        ("other", "exaone", "conditions"),
        ("other", "EXAONE AI Model License Agreement 1.1 - NC", "conditions"),
        ("other", "hyperclovax-seed", "conditions"),
        ("llama3.1", None, "conditions"),
        ("gemma", None, "conditions"),
        ("other", "Land of its own", "unknown"),
        (None, None, "none"),
        ("unknown", None, "none"),
    ],
)
def test_licences(licence: str | None, name: str | None, distribution: str) -> None:
    terms = terms_of(licence, name)
    assert terms.distribution == distribution
    assert all(terms.sentences[language] for language in ("en", "ko"))
    assert (terms.source or "https://").startswith("https://")


def test_a_manifest_sends_nothing_from_elsewhere(dist: Path, place: Place, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret", "utf-8")
    changed(dist, companions=[{"file": "../secret", "sha256": "0" * 64}])
    place.run(gguf(dist), REPOSITORY, code=3)
    (dist / "onnx-f32" / "config.json").unlink()
    (dist / "onnx-f32" / "config.json").symlink_to(tmp_path / "secret")
    assert "leads out of the folder" in place.run(dist / "onnx-f32", REPOSITORY, code=3).stderr
    assert place.hub.requests == []
