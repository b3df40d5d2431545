"""What a release needs: declared dependencies, workflows, wheels of llama.cpp; see also test_built.py."""

from __future__ import annotations

import ast
import functools
import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
import yaml
from test_house import ROOMS, ROOT

from kconv.core.machine import processor
from kconv.runtimes.llama_test_child import missing_instructions

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CARD = {"gguf", "safetensors", "numpy", "torch", "sentencepiece", "click", "llama-cpp-python"}
TOOLS = (ROOT / "tools").glob("*.py"), (ROOT / "bench").glob("*.py"), (ROOT / "tests").glob("*.py")
# Not packages of an index: of this clone, or never imported by whoever runs kconv or its tests.
OURS = {"kconv", "_kernels", "demo_texts", "small_models", "optimum"}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imported(paths: Iterable[Path]) -> dict[str, str]:
    """Packages beyond the standard library by the first file that imports each."""
    found: dict[str, str] = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_bytes())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("import_module", "find_spec")
            ):
                names = [str(each.value) for each in node.args[:1] if isinstance(each, ast.Constant)]
            for name in names:
                top = name.partition(".")[0]
                if top and top not in sys.stdlib_module_names | OURS:
                    found.setdefault(top, path.relative_to(ROOT).as_posix())
    return found


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


def _declared(requirements: Iterable[str]) -> set[str]:
    return {_normal(re.split(r"[<>=!~\[; ]", each)[0]) for each in requirements}


def test_what_kconv_imports_is_declared_and_what_is_declared_is_imported() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = _declared(PROJECT["dependencies"])
    optional = _declared([*extras["onnx"], *extras["cluster"], *extras["s3"]])
    paths = [path for room in ("package", *ROOMS) for path in sorted((ROOT / room).rglob("*.py"))]
    imported = _imported(paths)
    providers = {name: {_normal(each) for each in _distributions().get(name, [name])} for name in imported}
    missing = {name: imported[name] for name, by in providers.items() if not by & (declared | optional)}
    assert not missing, "declare them in pyproject.toml"
    used = {each for by in providers.values() for each in by}
    assert (declared | optional) - used == set(), "declared, but imported by nothing"
    assert declared >= CARD
    first = [name for name, by in providers.items() if not by & declared]
    assert set(first) <= {"onnx", "onnxruntime", "distributed", "fsspec", "s3fs"}, "an extra that all need"


def test_what_the_tests_import_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = _declared([*PROJECT["dependencies"], *(name for each in extras.values() for name in each)])
    own = {path.stem for folder in ("tests", "tools", "bench") for path in (ROOT / folder).rglob("*.py")}
    paths = [path for folder in ("tests", "tools", "bench") for path in (ROOT / folder).rglob("*.py")]
    # With requirements of their own, for an environment of their own.
    imported = _imported(path for path in paths if not (path.parent / "requirements.txt").is_file())
    missing = {
        name: where
        for name, where in imported.items()
        if name not in own and not {_normal(each) for each in _distributions().get(name, [name])} & declared
    }
    assert not missing


def test_lowest_versions_are_those_declared() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text("utf-8").splitlines()
    pinned = {
        _normal(name): version for name, found, version in (line.partition("==") for line in lines) if found
    }
    for requirement in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["onnx"]]:
        name, lowest = re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()  # type: ignore[union-attr]
        version = pinned[_normal(name)]
        same = [int(each) for each in version.split(".")][: lowest.count(".") + 1]
        assert same == [int(each) for each in lowest.split(".")], (
            f"{name} {version}: {requirement} is declared"
        )


def test_pinned_versions_are_within_what_is_declared() -> None:
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {
        _normal(name): version for name, found, version in (line.partition("==") for line in lines) if found
    }
    for extra in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for requirement in map(Requirement, extra):
            if requirement.name != "kconv":
                assert requirement.specifier.contains(pinned[_normal(requirement.name)]), str(requirement)


def test_workflows_are_yaml_and_name_what_is_there() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert [path.name for path in workflows] == ["tests.yml", "wheels.yml"]
    for path in workflows:
        content = yaml.safe_load(path.read_text("utf-8"))
        assert set(content) >= {"name", "permissions", "jobs"}
        for job in content["jobs"].values():
            for step in job["steps"]:
                assert ("uses" in step) != ("run" in step)
        text = path.read_text("utf-8")
        for name in re.findall(r"\b(?:tools|tests)/\w+\.py\b", text):
            assert (ROOT / name).is_file(), f"{path.name} names {name}"
        targets = re.findall(r"\bmake ([a-z -]+)", text)
        makefiles = "".join(
            each.read_text("utf-8") for each in (ROOT / "Makefile", *(ROOT / "mk").glob("*.mk"))
        )
        for target in " ".join(targets).split():
            assert f"\n{target}:" in makefiles, f"{path.name} makes {target}"


def test_the_dockerfile_copies_what_is_there() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists(), line


def test_llama_cpp_compiled_for_another_processor_says_what_is_missing() -> None:
    library = llama_cpp.llama_cpp._lib
    flags = processor().flags
    assert missing_instructions(library, flags) == []
    assert missing_instructions(library, ()) == []
    if not library.ggml_cpu_has_avx2():
        pytest.skip("no x86-64 with AVX2")
    assert missing_instructions(library, flags - {"avx2", "fma"}) == ["FMA", "AVX2"]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None: ...


def _empty_wheel(folder: Path, version: str) -> Path:
    """A wheel that is called llama-cpp-python and holds nothing."""
    path = folder / f"llama_cpp_python-{version}-1avx2-py3-none-any.whl"
    info = f"llama_cpp_python-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: {version}\n"
        )
        packed.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\nBuild: 1avx2\n"
        )
        packed.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.parametrize("way", ["folder", "URL"])
def test_pip_takes_wheels_from_the_index_of_the_script(tmp_path: Path, way: str) -> None:
    """The script's index, served or as a folder, read by pip itself, which checks the SHA-256 it names."""
    index = tmp_path / "index"
    (index / "llama-cpp-python").mkdir(parents=True)
    wheel = _empty_wheel(index / "llama-cpp-python", "0.3.36")
    script = [sys.executable, str(ROOT / "tools" / "build_llama_wheels.py")]
    subprocess.run([*script, str(index), "--index-only"], check=True)
    page = (index / "llama-cpp-python" / "index.html").read_text("utf-8")
    assert f"{wheel.name}#sha256={hashlib.sha256(wheel.read_bytes()).hexdigest()}" in page
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=str(index))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        place = str(index) if way == "folder" else f"http://127.0.0.1:{server.server_port}"
        page_of = f"{place}/llama-cpp-python/"
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--find-links", page_of]
        command += ["--only-binary", "llama-cpp-python", "--target", str(tmp_path / "site")]
        environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
        done = subprocess.run(
            [*command, "llama-cpp-python==0.3.36"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "site" / "llama_cpp_python-0.3.36.dist-info").is_dir()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
