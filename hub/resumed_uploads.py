"""Going on with uploads that a killed run has left open: which parts of its objects are in the store.

S3 shows of an open upload each part's length and tag, and no bytes. So a part is taken for what would be sent
now where the run that is gone was to write the same (``content``: plan, versions, sources), or where the
MD5 of what has been converted once more says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .object_names import ObjectPlace
from .object_store import NoSuchObject, call
from .upload_notes import OpenUpload, left_open

Content = Mapping[str, Any]
Judge = Callable[[OpenUpload, Content], None]
"""Raises where what an ended run has begun is not what this one is to write."""


@dataclass
class Resumption:
    """What ended runs have left open, to be gone on with where it suits.

    ``trusts`` says whether parts are taken without making their bytes once more.
    """

    judge: Judge
    announce: Callable[[str], None]
    trusts: bool = False
    left: dict[ObjectPlace, OpenUpload] = field(default_factory=dict)
    begun: bool = False  # some of what is wanted now

    def find(self) -> None:
        """Look for uploads somebody can go on with; of several to one place the last is taken."""
        self.left = {each.place: each for each in left_open() if each.content is not None}

    @property
    def completing(self) -> dict[ObjectPlace, str]:
        """Objects that an ended run was about to make, and the ETags they have if it has."""
        return {place: each.completing for place, each in self.left.items() if each.completing}

    def parts_of(
        self, place: ObjectPlace, borders: Sequence[tuple[int, int]], content: Content
    ) -> tuple[OpenUpload, dict[int, str]] | None:
        """The upload to go on with, and the tags of its parts; None where there is none, which is said.

        Raises what ``judge`` raises; then nothing is changed.
        """
        left = self.left.get(place)
        if left is None:
            return None
        self.judge(left, content)
        self.begun = True
        try:
            parts = _listed(left)
        except NoSuchObject:
            self.announce(f"the store has no upload of {place} open any more: it is sent from the beginning")
            left.note.unlink(missing_ok=True)
            return None
        there = {
            number: tag
            for number, (start, stop) in enumerate(borders)
            if (tag := parts.get((number + 1, stop - start))) is not None
        }
        return left, there

    def told(self, parts: int, there: int) -> None:
        """Say how much is there already, if anything was begun."""
        if not self.begun:
            self.announce("no upload that was ended is noted here: starting from the beginning")
            return
        again = "" if self.trusts or not there else "; their weights are converted again, but not sent again"
        self.announce(f"resumed: {there:,} of {parts:,} parts are in the store already{again}")


def _listed(left: OpenUpload) -> dict[tuple[int, int], str]:
    """Tags of an upload's parts by number and length. Raises NoSuchObject where it is not open any more."""
    found: dict[tuple[int, int], str] = {}
    marker = 0
    while True:
        answer = call("list_parts", left.place, UploadId=left.number, PartNumberMarker=marker)
        for each in answer.get("Parts") or []:
            found[int(each["PartNumber"]), int(each["Size"])] = str(each["ETag"])
        following = int(answer.get("NextPartNumberMarker") or 0)
        if not answer.get("IsTruncated") or following <= marker:
            return found
        marker = following
