"""More than one machine: real Dask schedulers and workers, killed at any time; bytes as of one machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from cluster_material import Dask, certificates, journaled, other_version
from command_material import kconv, until
from executor_tasks import fail, nap, pid_of

from kconv.converters.families import family_for
from kconv.converters.gguf_plan import FilePlan, plan_file
from kconv.converters.gguf_writer import begin_files, finish_files, write_files
from kconv.converters.intake import open_model
from kconv.converters.journal import JournalFolder, fingerprint
from kconv.converters.mapping import build
from kconv.converters.samples import write_sample
from kconv.converters.samples.weights import write_checkpoint
from kconv.converters.tokenizer import read_tokenizer
from kconv.converters.write_plan import WritePlan
from kconv.core.errors import EnvironmentProblem, InputError, NonFiniteError, UsageError
from kconv.core.model import Model
from kconv.core.progress import silent
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import DType
from kconv.core.windows import Window
from kconv.flows.convert import to_gguf
from kconv.flows.dask_executor import DaskExecutor, check_scheduler
from kconv.flows.executor import LocalExecutor, Task
from kconv.flows.results import Run
from kconv.flows.spread import _groups, write_spread
from kconv.flows.spread_logits import compare_spread
from kconv.flows.spread_reading import read_spread
from kconv.quant.policy import POLICIES, choose_formats
from kconv.reference.reading import Reading
from kconv.runtimes.llama_reader import LlamaReader
from kconv.runtimes.reader import RuntimeFailure
from kconv.verify.inputs import Expected, VerifyOptions, read_reference
from kconv.verify.logits import compare

pytestmark = pytest.mark.usefixtures("kconv_server")
TYPES = ("-q", "q8_0", "-q", "q4_k_m", "--no-verify")
NONE = ("not_finite", "nmse_same_gelu")  # of the figures of a good file of a Llama
GROUP = 300_000  # bytes of the checkpoint in a task

# kconv with small tasks, since the sample is small. Having submitted those of so many pieces it waits:
# however quick the workers are, it is still there to be killed, and work is left.
LEADER = f"""
import sys, time
from kconv.flows import spread
from kconv.flows.dask_executor import DaskExecutor
spread.SMALLEST = spread.LARGEST = {GROUP}
left, *words = sys.argv[1:]
left, submit = int(left), DaskExecutor.submit
def some(self, task):
    global left
    while left <= 0:
        time.sleep(1)
    submit(self, task)
    left -= len(task.arguments[2])
DaskExecutor.submit = some
from kconv.cli.main import main
sys.exit(main(words))
"""


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    """A scheduler without workers; those that a test starts it ends."""
    with Dask(tmp_path_factory.mktemp("dask")) as scheduler:
        yield scheduler


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a hundred pieces."""
    folder = write_sample("42dot", tmp_path_factory.mktemp("cluster") / "checkpoint")
    config = {**json.loads((folder / "config.json").read_text()), "num_hidden_layers": 10}
    (folder / "model.safetensors").unlink(missing_ok=True)
    for path in folder.glob("*.bin"):
        path.unlink()
    write_checkpoint(folder, config, dtype=DType.BF16, shards=1, seed=5)
    return folder


@pytest.fixture(scope="module")
def right(checkpoint: Path) -> dict[str, str]:
    """What one machine makes."""
    folder = checkpoint.parent / "right"
    done = kconv("to-gguf", checkpoint, *TYPES, "-o", folder)
    assert done.returncode == 0, done.stderr
    return digests(folder)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("[!.]*.gguf")}


class Workers:
    """Workers of a test."""

    def __init__(self, dask: Dask) -> None:
        self._dask, self.processes = dask, list[subprocess.Popen[bytes]]()

    def start(self, count: int = 1, **environment: str) -> list[subprocess.Popen[bytes]]:
        started = [self._dask.worker(**environment) for _ in range(count)]
        self.processes += started
        return started


@pytest.fixture
def workers(dask: Dask) -> Iterator[Workers]:
    started = Workers(dask)
    yield started
    for process in started.processes:
        process.kill()
    for process in started.processes:
        process.wait()


# A conversion


