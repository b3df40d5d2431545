"""What is sent to another process: checkpoints, tensors, and a plan with pieces of it."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gbst_material import random_gbswt5
from requantize_material import llama_file
from safetensors.torch import load_file, save_file
from t5_checkpoints import write_t5

from kconv.converters import pieces
from kconv.converters.families import family_for
from kconv.converters.gguf_plan import FilePlan, plan_file
from kconv.converters.gguf_source import gguf_model
from kconv.converters.gguf_writer import begin_files, finish_files, write_files, write_pieces
from kconv.converters.mapping import build
from kconv.converters.samples import write_sample
from kconv.core.checkpoint import Checkpoint
from kconv.core.errors import EnvironmentProblem, NonFiniteError
from kconv.core.model import Model
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import Tensor
from kconv.quant.gguf_weights import open_gguf
from kconv.quant.importance import Importance, importance_to_be
from kconv.quant.policy import POLICIES, choose_formats

# What a worker has open already: files whose descriptors have the numbers those of the sender have.
_OTHERS = "others = [os.open(sys.argv[1], os.O_RDONLY) for _ in range(40)]\n"
_DIGESTS = """
def digests(tensors):
    digest = lambda tensor: hashlib.sha256(tensor.read(0, tensor.rows).tobytes()).hexdigest()
    return {name: digest(tensor) for name, tensor in tensors.items()}
