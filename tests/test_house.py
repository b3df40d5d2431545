"""The house keeps its order: folders, arrows between rooms, what is imported when."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
DIRECTORIES: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]

PUBLIC = (
    "package"  # kconv itself; it has another name, since a folder kconv/ would be imported in every clone
)
KERNELS = "quant/kernels/"  # C, which is compiled
# A room may import itself and the rooms before it (design: arrows only point up this list).
ROOMS = [
    "core",
    "hub",
    "vocab",
    "quant",
    "converters",
    "reference",
    "runtimes",
    "verify",
    "flows",
    "report",
    "cli",
]
CLOSED = {("vocab", "quant"), ("quant", "vocab")}
# The import paths the README has always shown; nothing of ours uses them.
UPWARDS = {
    ("converters/__init__.py", "flows.to_onnx"),
    ("converters/__init__.py", "flows.convert"),
    ("converters/__init__.py", "flows.quantize"),
    ("converters/__init__.py", "flows.results"),
    ("verify/__init__.py", "flows.verify"),
    # A folder's card is a part of the folder, and made when all else is there, by the room that writes cards.
    ("flows/folder_card.py", "report.model_card"),
}


def room_files() -> list[Path]:
    return sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def test_every_folder_with_code_is_a_package_and_maps_to_itself() -> None:
    folders = {str(p.parent.relative_to(ROOT)) for p in room_files()}
    assert {"kconv": PUBLIC} | {f"kconv.{each.replace('/', '.')}": each for each in folders} == DIRECTORIES
    assert set(DIRECTORIES) == set(PACKAGES)
    assert [each for each in PACKAGES if each.count(".") == 1] == [f"kconv.{room}" for room in ROOMS]
    assert not (ROOT / "kconv").exists()


def test_kconv_itself_loads_functions_of_the_flows_and_the_command_when_asked() -> None:
    imported = {
        (path.name, node.level, node.module)
        for path in (ROOT / PUBLIC).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    }
    assert {(name, level) for name, level, _ in imported} == {("__init__.py", 1), ("__main__.py", 1)}
    assert {module for name, _, module in imported if name == "__main__.py"} == {"cli.main"}
    assert all((module or "").startswith("flows.") for name, _, module in imported if name == "__init__.py")


@pytest.mark.parametrize("path", room_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_between_rooms_only_point_up(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    room = parts[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level == 0:
                assert not (node.module or "").startswith("kconv"), f"{path}: import rooms relatively"
                continue
            base = [*parts[:-1]][: len(parts) - node.level]
            target = [*base, *(node.module or "").split(".")]
            imported = target[0] or node.names[0].name
            if imported != room and ("/".join(parts), ".".join(target)) not in UPWARDS:
                assert ROOMS.index(imported) < ROOMS.index(room), f"{path} imports {imported}"
                assert (room, imported) not in CLOSED, f"{path} imports {imported}"


def test_the_build_knows_every_file_of_the_kernels() -> None:
    (extension,) = PROJECT["tool"]["setuptools"]["ext-modules"]
    listed = [*extension["sources"], *extension["depends"]]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / KERNELS).iterdir())


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['kconv', '--help']\n"
        "from kconv.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'numpy', 'tokenizers', 'sentencepiece', 'gguf'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "to-gguf" in done.stdout


def test_kconv_itself_has_what_it_names_and_nothing_else() -> None:
    import kconv
    import kconv.converters
    import kconv.verify
    from kconv.flows.plan import plan

    assert Path(kconv.__file__).parent == ROOT / PUBLIC
    assert set(kconv.__all__) <= set(dir(kconv))
    assert kconv.plan is plan
    assert kconv.prove is kconv.verify.verify  # the paths the README had first
    assert (kconv.to_gguf, kconv.to_onnx, kconv.quantize) == (
        kconv.converters.to_gguf,
        kconv.converters.to_onnx,
        kconv.converters.quantize,
    )
    assert kconv.__version__ == PROJECT["project"]["version"]
    with pytest.raises(AttributeError, match="module 'kconv' has no attribute 'to_gguff'"):
        getattr(kconv, "to_gguff")  # noqa: B009
