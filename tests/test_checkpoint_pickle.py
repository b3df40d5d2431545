"""PyTorch files that are hostile, damaged or of another kind: nothing runs, one CheckpointError says why."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_material import folder_with_config, refusal

from kconv.core.reading import open_checkpoint


class Runs:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def write(folder: Path, content: bytes) -> Path:
    path = folder_with_config(folder) / "pytorch_model.bin"
    path.write_bytes(content)
    return path


def saved(value: object, **how: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **how)
    return stream.getvalue()


def rezipped(
    content: bytes, change: Mapping[str, bytes | None] = {}, method: int = zipfile.ZIP_STORED
) -> bytes:
    """A PyTorch zip archive with some records changed, added or (None) left out; keys lack the root."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(stream, "w", method) as target:
        records = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
        for name, data in {**records, **change}.items():
            if data is not None:
                target.writestr(f"archive/{name}", data)
    return stream.getvalue()


@pytest.mark.parametrize(
    "form", ["zip", "before 1.6", "pickle 0", "pickle 1", "pickle 2", "pickle 4", "pickle 5"]
)
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "'posix.system'"), (eval, "'builtins.eval'"), (getattr, "'builtins.getattr'")],
    ids=["os.system", "eval", "getattr"],
)
def test_code_does_not_run(
    tmp_path: Path, form: str, function: Callable[..., Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"system": ("mkdir ran",), "eval": ("__import__('os').mkdir('ran')",), "getattr": (0, "real")}
    bomb = {"a": torch.ones(2), "b": Runs(function, *arguments[function.__name__])}
    if form.startswith("pickle"):
        content = pickle.dumps(bomb["b"], protocol=int(form[-1]))
        name = name.replace("builtins", "__builtin__") if int(form[-1]) < 3 else name
    else:
        content = saved(bomb, _use_new_zipfile_serialization=form == "zip")
        name = name.replace("builtins", "__builtin__")
    path = write(tmp_path, content)
    error = refusal(tmp_path, str(path), name, "could run code; nothing was executed")
    assert "safetensors" in str(error.hint)
    assert not (tmp_path / "ran").exists()
    if function is not getattr:  # the pickle is live: unpickled, it does run
        pickle.loads(pickle.dumps(bomb["b"]))
        assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"(S'echo > ran'\nios\nsystem\n.", "'os.system'"),
        (b"cos\nsystem\n(S'echo > ran'\ntR.", "'os.system'"),
        (b"\x80\x02cos\nsystem\nX\x0a\x00\x00\x00echo > ran\x85R.", "'os.system'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0aecho > ran\x85R.", "'os.system'"),
        (b"\x80\x02ctorch\nload\n.", "'torch.load'"),
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
            "'torch._utils._rebuild_tensor_v2.__globals__'",
        ),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "the instruction NEWOBJ"),
        (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "the instruction NEWOBJ_EX"),
        (b"(ccollections\nOrderedDict\no.", "the instruction OBJ"),
        (b"(icollections\nOrderedDict\n.", "an instance of collections OrderedDict"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "attributes for something that has no attributes"),
        (b"\x80\x02ccollections\nOrderedDict\n(cos\nsystem\ntR.", "'os.system'"),
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "not a constructor"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "not a constructor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_programs_no_state_dict_needs(
    tmp_path: Path, program: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, program)
    refusal(tmp_path, "pytorch_model.bin", words)
    write(tmp_path, rezipped(saved({"a": torch.ones(2)}), {"data.pkl": program}))
    refusal(tmp_path, "pytorch_model.bin", words)
    assert not (tmp_path / "ran").exists()


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"