"""
_WORKER = f"""
import hashlib, os, pickle, sys
{_OTHERS}{_DIGESTS}
received = pickle.loads(sys.stdin.buffer.read())
tensors = received if isinstance(received, dict) else received.tensors
sys.stdout.buffer.write(pickle.dumps(digests(tensors)))
"""


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    space: dict[str, Any] = {}
    exec("import hashlib\n" + _DIGESTS, space)
    digests_of: dict[str, str] = space["digests"](tensors)
    return digests_of


def read_elsewhere(sent: Checkpoint | Mapping[str, Tensor], folder: Path) -> dict[str, str]:
    """What another process, which works in another folder and has other files open, reads of the tensors."""
    other = folder / "other"
    other.write_bytes(b"A" * (1 << 20))
    (folder / "somewhere").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, str(other)],
        input=pickle.dumps(sent), capture_output=True, check=False, cwd=folder / "somewhere",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    digests: dict[str, str] = pickle.loads(done.stdout)
    return digests


def sharded(folder: Path) -> Path:
    """The same checkpoint in two files, with their index."""
    tensors = load_file(folder / "model.safetensors")
    names, where = sorted(tensors), {}
    for part in range(2):
        mine, file = names[part::2], f"model-{part + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in mine}, folder / file)
        where |= dict.fromkeys(mine, file)
    (folder / "model.safetensors").unlink()
    index = str({"weight_map": where}).replace("'", '"')
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def as_torch(folder: Path, *, old: bool = False) -> Path:
    torch.save(
        load_file(folder / "model.safetensors"),
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=not old,
    )
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("demo") / "checkpoint")


@pytest.fixture
def folder(tmp_path: Path, demo: Path) -> Path:
    return shutil.copytree(demo, tmp_path / "checkpoint")


@pytest.mark.parametrize("kind", ["one file", "sharded", "torch", "torch before 1.6", "relative"])
def test_a_checkpoint_is_opened_anew(
    tmp_path: Path, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "sharded":
        sharded(folder)
    if kind.startswith("torch"):
        as_torch(folder, old="before" in kind)
    if kind == "relative":
        monkeypatch.chdir(tmp_path)
        folder = Path("checkpoint")
    opened = open_checkpoint(folder)
    assert read_elsewhere(opened, tmp_path) == digests(opened.tensors)
    arrived: Checkpoint = pickle.loads(pickle.dumps(opened))
    assert arrived.folder == tmp_path / "checkpoint"
    assert (arrived.config, list(arrived.tensors)) == (opened.config, list(opened.tensors))
    assert [path.name for path in arrived.weight_files] == [path.name for path in opened.weight_files]
    assert {path.name: at for path, at in arrived.side_files.items()} == {
        path.name: at for path, at in opened.side_files.items()
    }
    assert len(pickle.dumps(opened)) < 300 * len(opened.tensors) + 5_000


FAMILIES: Mapping[str, Callable[[Path], Path]] = {
    **{
        family: lambda folder, family=family: write_sample(family, folder)  # type: ignore[misc]
        for family in (
            "42dot",
            "kogpt",
            "kebyt5",
            "llama-3-ko",
            "qwen3-moe",
            "gpt-neox",
            "exaone4",
            "hyperclovax",
        )
    },
    "T5, tied": lambda folder: write_t5(folder, tie_word_embeddings=True, head=False),
    "GBST": lambda folder: random_gbswt5(folder),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_transformed_tensors_travel(tmp_path: Path, name: str) -> None:
    """Heads in another order, stacks of experts, scaled heads, what is computed, and their way back."""
    checkpoint = open_checkpoint(FAMILIES[name](tmp_path / "checkpoint"))
    family = family_for(checkpoint.config)
    model = build(family, checkpoint)
    tensors = {tensor.name: tensor for tensor in model.tensors}
    companions = [each for one in family.companions(checkpoint) for each in one.model.tensors]
    tensors |= {f"companion {tensor.name}": tensor for tensor in companions}
    assert read_elsewhere(tensors, tmp_path) == digests(tensors)


def test_tensors_of_a_gguf_travel_without_its_header(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "model.gguf")
    with open_gguf(path) as file:
        tensors = {tensor.name: tensor for tensor in gguf_model(file).tensors}
        tensors |= {f"floats {info.name}": file.tensor(info) for info in file.header.tensors}
        assert read_elsewhere(tensors, tmp_path) == digests(tensors)
        assert len(pickle.dumps(next(iter(tensors.values())))) < 2_000


def test_tensors_that_arrive_one_by_one_share_a_descriptor(folder: Path) -> None:
    opened = open_checkpoint(folder)
    before = len(os.listdir("/proc/self/fd"))
    arrived = [pickle.loads(pickle.dumps(tensor)) for tensor in opened.tensors.values()]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert [each.read(0, 1).tobytes() for each in arrived] == [
        each.read(0, 1).tobytes() for each in opened.tensors.values()
    ]
    del arrived
    assert len(os.listdir("/proc/self/fd")) <= before


def changed(path: Path) -> None:
    """Other weights of the same size, at another time."""
    data = bytearray(path.read_bytes())
    data[-4:] = b"\1\2\3\4"
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("part", ["checkpoint", "tensor"])
def test_a_file_that_changed_is_refused_where_it_arrives(tmp_path: Path, folder: Path, part: str) -> None:
    opened = open_checkpoint(folder)
    sent = pickle.dumps(opened if part == "checkpoint" else next(iter(opened.tensors.values())))
    del opened
    weights = folder / "model.safetensors"
    kept = shutil.copy2(weights, tmp_path / "kept")
    changed(weights)
    with pytest.raises(EnvironmentProblem, match="is not the same file as in the process that pickled this"):
        pickle.loads(sent)
    weights.unlink()
    with pytest.raises(EnvironmentProblem, match="cannot be opened here: No such file or directory"):
        pickle.loads(sent)
    weights.mkdir()
    with pytest.raises(EnvironmentProblem, match="cannot be opened here: it is a folder"):
        pickle.loads(sent)
    weights.rmdir()
    shutil.copy2(kept, weights)  # as on another machine: another inode, the same size and time
    pickle.loads(sent)


def test_a_file_that_changes_after_it_arrived_is_refused_the_next_time(folder: Path) -> None:
    opened = open_checkpoint(folder)
    sent = pickle.dumps(opened)
    arrived = pickle.loads(sent)
    changed(folder / "model.safetensors")
    with pytest.raises(EnvironmentProblem, match="is not the same file as"):
        pickle.loads(sent)
    del arrived


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_side_files_are_held_to_what_they_were(folder: Path, name: str) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    opened = open_checkpoint(folder)
    sent = pickle.dumps(opened)
    (folder / name).write_text("{}")
    what = "put there" if name == "generation_config.json" else "changed"
    with pytest.raises(EnvironmentProblem, match=f"{name} was {what} since the checkpoint was opened"):
        pickle.loads(sent)
    with pytest.raises(EnvironmentProblem, match=f"{name} was {what} while the checkpoint was read"):
        pickle.dumps(opened)


def test_what_no_longer_lies_at_its_path_is_not_sent(tmp_path: Path, folder: Path) -> None:
    tensor = next(iter(open_checkpoint(folder).tensors.values()))
    folder.rename(tmp_path / "moved")
    assert tensor.read(0, 1).size  # this process has it open
    with pytest.raises(EnvironmentProblem, match="cannot be sent to another process"):
        pickle.dumps(tensor)


# Pieces of a plan

_TWO = """
import multiprocessing, os, pathlib, pickle, sys
from kconv.converters.gguf_writer import write_pieces

def work(path, answer):
    plan, pieces = pickle.loads(pathlib.Path(path).read_bytes())
    written = write_pieces(plan, pieces, threads=1)
    pathlib.Path(answer).write_bytes(pickle.dumps((os.getpid(), written)))

if __name__ == "__main__":
    path, answer = sys.argv[1:]
    worker = multiprocessing.get_context("spawn").Process(target=work, args=(path, answer))
    worker.start()
    worker.join()
    sys.exit(worker.exitcode)
