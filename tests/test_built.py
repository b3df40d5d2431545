"""What the build makes of this clone: an sdist the tests run from, wheels with all of kconv and kernels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_house import KERNELS, PROJECT, PUBLIC, ROOMS, ROOT


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
    made = {"packed": sdist, "sdist": unpacked, "wheel": wheel, "editable": editable}
    return {"tracked": tracked, "copy": copy, **made}


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


def test_the_tests_run_from_the_sdist(built: dict[str, Any], tmp_path: Path) -> None:
    with tarfile.open(built["packed"]) as packed:
        packed.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    here = {path.relative_to(source).as_posix() for path in source.rglob("*")}
    assert {name for name in built["tracked"] if name not in here} == set()
    wanted = [
        "tests/test_systems.py::test_how_a_process_ended_is_read_from_its_code",
        "tests/test_machine.py",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *wanted],
        cwd=source, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_wheel_fits_all_pythons_and_has_kernels(built: dict[str, Any]) -> None:
    wheel: Path = built["wheel"]
    assert wheel.name.startswith(f"kconv-{PROJECT['project']['version']}-cp311-abi3-")
    renamed = wheel.with_name(wheel.name.replace("-linux_", "-manylinux_2_17_"))
    shutil.copy(wheel, renamed)
    command = [sys.executable, str(ROOT / "tools" / "check_wheel.py")]
    done = subprocess.run([*command, str(renamed)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # The check finds what it is there for.
    bare = wheel.with_name("kconv-0-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as packed, zipfile.ZipFile(bare, "w") as less:
        for name in packed.namelist():
            if "_kernels" not in name and name != "kconv/vocab/py.typed":
                less.writestr(name, packed.read(name))
    done = subprocess.run([*command, str(bare)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for words in ("not tagged cp311-abi3", "kconv/vocab has no py.typed", "found none", "not repaired"):
        assert words in done.stdout