def tensor_pickle(
    shape: bytes = b"K\x02K\x03\x86", strides: bytes = b"K\x03K\x01\x86", offset: bytes = b"K\x00"
) -> bytes:
    """A pickle of {"a": a view of a storage of six floats}."""
    rest = b"\x89ccollections\nOrderedDict\n)Rt"
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + offset + shape + strides + rest + b"R"
    return b"\x80\x02}X\x01\x00\x00\x00a" + view + b"s."


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (tensor_pickle(shape=b"K\x02K\x04\x86"), "reaches beyond its storage of 6 elements"),
        (tensor_pickle(offset=b"K\x01"), "reaches beyond its storage"),
        (tensor_pickle(offset=b"J\xff\xff\xff\xff"), "not a valid view"),
        (tensor_pickle(offset=b"N"), "not a valid view"),
        (tensor_pickle(strides=b"K\x04K\x01\x86"), "reaches beyond its storage"),
        (tensor_pickle(strides=b"J\xff\xff\xff\xffK\x01\x86"), "has the strides"),
        (tensor_pickle(strides=b"K\x03\x85"), "not a valid view"),
        (tensor_pickle(strides=b"]"), "has the strides"),
        (tensor_pickle(strides=b"K\x00K\x01\x86", shape=b"K\x63K\x03\x86"), "reaches beyond its storage"),
        (tensor_pickle(strides=b"K\x02\x85", shape=b"K\x03\x85"), "no two elements are adjacent"),
        (tensor_pickle(shape=b"J\xff\xff\xff\xffK\x03\x86"), "has the shape"),
        (tensor_pickle(shape=b"\x88K\x03\x86"), "has the shape"),
        (tensor_pickle(shape=b"N"), "has the shape"),
        (tensor_pickle(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7fK\x03\x86"), "too large for any file"),
        (tensor_pickle().replace(b"FloatStorage", b"HalfStorage\x20"), "HalfStorage "),
        (tensor_pickle().replace(b"FloatStorage", b"DoubleStorage"), "has 24 bytes, expected 48"),
        (tensor_pickle().replace(b"K\x06tQ", b"K\x07tQ"), "has 24 bytes, expected 28"),
        (tensor_pickle().replace(b"K\x06tQ", b"J\xff\xff\xff\xfftQ"), "expected a storage"),
        (tensor_pickle().replace(b"\x00\x00\x000X", b"\x00\x00\x009X"), "storage '9' is missing"),
        (tensor_pickle().replace(b"K\x06tQ", b"K\x06)tQ"), "expected a storage"),
        (tensor_pickle().replace(b"K\x06tQ", b"K\x06t0"), "the instruction POP"),
        (b"\x80\x02].", "contains a list, expected a state dict"),
        (b"\x80\x02}K\x01" + tensor_pickle()[9:], "tensor named 1, expected printable text"),
        (b"\x80\x02}X\x03\x00\x00\x00a\x1bb" + tensor_pickle()[9:], "expected printable text"),
        (b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns.", "a dict key of type tuple"),
        (b"\x80\x02}]Ns.", "a dict key of type list"),
        (b"\x80\x02", "cannot be read"),
        (b"\x80\x02.", "cannot be read"),
        (b"\x80\x02\xff.", "cannot be read"),
        (b"\x80\x02h\x05.", "cannot be read"),
        (b"\x80\x02t.", "cannot be read"),
        (b"\x80\x02Na.", "cannot be read"),
        (b"\x80\x02]]s.", "cannot be read"),
        (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "cannot be read"),
        (b"\x80\x04\x96" + struct.pack("<Q", 1 << 40) + b".", "cannot be read"),
        (b"\x80\x02" + b"N" * 410_000 + b".", " instructions, too many"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pickles_that_describe_no_weights(tmp_path: Path, program: bytes, words: str) -> None:
    good = saved({"a": torch.arange(6.0).reshape(2, 3)})
    write(tmp_path, rezipped(good, {"data.pkl": tensor_pickle()}))
    assert open_checkpoint(tmp_path).tensors["a"].read(1, 2).tolist() == [[3, 4, 5]]
    write(tmp_path, rezipped(good, {"data.pkl": program}))
    refusal(tmp_path, "pytorch_model.bin", words)


def test_a_name_twice_in_a_pickle(tmp_path: Path) -> None:
    twice = tensor_pickle()[:-1] + b"X\x01\x00\x00\x00aNs."
    write(tmp_path, rezipped(saved({"a": torch.arange(6.0)}), {"data.pkl": twice}))
    refusal(tmp_path, "pytorch_model.bin", "contains 'a' twice in one dict")


def test_a_pickle_too_large_to_be_one(tmp_path: Path) -> None:
    write(tmp_path, rezipped(saved({"a": torch.ones(2)}), {"data.pkl": bytes((16 << 20) + 1)}))
    refusal(tmp_path, "data.pkl has 16777217 bytes, expected at most 16777216")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.nn.Linear(2, 2), "'torch.nn.modules.linear.Linear'"),
        (torch.ones(2), "contains a PickledTensor, expected a state dict"),
        ([torch.ones(2)], "contains a list, expected a state dict"),
        ({"model": {"a": torch.ones(2)}, "b": torch.ones(2)}, "nested dicts of tensors, such as 'model'"),
        ({"a": torch.ones(2).double()}, "tensor 'a' is F64"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "tensor 'a' is C64"),
        ({"a": torch.ones(2, dtype=torch.complex64).conj()}, "conjugated or negated"),
        (
            {"a": torch.eye(3).to_sparse()},
            "of a kind kconv does not read ('torch._utils._rebuild_sparse_tensor')",
        ),
        ({"a": torch.ones(6)[::2]}, "no two elements are adjacent"),
        ({}, "contain no weights"),
        (
            {"a": torch.ones(2, dtype=torch.int8), "lm_head.weight": torch.ones(2, dtype=torch.int8)},
            "already quantized",
        ),
        ({"epoch": 3}, "contain no weights"),
        ({"optimizer": {"state": {0: 1}}, "args": Path("x")}, "'pathlib."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_other_content(tmp_path: Path, value: object, words: str) -> None:
    write(tmp_path, saved(value))
    refusal(tmp_path, str(tmp_path), words)


def test_torchscript(tmp_path: Path) -> None:
    write(tmp_path, rezipped(saved({"a": torch.ones(2)}), {"constants.pkl": b"\x80\x02)."}))
    refusal(tmp_path, "is a TorchScript program")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data.pkl": None}, "without the data.pkl"),
        ({"data/0": None}, "the storage '0' is missing"),
        ({"data/0": bytes(7)}, "the storage '0' has 7 bytes, expected 8"),
        ({"byteorder": b"big"}, "big-endian"),
        ({"sub/data.pkl": b""}, ""),
    ],
)
def test_archives_with_wrong_records(tmp_path: Path, change: dict[str, bytes | None], words: str) -> None:
    write(tmp_path, rezipped(saved({"a": torch.ones(2)}), change))
    if words:
        refusal(tmp_path, "pytorch_model.bin", words)
    else:
        assert set(open_checkpoint(tmp_path).tensors) == {"a"}


def test_a_compressed_archive(tmp_path: Path) -> None:
    write(tmp_path, rezipped(saved({"a": torch.ones(200)}), method=zipfile.ZIP_DEFLATED))
    refusal(tmp_path, "pytorch_model.bin", "is compressed or encrypted")


def test_a_record_named_twice(tmp_path: Path) -> None:
    content = rezipped(saved({"a": torch.ones(2), "b": torch.ones(2)}))
    write(tmp_path, content.replace(b"archive/data/1", b"archive/data/0"))
    refusal(tmp_path, "pytorch_model.bin contains two records with the same name")


def test_a_directory_that_lies(tmp_path: Path) -> None:
    content = rezipped(saved({"a": torch.ones(2), "b": torch.ones(2)}))
    local = content.index(b"archive/data/0")
    write(tmp_path, content[:local] + b"archive/data/9" + content[local + 14 :])
    refusal(tmp_path, "'archive/data/0' has a different name in its own header")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
def test_truncated_files(tmp_path: Path, legacy: bool) -> None:
    content = saved({"a": torch.ones(400)}, _use_new_zipfile_serialization=not legacy)
    for length in (*range(0, len(content), 61), len(content) - 1):
        path = write(tmp_path, content[:length])
        refusal(tmp_path, str(path))
    assert "truncated" in refusal(tmp_path).message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"l\xfc\x9cF\xf9 j\xa8P\x19", b"l\xfc\x9cF\xf9 j\xa8P\x18", "not one written by PyTorch"),
        (b"\x80\x02M\xe9\x03.", b"\x80\x02M\xe8\x03.", "unknown PyTorch version"),
        (b"little_endian\x94\x88", b"little_endian\x94\x89", "big-endian"),
        (struct.pack("<q", 400), struct.pack("<q", 399), "does not have the length its pickle gives"),
    ],
)
def test_files_before_1_6(tmp_path: Path, old: bytes, new: bytes, words: str) -> None:
    content = saved({"a": torch.ones(400)}, _use_new_zipfile_serialization=False)
    if old not in content:  # the C pickler numbers its memo, the Python one does not
        old, new = old.replace(b"\x94", b"q\x02"), new.replace(b"\x94", b"q\x02")
    assert content.count(old) == 1
    write(tmp_path, content.replace(old, new))
    refusal(tmp_path, "pytorch_model.bin", words)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)]
)
def test_files_of_no_kind(tmp_path: Path, content: bytes) -> None:
    refusal(tmp_path, str(write(tmp_path, content)))


def test_a_zip_directory_too_large_to_read(tmp_path: Path) -> None:
    """An end record that claims a directory of 17 MiB, in a file long enough to have one."""
    size = 17 << 20
    write(
        tmp_path, b"PK\x03\x04" + bytes(size) + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 9, 9, size, 4, 0)
    )
    refusal(tmp_path, "its zip directory cannot be read", "17825792 bytes")
