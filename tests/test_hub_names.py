"""What names a repository of the Hub, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kconv.core.errors import UsageError
from kconv.hub.names import HubName, parse_hub_name


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("kakaobrain/kogpt", "kakaobrain/kogpt", None),
        ("kakaobrain/kogpt@KoGPT6B-ryan1.5b-float16", "kakaobrain/kogpt", "KoGPT6B-ryan1.5b-float16"),
        ("org/name@refs/pr/1", "org/name", "refs/pr/1"),
        ("org/name@feature/x", "org/name", "feature/x"),
        ("hf://org/name", "org/name", None),
        ("HF://org/name/", "org/name", None),
        ("hf://models/org/name@main", "org/name", "main"),
        ("hf://org/name@refs%2Fpr%2F1", "org/name", "refs/pr/1"),
        ("https://huggingface.co/org/name", "org/name", None),
        ("https://huggingface.co/org/name/", "org/name", None),
        ("http://www.huggingface.co/org/name?library=transformers#files", "org/name", None),
        ("https://hf.co/org/name/tree/v1.0", "org/name", "v1.0"),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1", "org/name", "refs/pr/1"),
        ("https://huggingface.co/org/name/tree/refs/pr/1", "org/name", "refs/pr/1"),
        ("https://huggingface.co/org/name/blob/main/config.json", "org/name", "main"),
        ("https://huggingface.co/org/name/resolve/abc1234/model.safetensors", "org/name", "abc1234"),
        (f"https://huggingface.co/org/name/commit/{'a' * 40}", "org/name", "a" * 40),
        ("https://huggingface.co/org/name/discussions/3", "org/name", None),
    ],
)
def test_names(text: str, repository: str, revision: str | None) -> None:
    assert parse_hub_name(text) == HubName(repository, revision)


@pytest.mark.parametrize(
    "text",
    [
        "model",
        "./org/name",
        "../org/name",
        "/org/name",
        "~/org/name",
        "a/b/c",
        "org/name.gguf",
        "org\\name",
        "models/x.safetensors",
        "org/na me",
        "org/",
        "org/.",
        "org/..",
        "org/a--b",
        "",
        "한국/모델",
        "org/@main",
    ],
)
def test_paths(text: str) -> None:
    assert parse_hub_name(text) is None


def test_what_lies_here_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert parse_hub_name("org/name") is None
    assert parse_hub_name("org/file") is None
    assert parse_hub_name("org/other") == HubName("org/other")
    assert parse_hub_name("hf://org/name") == HubName("org/name")
    assert parse_hub_name(Path("org/other")) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf://datasets/org/name", "is a dataset"),
        ("hf://org", "names no repository"),
        ("hf://org/name/sub/folder", "names no repository"),
        ("https://huggingface.co/spaces/org/name", "is a Space"),
        ("https://huggingface.co/org", "not the page of a model"),
        ("https://example.org/org/name", "HF_ENDPOINT"),
        ("https://huggingface.co.example.org/org/name", "HF_ENDPOINT"),
        ("https://huggingface.co:444/org/name", "HF_ENDPOINT"),
        ("https://huggingface.co:x/org/name", "HF_ENDPOINT"),
        ("https://huggingface.co/org/name/tree/main/sub/folder", "--include 'sub/folder/*'"),
        ("org/name@a..b", "can be no revision"),
        ("org/name@a b", "can be no revision"),
        ("org/name@/a", "can be no revision"),
        ("hf://org/name@../../x", "can be no revision"),
    ],
)
def test_names_of_something_else(text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_hub_name(text)
    assert words in str(refused.value)


def test_a_revision_given_apart() -> None:
    assert parse_hub_name("org/name", "v1") == HubName("org/name", "v1")
    assert parse_hub_name("org/name@v1", "v1") == HubName("org/name", "v1")
    with pytest.raises(UsageError, match="leave one of them out"):
        parse_hub_name("org/name@v1", "v2")
