"""``kconv batch``: real checkpoints, real processes, killed and interrupted as nights do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_material import kconv, until

from kconv.converters.samples.synthetic import write_eagle, write_llama_3_ko

pytestmark = pytest.mark.usefixtures("kconv_server")
WORKER = "kconv.flows.executor_child"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints ``one`` (the larger) and ``two``, and ``broken``, which lacks a file of weights."""
    folder = tmp_path_factory.mktemp("models")
    write_eagle(folder / "one", vocab_size=600)
    write_llama_3_ko(folder / "two", base_vocab=500)
    shutil.copytree(folder / "two", folder / "broken")
    (folder / "broken" / "model-00001-of-00002.safetensors").unlink()
    return folder


def write_jobs(folder: Path, *jobs: str, defaults: str = 'types = ["q8_0"]\nno-verify = true') -> Path:
    """A jobs file in ``folder`` whose outputs go to ``dist`` beside it; jobs are sources or whole tables."""
    tables = [job if "=" in job else f"source = '{job}'" for job in jobs]
    text = f"[defaults]\noutput = 'dist'\n{defaults}\n" + "".join(f"\n[[jobs]]\n{each}\n" for each in tables)
    (folder / "jobs.toml").write_text(text, "utf-8")
    return folder / "jobs.toml"


