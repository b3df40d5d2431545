"""Whether a wheel of kconv is whole: ``python tools/check_wheel.py dist/*.whl``.

It looks at the name (one wheel for all Pythons from 3.11 on), at py.typed in every package, and loads the
kernels and asks whether they run here. Standard library only: nothing has to be installed.
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

_TAG = "cp311-abi3-"
_LIBRARY = "kconv/quant/_kernels."
_SYSTEMS = {"linux": "manylinux", "darwin": "macosx", "win32": "win"}


def faults(wheel: Path) -> list[str]:
    """What is wrong with it, in sentences; none where all is well."""
    found: list[str] = []
    if f"-{_TAG}" not in wheel.name:
        found.append(f"{wheel.name} is not tagged {_TAG[:-1]}, for all Pythons from 3.11 on")
    if f"-{_SYSTEMS.get(sys.platform, '')}" not in wheel.name:
        found.append(f"{wheel.name} is not for other machines of this system: it was not repaired")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        packages = {name.rpartition("/")[0] for name in names if name.endswith("/__init__.py")}
        found += [f"{each} has no py.typed" for each in sorted(packages) if f"{each}/py.typed" not in names]
        if "kconv/__main__.py" not in names:
            found.append("python -m kconv would not work: there is no kconv/__main__.py")
        libraries = [name for name in names if name.startswith(_LIBRARY)]
        if len(libraries) != 1:
            return [*found, f"expected the kernels once, found {libraries or 'none'}: was there no compiler?"]
        # Windows holds what is loaded
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            expected = re.search(rb"^_INTERFACE = (\d+)$", packed.read("kconv/quant/native.py"), re.MULTILINE)
            number = int(expected[1]) if expected else 0
            found += _faults_of_kernels(Path(packed.extract(libraries[0], folder)), number)
    return found


def _faults_of_kernels(path: Path, number: int) -> list[str]:
    expected = ".pyd" if sys.platform == "win32" else ".abi3.so"
    if not path.name.endswith(expected):
        return [f"{path.name} is for one Python only, expected a name that ends in {expected}"]
    library = ctypes.CDLL(str(path))
    interface = library.kconv_interface()
    if interface != number:
        return [f"{path.name} has interface {interface}, expected {number} as in kconv/quant/native.py"]
    if not library.kconv_runs(0):
        return [f"{path.name} has no kernels for {platform.machine()}"]
    return []


def main(arguments: Sequence[str]) -> int:
    """Look at each wheel; 1 if any is not whole."""
    if not arguments:
        sys.exit("name the wheels to look at: python tools/check_wheel.py dist/*.whl")
    wrong = False
    for wheel in map(Path, arguments):
        sentences = faults(wheel)
        wrong = wrong or bool(sentences)
        print(f"{wheel.name}: {'; '.join(sentences) or 'whole, with kernels that run here'}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