def test_one_worker_writes_what_one_machine_writes(
    dask: Dask, workers: Workers, checkpoint: Path, right: dict[str, str], tmp_path: Path
) -> None:
    workers.start()
    done = kconv("to-gguf", checkpoint, *TYPES, "-o", "dist", "--scheduler", dask.address, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "dist") == right
    assert not list((tmp_path / "dist").glob(".*"))
    texts = [(folder / "checkpoint-Q8_0.gguf.manifest.json").read_text() for folder in
             (tmp_path / "dist", checkpoint.parent / "right")]  # fmt: skip
    assert texts[0] == texts[1]


def planned(checkpoint: Path, folder: Path, names: Sequence[str] = ("q8_0",)) -> tuple[Model, list[FilePlan]]:
    """The model, and the plans of a file of each type."""
    opened = open_checkpoint(checkpoint)
    model = build(family_for(opened.config), opened)
    plans = []
    for name in names:
        choice = choose_formats(model, POLICIES[name], None)
        plans.append(plan_file(folder / name, model, [choice[each.name] for each in model.tensors], {}))
    return model, plans


def spread_over(
    executor: DaskExecutor | LocalExecutor,
    checkpoint: Path,
    folder: Path,
    *,
    names: Sequence[str] = ("q8_0",),
) -> list[tuple[int, ...]]:
    """Write by an executor and alone, and compare; the pieces that journals have."""
    model, plans = planned(checkpoint, folder, names)
    alone, spread = ([folder / f"{how}-{name}" for name in names] for how in ("alone", "spread"))
    for path in (*alone, *spread):
        path.touch()
    write_files(model.tensors, plans, alone)
    plan = begin_files(model.tensors, plans, spread)
    identity = fingerprint(layout for each in plans for layout in each.layout())
    journal = JournalFolder(folder / "journal", lambda: {"files": {}})
    try:
        write_spread(plan, plan.pieces(), journal, identity, executor, Run(group_bytes=GROUP))
    finally:
        journal.release()
    finish_files(plan)
    for one, other in zip(alone, spread, strict=True):
        assert one.read_bytes() == other.read_bytes()
    return journaled(folder / "journal")


def test_workers_are_killed(dask: Dask, workers: Workers, checkpoint: Path, tmp_path: Path) -> None:
    started = workers.start(4)
    opened = open_checkpoint(checkpoint)
    plan = WritePlan(build(family_for(opened.config), opened).tensors, ())
    sizes = [plan.tensors[piece.index].nbytes for piece in plan.pieces()]
    pieces, most = len(sizes), max(len(group) for group, _ in _groups(plan.pieces(), sizes, GROUP))

    def kill() -> None:
        for part, process in zip((0.1, 0.5, 0.9), started, strict=False):
            until(lambda part=part: len(journaled(tmp_path / "journal")) >= part * pieces)
            process.kill()

    with DaskExecutor(dask.address) as executor:
        until(lambda: executor.slots == 4)
        killer = threading.Thread(target=kill)
        killer.start()
        written = spread_over(executor, checkpoint, tmp_path, names=("q8_0", "q3_K_M"))
        killer.join()
    twice = len(written) - len(set(written))
    begun = len(list((tmp_path / "journal").glob("*.begun")))
    assert begun == len(list(_groups(plan.pieces(), sizes, GROUP)))
    assert len(set(written)) == pieces > 90
    assert twice <= 3 * most


def test_the_leader_is_killed_and_goes_on(
    dask: Dask, workers: Workers, checkpoint: Path, right: dict[str, str], tmp_path: Path
) -> None:
    workers.start(2)
    words = ["to-gguf", str(checkpoint), *TYPES, "-o", str(tmp_path), "--resume"]
    cluster = [*words, "--scheduler", dask.address]

    def known() -> list[tuple[int, ...]]:
        return [piece for folder in tmp_path.glob(".*.journal") for piece in journaled(folder)]

    for count in (20, 50):
        more = [sys.executable, "-c", LEADER, str(count - len(set(known()))), *cluster]
        with subprocess.Popen(more, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as leader:
            until(lambda count=count: len(set(known())) >= count or leader.poll() is not None)
            leader.kill()
            assert leader.wait() == -9, leader.stderr and leader.stderr.read()
    assert not digests(tmp_path)
    before = len(set(known()))
    done = kconv(*words)
    assert done.returncode == 0, done.stderr
    assert "pieces of the weights are written already" in done.stderr
    resumed = int(done.stderr.partition("resumed: ")[2].partition(" of")[0])
    assert resumed >= min(before, 50)
    assert digests(tmp_path) == right
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_the_checkpoint_is_read_in_windows(dask: Dask, workers: Workers, checkpoint: Path) -> None:
    """The proof's reading, over two workers: a window alone gives the bits it gives in one process alone."""
    workers.start(2)
    opened, family = open_model(checkpoint)
    expected = Expected(opened, family, build(family, opened), read_tokenizer(opened))
    windows = [Window(0, tuple(range(first, first + size))) for first, size in ((9, 30), (50, 41), (99, 17))]
    with DaskExecutor(dask.address) as executor:
        until(lambda: executor.slots == 2)
        spread = read_spread(expected, windows, executor, threads=1, progress=silent)
    alone = read_reference(expected, VerifyOptions(threads=1), windows)
    for number, window in enumerate(windows):
        stop = len(window.ids)
        here, there = (reading.logits(number, 0, stop) for reading in (alone, spread))
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-4)
    assert spread.magnitudes.flows.keys() == alone.magnitudes.flows.keys()
    for name, flow in alone.magnitudes.flows.items():
        assert spread.magnitudes.flows[name].into.value == pytest.approx(flow.into.value, rel=1e-4)
        assert spread.magnitudes.flows[name].into.window == flow.into.window


