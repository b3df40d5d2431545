"""The Python of README.md and docs/en/python.md runs as it stands (the Korean pages hold the same code)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kconv
from kconv.converters.samples import write_sample

ROOT = Path(__file__).parent.parent
KCONV = str(Path(sys.executable).parent / "kconv")
EXAMPLES = [
    (f"{page.removesuffix('.md')}-{place}", code)
    for page in ("README.md", "docs/en/python.md")
    for place, code in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL), 1
    )
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    checkpoint = write_sample("42dot", folder / "42dot_LLM-SFT-1.3B")
    (folder / "korean.txt").write_text((ROOT / "README.ko.md").read_text("utf-8"), "utf-8")
    for name, kind in (("42dot-Q4_0.gguf", "q4_0"), ("model-F16.gguf", "f16")):
        kconv.to_gguf(checkpoint, folder / name, types=[kind], verify=False)
    bytes_model = write_sample("kebyt5", folder / "kebyt5")
    kconv.to_gguf(bytes_model, folder / "kebyt5-Q8_0.gguf", types=["q8_0"], verify=False)
    words = [KCONV, "imatrix", str(checkpoint), "--text", "korean.txt", "-o", "model.imatrix.gguf"]
    subprocess.run(words, cwd=folder, capture_output=True, check=True)
    return folder


@pytest.mark.parametrize("code", [code for _, code in EXAMPLES], ids=[name for name, _ in EXAMPLES])
def test_an_example_runs(
    code: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_every_public_name_is_on_the_page() -> None:
    page = (ROOT / "docs" / "en" / "python.md").read_text("utf-8")
    assert {name for name in kconv.__all__ if f"kconv.{name}" not in page} == set()
