"""Zip archives on the Hub whose directory contradicts itself."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest

from kconv.hub.archives import RemoteArchive


def test_two_records_in_one_place() -> None:
    """An error of reading, which whoever reads the file explains; the other record is read as it lies."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("data.pkl", b"x" * 200_000), ("data/0", b"a" * 64), ("data/01", b"b" * 64)):
            archive.writestr(f"m/{name}", content)
    data = bytearray(written.getvalue())
    last = data.rfind(b"PK\x01\x02")
    first = data.rfind(b"PK\x01\x02", 0, last)
    data[last + 42 : last + 46] = data[first + 42 : first + 46]  # where the record begins
    begin = struct.unpack_from("<I", data, first + 42)[0] + 30
    file = RemoteArchive("m.bin", len(data), lambda start, stop: bytes(data[start:stop]))
    view = memoryview(bytearray(8))
    file.read_into(view, 0)
    with pytest.raises(OSError, match="two records in one place"):
        file.read_into(view, begin + len("m/data/0"))
    file.read_into(view, begin + len("m/data/01"))
    assert bytes(view) == b"a" * 8