def test_the_files_are_compared_in_windows(
    dask: Dask, workers: Workers, checkpoint: Path, tmp_path: Path
) -> None:
    """The proof's other half, over two workers: the figures, to four digits, and the same worst positions."""
    workers.start(2)
    opened, family = open_model(checkpoint)
    expected = Expected(opened, family, build(family, opened), read_tokenizer(opened))
    path = to_gguf(checkpoint, tmp_path / "file.gguf", types=["q4_0"], verify="off").outputs[0].path
    windows = tuple(
        Window(0, tuple(range(first, first + size))) for first, size in ((9, 30), (50, 41), (99, 17), (7, 64))
    )
    reading = read_reference(expected, VerifyOptions(threads=1), windows)
    seen: list[Reading] = []
    with DaskExecutor(dask.address) as executor:
        until(lambda: executor.slots == 2)
        run = Run(executor=executor, threads=1)
        spread = compare_spread(expected, run, path, lambda asked: reading, windows, seen.append)
    assert seen == [reading]
    with LlamaReader(path, threads=1) as reader:
        alone = compare(lambda asked: reading, reader, windows)
    here, there = (dataclasses.asdict(each.figures()) for each in (alone, spread))
    assert [here.pop(name) for name in NONE] == [there.pop(name) for name in NONE] == [None, None]
    percentiles = [dict(each.pop("dp_percentiles")) for each in (there, here)]
    assert percentiles[0] == pytest.approx(percentiles[1], rel=1e-4)
    assert there == pytest.approx(here, rel=1e-4)
    places = [[(worst.window, worst.position) for worst in each.worst(8)] for each in (alone, spread)]
    assert places[0] == places[1]
    (tmp_path / "other.gguf").write_bytes(path.read_bytes()[:-1000])
    with LocalExecutor(1) as executor:
        run = Run(executor=executor, threads=1)
        with pytest.raises(RuntimeFailure):
            compare_spread(expected, run, tmp_path / "other.gguf", lambda _: reading, windows, seen.append)


