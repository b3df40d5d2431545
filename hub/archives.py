"""PyTorch files on the Hub (.bin) of which little more than names, shapes and types of tensors is wanted.

They are zip archives: at the beginning a pickle that describes the tensors, then a record for each, at the
end a directory. Each record has a header of its own, padded so that its bytes begin at a multiple of 64. To
fetch hundreds of headers for their padding would take as many requests, so they are made up from the
directory, without it; where a record is read after all, its own header says by how much it lies further on.
"""

from __future__ import annotations

import bisect
import struct
import zipfile
from collections.abc import Callable

from ..core.torch_file import Seekable
from .headers import FIRST, RemoteFile

_HEADER = struct.Struct("<4s5H3I2H")
"""PKWARE's APPNOTE.TXT, 4.3.7: signature, version, flags, method, time, date, sums and sizes, two lengths."""
_MAGIC = b"PK\x03\x04"


class RemoteArchive(RemoteFile):
    """A PyTorch file elsewhere, of which the beginning and the end are fetched."""

    def __init__(self, name: str, size: int, fetch: Callable[[int, int], bytes]) -> None:
        super().__init__(name, size, fetch)
        self._made_up: dict[int, bytes] = {}
        self._begins: list[int] = []  # of the bytes of records, as the made-up headers say
        self._ends: list[int] = []
        self._further: dict[int, int] = {}
        self._looked = False

    def read_into(self, view: memoryview, offset: int) -> int:
        """See ``ByteSource.read_into``. Raises WeightsElsewhere where more than a little would be read."""
        if not self._looked:
            self._looked = True
            self._look()
        if (made_up := self._made_up.get(offset)) is not None:
            view[: len(made_up)] = made_up[: len(view)]
            return min(len(made_up), len(view))
        at = bisect.bisect_right(self._begins, offset) - 1
        if at < 0 or offset >= self._ends[at]:
            return self.block_into(view, offset)
        self.spend(len(view))
        return self.block_into(view, offset + self._padding(self._begins[at]))

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes of the file as it lies. Raises OSError where it ends before."""
        data = bytearray(count)
        done = 0
        while done < count:
            got = self.block_into(memoryview(data)[done:], offset + done)
            if got == 0:
                raise OSError(f"it ends after {offset + done} bytes")
            done += got
        return bytes(data)

    def _padding(self, begin: int) -> int:
        """By how much the bytes of a record lie behind where the made-up header says."""
        if begin not in self._further:
            name = next(len(data) for at, data in self._made_up.items() if at + len(data) == begin)
            (self._further[begin],) = struct.unpack("<H", self.read(begin - name - 2, 2))
        return self._further[begin]

    def _look(self) -> None:
        """Fetch both ends, and make up the headers of the records."""
        if self.size <= FIRST or self.read(0, 4) != _MAGIC:
            if self.size > FIRST:  # PyTorch before 1.6: the description of one tensor after the other
                self.spend(self.size)
            return
        self.read(self.size - FIRST, 1)  # a block from there on, in which the directory will be
        try:
            with zipfile.ZipFile(Seekable(self)) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, IndexError):
            return  # whoever opens it will say so
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            if "/data/" not in entry.filename:
                continue
            name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
            head = _HEADER.pack(_MAGIC, 20, entry.flag_bits, 0, 0, 0, 0, 0, 0, len(name), 0)
            begin = entry.header_offset + len(head) + len(name)
            self._made_up |= {entry.header_offset: head, entry.header_offset + len(head): name}
            self._begins.append(begin)
            self._ends.append(begin + entry.file_size)
