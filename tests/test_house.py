"""The house keeps its order: folders, arrows between rooms, what is imported when."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the build makes of the files of this clone: a sdist, a wheel of that sdist, an editable wheel."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "kconv-source"
    listing = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, capture_output=True, text=True, check=True)
    tracked = [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    settings = (copy / "pyproject.toml").read_text("utf-8")
    assert '"-O3"' in settings
    # Optimizing kernels that nobody is going to run takes 40 seconds.
    (copy / "pyproject.toml").write_text(settings.replace('"-O3"', '"-O0"'), "utf-8")
    sdist = _build("sdist", copy, folder)
    with tarfile.open(sdist) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    wheel = _build("wheel", unpacked, folder)
    # The kernels have just been compiled, and an editable installation is the same without.
    editable = _build("editable", copy, folder / "editable", CC="false")
    return {"tracked": tracked, "copy": copy, "sdist": unpacked, "wheel": wheel, "editable": editable}


def _build(kind: str, source: Path, target: Path, **environment: str) -> Path:
    """Call the hook of setuptools that pip calls; the file it makes in ``target``."""
    target.mkdir(exist_ok=True)
    code = f"from setuptools.build_meta import build_{kind}; print(build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def test_wheel_holds_every_file_and_only_kconv(built: dict[str, Any]) -> None:
    packed = {name for name in zipfile.ZipFile(built["wheel"]).namelist() if ".dist-info/" not in name}
    kernels = {name for name in packed if name.startswith("kconv/quant/_kernels.")}
    assert len(kernels) == (shutil.which("cc") is not None)
    rooms = [name for name in built["tracked"] if name.split("/")[0] in ROOMS]
    assert packed - kernels == {
        *(f"kconv/{name}" for name in rooms if not name.startswith(KERNELS)),
        *(f"kconv/{name}" for name in ("__init__.py", "__main__.py", "py.typed")),
    }
    inside = {str(path.relative_to(built["sdist"])) for path in built["sdist"].rglob("*")}
    assert {*rooms, *(name for name in built["tracked"] if name.split("/")[0] == PUBLIC)} <= inside


STARTS = """
import contextlib, io, json, runpy, sys
sys.path += json.loads(sys.argv.pop(1))
before = set(sys.modules)
import kconv
loaded = sorted(set(sys.modules) - before)
import kconv.core.errors, kconv.converters.families.gbst, kconv.verify
names = ("kconv", "kconv.core.errors", "kconv.converters.families.gbst")
places = [sys.modules[name].__file__ for name in names]
functions = [getattr(kconv, name).__module__ for name in kconv.__all__ if name != "__version__"]
sys.argv = ["-m", "--version"]
with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.suppress(SystemExit):
    runpy.run_module("kconv", run_name="__main__", alter_sys=True)
print(json.dumps([loaded, places, functions, kconv.__version__, told.getvalue().splitlines()[0]]))
"""


@pytest.mark.parametrize("start", ["clone", "elsewhere"])
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_kconv_is_imported_wherever_it_is_started(
    built: dict[str, Any], tmp_path: Path, kind: str, start: str
) -> None:
    installed = tmp_path / "site"
    zipfile.ZipFile(built[kind]).extractall(installed)
    places = [Path(path) for path in sys.path if path and not Path(path).is_relative_to(ROOT / "tests")]
    # -S: the kconv of this environment is not seen, only the packages it needs.
    code = f"import site; site.addsitedir({str(installed)!r})\n{STARTS}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, json.dumps([str(place) for place in places])],
        cwd=ROOT if start == "clone" else tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded, files, functions, version, shown = json.loads(done.stdout)
    assert set(loaded) <= {"kconv", "__future__"}
    if kind == "wheel":
        expected = ("kconv/__init__.py", "kconv/core/errors.py", "kconv/converters/families/gbst/__init__.py")
        assert files == [str(installed / name) for name in expected]
    else:
        expected = ("package/__init__.py", "core/errors.py", "converters/families/gbst/__init__.py")
        assert files == [str(built["copy"] / name) for name in expected]
    assert functions == [
        f"kconv.flows.{name}" for name in ("generate", "plan", "verify", "quantize", "convert", "to_onnx")
    ]
    assert version == PROJECT["project"]["version"]
    assert shown == f"kconv {version}"


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