def test_bad_weights_are_told_as_on_one_machine(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.7.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    (broken / "config.json").write_text((checkpoint / "config.json").read_text())
    model, (plan,) = planned(broken, tmp_path)
    (tmp_path / "x").touch()
    begun = begin_files(model.tensors, [plan], [tmp_path / "x"])
    journal = JournalFolder(tmp_path / "journal", lambda: {"files": {}})
    with LocalExecutor(1) as executor, pytest.raises(NonFiniteError, match=r"layers\.7\.mlp\.up_proj"):
        write_spread(begun, begun.pieces(), journal, fingerprint(plan.layout()), executor, Run())
    journal.remove()


def test_a_worker_that_sees_other_files_refuses(checkpoint: Path, tmp_path: Path) -> None:
    model, (plan,) = planned(checkpoint, tmp_path)
    (tmp_path / "x").touch()
    begun = begin_files(model.tensors, [plan], [tmp_path / "x"])
    with (tmp_path / "x").open("r+b") as file:
        file.write(b"else")
    journal = JournalFolder(tmp_path / "journal", lambda: {"files": {}})
    with LocalExecutor(1) as executor:
        with pytest.raises(EnvironmentProblem, match="not as this run has begun them"):
            write_spread(begun, begun.pieces(), journal, fingerprint(plan.layout()), executor, Run())
        (tmp_path / "x").unlink()
        with pytest.raises(EnvironmentProblem, match="does not see"):
            write_spread(begun, begun.pieces(), journal, fingerprint(plan.layout()), executor, Run())
    journal.remove()


# The executor


def test_outcomes_and_a_worker_of_another_version(dask: Dask, workers: Workers, tmp_path: Path) -> None:
    workers.start()
    with DaskExecutor(dask.address) as executor:
        executor.submit(Task("a", pid_of, (7,)))
        executor.submit(Task("b", fail, ("it",)))
        outcomes = {outcome.task.key: outcome for outcome in executor.results()}
        assert outcomes["a"].value == (7, workers.processes[0].pid)
        error = outcomes["b"].error
        assert isinstance(error, InputError)
        assert error.hint == "take another"
        workers.start(**other_version(tmp_path, "gguf"))
        until(lambda: executor.slots == 2)
        with pytest.raises(EnvironmentProblem, match=r"the worker tcp://\S+ has gguf 9\.9; this machine"):
            DaskExecutor(dask.address)
        for number in range(2):  # one for each; this executor has not seen the other before
            executor.submit(Task(f"{number}", nap, (str(tmp_path / f"{number}"), 1)))
        with pytest.raises(EnvironmentProblem, match=r"the worker tcp://\S+ has gguf 9\.9; this machine"):
            list(executor.results())


def test_nobody_is_there(dask: Dask, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentProblem, match="has had no workers for 1 seconds"):
        DaskExecutor(dask.address, patience=1)
    with pytest.raises(EnvironmentProblem, match="no Dask scheduler answers at tcp://127"):
        DaskExecutor("tcp://127.0.0.1:9", patience=1)
    with pytest.raises(UsageError, match="--scheduler here is not the address"):
        check_scheduler("here")
    for words in (("--stream",), ("-o", "s3://bucket/place")):
        done = kconv("to-gguf", "org/name", "--scheduler", dask.address, *words)
        assert done.returncode == 2, done.stderr
        assert "--scheduler and" in done.stderr
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match="needs the package distributed"):
        check_scheduler(dask.address)


def test_over_tls_and_a_scheduler_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dask.config

    made = certificates(tmp_path)
    with Dask(tmp_path / "dask", tls=made) as tls:
        assert tls.address.startswith("tls://")
        with pytest.raises(EnvironmentProblem, match=r"cannot connect|no Dask scheduler answers"):
            DaskExecutor(tls.address, patience=2)
        tls.worker()
        names = {"ca-file": made["ca-file"], "client.cert": made["cert"], "client.key": made["key"]}
        settings = {f"distributed.comm.tls.{name}": str(path) for name, path in names.items()}
        with dask.config.set(settings), DaskExecutor(tls.address) as executor:
            executor.submit(Task("a", pid_of, (1,)))
            assert [outcome.value[0] for outcome in executor.results()] == [1]
            executor.submit(Task("b", nap, (str(tmp_path / "nap"), 60)))
            until((tmp_path / "nap").exists)
            tls.scheduler.kill()
            with pytest.raises(EnvironmentProblem, match="connection to the Dask scheduler at tls://"):
                list(executor.results())


# Shelves


def test_a_shelf_whose_worker_is_killed(
    dask: Dask, workers: Workers, checkpoint: Path, right: dict[str, str], tmp_path: Path
) -> None:
    first, _ = workers.start(2)
    jobs = tmp_path / "jobs.toml"
    table = "\n[[jobs]]\nsource = '{}'\noutput = '{}'\n"
    tables = [table.format(checkpoint, name) for name in ("one", "two")]
    tables.append(table.format(tmp_path / "no", "x"))
    jobs.write_text('[defaults]\ntypes = ["q8_0", "q4_k_m"]\nno-verify = true\n' + "".join(tables))
    command = [sys.executable, "-m", "kconv", "batch", str(jobs), "--scheduler", dask.address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as leader:
        until(lambda: list(tmp_path.glob("*/.*.partial")) or leader.poll() is not None)
        first.kill()
        told = leader.communicate(timeout=120)
    assert leader.returncode == 1, told  # the one that is not there
    assert "6 outputs: 4 done, 2 failed" in told[0]
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == right
    done = kconv("batch", jobs, "--scheduler", dask.address)
    assert "6 outputs: 4 done before, 2 failed" in done.stdout
