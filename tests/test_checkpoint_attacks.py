"""Pickles that were published as attacks, or as ways around scanners: refused, and nothing of them runs.

Each stands where torch.load would run it: as data.pkl of a zip archive, alone, and within a file as PyTorch
wrote it before 1.6. Every one would make a folder called ``ran``, if anything ran it.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_material import folder_with_config, refusal

RUN = b"X\x09\x00\x00\x00mkdir ran"  # pushes the text
CODE = b"X\x1c\x00\x00\x00__import__('os').mkdir('ran')"
SYSTEM = b"cos\nsystem\n" + RUN + b"\x85R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """GLOBAL, a tuple and REDUCE."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


_GETATTR = call("builtins", "getattr", call("builtins", "__import__", text("os")), text("system"))
_STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
_VIEW = b"ctorch._utils\n_rebuild_tensor_v2\n(" + _STORAGE + b"K\x00K\x02\x85K\x01\x85\x89"

ATTACKS = {
    "os.system": SYSTEM,
    "nt.system": call("nt", "system", RUN),
    "exec": call("builtins", "exec", CODE),
    "eval of Python 2": call("__builtin__", "eval", CODE),
    "import": call("builtins", "__import__", text("antigravity")),
    "a chain of getattr": _GETATTR + b"(" + RUN + b"tR",
    "subprocess": call("subprocess", "Popen", b"](" + text("mkdir") + text("ran") + b"e"),
    "pty": call("pty", "spawn", text("mkdir")),
    "runpy": call("runpy", "_run_code", CODE, b"}"),
    "operator": call("operator", "attrgetter", text("system")),
    "partial": call("functools", "partial", b"cos\nsystem\n", RUN),
    "map": call("builtins", "map", b"cos\nsystem\n", b"](" + RUN + b"e"),
    "cProfile": call("cProfile", "run", CODE),
    "timeit": call("timeit", "timeit", CODE),
    "bdb": call("bdb", "Bdb.run", b"N", CODE),
    "pip": call("pip._internal", "main", b"](" + text("install") + b"e"),
    "idlelib": call("idlelib.pyshell", "ModifiedInterpreter.runcommand", b"N", CODE),
    "numpy": call("numpy.core.multiarray", "_reconstruct", b"cnumpy\nndarray\n", b"K\x00\x85", text("b")),
    "numpy's runstring": call("numpy.testing._private.utils", "runstring", CODE, b"}"),
    "torch.hub": call("torch.hub", "load", text("x/y"), text("z")),
    "torch.load": call("torch.serialization", "load", text("x")),
    "torch's jit": call("torch.jit", "CompilationUnit", CODE),
    "torch's own eval": call("torch.fx.graph_module", "_exec_with_source", CODE, b"}"),
    "inductor": call("torch._inductor.codecache", "compile_file", text("x")),
    "names with dots": call("torch", "_utils.os.system", RUN),
    "a known module's imports": call("torch._utils", "sys.modules", text("os")),
    "a known name of another module": call("os", "OrderedDict"),
    "stack global": text("os") + text("system") + b"\x93" + RUN + b"\x85R",
    "stack global from the memo": text("system") + b"q\x05" + text("os") + b"h\x05\x93" + RUN + b"\x85R",
    "stack global of what is no text": b"cos\nsystem\n" + text("x") + b"\x93",
    "a name behind a long one": text("os") + b"\x8c\x06system\x93" + RUN + b"\x85R",
    "instance": b"(" + RUN + b"ios\nsystem\n",
    "object": b"(cos\nsystem\n" + RUN + b"o",
    "new object": b"cos\nsystem\n" + RUN + b"\x85\x81",
    "new object with keywords": b"cos\nsystem\n" + RUN + b"\x85}\x92",
    "build": b"ccollections\nOrderedDict\n)R}" + text("__setstate__") + b"cos\nsystem\nsb" + RUN + b"b",
    "build of two states": b"ccollections\nOrderedDict\n)RN}" + text("__class__") + b"cos\nsystem\ns\x86b",
    "extension 1": b"\x82\x01" + RUN + b"\x85R",
    "extension 2": b"\x83\x01\x00" + RUN + b"\x85R",
    "extension 4": b"\x84\x01\x00\x00\x00" + RUN + b"\x85R",
    "memo of a function": b"cos\nsystem\nq\x010h\x01" + RUN + b"\x85R",
    "memo that is written again": b"}q\x010cos\nsystem\nq\x010h\x01" + RUN + b"\x85R",
    "memo of protocol 0": b"cos\nsystem\np7\n0g7\n" + RUN + b"\x85R",
    "persistent of protocol 0": b"Pos.system\n",
    "persistent of a function": SYSTEM + b"Q",
    "storage of a function": _STORAGE.replace(b"ctorch\nFloatStorage\n", SYSTEM),
    "hooks": _VIEW + SYSTEM + b"tR",
    "hooks in a dict": _VIEW + b"ccollections\nOrderedDict\n)R" + text("x") + b"cos\nsystem\nstR",
    "metadata": _VIEW + b"ccollections\nOrderedDict\n)R}" + text("conj") + SYSTEM + b"stR",
    "a type of its own": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n("
    + RUN
    + b"t}tR",
    "a subclass": b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\ncos\nsystem\n"
    + b"(tNtR",
    "wrapper subclass": call("torch._utils", "_rebuild_wrapper_subclass", b"cos\nsystem\n", RUN),
    "device": call("torch._utils", "_rebuild_device_tensor_from_numpy", SYSTEM),
    "codecs": call("_codecs", "encode", SYSTEM, text("latin1")),
    "codecs as decoder": call("codecs", "decode", RUN, text("rot13")),
    "copyreg": call("copyreg", "_reconstructor", b"cos\nsystem\n", b"cbuiltins\nobject\n", b"N"),
    "a callable as dict": b"ccollections\nOrderedDict\n(" + SYSTEM + b"tR",
    "a frame too long": b"\x95\xff\x00\x00\x00\x00\x00\x00\x00" + SYSTEM,
    "run before it breaks": SYSTEM + b"\xff\xff",
    "run, then a good dict": SYSTEM + b"0}",
    "pickled code": call("types", "CodeType", b"K\x00"),
    "marshal": call("marshal", "loads", b"C\x01N"),
    "dill": call("dill._dill", "_create_function", b"N"),
    "cloudpickle": call("cloudpickle.cloudpickle", "_make_function", b"N"),
    "a pickle in a pickle": call("pickle", "loads", b"C\x01."),
    "yaml": call("yaml", "unsafe_load", text("!!python/object/apply:os.system ['mkdir ran']")),
    "webbrowser": call("webbrowser", "open", text("http://localhost")),
    "asyncio": call("asyncio.unix_events", "_UnixSubprocessTransport._start", b"}"),
    "lib2to3": call("lib2to3.pgen2.pgen", "ParserGenerator.make_label", b"N", CODE),
    "profile": call("profile", "Profile.run", b"N", CODE),
}


def archive(program: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        target.writestr("archive/data.pkl", program)
        target.writestr("archive/version", "3\n")
        target.writestr("archive/data/0", bytes(8))
    return stream.getvalue()


def before_1_6(program: bytes) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, system)]
    return b"".join([*head, program, pickle.dumps([], 2)])


