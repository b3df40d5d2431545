"""Bad input through the command line: the right exit code, one clear message, and nothing left behind.

Each case damages a good checkpoint in one way. Afterwards the output folder must be empty and the checkpoint
untouched.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_material import kconv as forked
from llama_material import random_llama

KCONV = [str(Path(sys.executable).parent / "kconv")]
pytestmark = pytest.mark.usefixtures("kconv_server")


def kconv(
    command: str, *arguments: object, prefix: list[str] | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """A command of kconv; conversions are refused or made, not proven (test_cli_verify.py)."""
    words = [command, *(["--no-verify"] if command == "to-gguf" else []), *map(str, arguments)]
    if prefix:
        command_line = [*prefix, *KCONV, *words]
        return subprocess.run(command_line, capture_output=True, text=True, timeout=120, check=False, **how)
    return forked(*words, **how)


def fingerprints(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    return random_llama(tmp_path_factory.mktemp("good") / "model", small_tokenizer)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def assert_only_what_was_known(stdout: str, source: Path) -> None:
    """Before a refusal the command says what it knows by then of ``source``, and nothing of files."""
    known = (f"{source}: ", "tokens: ", "note (", "warning (")
    assert [line for line in stdout.splitlines() if not line.startswith(known)] == []


def refused(
    folder: Path, out: Path, code: int, *message: str, options: tuple[str, ...] = (), **how: Any
) -> None:
    """Convert, and check exit code, message, the output folder and the checkpoint."""
    out.mkdir(exist_ok=True)
    before, there = fingerprints(folder), fingerprints(out)
    done = kconv("to-gguf", folder, "-q", "q8_0", "-o", out, *options, **how)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for text in message:
        assert text in done.stderr
    assert_only_what_was_known(done.stdout, folder)
    assert fingerprints(out) == there
    assert fingerprints(folder) == before


# --- safetensors, taken apart and put together again ---


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_together(path: Path, header: str | dict[str, Any], data: bytes) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def edit_header(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors"
    header, data = header_of(path)
    edit(header)
    put_together(path, header, data)


def set_weight(folder: Path, name: str, value: float) -> None:
    path = folder / "model.safetensors"
    header, data = header_of(path)
    changed = bytearray(data)
    start = header[name]["data_offsets"][0] + 40
    changed[start : start + 4] = struct.pack("<f", value)
    put_together(path, header, bytes(changed))


def make_shards(folder: Path) -> None:
    """Split the weights in two files with an index."""
    path = folder / "model.safetensors"
    header, data = header_of(path)
    header.pop("__metadata__", None)
    names = list(header)
    weight_map = {}
    for number, part in enumerate((names[:5], names[5:]), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        pieces, table, offset = [], {}, 0
        for tensor in part:
            begin, end = header[tensor]["data_offsets"]
            table[tensor] = {**header[tensor], "data_offsets": [offset, offset + end - begin]}
            pieces.append(data[begin:end])
            offset += end - begin
            weight_map[tensor] = name
        put_together(folder / name, table, b"".join(pieces))
    path.unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_the_good_checkpoint_converts(folder: Path, tmp_path: Path) -> None:
    done = kconv("to-gguf", folder, "-q", "q8_0", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model-Q8_0.gguf",
        "model-Q8_0.gguf.manifest.json",
    ]


def test_sharded_checkpoint_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    kconv("to-gguf", folder, "-q", "q8_0", "-o", tmp_path / "one.gguf")
    make_shards(folder)
    assert kconv("to-gguf", folder, "-q", "q8_0", "-o", tmp_path / "two.gguf").returncode == 0
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def drop_shard(folder: Path) -> None:
    make_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def index_leaves_the_folder(folder: Path) -> None:
    make_shards(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {name: f"../{file}" for name, file in index["weight_map"].items()}
    path.write_text(json.dumps(index))


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def long_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + path.read_bytes()[8:])


def overlap(folder: Path) -> None:
    def edit(header: dict[str, Any]) -> None:
        one, other = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
        header[one]["data_offsets"] = header[other]["data_offsets"]

    edit_header(folder, edit)


def out_of_range(folder: Path) -> None:
    def edit(header: dict[str, Any]) -> None:
        begin, end = header["model.norm.weight"]["data_offsets"]
        header["model.norm.weight"]["data_offsets"] = [begin + (1 << 40), end + (1 << 40)]

    edit_header(folder, edit)


def duplicate_name(folder: Path) -> None:
    path = folder / "model.safetensors"
    header, data = header_of(path)
    entry = json.dumps(header["model.norm.weight"])
    put_together(path, json.dumps(header)[:-1] + f', "model.norm.weight": {entry}}}', data)


def float8(folder: Path) -> None:
    def edit(header: dict[str, Any]) -> None:
        entry = header["model.norm.weight"]
        entry["dtype"], entry["shape"] = "F8_E4M3", [entry["shape"][0] * 4]

    edit_header(folder, edit)


class Attack:
    """A pickle that makes a file when loaded without care."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


def hostile_pickle(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Attack(str(folder / "owned"))}, folder / "pytorch_model.bin")
    assert b"touch" in (folder / "pytorch_model.bin").read_bytes()


