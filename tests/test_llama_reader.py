"""llama.cpp as the measured side: its numbers against transformers, and what can befall its child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from damage_material import edited
from llama_material import llama_cpp_logits, random_llama, transformers_logits

from kconv.converters import to_gguf
from kconv.core.errors import ChildDied
from kconv.core.gguf_file import read_header
from kconv.core.reading import open_checkpoint
from kconv.core.windows import Window
from kconv.runtimes import llama_loaded, llama_reader
from kconv.runtimes.llama_reader import LlamaReader
from kconv.runtimes.reader import RuntimeFailure
from kconv.vocab.sources import read_source

Floats = npt.NDArray[np.float32]
IDS = tuple(int(i) for i in np.random.default_rng(3).integers(2, 320, 200))


@pytest.fixture(scope="module")
def checkpoint(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama with grouped queries, three layers and a head of its own."""
    folder = tmp_path_factory.mktemp("candidate") / "checkpoint"
    return random_llama(folder, small_tokenizer, num_hidden_layers=3, num_key_value_heads=2)


@pytest.fixture(scope="module")
def files(checkpoint: Path) -> dict[str, Path]:
    """That checkpoint as GGUF, by type."""
    made = to_gguf(checkpoint, checkpoint.parent, types=["f32", "q4_0"], verify=False)
    return {output.type: output.path for output in made.outputs}


@pytest.fixture(scope="module")
def file(files: dict[str, Path]) -> Path:
    """The f32 one."""
    return files["f32"]


def read(reader: LlamaReader, *windows: Window) -> list[Floats]:
    """Logits per window, and that the blocks are in order and as many as asked for."""
    collected: list[list[Floats]] = [[] for _ in windows]
    last = -1
    for block in reader.logits(windows):
        assert block.window >= last
        last = block.window
        assert block.start == windows[last].scored_from + sum(len(each) for each in collected[last])
        assert block.logits.dtype == np.float32
        collected[last].append(block.logits.copy())
    empty = np.empty((0, 0), np.float32)
    whole = [np.concatenate(each) if each else empty for each in collected]
    assert [len(each) for each in whole] == [len(window.scored) for window in windows]
    return whole


# --- numbers ---


def test_logits_equal_transformers(checkpoint: Path, file: Path) -> None:
    window = Window(0, IDS)
    with LlamaReader(file, threads=2) as reader:
        (actual,) = read(reader, window)
    assert np.abs(actual - transformers_logits(checkpoint, list(IDS))[:-1]).max() < 2e-4
    assert np.array_equal(actual, llama_cpp_logits(file, list(IDS))[:-1])


def test_every_window_begins_with_an_empty_cache(file: Path) -> None:
    windows = [
        Window(0, IDS),
        Window(0, IDS[5:7]),
        Window(1, IDS[50:151], scored_from=40),
        Window(2, IDS[:1]),
        Window(2, IDS[3:9], scored_from=4),
        Window(2, IDS[3:9], scored_from=5),
        Window(3, IDS),
    ]
    with LlamaReader(file, threads=1) as reader:
        together = read(reader, *windows)
        again = read(reader, *windows)
        assert all(np.array_equal(a, b) for a, b in zip(together, again, strict=True))
        for window, actual in zip(windows, together, strict=True):
            (alone,) = read(reader, window)
            assert np.abs(alone - actual).max(initial=0) < 1e-5
        (whole,) = read(reader, Window(0, windows[2].ids))
        assert np.abs(whole[40:] - together[2]).max() < 1e-5
        assert list(reader.logits([])) == []