@pytest.mark.parametrize("name", ATTACKS)
def test_published_attacks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = folder_with_config(tmp_path / "model") / "pytorch_model.bin"
    program = b"\x80\x04" + ATTACKS[name]
    within = b"\x80\x04}" + text("a") + ATTACKS[name] + b"s."  # the value of a state dict
    for each in (program + b".", program, within):
        for content in (archive(each), each, before_1_6(each)):
            path.write_bytes(content)
            refusal(path.parent, "pytorch_model.bin")
    assert os.listdir(tmp_path) == ["model"]


def test_the_attacks_are_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpickled, the first of them does run: the harness would notice."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\x04" + ATTACKS["a chain of getattr"] + b".")
    assert (tmp_path / "ran").is_dir()


GOOD = {"a": torch.ones(2)}


def zipped(**how: object) -> bytes:
    stream = io.BytesIO()
    torch.save(GOOD, stream, **how)
    return stream.getvalue()


def flagged(content: bytes, record: bytes, place: int, value: int = 1) -> bytes:
    """The archive with a byte of every record of a kind changed: scanners believe it, torch.load does not."""
    parts = content.split(record)
    return record.join(
        [parts[0], *(part[: place - 4] + bytes([value]) + part[place - 3 :] for part in parts[1:])]
    )


DISGUISES = {
    "7z instead of zip": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(100),
    "a pickle in front of an archive": b"\x80\x04" + SYSTEM + b"." + archive(b"}."),
    "an archive behind an archive's pickle": archive(b"\x80\x04" + SYSTEM + b".") + archive(b"}."),
    "encrypted, says the directory": flagged(zipped(), b"PK\x01\x02", 8),
    "compressed, says the directory": flagged(zipped(), b"PK\x01\x02", 10, 8),
    "tar": b"sys.pickle".ljust(512, b"\0") + bytes(1024),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(64),
    "a script": b"#!/bin/sh\nmkdir ran\n",
}


@pytest.mark.parametrize("name", DISGUISES)
def test_files_in_disguise(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = folder_with_config(tmp_path / "model") / "pytorch_model.bin"
    path.write_bytes(DISGUISES[name])
    refusal(path.parent, str(tmp_path / "model"))
    assert os.listdir(tmp_path) == ["model"]
