"""The child that tries kconv's kernels and libggml: built for another processor, they may crash.

It answers a uint32 and so many bytes of JSON: ``name`` and ``why`` of the instruction set in use, and the
formats whose kernels give libggml's bytes (``equal``) and do not (``different``).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

from ..core import child
from ..core.errors import KconvError

FAILED = 11


def main(arguments: Sequence[str]) -> int:
    """Encode random weights with both; the arguments are none."""
    try:
        from ..quant import ggml, native

        chosen = native.chosen()
        tried = native.tried(ggml.library().ggml_quantize_chunk)
    except (KconvError, OSError, ImportError) as error:
        raise child.Stop(FAILED, str(error)) from error
    answer = json.dumps({"name": chosen.name, "why": chosen.why, **tried}).encode()
    child.write(struct.pack("<I", len(answer)) + answer)
    child.take(1)  # until the parent is done
    return 0
