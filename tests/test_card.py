"""General metadata: from cards as the Hub has them, licence files, and hostile front matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kconv.converters.card import general_metadata, licence_notice
from kconv.core.checkpoint import Checkpoint
from kconv.core.gguf_file import read_header, write_header
from kconv.core.tensor import DType, Tensor

CARD = """\
---
language:
- ko
- en
- no
pipeline_tag: text-generation
tags: [pytorch, llama, pytorch, 1.3]
license: cc-by-nc-4.0
base_model: 42dot/42dot_LLM-PLM-1.3B
model_name: 42dot LLM-SFT
version: 1.0
---
# 42dot_LLM-SFT-1.3B

---
license: mit
---
"""


def checkpoint(folder: Path, shape: tuple[int, ...] = (50304, 2048), **config: Any) -> Checkpoint:
    """A checkpoint whose only weight is never read."""
    folder.mkdir(parents=True, exist_ok=True)
    tensor = Tensor("a", shape, DType.F32, lambda start, stop: np.empty(0))
    return Checkpoint(folder, config, {"a": tensor}, ())


def card(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")


def test_a_card(tmp_path: Path) -> None:
    folder = tmp_path / "42dot_LLM-SFT-1.3B"
    card(folder, CARD)
    metadata = general_metadata(checkpoint(folder, _name_or_path="42dot/42dot_LLM-SFT-1.3B"))
    assert metadata == {
        "general.type": "model",
        "general.name": "42dot LLM-SFT",
        "general.size_label": "103M",
        "general.organization": "42dot",
        "general.source.repo_url": "https://huggingface.co/42dot/42dot_LLM-SFT-1.3B",
        "general.license": "cc-by-nc-4.0",
        "general.base_model.count": 1,
        "general.base_model.0.name": "42dot_LLM-PLM-1.3B",
        "general.base_model.0.organization": "42dot",
        "general.base_model.0.repo_url": "https://huggingface.co/42dot/42dot_LLM-PLM-1.3B",
        "general.tags": ("pytorch", "llama", "1.3", "text-generation"),
        "general.languages": ("ko", "en", "no"),
    }


def test_keys_are_those_of_gguf_py(tmp_path: Path) -> None:
    from gguf.constants import Keys

    card(tmp_path / "m", CARD.replace("license: cc", "license_name: a\nlicense_link: b\nlicense: cc"))
    metadata = general_metadata(checkpoint(tmp_path / "m", _name_or_path="org/M"))
    known = {value for name, value in vars(Keys.General).items() if not name.startswith("_")}
    assert {key.replace(".0.", ".{id}.") for key in metadata} <= known


def test_llama_cpp_converters_names_agree(tmp_path: Path) -> None:
    from gguf.metadata import Metadata

    folder = tmp_path / "m"
    card(folder, CARD)
    theirs = Metadata.load(None, folder)
    metadata = general_metadata(checkpoint(folder))
    assert metadata["general.license"] == theirs.license
    assert list(metadata["general.languages"]) == theirs.languages  # type: ignore[arg-type]
    assert theirs.base_models is not None
    assert metadata["general.base_model.0.repo_url"] == theirs.base_models[0]["repo_url"]


def test_nothing_but_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "eagle-3b-preview"
    metadata = general_metadata(checkpoint(folder, (1_439_270_912,), _name_or_path="/home/a/b"))
    assert metadata == {
        "general.type": "model",
        "general.name": "eagle-3b-preview",
        "general.size_label": "1.4B",
    }


def test_the_parent_is_not_the_source(tmp_path: Path) -> None:
    metadata = general_metadata(checkpoint(tmp_path / "AOG", _name_or_path="beomi/Llama-3-Open-Ko-8B"))
    assert not {"general.source.repo_url", "general.organization"} & set(metadata)


def test_the_hub_cache_tells_the_source(tmp_path: Path) -> None:
    folder = tmp_path / "models--etri-lirs--eagle-3b-preview" / "snapshots" / ("0123456789" * 4)
    metadata = general_metadata(checkpoint(folder))
    assert metadata["general.name"] == "eagle-3b-preview"
    assert metadata["general.organization"] == "etri-lirs"
    page = "https://huggingface.co/etri-lirs/eagle-3b-preview"
    assert metadata["general.source.repo_url"] == page
    assert metadata["general.source.url"] == f"{page}/tree/{folder.name}"


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("                Apache License\n           Version 2.0, January 2004", "apache-2.0"),
        ("MIT License\n\nCopyright (c) 2024", "mit"),
        ("Attribution-NonCommercial 4.0 International\n\n====", "cc-by-nc-4.0"),
        ("Attribution-NonCommercial-NoDerivatives 4.0 International", "cc-by-nc-nd-4.0"),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "llama3"),
        ("LLAMA 2 COMMUNITY LICENSE AGREEMENT", "llama2"),
    ],
)
def test_licence_files(tmp_path: Path, text: str, licence: str) -> None:
    folder = tmp_path / "m"
    card(folder, "# no front matter\nlicense: mit\n")
    (folder / "LICENSE").write_text(text)
    assert general_metadata(checkpoint(folder))["general.license"] == licence


def test_an_unknown_licence_file(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    card(folder, "")
    (folder / "LICENSE").write_text("\n  우리 회사 사용권\n무엇이든 …", encoding="utf-8")
    metadata = general_metadata(checkpoint(folder))
    assert metadata["general.license"] == "other"
    assert metadata["general.license.name"] == "우리 회사 사용권"


def test_the_card_goes_before_the_licence_file(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    card(folder, "---\nlicense: other\nlicense_name: llama3\nlicense_link: https://x.y/z\n---\n")
    (folder / "LICENSE").write_text("MIT License")
    metadata = general_metadata(checkpoint(folder))
    assert metadata["general.license"] == "other"
    assert metadata["general.license.name"] == "llama3"
    assert metadata["general.license.link"] == "https://x.y/z"


@pytest.mark.parametrize(
    "text",
    [
        "---\n[[[[\n---\n",
        "---\n" + "[" * 5000 + "\n---\n",
        "---\n- a\n- b\n---\n",
        "---\nlicense: {a: b}\nlanguage: [[ko], {a: b}]\nbase_model: ['../..', 'a/b/c', '/x']\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['touch pwned']\n---\n",
        "---\nlicense: *nothing\n---\n",
        "---\na: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ntags: [*c, *c]\n---\n",
        "---\nlicense: mit\n",
        "---\nlicense: [2024-99-99, 1e999999, 0x]\n---\n",
        "---\n" + "a: b\n" * 20000 + "---\n",
        "\x00\x01\x02",
    ],
)
def test_hostile_front_matter(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "m"
    card(folder, text)
    metadata = general_metadata(checkpoint(folder))
    assert metadata["general.name"] == "m"
    assert all(isinstance(value, str | tuple | int) for value in metadata.values())
    assert not (Path.cwd() / "pwned").exists()
    assert "general.base_model.count" not in metadata


def test_texts_that_cannot_be_written_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    card(folder, '---\nlicense: "m\\uD800i\\nt\\0"\nmodel_name: "' + "x" * 9999 + '"\n---\n')
    metadata = general_metadata(checkpoint(folder))
    assert metadata["general.license"] == "mi t"
    assert len(str(metadata["general.name"])) == 500
    write_header(tmp_path / "a.gguf", "llama", metadata, [])
    assert read_header(tmp_path / "a.gguf").metadata["general.license"] == "mi t"


def test_a_card_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    (folder / "README.md").mkdir(parents=True)
    (folder / "LICENSE").symlink_to(tmp_path / "nowhere")
    assert general_metadata(checkpoint(folder))["general.name"] == "m"


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"general.license": "cc-by-nc-4.0"}, "no commercial use"),
        ({"general.license": "cc-by-nc-nd-4.0"}, "no commercial use; no distribution of modified versions"),
        (
            {"general.license": "other", "general.license.name": "kakao_non-commercial"},
            "no commercial use",
        ),
        ({"general.license": "other"}, "its own terms"),
        (
            {"general.license": "llama3", "general.license.link": "https://x"},
            r"\(https://x\): it has its own terms",
        ),
        ({"general.license": "cc-by-4.0"}, None),
        ({"general.license": "apache-2.0"}, None),
        ({"general.license": "mit"}, None),
        ({}, None),
    ],
)
def test_licence_notice(metadata: dict[str, Any], says: str | None) -> None:
    import re

    note = licence_notice(metadata)
    if says is None:
        assert note is None
    else:
        assert note is not None
        assert note.warning
        assert re.search(says, note.message)