def bare_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(str(folder / "owned"))))


CASES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "missing config": (drop_config, ("config.json",)),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{") and None, ("config.json",)),
    "config is a list": (lambda f: (f / "config.json").write_text("[]") and None, ("config.json",)),
    "missing shard": (drop_shard, ("model-00002-of-00002.safetensors",)),
    "index leaves the folder": (index_leaves_the_folder, ("../model-00001",)),
    "truncated file": (truncate, ("model.safetensors", "truncated")),
    "header longer than the file": (long_header, ("model.safetensors", "header")),
    "overlapping offsets": (overlap, ("model.safetensors", "overlap")),
    "offsets out of range": (out_of_range, ("model.norm.weight",)),
    "duplicate names": (duplicate_name, ("model.norm.weight",)),
    "F8 weights of another shape": (float8, ("model.norm.weight", "[256]", "[64]")),
    "shape contradicts config": (
        lambda f: edit_config(f, intermediate_size=128),
        ("mlp.gate_proj.weight", "[96, 64]", "[128, 64]"),
    ),
    "more layers than tensors": (
        lambda f: edit_config(f, num_hidden_layers=3),
        ("num_hidden_layers 3", "to 2"),
    ),
    "fewer layers than tensors": (
        lambda f: edit_config(f, num_hidden_layers=1),
        ("num_hidden_layers 1", "to 2"),
    ),
    "heads that do not divide": (
        lambda f: edit_config(f, num_attention_heads=3, head_dim=None),
        ("num_attention_heads",),
    ),
    "sizes that are no numbers": (lambda f: edit_config(f, hidden_size="64"), ("hidden_size",)),
    "negative size": (lambda f: edit_config(f, vocab_size=-1), ("vocab_size",)),
    "NaN weight": (
        lambda f: set_weight(f, "model.layers.1.mlp.up_proj.weight", float("nan")),
        ("model.layers.1.mlp.up_proj.weight", "NaN", "--allow-nan"),
    ),
    "infinite norm": (
        lambda f: set_weight(f, "model.norm.weight", float("-inf")),
        ("model.norm.weight", "infinite", "--allow-nan"),
    ),
    "overflow of block scales": (
        lambda f: set_weight(f, "lm_head.weight", 3e38),
        ("lm_head.weight", "q8_0"),
    ),
    "unknown architecture": (
        lambda f: edit_config(f, architectures=["WonderForCausalLM"]),
        ("WonderForCausalLM", "supported: Llama"),
    ),
    "near architecture": (
        lambda f: edit_config(f, architectures=["GptOssForCausalLM"], model_type="gpt_oss"),
        ("gpt-oss", "llama.cpp's own converter", "supported: Llama"),
    ),
    "latent attention": (lambda f: edit_config(f, kv_lora_rank=512), ("latent attention", "EAGLE")),
    "pickle that wants to run code": (hostile_pickle, ("pytorch_model.bin", "system")),
    "bare pickle": (bare_pickle, ("pytorch_model.bin",)),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ("tokenizer",)),
    "tokenizer is no JSON": (lambda f: (f / "tokenizer.json").write_text("x") and None, ("tokenizer.json",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused_with_exit_code_3(case: str, folder: Path, tmp_path: Path) -> None:
    damage, messages = CASES[case]
    damage(folder)
    refused(folder, tmp_path / "out", 3, *messages)
    assert not (folder / "owned").exists(), "the pickle's code ran"


def test_vocabulary_larger_than_the_rows(tmp_path: Path, small_tokenizer: Path) -> None:
    folder = random_llama(tmp_path / "model", small_tokenizer, vocab_size=300)
    refused(folder, tmp_path / "out", 3, "320", "300")


def test_allow_nan_goes_on_and_says_so(folder: Path, tmp_path: Path) -> None:
    set_weight(folder, "model.layers.1.mlp.up_proj.weight", float("nan"))
    done = kconv("to-gguf", folder, "-q", "f32", "--allow-nan", "-o", tmp_path / "out.gguf")
    assert done.returncode == 0, done.stderr
    notes = json.loads((tmp_path / "out.gguf.manifest.json").read_text())["notes"]
    (text,) = [note["message"] for note in notes if note["name"] == "not-finite"]
    assert "blk.1.ffn_up.weight" in text
    assert text in done.stdout


def test_folders_made_for_the_output_go_with_it(folder: Path, tmp_path: Path) -> None:
    set_weight(folder, "model.layers.1.mlp.up_proj.weight", float("nan"))
    assert kconv("to-gguf", folder, "-o", tmp_path / "new" / "folder").returncode == 3
    assert not (tmp_path / "new").exists()


def test_wrong_usage_is_seen_first(tmp_path: Path) -> None:
    """Before the checkpoint, which does not even exist here."""
    assert kconv("to-gguf", tmp_path / "none", "-q", "q9").returncode == 2
    assert kconv("to-gguf", tmp_path / "none", "-q", "f32,q8_0", "-o", tmp_path / "x.gguf").returncode == 2


def test_existing_output_is_kept_unless_forced(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model-Q8_0.gguf").write_text("mine")
    refused(folder, out, 3, "model-Q8_0.gguf", "--force")
    (out / "model-Q8_0.gguf").rename(out / "other.gguf")
    (out / "model-Q8_0.gguf.manifest.json").write_text("mine")
    refused(folder, out, 3, "manifest.json", "--force")
    assert kconv("to-gguf", folder, "-q", "q8_0", "-o", out, "--force").returncode == 0
    assert (out / "other.gguf").read_text() == "mine"


def test_several_types_into_one_file_is_wrong_usage(folder: Path, tmp_path: Path) -> None:
    done = kconv("to-gguf", folder, "-q", "q8_0", "-q", "Q4_0", "-o", tmp_path / "out.gguf")
    assert done.returncode == 2
    assert not (tmp_path / "out.gguf").exists()


def test_unknown_type_is_wrong_usage(folder: Path, tmp_path: Path) -> None:
    done = kconv("to-gguf", folder, "-q", "q9_9", "-o", tmp_path / "out.gguf")
    assert done.returncode == 2
    assert "q4_0" in done.stderr


# --- the environment's refusals ---


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_disk_too_small_is_seen_before_writing(folder: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        refused(folder, disk, 4, "no space left")


def test_disk_that_fills_up_while_writing(folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stops the writes half way, as a full disk or a quota does."""
    refused(folder, tmp_path / "out", 4, "out", prefix=["prlimit", "--fsize=100000"])


def without_privileges() -> list[str]:
    """What to put before a command so that permissions count for root, too."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("running as root without setpriv: nothing is forbidden")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


def test_no_permission(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    refused(folder, out, 4, "permission", prefix=without_privileges())


@pytest.mark.parametrize(
    "command", [["to-gguf"], ["inspect"], ["run", "-p", "x"]], ids=lambda words: words[0]
)
def test_no_permission_to_read(command: list[str], tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    if command == ["to-gguf"]:
        locked.mkdir(mode=0o000)
    else:
        locked.touch(mode=0o000)
    done = kconv(*command, locked, prefix=without_privileges(), cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "locked" in done.stderr


def test_a_folder_that_takes_files_but_shows_none(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o300)
    done = kconv("to-gguf", folder, "-q", "q8_0", "-o", out, prefix=without_privileges())
    out.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert len(list(out.iterdir())) == 2


def large_checkpoint(folder: Path, small_tokenizer: Path) -> Path:
    """A quarter of a gigabyte of weights, so that there is time to interrupt."""
    wide = 300_000
    random_llama(folder, small_tokenizer, num_hidden_layers=1)
    edit_config(folder, intermediate_size=wide)
    path = folder / "model.safetensors"
    header, data = header_of(path)
    header.pop("__metadata__", None)
    matrix = np.linspace(-1, 1, wide * 64, dtype=np.float32).tobytes()
    pieces, offset = [], 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        piece = matrix if ".mlp." in name else data[begin:end]
        if ".mlp." in name:
            entry["shape"] = [64, wide] if "down" in name else [wide, 64]
        entry["data_offsets"] = [offset, offset + len(piece)]
        offset += len(piece)
        pieces.append(piece)
    put_together(path, header, b"".join(pieces))
    return folder


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_nothing(sent: signal.Signals, tmp_path: Path, small_tokenizer: Path) -> None:
    folder = large_checkpoint(tmp_path / "model", small_tokenizer)
    out = tmp_path / "out"
    out.mkdir()
    command = [
        *KCONV,
        "to-gguf",
        "--no-verify",
        str(folder),
        "-q",
        "q5_1",
        "-q",
        "q8_0",
        "-o",
        str(out),
        "--threads",
        "1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any(out.iterdir()):
        time.sleep(0.002)
    process.send_signal(sent)
    time.sleep(0.005)
    process.send_signal(sent)  # an impatient hand
    _, output = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert list(out.iterdir()) == []


def test_names_that_are_not_utf_8(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer_config.json", os.fsencode(folder) + b"/tokenizer\xff.json")
    path = tmp_path / os.fsdecode(b"\xff.gguf")
    done = kconv("to-gguf", folder, "-o", path, "--modelfile", "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(path.with_name(path.name + ".manifest.json").read_text(encoding="utf-8"))
    assert manifest["output"]["file"] == path.name
    assert "tokenizer\udcff.json" in [file["name"] for file in manifest["source"]["files"]]
    assert b"./\xff.gguf" in path.with_suffix(".Modelfile").read_bytes()


def test_messages_nobody_reads_do_not_stop_the_work(tmp_path: Path, small_tokenizer: Path) -> None:
    folder = large_checkpoint(tmp_path / "model", small_tokenizer)
    types = [word for name in ("q4_1", "q5_0", "q5_1", "q8_0", "f16") for word in ("-q", name)]
    target = ["-o", str(tmp_path / "out"), "--threads", "1", "--no-verify"]
    command = [*KCONV, "to-gguf", str(folder), *types, *target]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, timeout=120, check=False)
    os.close(writer)
    assert done.returncode == 0
    assert len(list((tmp_path / "out").glob("*.gguf"))) == 5
