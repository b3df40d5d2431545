"""What libggml makes of a few weights on x86-64 with glibc, written down: all encoders give these bytes."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any

import numpy as np
import pytest
from kernel_material import Floats, kernel, libggml

from kconv.quant import ggml, native
from kconv.quant.formats import FORMATS

# The SHA-256, in part, of ROWS in a format, without and with IMPORTANCE; None where libggml needs that.
DIGESTS: dict[str, tuple[str | None, str | None]] = {
    "q8_0": ("dc2718942e3ea16e1d56a65e9737310a", "dc2718942e3ea16e1d56a65e9737310a"),
    "q6_K": ("81427b221c96ece90210d884c1e0fde1", "a83b39730c2db3d718bfbd2516eb9395"),
    "q5_K": ("99511aeb4f003a1199bb92b15c9c8402", "9a974c5649235b49aa967a091f359890"),
    "q5_1": ("3bc8a876799cb7ed0fd77c52533aab5e", "c0b2ae4801d1bb1b2ef10f698ac6ccb3"),
    "q5_0": ("0037c3313cac19657f8edb26bda510af", "4192445160b19b42e6cbb5dc5f22816a"),
    "q4_K": ("87f9d145e7befd7995ceae243c948de6", "7ffa08f942959c87cd0df662aadd68bf"),
    "q4_1": ("53b199baa9095af5d80355f1155ee301", "c047fe6f1b59ae6567d66c008db1f467"),
    "q4_0": ("59d7bbd64363027d14e533548c7948ab", "77e1c10e2b1275b4b7b018d014018cff"),
    "q3_K": ("10c63fb965ec0a2da186c8cfe7fa38de", "decdcbf528485f44dea88355a90de4f1"),
    "q2_K": ("ed2e782ea62dbd2d310b94d2280bf8cf", "3c1076239692570bbc59bf6bd4a5bc68"),
    "iq4_nl": ("6f640c923614df2eb0504a4e39408277", "3307d7b4170b4da6a89c8adb41986172"),
    "iq4_xs": ("3cca26757cb2b3c57ed29904d5090267", "3888000d14493d694136ecc2b8c43ca8"),
    "iq3_s": ("0ff48c9ec592e9f7cde94eac03d2d594", "e99365a4084818b3b78991e31adcf5a1"),
    "iq3_xxs": ("624ae5f5ba0d862f37737e9989659f6e", "b0d57c4b085a6b5875b8087ca34e2b87"),
    "iq2_s": ("c5cabe490ce7623f79016933d6cf2c90", "7d53afa2b8ae687e8aa2a336699a4b81"),
    "iq2_xs": (None, "fde6a691b54e46bbb704cb4100beb53e"),
    "iq2_xxs": (None, "42dcccbcafae86466e3d571aa3e1d3c2"),
    "iq1_m": ("5582720b7805062e494eb872e0e6337d", "b30fb29ab9b0d18aaac26f27920c2786"),
    "iq1_s": (None, "158118be21ce10b9e9ea151921247cf3"),
    "tq2_0": ("0d52d3f539d664c7cf12a1080f789966", "0d52d3f539d664c7cf12a1080f789966"),
    "tq1_0": ("7fe9f91a5b4ca0debb436c3a14f4bd36", "7fe9f91a5b4ca0debb436c3a14f4bd36"),
    "mxfp4": ("b7f66c4b5d5b46cf8d446e001edfb827", "b7f66c4b5d5b46cf8d446e001edfb827"),
}

# The first block of ROWS with IMPORTANCE. tq1_0, tq2_0 and mxfp4 have the same without.
FIRST_BLOCKS = {
    "iq1_m": (
        "c282546c6bb45e826b4b965896586e58c2586b586b9ff958bda79c58b99fb958040f1f0f4f9f1f9f941fc71d951ac515"
        "ad8dbf5bf6fff52f"
    ),
    "iq1_s": (
        "4b2f6bb45449c2b4c2826b4b965896586e586b585e585e9ff99fbd589c58b958b958cfe30c71e7f3cfe3cf6367f98d624d73"
    ),
    "tq2_0": (
        "00aa55555500aa955555002aaa55554000aa55555500aaa55555000aaa55555000aaa55555000aaa55555000aa555555"
        "00aaa955550002aa55555400aa9555550040"
    ),
    "tq1_0": (
        "00ff80808000ff84808000f7ff80800500ff80808000ff8e808000e4ff80800e00ffaa808000abff80802b00ff808080"
        "2dbbb8920040"
    ),
    "mxfp4": ("7eee552299ccdd553300bbdd664411aacc"),
}

_NUMBERS = np.arange(1024)
ROWS: Floats = ((_NUMBERS * 7919 % 257 - 128) / np.float32(64)).astype(np.float32).reshape(2, 512)
IMPORTANCE: Floats = ((_NUMBERS[:512] * 31 % 17 + 1) / 8).astype(np.float32)

CASES = [
    pytest.param(name, weighed, digest, id=f"{name}{'-weighed' if weighed else ''}")
    for name, digests in DIGESTS.items()
    for weighed, digest in enumerate(digests)
    if digest is not None
]


def digest(data: ggml.Bytes) -> str:
    return hashlib.sha256(data.tobytes()).hexdigest()[:32]


@pytest.mark.parametrize(("name", "weighed", "expected"), CASES)
def test_bytes_are_those_written_down(name: str, weighed: int, expected: str) -> None:
    format, weights = FORMATS[name], IMPORTANCE if weighed else None
    assert digest(libggml(format, ROWS, weights)) == expected
    for set in native.available_sets():
        assert digest(kernel(set, format, ROWS, weights)) == expected, set


@pytest.mark.parametrize("name", FIRST_BLOCKS)
def test_first_blocks_are_those_written_down(name: str) -> None:
    format = FORMATS[name]
    for set in native.available_sets():
        made = kernel(set, format, ROWS, IMPORTANCE)[: format.block_bytes]
        assert made.tobytes().hex() == FIRST_BLOCKS[name], set


@pytest.mark.skipif(not native.available_sets(), reason="the kernels are not built")
@pytest.mark.parametrize("name", FIRST_BLOCKS)
def test_libggml_is_asked_before_the_first_use(name: str) -> None:
    """With data as the kernel is to encode it; the next use of the same format goes without."""
    native._checks.clear()
    format, asked = FORMATS[name], []
    chunk = ggml.library().ggml_quantize_chunk

    def ask(kind: int, *rest: Any) -> int:
        asked.append(kind)
        return int(chunk(kind, *rest))

    pointer, number = ctypes.c_void_p, ctypes.c_int64
    kinds = (ctypes.c_int, pointer, pointer, number, number, number, pointer)
    watched = ctypes.CFUNCTYPE(ctypes.c_size_t, *kinds)(ask)
    rows = np.tile(ROWS, (native._CHECKED_BLOCKS, 1))
    for _ in range(2):
        assert native._trusted(native.chosen().name, format, rows, IMPORTANCE, watched)
        assert asked == [format.ggml_type]
