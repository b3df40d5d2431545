"""Fetch llama.cpp's own converter, for the tests and the bench that compare kconv with it.

It comes in the source distribution of llama-cpp-python, in the version kconv is tested with, so it is the
same llama.cpp that the installed library was built from. pip downloads the archive and checks its sha256;
only the converter and gguf-py are unpacked, into .dev/llama.cpp, which git ignores. Nothing is built.

    python tools/fetch_llama_cpp.py            prints the folder; quick when it is there already
    python tools/fetch_llama_cpp.py --offline  fails instead of downloading
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
ARCHIVE = f"llama_cpp_python-{VERSION}.tar.gz"
PREFIX = PurePosixPath(f"llama_cpp_python-{VERSION}/vendor/llama.cpp")
WANTED = ("convert_hf_to_gguf.py", "conversion", "gguf-py/gguf", "LICENSE")
TARGET = Path(__file__).resolve().parent.parent / ".dev" / "llama.cpp"
STAMP = f"llama-cpp-python {VERSION} sha256:{SHA256}\n"


class FetchError(Exception):
    """llama.cpp's converter cannot be had; the message says why."""


def fetch(target: Path = TARGET, *, offline: bool = False, wanted: Sequence[str] = WANTED) -> Path:
    """The folder with what is ``wanted`` of llama.cpp; downloaded unless it is there. Raises FetchError."""
    if _complete(target):
        return target
    if offline:
        raise FetchError(
            f"{target} does not hold llama.cpp's converter; run `python tools/fetch_llama_cpp.py`"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".llama.cpp.", dir=target.parent) as scratch:
        archive = _download(Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        _unpack(archive, unpacked, wanted)
        (unpacked / ".fetched").write_text(STAMP, "utf-8")
        shutil.rmtree(target, ignore_errors=True)
        try:
            os.replace(unpacked, target)
        except OSError:  # another process was quicker
            if not _complete(target):
                raise
    return target


def _complete(target: Path) -> bool:
    stamp = target / ".fetched"
    return stamp.is_file() and stamp.read_text("utf-8") == STAMP


def _download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SHA256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--no-binary", "llama-cpp-python", "--dest", str(folder), "--requirement", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = folder / ARCHIVE
    if result.returncode or not archive.is_file():
        last = "\n  ".join(result.stderr.strip().splitlines()[-3:])
        raise FetchError(
            f"pip could not download {ARCHIVE} (is there a network and a package index?):\n  {last}"
        )
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise FetchError(f"{ARCHIVE} has sha256 {digest}, expected {SHA256}")
    return archive


def _unpack(archive: Path, target: Path, wanted: Sequence[str]) -> None:
    """Unpack the wanted regular files and nothing else: no links, no devices, no path that leaves target."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isreg() or not path.is_relative_to(PREFIX) or ".." in path.parts:
                continue
            inner = path.relative_to(PREFIX)
            if not any(inner.is_relative_to(each) for each in wanted):
                continue
            source = tar.extractfile(member)
            assert source is not None  # a regular file has contents
            place = target / inner
            place.parent.mkdir(parents=True, exist_ok=True)
            with source, place.open("wb") as file:
                shutil.copyfileobj(source, file)
    if not (target / "convert_hf_to_gguf.py").is_file():
        raise FetchError(f"{archive.name} does not hold {PREFIX}/convert_hf_to_gguf.py")


def main() -> int:
    """Print where the converter lies; 4 when it cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--offline", action="store_true", help="do not download")
    try:
        print(fetch(offline=parser.parse_args().offline))
    except FetchError as error:
        print(f"fetch_llama_cpp: {error}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