def test_nothing_depends_on_the_threads_and_little_on_the_batch(files: dict[str, Path]) -> None:
    windows = [Window(0, IDS), Window(0, IDS[100:], scored_from=37)]
    for type_name in ("f32", "q4_0"):
        path, actual = files[type_name], {}
        for threads, batch in [(1, None), (2, None), (3, 128), (1, 128), (2, 512), (2, 16), (2, 1)]:
            with LlamaReader(path, threads=threads, batch=batch) as reader:
                actual[threads, batch] = np.concatenate(read(reader, *windows))
        assert np.array_equal(actual[1, None], actual[2, None])
        assert np.array_equal(actual[3, 128], actual[1, 128])
        # one token at a time takes other loops; a quantized file then rounds some activations the other way
        bound = 2e-4 if type_name == "f32" else 0.02 * actual[2, None].std()
        for logits in actual.values():
            assert np.sqrt(((logits - actual[2, None]) ** 2).mean()) < bound


def test_stories260k(real: Path, tmp_path: Path) -> None:
    """NLL per token of five stories, and logits, as README.md of KCONV_REAL gives them."""
    folder = real / "hf_stories260K"
    (made,) = to_gguf(folder, tmp_path / "stories.gguf", types=["f32"], verify=False).outputs
    stories = (real / "text/tinystories_sample.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    source = read_source(open_checkpoint(folder))
    texts = [source.encode(story.strip(), False) for story in stories if story.strip()]
    windows = [Window(index, (1, *ids)[:512]) for index, ids in enumerate(texts)]
    losses = []
    with LlamaReader(made.path, threads=2) as reader:
        actual = read(reader, *windows)
    for window, logits in zip(windows, actual, strict=True):
        exact = logits.astype(np.float64)
        exact -= exact.max(1, keepdims=True)
        chosen = exact[np.arange(len(exact)), window.ids[1:]]
        losses.append(np.log(np.exp(exact).sum(1)) - chosen)
    assert np.concatenate(losses).mean() == pytest.approx(1.266441, abs=2e-6)
    expected = transformers_logits(folder, list(windows[0].ids))[:-1]
    assert np.abs(actual[0] - expected).max() < 5e-4  # of logits up to 20; measured: 3.2e-5


def transformers_layers(folder: Path, ids: tuple[int, ...]) -> list[Floats]:
    """What leaves every decoder layer in fp32, by hooks: hidden_states has the last one normed."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    collected: list[Floats] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        collected.append((output[0] if isinstance(output, tuple) else output).reshape(len(ids), -1).numpy())

    for layer in model.model.layers:
        layer.register_forward_hook(keep)
    with torch.no_grad():
        model(torch.tensor([ids]))
    return collected


@pytest.mark.parametrize("batch", [None, 64])
def test_layers_equal_transformers(checkpoint: Path, file: Path, batch: int | None) -> None:
    window = Window(0, IDS, scored_from=150)
    with LlamaReader(file, threads=2, batch=batch) as reader:
        (before,) = read(reader, window)
        layers = reader.layers(window)
        (after,) = read(reader, window)
    expected = transformers_layers(checkpoint, IDS)
    assert len(layers) == len(expected) == 3
    for actual, right in zip(layers, expected, strict=True):
        assert actual.shape == right.shape
        assert np.abs(actual - right).max() < 1e-4 * right.std()
    assert np.array_equal(before, after)


def test_capturing_layers_changes_nothing(file: Path) -> None:
    """Logits of a request that captures, by the child's own protocol, against one that does not."""
    protocol = llama_reader.protocol
    wanted = protocol.LOGITS_WANTED | protocol.LAYERS_WANTED
    with LlamaReader(file, threads=2) as reader:
        (expected,) = read(reader, Window(0, (*IDS, 2), scored_from=20))
        child = reader._loaded
        assert child
        child.send(llama_reader.request(wanted, 128, [Window(0, IDS, 20)]))
        actual = np.empty((200, child.vocabulary), np.float32)
        layer = np.empty((200, child.hidden), np.float32)
        for start, stop in ((0, 128), (128, 200)):
            for index in range(child.layers):
                child.expect(protocol.LAYER, index, start, stop - start)
                child.fill(layer[start:stop])
            begin = max(start, 20)
            child.expect(protocol.LOGITS, 0, begin, stop - begin)
            child.fill(actual[begin:stop])
    assert np.abs(actual[20:] - expected).max() < 1e-5


def test_nan_is_passed_on(file: Path, tmp_path: Path) -> None:
    bad = edited(file, tmp_path / "nan.gguf", tensors={"blk.1.ffn_down.weight": lambda rows: rows * np.nan})
    with LlamaReader(bad, threads=1) as reader:
        (logits,) = read(reader, Window(0, IDS))
        assert np.isnan(logits).all()
        layers = reader.layers(Window(0, IDS))
    assert np.isfinite(layers[0]).all()
    assert np.isnan(layers[1]).all()


# --- failures ---


def failure(path: Path, before_reading: Callable[[int], object] = lambda pid: None, **ids: Any) -> str:
    """What is said of a file that cannot be read; ``before_reading`` gets the child's process id."""
    with pytest.raises(RuntimeFailure) as caught, LlamaReader(path, threads=1) as reader:  # noqa: PT012
        before_reading(pid_of(reader))
        read(reader, Window(0, ids.get("ids", IDS)))
    message = str(caught.value)
    assert "\n" not in message
    assert "pip-install" not in message
    assert not children()
    return message


def pid_of(reader: LlamaReader) -> int:
    """The process id of a candidate's child."""
    assert reader._loaded
    return reader._loaded.pid


@pytest.mark.parametrize(
    ("key", "value", "refusal"),
    [
        ("embedding_length", 128, "token_embd.weight' has wrong shape"),
        ("attention.head_count", 3, "attn_q.weight' has wrong shape"),
        ("attention.head_count_kv", 4, "attn_k.weight' has wrong shape"),
        ("block_count", 4, "blk.3.attn_norm.weight' not found"),
        ("block_count", 2, "wrong number of tensors"),
        ("block_count", 0, "llama.cpp failed an internal check: "),
        ("attention.layer_norm_rms_epsilon", float("nan"), "GGML_ASSERT(eps >= 0.0f)"),
        ("expert_count", 8, "GGML_ASSERT"),
    ],
)
def test_a_header_that_lies(key: str, value: Any, refusal: str, file: Path, tmp_path: Path) -> None:
    message = failure(edited(file, tmp_path / "bad.gguf", metadata={f"llama.{key}": value}))
    assert refusal in message


def test_files_that_cannot_be_loaded(file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(file.read_bytes()[:-5000])
    assert "truncated" in failure(bad)
    bad.write_bytes(b"GGUF")
    assert "not a GGUF" in failure(bad)
    assert "No such file" in failure(tmp_path / "nothing.gguf")
    names = [info.name for info in read_header(file).tensors]
    edited(file, bad, tensors=dict.fromkeys(names))
    assert "refuses the file" in failure(bad)  # a vocabulary only
    edited(file, bad, arch="nonsense")
    assert "unknown model architecture: 'nonsense'" in failure(bad)


def test_a_file_cut_while_it_is_mapped(file: Path, tmp_path: Path) -> None:
    """Its child ends by SIGBUS; the next one is not even given the file."""
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(file.read_bytes())
    assert "truncated" in failure(bad, lambda pid: os.truncate(bad, 30000))


# What stands in for the child: it sends so much of an answer, or is the real one with a change.
DEATHS = {
    "killed (signal 9, SIGKILL), most likely because memory ran out": "os.kill(os.getpid(), signal.SIGKILL)",
    "crashed (signal 11, SIGSEGV)": "os.kill(os.getpid(), signal.SIGSEGV)",
    "crashed (signal 4, SIGILL)": "os.kill(os.getpid(), signal.SIGILL)",
    "crashed (signal 7, SIGBUS)": "os.kill(os.getpid(), signal.SIGBUS)",
    "did not answer": "time.sleep(60)",
}
STAND_IN = """
import os, resource, signal, struct, time
from kconv.core import child
from kconv.runtimes import llama_child
LOADED, LOGITS, LAYER, ANSWER = llama_child.LOADED, llama_child.LOGITS, llama_child.LAYER, llama_child.ANSWER

def main(arguments):
    with open(__file__ + ".starts", "a") as starts:
        starts.write("x")
    {does}
    return llama_child.main(arguments)
"""


def children() -> list[psutil.Process]:
    """Those of this process that read a file, or have ended and were not waited for.

    Other tests' servers and tokenizers may live on beside them.
    """
    readers = {"kconv.runtimes.llama_child", "stand_in"}
    actual = [(each, each.cmdline()) for each in psutil.Process().children()]
    return [child for child, words in actual if not words or readers & {*words}]


def stand_in(does: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, patience: float = 600.0) -> Path:
    """Where it is counted how often the child was started."""
    (folder / "stand_in.py").write_text(STAND_IN.format(does=does))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(llama_loaded, "MODULE", "stand_in")
    monkeypatch.setattr(llama_loaded, "PATIENCE", patience)
    return folder / "stand_in.py.starts"


def death(path: Path, **ids: Any) -> str:
    """What is said of a child that dies twice, which is no verdict on the file."""
    with pytest.raises(ChildDied) as caught, LlamaReader(path, threads=1) as reader:
        read(reader, Window(0, ids.get("ids", IDS)))
    assert "says nothing about the input" in caught.value.message
    assert not children()
    return caught.value.message


@pytest.mark.parametrize("message", DEATHS)
def test_a_child_that_dies_twice(
    message: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = stand_in(
        DEATHS[message], tmp_path, monkeypatch, patience=1.0 if "did not answer" in message else 600.0
    )
    assert message in death(file)
    assert starts.read_text() == "xx"


def test_a_machine_without_memory(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))"
    starts = stand_in(limit, tmp_path, monkeypatch)
    assert "ran out of memory: " in death(file, ids=IDS * 5000)
    assert starts.read_text() == "xx"


def test_without_llama_cpp_python(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = str(sys._base_executable)  # type: ignore[attr-defined]
    if (
        subprocess.run([plain, "-I", "-c", "import llama_cpp"], capture_output=True, check=False).returncode
        == 0
    ):
        pytest.skip("the interpreter below the virtual environment has llama-cpp-python, too")
    monkeypatch.setattr(sys, "executable", plain)
    lacking = [path for path in sys.path if not (Path(path) / "llama_cpp").exists()]
    monkeypatch.setattr(sys, "path", lacking)  # where a child finds packages
    assert "does not work: llama-cpp-python is not installed" in death(file)


def test_a_token_the_file_does_not_have(file: Path) -> None:
    assert "invalid token[2] = 9999" in failure(file, ids=(3, 4, 9999, 5))


def test_a_child_killed_in_the_middle(file: Path) -> None:
    """Each position comes once and with the same numbers, whichever child gave it."""
    windows = [Window(0, IDS, scored_from=3), Window(1, IDS[5:7]), Window(2, IDS[20:]), Window(3, IDS[7:90])]
    with LlamaReader(file, threads=1, batch=16) as reader:
        right = read(reader, *windows)
        for at in (0, 5, 14, 17):
            pid, blocks = pid_of(reader), []
            for block in reader.logits(windows):
                blocks.append(replace(block, logits=block.logits.copy()))
                if len(blocks) == at + 1:
                    os.kill(pid, signal.SIGKILL)
            places = [(block.window, block.start) for block in blocks]
            assert places == sorted(set(places))
            for index, expected in enumerate(right):
                actual = np.concatenate([block.logits for block in blocks if block.window == index])
                assert np.abs(actual - expected).max() < 1e-5


def test_a_child_killed_before_layers_and_one_that_dies_each_time(file: Path) -> None:
    with LlamaReader(file, threads=1, batch=16) as reader:
        right = reader.layers(Window(0, IDS))
        os.kill(pid_of(reader), signal.SIGKILL)
        logits = reader.layers(Window(0, IDS))
        assert all(np.array_equal(a, b) for a, b in zip(logits, right, strict=True))
        blocks = reader.logits([Window(0, IDS)] * 50)
        next(blocks)
        os.kill(pid_of(reader), signal.SIGKILL)
        with pytest.raises(ChildDied, match="killed"):  # noqa: PT012
            for _ in blocks:
                os.kill(pid_of(reader), signal.SIGKILL)
        assert len(read(reader, Window(0, IDS))) == 1  # by a new child


def test_a_reading_left_and_another_begun(file: Path) -> None:
    windows = [Window(0, IDS)] * 50
    with LlamaReader(file, threads=1, batch=16) as reader:
        (expected,) = read(reader, windows[0])
        for _ in reader.logits(windows):
            break
        assert np.array_equal(read(reader, windows[0])[0], expected)
        blocks = reader.logits(windows)
        next(blocks)
        assert len(reader.layers(windows[0])) == 3
        with pytest.raises(RuntimeError, match="another one was started"):
            list(blocks)
        assert np.array_equal(read(reader, windows[0])[0], expected)
    with pytest.raises(RuntimeError, match="enter"):
        reader.layers(windows[0])
    assert not children()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("ANSWER.pack(LOADED, 1 << 31, 64, 3)", "finds 2147483648 tokens"),
        ("ANSWER.pack(LOADED, 320, 64, 1 << 31)", "2147483648 layers"),
        ("ANSWER.pack(LAYER, 320, 64, 3)", "finds"),
        ("ANSWER.pack(LOADED, 320, 64, 3) + ANSWER.pack(LOGITS, 0, 0, 1 << 31)", "2147483648"),
    ],
)
def test_a_child_that_lies(
    answers: str, message: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(f"child.write({answers}); time.sleep(60)", tmp_path, monkeypatch)
    assert message in failure(file)


@pytest.mark.parametrize(
    "answers",
    [
        "ANSWER.pack(LOADED, 320, 64, 3) + ANSWER.pack(LOGITS, 0, 0, 199) + bytes(1000)",
        "ANSWER.pack(LOADED, 320, 64, 3)[:5]",
    ],
)
def test_a_child_that_says_half_of_it(
    answers: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(f"child.write({answers}); time.sleep(60)", tmp_path, monkeypatch, patience=1.0)
    assert "did not answer" in death(file)


# --- processes ---

PARENT = """
import sys, time
from pathlib import Path
from kconv.runtimes.llama_reader import LlamaReader
from kconv.core.windows import Window
with LlamaReader(Path(sys.argv[1]), threads=1, batch=16) as candidate:
    blocks = candidate.logits([Window(0, tuple(range(2, 202)))] * 100000)
    next(blocks)
    print(candidate._loaded.pid, flush=True)
    if sys.argv[2] == "wait":
        time.sleep(60)
    for block in blocks:
        pass
"""


@pytest.fixture
def parent(file: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process with a candidate that has much to read, and its child's process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(file), request.param],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    yield process, int(process.stdout.readline())
    process.kill()
    process.communicate()


def gone(pid: int) -> bool:
    """Whether a process ends within a few seconds."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("parent", ["wait", "read"], indirect=True)
def test_the_child_does_not_outlive_its_parent(parent: tuple[subprocess.Popen[str], int]) -> None:
    process, child = parent
    process.kill()
    assert gone(child)


@pytest.mark.parametrize("parent", ["wait", "read"], indirect=True)
def test_an_interrupt_ends_both_quietly(parent: tuple[subprocess.Popen[str], int]) -> None:
    process, child = parent
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, errors = process.communicate(timeout=10)
    assert time.monotonic() - began < 5
    assert gone(child)
    assert errors.count("Traceback") == 1  # the parent's own
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_nothing_of_llama_cpp_reaches_the_terminal(file: Path, tmp_path: Path, capfd: Any) -> None:
    bad = edited(file, tmp_path / "bad.gguf", metadata={"llama.block_count": 0})
    failure(bad)
    with LlamaReader(file, threads=1) as reader:
        read(reader, Window(0, IDS))
    assert capfd.readouterr() == ("", "")
