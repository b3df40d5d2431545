"""The house keeps its order: folders, arrows between rooms, what is imported when."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
DIRECTORIES: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]

KERNELS = "quant/kernels/"  # C, which is compiled
# A room may import itself and the rooms before it (design: arrows only point up this list).
ROOMS = ["core", "vocab", "quant", "converters", "reference", "runtimes", "verify", "flows", "report", "cli"]
CLOSED = {("vocab", "quant"), ("quant", "vocab")}
# The import paths the README has always shown; nothing of ours uses them.
UPWARDS = {
    ("converters/__init__.py", "flows.to_onnx"),
    ("converters/__init__.py", "flows.convert"),
    ("converters/__init__.py", "flows.quantize"),
    ("converters/__init__.py", "flows.results"),
    ("verify/__init__.py", "flows.verify"),
}


def room_files() -> list[Path]:
    return sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def test_every_folder_with_code_is_a_package_and_maps_to_itself() -> None:
    folders = {".".join(("kconv", *p.parent.relative_to(ROOT).parts)) for p in room_files()}
    assert folders == set(PACKAGES)
    assert {package.removeprefix("kconv.").replace(".", "/") for package in PACKAGES} == set(
        DIRECTORIES.values()
    )
    assert set(DIRECTORIES) == set(PACKAGES)


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


def test_wheel_holds_every_file_and_only_kconv(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in tracked:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    settings = (copy / "pyproject.toml").read_text("utf-8")
    assert '"-O3"' in settings
    # Optimizing kernels that nobody is going to run takes 40 seconds.
    (copy / "pyproject.toml").write_text(settings.replace('"-O3"', '"-O0"'), "utf-8")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(copy)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    built = {name for name in held if name.startswith("kconv/quant/_kernels.")}
    assert len(built) == (shutil.which("cc") is not None)
    expected = {
        f"kconv/{name}"
        for name in tracked
        if name.split("/")[0] in ROOMS and not name.startswith(KERNELS) and (ROOT / name).is_file()
    }
    assert held - built == expected
    make = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", make], cwd=copy, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    assert {name for name in tracked if name.split("/")[0] in ROOMS and (ROOT / name).is_file()} <= inside


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