def copies(model: Path, folder: Path, count: int) -> list[str]:
    """The same small checkpoint under several names, in files of their own."""
    return [shutil.copytree(model, folder / f"copy-{number:02d}").as_posix() for number in range(count)]


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Of every file made: either number changes when it is made again."""
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in (".gguf", ".onnx", ".data")]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}


def journal(jobs: Path, event: str) -> list[dict[str, Any]]:
    lines = [
        json.loads(line)
        for path in sorted(jobs.parent.glob("jobs.journal*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
        if line.endswith("}")
    ]
    return [line for line in lines if line["event"] == event]


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """``kconv batch`` in a process of its own, which does not outlive the test."""
    running: list[subprocess.Popen[str]] = []

    def started(jobs: Path, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "kconv", "batch", str(jobs), *words]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield started
    for each in running:
        with each:  # which closes its streams
            each.kill()


def workers(pid: int) -> list[psutil.Process]:
    """The processes that convert, once they are what they are to be."""
    found = []
    for each in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            if WORKER in each.cmdline():
                found.append(each)
    return found


def test_types_and_formats_in_one_read_each_and_only_once(models: Path, tmp_path: Path) -> None:
    both = 'formats = ["gguf", "onnx"]\ntypes.gguf = ["q8_0", "Q4_0"]\ntypes.onnx = ["q4_0"]'
    jobs = write_jobs(tmp_path, f"source = '{models}/one'\n{both}", f"{models}/two/")
    first = kconv("batch", jobs, "--json")
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert told["totals"]["made"] == 4
    assert [(each["format"], each["type"], each["state"]) for each in told["outputs"]] == [
        ("gguf", "q8_0", "made"),
        ("gguf", "Q4_0", "made"),
        ("onnx", "q4_0", "made"),
        ("gguf", "q8_0", "made"),
    ]
    dist = tmp_path / "dist"
    made = stamps(dist)
    assert {name for name in made if name.endswith(".gguf")} == {
        "one-Q8_0.gguf",
        "one-Q4_0.gguf",
        "two-Q8_0.gguf",
    }
    assert (dist / "one-Q4_0-ONNX" / "kconv.manifest.json").is_file()
    (step,) = [line for line in journal(jobs, "began") if len(line["keys"]) == 2]  # both types in one read
    assert [key.split(":")[:2] for key in step["keys"]] == [["gguf", "q8_0"], ["gguf", "q4_0"]]
    sources = [line["keys"][0].rpartition("/")[2] for line in journal(jobs, "began")]
    assert sources == ["two", "one", "one"]  # small first

    again = kconv("batch", jobs)
    assert again.returncode == 0, again.stderr
    assert "4 outputs: 4 done before" in again.stdout
    assert stamps(dist) == made

    (dist / "one-Q4_0.gguf").unlink()
    third = kconv("batch", jobs)
    assert "4 outputs: 1 done, 3 done before" in third.stdout, third.stderr
    after = stamps(dist)
    assert {name for name in after if after[name] != made[name]} == {"one-Q4_0.gguf"}


def test_what_changed_is_made_again_and_what_was_only_touched_is_not(models: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(models / "two", tmp_path / "model"))
    jobs = write_jobs(tmp_path, "model", defaults='types = ["q8_0", "f16"]\nno-verify = true')
    assert kconv("batch", jobs).returncode == 0
    made = stamps(tmp_path / "dist")

    for path in source.iterdir():
        path.touch()
    assert "2 done before" in kconv("batch", jobs).stdout
    (tmp_path / "jobs.journal.jsonl").unlink()  # the manifests say as much
    assert "2 done before" in kconv("batch", jobs).stdout
    assert stamps(tmp_path / "dist") == made

    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps({**config, "remark": 1}), "utf-8")
    planned = kconv("batch", jobs, "--dry-run")
    assert planned.stdout.count("config.json changed") == 2
    assert stamps(tmp_path / "dist") == made
    assert "2 outputs: 2 done" in kconv("batch", jobs).stdout
    made = stamps(tmp_path / "dist")

    write_jobs(tmp_path, "model", defaults='types = ["q8_0", "f16", "q4_0"]\nno-verify = true')
    assert "1 done, 2 done before" in kconv("batch", jobs).stdout
    assert stamps(tmp_path / "dist").items() > made.items()
    write_jobs(tmp_path, "model", defaults='types = ["q8_0"]\npure = true\nno-verify = true')
    assert "other options: pure" in kconv("batch", jobs, "--dry-run").stdout
    write_jobs(tmp_path, "model", defaults='types = ["q8_0"]')
    assert "its proof was off, now quick" in kconv("batch", jobs, "--dry-run").stdout
    assert "asked for" in kconv("batch", jobs, "--dry-run", "--again").stdout


def test_one_failure_stops_nothing_and_is_told_in_a_line(models: Path, tmp_path: Path) -> None:
    types = 'types = ["q8_0", "iq2_xxs"]'
    jobs = write_jobs(
        tmp_path, f"{models}/broken", f"{models}/absent", f"source = '{models}/one'\n{types}", f"{models}/two"
    )
    done = kconv("batch", jobs, "--jobs", 2)
    assert done.returncode == 1
    assert set(stamps(tmp_path / "dist")) == {"one-Q8_0.gguf", "two-Q8_0.gguf"}
    lines = [line for line in done.stdout.splitlines() if ": failed: " in line]
    assert len(lines) == 3
    assert "model-00001-of-00002.safetensors" in lines[0]
    assert "absent does not exist" in lines[1]
    assert "importance data" in lines[2]
    assert "5 outputs: 2 done, 3 failed" in done.stdout
    status = kconv("batch", jobs, "--status", "--json")
    assert status.returncode == 1
    totals = {name: count for name, count in json.loads(status.stdout)["totals"].items() if count}
    assert totals == {"made": 2, "failed": 3}
    assert not [path for path in (tmp_path / "dist").iterdir() if "partial" in path.name]


def test_files_of_others_are_replaced_only_by_force(models: Path, tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path, f"{models}/two")
    (tmp_path / "dist").mkdir()
    theirs = tmp_path / "dist" / "two-Q8_0.gguf"
    theirs.write_bytes(b"theirs")
    for _ in range(2):  # that it failed before gives no right to it
        refused = kconv("batch", jobs)
        assert refused.returncode == 1
        assert "already exists and is not what these jobs made" in refused.stdout
        assert theirs.read_bytes() == b"theirs"
    assert kconv("batch", jobs, "--force").returncode == 0
    assert "1 done before" in kconv("batch", jobs, "--force").stdout
    with theirs.open("ab") as file:
        file.write(b"changed by somebody")
    assert kconv("batch", jobs).returncode == 1


def test_a_job_takes_the_place_of_defaults_and_options_reach_the_conversion(
    models: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages }}", "utf-8")
    jobs = write_jobs(
        tmp_path,
        f"source = '{models}/two'\nverify = 'quick'\nchat_template = 'own.jinja'\ntensor-type = ['ffn=f16']",
        defaults="types = 'q8_0'\nno-verify = true\nlayout = 'transformers.js'",
    )
    planned = json.loads(kconv("batch", jobs, "--dry-run", "--json").stdout)
    assert planned["totals"]["planned"] == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "own.jinja"] == ["jobs.toml"]
    done = kconv("batch", jobs, "--options", "--no-verify --threads 1 --modelfile")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "dist" / "two-Q8_0.gguf.manifest.json").read_text("utf-8"))
    assert manifest["options"]["tensor_types"] == ["ffn=f16"]
    assert manifest["options"]["chat_template"].endswith("own.jinja")
    assert (tmp_path / "dist" / "two-Q8_0.Modelfile").is_file()


def test_killed_twice_and_no_finished_work_repeated(models: Path, tmp_path: Path, start: Start) -> None:
    jobs = write_jobs(tmp_path, *copies(models / "two", tmp_path, 6), f"{models}/broken")
    for least in (2, 4):
        run = start(jobs, "--jobs", "2")
        children = []
        until(lambda least=least: len(journal(jobs, "made")) >= least)
        children = psutil.Process(run.pid).children(recursive=True)
        run.kill()
        run.communicate()
        _, alive = psutil.wait_procs(children, 60)
        assert not alive
    with (tmp_path / "jobs.journal.jsonl").open("a") as file:
        file.write('{"event": "made", "key": "x"}\n[]\n{"event": "made", "ke')  # as a power cut leaves it
    last = kconv("batch", jobs)
    assert last.returncode == 1
    assert "1 failed" in last.stdout
    assert len(list((tmp_path / "dist").glob("*.gguf"))) == 6
    assert not [path for path in (tmp_path / "dist").iterdir() if "partial" in path.name]
    begun = [key for line in journal(jobs, "began") for key in line["keys"]]
    made = [line["key"] for line in journal(jobs, "made") if len(line) > 2]
    assert len(made) == len(set(made)) == 6
    assert len(begun) <= 6 + 2 * 2  # those two that ran as it was killed, twice


def test_what_was_published_just_before_the_kill_is_found(models: Path, tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path, f"{models}/two")
    assert kconv("batch", jobs).returncode == 0
    path, made = tmp_path / "jobs.journal.jsonl", stamps(tmp_path / "dist")
    kept = [line for line in path.read_text("utf-8").splitlines() if '"made"' not in line]
    path.write_text("\n".join(kept) + "\n", "utf-8")
    assert "1 done before" in kconv("batch", jobs).stdout
    assert stamps(tmp_path / "dist") == made
    (tmp_path / "dist" / "two-Q8_0.gguf.manifest.json").write_text("{}")
    path.write_text("\n".join(kept) + "\n", "utf-8")
    assert "1 outputs: 1 done" in kconv("batch", jobs).stdout.replace("1 output:", "1 outputs:")


def test_ctrl_c_stops_cleanly_and_finished_work_stays(models: Path, tmp_path: Path, start: Start) -> None:
    jobs = write_jobs(tmp_path, *copies(models / "two", tmp_path, 6))
    run = start(jobs)
    until(lambda: len(journal(jobs, "made")) >= 1)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=300)
    assert run.returncode == 130
    assert "of 6 outputs done; the same command goes on from there" in told
    before = journal(jobs, "made")
    rest = kconv("batch", jobs)
    assert rest.returncode == 0, rest.stderr
    assert f"{len(before)} done before" in rest.stdout
    assert not [path for path in (tmp_path / "dist").iterdir() if "partial" in path.name]


@pytest.mark.parametrize(("kills", "code"), [(1, 0), (2, 1)])
def test_a_killed_process_is_no_verdict(
    models: Path, tmp_path: Path, start: Start, kills: int, code: int
) -> None:
    """The conversion gets a second try; then it is not done, and the next run makes it."""
    jobs = write_jobs(tmp_path, f"source = '{models}/one'\ntypes = ['q4_0', 'q4_k_m', 'q6_k', 'q5_0']")
    run = start(jobs)
    for number in range(kills):
        until(lambda number=number: len(journal(jobs, "began")) == number + 1)
        until(lambda: workers(run.pid))
        (worker,) = workers(run.pid)
        worker.kill()
    out, err = run.communicate(timeout=300)
    assert run.returncode == code, err
    assert err.count("it is tried once more") == 1
    if code:
        assert "not done: the process that runs this job was killed (signal 9" in out
        assert "says nothing about the input" in out
        assert "4 not done" in out
        assert kconv("batch", jobs).returncode == 0
    assert len(stamps(tmp_path / "dist")) == 4


def test_shards_share_the_work_out_and_status_sees_all(models: Path, tmp_path: Path, start: Start) -> None:
    both = f"source = '{models}/one'\nformats = ['gguf', 'onnx']"
    jobs = write_jobs(tmp_path, both, *copies(models / "two", tmp_path, 3))
    runs = [start(jobs, "--shard", f"{number}/2") for number in (1, 2)]
    for run in runs:
        assert run.wait(300) == 0
        run.communicate()
    names = {path.name for path in tmp_path.glob("*.jsonl")}
    assert names == {"jobs.journal.1-of-2.jsonl", "jobs.journal.2-of-2.jsonl"}
    per_shard = [
        {
            json.loads(line)["key"].rpartition("/")[2]
            for line in path.read_text("utf-8").splitlines()
            if 'key"' in line
        }
        for path in sorted(tmp_path.glob("*.jsonl"))
    ]
    assert per_shard == [{"one", "copy-01"}, {"copy-00", "copy-02"}]
    status = kconv("batch", jobs, "--status")
    assert status.returncode == 0
    assert "5 outputs: 5 done" in status.stdout
    whole = kconv("batch", jobs)
    assert "5 outputs: 5 done before" in whole.stdout
    assert kconv("batch", jobs, "--shard", "3/2").returncode == 2


def test_one_run_at_a_time_has_a_journal(models: Path, tmp_path: Path, start: Start) -> None:
    jobs = write_jobs(tmp_path, *copies(models / "two", tmp_path, 3))
    run = start(jobs)
    until(lambda: len(journal(jobs, "began")) >= 1)
    second = kconv("batch", jobs)
    assert second.returncode == 4
    assert "another run is at work on these jobs" in second.stderr
    assert run.wait(300) == 0
    run.communicate()


def test_what_does_not_fit_the_budget_is_not_begun(models: Path, tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path, f"{models}/one", f"{models}/two")
    done = kconv("batch", jobs, "--disk", "2.5M")
    assert done.returncode == 1
    assert set(stamps(tmp_path / "dist")) == {"two-Q8_0.gguf"}
    assert "of the 2,500,000 that --disk allows are left" in done.stdout
    assert "1 done, 1 not done" in done.stdout
    assert kconv("batch", jobs, "--disk", "0.01T").returncode == 0


def test_jobs_from_standard_input_keep_their_journal_where_they_are_told(
    models: Path, tmp_path: Path
) -> None:
    text = f"[[jobs]]\nsource = '{models}/two'\noutput = 'dist'\ntypes = 'q8_0'\nno-verify = true\n"
    assert kconv("batch", "-", input=text, cwd=tmp_path).returncode == 2
    done = kconv("batch", "-", "--journal", "dist/.batch.jsonl", input=text, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(stamps(tmp_path / "dist")) == {"two-Q8_0.gguf"}
    assert os.listdir(tmp_path) == ["dist"]


def test_killed_while_it_proves_only_the_proof_is_done_again(
    models: Path, tmp_path: Path, start: Start
) -> None:
    jobs, dist = write_jobs(tmp_path, f"{models}/two", defaults="types = ['q8_0']"), tmp_path / "dist"
    run = start(jobs)
    until((dist / "two-Q8_0.gguf").exists)
    children = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    psutil.wait_procs(children, 60)
    made = stamps(dist)
    assert not journal(jobs, "made")
    rest = kconv("batch", jobs)
    assert rest.returncode == 0, rest.stderr
    assert "1 output: 1 done" in rest.stdout
    assert stamps(dist) == made
    manifest = json.loads((dist / "two-Q8_0.gguf.manifest.json").read_text("utf-8"))
    assert manifest["proof"]["verdict"] == "passed"
