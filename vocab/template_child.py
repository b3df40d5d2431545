"""The child that renders chat templates; imports jinja2, and nothing of kconv but its side of a child.

Request and answer are each a uint32 (little-endian) and as many bytes of JSON. Request: ``template``;
``contexts``, the variables of each rendering; ``moment``, what strftime_now takes for now (seconds since
1970, read as UTC; null for the clock); ``seconds``, ``memory`` and ``output``, the limits. Answer: ``texts``,
or ``error`` and ``line``.

The environment is the one transformers uses (``utils/chat_template_utils.py``): immutable sandbox,
trim_blocks, lstrip_blocks, loop controls, ``{% generation %}`` passed through, and raise_exception,
strftime_now and a plain tojson.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from ..core import child


def main(arguments: Sequence[str]) -> int:
    """Answer one request."""
    import jinja2.sandbox  # noqa: F401  (start-up is not the template's)

    (size,) = struct.unpack("<I", child.take(4))
    request = json.loads(child.take(size))
    environment = _environment(request["moment"])
    child.limit_memory(request["memory"])
    child.limit_time(request["seconds"])
    answer = _answer(environment, request)
    child.limit_time(0)
    data = json.dumps(answer).encode()
    child.write(struct.pack("<I", len(data)) + data)
    child.take(1)  # until the parent is done
    return 0


def _environment(moment: float | None) -> Any:
    import datetime
    import random

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

    def strftime_now(form: str) -> str:
        if moment is None:
            return datetime.datetime.now().strftime(form)
        return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime(form)

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

    if moment is not None:
        random.seed(0)  # the filter random, the function lipsum
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _answer(environment: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    texts: list[str] = []
    try:
        compiled = environment.from_string(request["template"])
        for context in request["contexts"]:
            size, pieces = 0, []
            for piece in compiled.generate(**context):
                size += len(piece)
                if size > request["output"]:
                    return {"error": f"renders more than {request['output']} characters", "line": None}
                pieces.append(piece)
            texts.append("".join(pieces))
    except MemoryError:
        raise  # a limit is no fault found in the template
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:1000], "line": _line(error)}
    return {"texts": texts}


def _line(error: BaseException) -> int | None:
    """Where in the template an error arose: jinja2 gives its frames the template's line numbers."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line if isinstance(line, int) else None
