"""A licence that restricts is printed by a conversion and written into every file of the three families."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gbst_material import random_gbswt5
from gptj_material import byte_level_tokenizer, random_gptj
from t5_material import random_byt5

from kconv.cli.main import main
from kconv.core.gguf_file import read_header

CARD = "---\nlanguage: ko\nlicense: cc-by-nc-nd-4.0\n---\n# 모델\n"
LIMITS = "no commercial use; no distribution of modified versions"
MADE: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "kogpt": (lambda folder: byte_level_tokenizer(random_gptj(folder, n_layer=1)), {"kogpt-Q8_0.gguf"}),
    "kebyt5": (random_byt5, {"kebyt5-Q8_0.gguf"}),
    "gbst-kebyt5": (random_gbswt5, {"gbst-kebyt5-Q8_0.gguf", "gbst-kebyt5-front-end.gguf"}),
}


@pytest.mark.parametrize("family", MADE)
def test_the_licence_is_printed_and_written(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, names = MADE[family]
    folder, out = make(tmp_path / family), tmp_path / "out"
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    assert main(["to-gguf", str(folder), "-o", str(out), "-q", "q8_0", "--no-verify"]) == 0
    printed = capsys.readouterr().out
    assert f"warning (licence): licence 'cc-by-nc-nd-4.0': {LIMITS}" in printed.replace('"', "'")
    files = {path.name: path for path in out.glob("*.gguf")}
    assert set(files) == names
    for path in files.values():
        assert read_header(path).metadata["general.license"] == "cc-by-nc-nd-4.0"
        assert main(["inspect", str(path)]) == 0
        assert "cc-by-nc-nd-4.0" in capsys.readouterr().out
    (manifest,) = out.glob("*.manifest.json")
    content = json.loads(manifest.read_text("utf-8"))
    assert content["source"]["license"] == "cc-by-nc-nd-4.0"
    (note,) = [note for note in content["notes"] if note["name"] == "licence"]
    assert LIMITS in note["message"]
