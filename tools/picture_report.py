"""Pictures of a proof's report for the README, light and dark: docs/assets/report.png and report-dark.png.

    python tools/picture_report.py                # needs chromium or google-chrome
    python tools/picture_report.py --lang ko      # report.ko.png and report.ko-dark.png

A demo checkpoint is converted to q4_0 and proven; the browser draws the report's first screen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SIZE = "1080,672"
SCHEMES = {"": "1", "-dark": "0"}  # Blink's preferredColorScheme
PROOF = ("--against", "demo-42dot", "--report", "proof.html")


def main() -> None:
    """Make both pictures of one language."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lang", choices=("en", "ko"), default="en")
    language = parser.parse_args().lang
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("neither chromium nor google-chrome is installed")
    kconv = str(Path(sys.executable).parent / "kconv")
    base = "report" if language == "en" else f"report.{language}"
    with tempfile.TemporaryDirectory() as folder:
        for words in (
            ("demo-checkpoint", "42dot", "demo-42dot"),
            ("to-gguf", "demo-42dot", "-q", "q4_0", "--no-verify"),
            ("verify", "demo-42dot-Q4_0.gguf", *PROOF, "--lang", language),
        ):
            subprocess.run([kconv, *words], cwd=folder, env=os.environ, stdout=subprocess.DEVNULL, check=True)
        for ending, scheme in SCHEMES.items():
            picture = ROOT / "docs" / "assets" / f"{base}{ending}.png"
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            options += [f"--window-size={SIZE}", f"--blink-settings=preferredColorScheme={scheme}"]
            options += [f"--user-data-dir={folder}/browser", f"--screenshot={picture}"]
            subprocess.run(
                [browser, *options, f"file://{folder}/proof.html"], capture_output=True, check=True
            )
            print(f"{picture}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
