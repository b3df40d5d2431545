"""Files that appear whole or not at all, at the edges of what file systems allow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kconv.core.claims import new_mark, temporary_beside
from kconv.core.errors import EnvironmentProblem, GgufError, OutputExists
from kconv.core.files import atomic_file, atomic_files
from kconv.core.gguf_file import BLOCKS, read_header
from kconv.core.leftovers import sweep, take_back
from kconv.quant.formats import ENCODABLE


def test_the_longest_name_in_hangul(tmp_path: Path) -> None:
    path = tmp_path / ("가" * 85)  # 255 bytes, as many as a name may have
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"whole")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff" * 250)
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"


def test_one_failure_takes_all(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]

    def write() -> None:
        with atomic_files(paths) as made:
            for temporary in made:
                temporary.write_bytes(b"whole")
            paths[1].write_bytes(b"somebody else's")  # meanwhile

    with pytest.raises(OutputExists, match="two already exists"):
        write()
    assert [entry.name for entry in tmp_path.iterdir()] == ["two"]
    assert paths[1].read_bytes() == b"somebody else's"


@pytest.mark.parametrize("force", [False, True])
def test_a_place_below_a_file_is_named(force: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    with (
        pytest.raises(OutputExists, match=r"file is a file, expected a folder to write x\.gguf to"),
        atomic_file(tmp_path / "file" / "deep" / "x.gguf", force=force),
    ):
        pass
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_link_is_replaced_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"kept")
    link = tmp_path / "link"
    link.symlink_to("target")
    with atomic_file(link, force=True) as temporary:
        temporary.write_bytes(b"new")
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"
    assert (tmp_path / "target").read_bytes() == b"kept"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem), atomic_file(Path("/proc/kconv/x.gguf")):
        pass


def test_headers_of_pipes_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place, message in ((tmp_path / "pipe", "not a regular file"), (tmp_path, "a folder")):
        with pytest.raises(GgufError, match=message):
            read_header(place)


def test_blocks_of_the_reader_are_the_writers() -> None:
    blocks = {format.ggml_type: (format.block_size, format.block_bytes) for format in ENCODABLE}
    assert {kind: BLOCKS[kind] for kind in blocks} == blocks


def killed_between(
    folder: Path, named: tuple[str, ...], others: tuple[str, ...], older: tuple[str, ...]
) -> None:
    """What a run leaves that was killed once it had given some of its files their names, not the others."""
    mark = new_mark()
    for name in (*named, *others):
        temporary_beside(folder / name, mark=mark).write_bytes(b"new")
    for name in older:
        temporary_beside(folder / name, "old", mark=mark).write_bytes(b"older")
    for name in named:
        temporary = temporary_beside(folder / name, mark=mark)
        if name in older:
            os.replace(temporary, folder / name)
        else:
            os.link(temporary, folder / name)


@pytest.mark.parametrize(
    ("named", "others", "older", "left"),
    [
        (("a", "b"), ("c",), (), {}),
        (("a", "b"), (), (), {"a": b"new", "b": b"new"}),
        (("a",), ("b",), ("a",), {"a": b"older"}),
        (("a", "b"), (), ("a",), {"a": b"new", "b": b"new"}),
        (("a", "b"), (), ("a", "b"), {"a": b"new", "b": b"new"}),
        ((), ("a",), (), {}),
    ],
)
def test_names_a_killed_run_gave_are_taken_back_unless_all_were_given(
    named: tuple[str, ...],
    others: tuple[str, ...],
    older: tuple[str, ...],
    left: dict[str, bytes],
    tmp_path: Path,
) -> None:
    killed_between(tmp_path, named, others, older)
    take_back(tmp_path)
    sweep(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == left


def test_what_stands_half_named_is_in_nobodys_way(tmp_path: Path) -> None:
    killed_between(tmp_path, ("a",), ("b",), ())
    with atomic_files([tmp_path / "a", tmp_path / "b"]) as made:
        for temporary in made:
            temporary.write_bytes(b"whole")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"whole", "b": b"whole"}


def test_one_failure_gives_all_that_was_replaced_back(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_bytes(b"older")

    def write() -> None:
        with atomic_files(paths, force=True) as made:
            for temporary in made:
                temporary.write_bytes(b"new")
            paths[1].unlink()
            paths[1].mkdir()  # which no file can replace

    with pytest.raises(EnvironmentProblem):
        write()
    assert paths[0].read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
