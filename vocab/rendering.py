"""Rendering chat templates, which come with checkpoints and are therefore hostile programs.

Jinja's sandbox keeps a template from reaching Python's internals, not from running for ever or filling the
memory (``{{ 'a' * 10 ** 11 }}``). So each rendering is a child process with a limit on time, memory and
output: this file, run as a script, which imports jinja2 and nothing of ours. The environment is the one
transformers uses (``utils/chat_template_utils.py``): immutable sandbox, trim_blocks, lstrip_blocks, loop
controls, ``{% generation %}`` passed through, and raise_exception, strftime_now and a plain tojson.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

SECONDS = 5
MAX_MEMORY = 1 << 30
MAX_OUTPUT = 1 << 22


class TemplateFailure(Exception):
    """A template does not compile or does not render; ``line`` is where, if known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message, self.line = message, line

    def __str__(self) -> str:
        return self.message if self.line is None else f"line {self.line}: {self.message}"


def render_all(template: str, contexts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Render a template once for each set of variables (JSON values), all in one child process.

    No contexts: the template is compiled only. Raises TemplateFailure for whatever goes wrong in it.
    """
    import subprocess

    request = json.dumps({"template": template, "contexts": list(contexts)}).encode()
    try:
        # -P: this folder must not come first on the child's path.
        child = subprocess.run(
            [sys.executable, "-P", __file__], input=request, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise TemplateFailure(f"still running after {SECONDS} seconds") from None
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        raise TemplateFailure(f"more than {MAX_MEMORY >> 20} MiB of memory or a crash") from None
    if "error" in answer:
        raise TemplateFailure(answer["error"], answer["line"])
    return tuple(answer["texts"])


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows: the time limit remains
        return
    for kind, limit in ((resource.RLIMIT_AS, MAX_MEMORY), (resource.RLIMIT_CPU, SECONDS)):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (OSError, ValueError):  # a lower limit holds already, or the system has none
            continue


def _environment() -> Any:
    import datetime

    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (jinja2's own interface)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _line(error: BaseException) -> int | None:
    """Where in the template an error arose: jinja2 gives its frames the template's line numbers."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line if isinstance(line, int) else None


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    texts: list[str] = []
    try:
        compiled = _environment().from_string(request["template"])
        for context in request["contexts"]:
            size, pieces = 0, []
            for piece in compiled.generate(**context):
                size += len(piece)
                if size > MAX_OUTPUT:
                    return {"error": f"renders more than {MAX_OUTPUT} characters", "line": None}
                pieces.append(piece)
            texts.append("".join(pieces))
    except MemoryError:
        return {"error": f"needs more than {MAX_MEMORY >> 20} MiB of memory", "line": None}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:1000], "line": _line(error)}
    return {"texts": texts}


def _main() -> None:
    _limit()
    request = json.loads(sys.stdin.buffer.read())
    sys.stdout.write(json.dumps(_answer(request)))


if __name__ == "__main__":
    _main()