"""


def write_elsewhere(sent: object, folder: Path) -> tuple[int, Any]:
    """Let a spawned process write a plan's pieces; its id, and what it returned."""
    (folder / "two.py").write_text(_TWO)
    (folder / "plan").write_bytes(pickle.dumps(sent))
    words = [sys.executable, str(folder / "two.py"), str(folder / "plan"), str(folder / "answer")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: tuple[int, Any] = pickle.loads((folder / "answer").read_bytes())
    return answer


def planned(
    model: Model, folder: Path, types: Sequence[str], importance: Importance | None
) -> list[FilePlan]:
    plans = []
    for name in types:
        choice = choose_formats(model, POLICIES[name], importance)
        formats = [choice[tensor.name] for tensor in model.tensors]
        limit = model_bytes(model) // 3 if name == "f16" else None  # one in parts
        plans.append(plan_file(folder / f"{name}.gguf", model, formats, {}, limit))
    return plans


def model_bytes(model: Model) -> int:
    return sum(2 * tensor.elements for tensor in model.tensors)


def learned(model: Model) -> Importance:
    """Importance data of random numbers, of every expert its own."""
    blank, chance = importance_to_be(model.tensors), np.random.default_rng(0)
    values = {
        name: np.exp(chance.standard_normal(ones.size)).astype(np.float32)
        for name, ones in blank.values.items()
    }
    return replace(blank, values=values)


@pytest.mark.parametrize("name", ["42dot", "qwen3-moe", "kebyt5"])
def test_two_processes_write_what_one_writes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "SLAB", 1 << 12)  # many pieces, stacks of experts cut between experts
    checkpoint = open_checkpoint(write_sample(name, tmp_path / "checkpoint"))
    model = build(family_for(checkpoint.config), checkpoint)
    importance = learned(model)
    plans = planned(model, tmp_path, ("f16", "q8_0", "q4_K_M"), importance)
    paths = [path for plan in plans for path in plan.paths]
    assert len(paths) > len(plans)
    whole = [tmp_path / f"whole-{path.name}" for path in paths]
    halves = [tmp_path / f"halves-{path.name}" for path in paths]
    for path in (*whole, *halves):
        path.touch()
    assert write_files(model.tensors, plans, whole, importance=importance).not_finite == ()
    begun = begin_files(model.tensors, plans, halves, importance=importance)
    every = begun.pieces()
    assert len(every) > 50
    process, written = write_elsewhere((begun, every[::2]), tmp_path)
    assert process != os.getpid()
    assert (written.not_finite, written.kernels) == (frozenset(), ())
    assert any(one.read_bytes() != other.read_bytes() for one, other in zip(whole, halves, strict=True))
    progress_calls: list[tuple[str, int, int]] = []
    write_pieces(begun, every[1::2], progress=lambda *step: progress_calls.append(step))
    assert 0 < progress_calls[-1][2] < sum(tensor.nbytes for tensor in model.tensors)
    write_pieces(begun, every[:10])  # once more, as after a death: nothing changes
    sizes = finish_files(begun)
    assert sum(sizes) == sum(path.stat().st_size for path in halves)
    for one, other in zip(whole, halves, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_pieces_of_a_gguf_are_written_elsewhere(tmp_path: Path) -> None:
    source = llama_file(tmp_path / "source.gguf", bf16=True)
    with open_gguf(source) as file:
        model = gguf_model(file)
        plans = planned(model, tmp_path, ("q8_0",), None)
        paths = [tmp_path / "whole.gguf", tmp_path / "elsewhere.gguf"]
        for path in paths:
            path.touch()
        write_files(model.tensors, plans, paths[:1])
        begun = begin_files(model.tensors, plans, paths[1:])
        write_elsewhere((begun, begun.pieces()), tmp_path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_what_is_wrong_with_a_piece_is_told(tmp_path: Path, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    harmed = next(name for name in tensors if name.endswith("v_proj.weight"))
    tensors[harmed][0, 0] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    model = build(family_for(checkpoint.config), checkpoint)
    plans, path = planned(model, tmp_path, ("q8_0",), None), tmp_path / "file.gguf"
    path.touch()
    begun = begin_files(model.tensors, plans, [path])
    (index,) = (i for i, tensor in enumerate(model.tensors) if harmed in tensor.origin)
    others = [rows for rows in begun.pieces() if rows.index != index]
    assert write_pieces(begun, others).not_finite == frozenset()
    with pytest.raises(NonFiniteError, match="1 infinite weights in rows 0"):
        write_pieces(begun, begun.pieces())
    allowed = replace(begun, allow_nan=True)
    assert write_pieces(allowed, begun.pieces()).not_finite == {model.tensors[index].name}
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(EnvironmentProblem, match="it was replaced while it was being written"):
        write_pieces(begun, others)
