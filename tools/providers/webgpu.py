"""Where onnxruntime-web puts a graph's nodes on WebGPU: python webgpu.py ROOT LIBRARY GRAPH... prints JSON.

And whether the WASM with WebGPU in it loads it for the CPU. ROOT is served to a headless Chromium with a
software adapter; LIBRARY is onnxruntime-web's folder ``dist``, GRAPH a path under ROOT. Runs where playwright
is installed; CHROMIUM names the browser.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
OPEN = """async ([graph, provider]) => {
  try {
    const ort = await import('/library/ort.webgpu.min.mjs');
    ort.env.wasm.wasmPaths = '/library/';
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = 'verbose';
    const data = `${graph}_data`, name = data.split('/').pop();
    const externalData = [{ path: name, data }];
    const settings = { executionProviders: [provider], logSeverityLevel: 0, externalData };
    await ort.InferenceSession.create(graph, settings);
    return null;
  } catch (error) { return String(error.message).slice(0, 300); }
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing; the library lies elsewhere."""

    def translate_path(self, path: str) -> str:
        """The file of a path."""
        if path.startswith("/library/"):
            return str(Path(sys.argv[2]) / path.removeprefix("/library/").partition("?")[0])
        return super().translate_path(path)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


def placed(lines: list[str]) -> dict[str, dict[str, int]]:
    """Kinds of nodes by provider, from the log of a session."""
    found: dict[str, Counter[str]] = {}
    here: Counter[str] = Counter()
    for line in "\n".join(lines).split("\n"):
        if provider := re.search(r"placed on \[(\w+)\]", line):
            here = found.setdefault(provider[1], Counter())
        elif node := re.search(r"(?:IsAssignedToAnEp\S*|^)\s+(\w+) \(", line):
            here[node[1]] += 1
    return {provider: dict(kinds) for provider, kinds in found.items()}


def main() -> None:
    """Open each graph in a page of its own."""
    root, graphs = sys.argv[1], sys.argv[3:]
    Path(root, "empty.html").write_text("<!doctype html><title>empty</title>", "utf-8")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    answers = {}
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        for graph in graphs:
            lines: list[str] = []
            page = browser.new_page()
            page.on("console", lambda message, lines=lines: lines.append(message.text))
            page.goto(f"http://127.0.0.1:{server.server_port}/empty.html")
            wasm = page.evaluate(OPEN, [f"/{graph}", "wasm"])
            lines.clear()
            error = page.evaluate(OPEN, [f"/{graph}", "webgpu"])
            answers[graph] = {"wasm": wasm, "error": error, "placed": placed(lines)}
            page.close()
        browser.close()
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
