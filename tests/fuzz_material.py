"""Damaged files given to every command that takes them, and what must hold however they are damaged.

A recipe is one line, ``llama/config.json json 17 to-gguf``: the file, the mutation, its seed, the command.
``python tests/fuzz_material.py RECIPE`` tries one and shows all it says; ``make test-fuzz`` looks for more.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from conftest import KOREAN
from fork_server import Done, Kconv
from mutations import mutated

CODES = (0, 1, 2, 3)  # of cli/errors.py; 4 is for the machine, which has nothing here, 70 for bugs
SECONDS, MEMORY = 60.0, 1 << 30  # of one command; without damage they take 5 seconds and 450 MiB
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"

NAMES = ("llama", "gptj", "byt5", "gbst")  # checkpoints of which files are made
# What is done with a file, by command; {x} is the folder or file with the damage, {s} the samples.
_CHECKPOINT = {
    "inspect": "inspect {x}",
    "plan": "plan {x} -q q8_0,q4_k_m",
    "to-gguf": "to-gguf {x} -q q8_0 --no-verify --modelfile -o {o}",
    "to-gguf proven": "to-gguf {x} -q f16 -o {o}",
    "to-onnx": "to-onnx {x} --no-verify -o {o}/x",
    "to-onnx proven": "to-onnx {x} -q q8_0 -o {o}/x",
    "verify": "verify {s}/made/{name}.gguf --against {x} --ignore-manifest --tokens 40",
    "verify onnx": "verify {s}/made/llama-onnx --against {x} --ignore-manifest --tokens 40",
    "imatrix": "imatrix {x} --text {s}/text.txt --chunks 2 --window 32 -o {o}/i.gguf",
    "compare": "compare {x} -q q8_0,q4_0 --tokens 40 -o {o}",
}
_GGUF = {
    "inspect": "inspect {x} --tensors",
    "inspect json": "inspect {x} --json",
    "verify": "verify {x} --against {s}/{name} --tokens 40",
    "quantize": "quantize {x} -q q4_0 --allow-requantize -o {o}",
    "run": "run {x} -p 한국 -n 4",
    "run filled": "run {x} --fill 한국<extra_id_0>이다 -n 4",
}
_ONNX = {
    "inspect": "inspect {x} --tensors",
    "verify": "verify {x} --against {s}/{name} --tokens 40 --ignore-manifest",
    "run": "run {x} -p 한국 -n 4",
}
_IMATRIX = {
    "to-gguf": "to-gguf {s}/llama -q q4_0 --imatrix {x} --no-verify -o {o}",
    "plan": "plan {s}/llama -q iq4_nl --imatrix {x}",
    "quantize": "quantize {s}/made/llama-f32.gguf -q q4_0 --imatrix {x} -o {o}",
    "inspect": "inspect {x}",
}
_TEXT = {
    "verify": "verify {s}/made/llama.gguf --against {s}/llama --text {x}",
    "verify pairs": "verify {s}/made/byt5.gguf --against {s}/byt5 --text {x} --tokens 40",
    "imatrix": "imatrix {s}/llama --text {x} --chunks 2 --window 32 -o {o}/i.gguf",
    "calibrate": "to-gguf {s}/llama -q q4_0 --calibrate {x} --no-verify -o {o}",
    "compare": "compare {s}/llama -q q8_0,q4_0 --text {x} --tokens 40 -o {o}",
}
_TEMPLATE = {
    "to-gguf": "to-gguf {s}/llama -q q8_0 --chat-template {x} --no-verify -o {o}",
    "to-onnx": "to-onnx {s}/llama --chat-template {x} --no-verify -o {o}/x",
    "plan": "plan {s}/llama -q q8_0 --chat-template {x}",
}
_SPLIT = {**_GGUF, "quantize": "quantize {x} -q q4_0 -o {o}", "keep": "quantize {x} -q copy -o {o}/x.gguf"}


@dataclass(frozen=True)
class Expected:
    """A file that is damaged: what commands are given it with its folder, or alone, and how it is damaged."""

    file: str
    mutations: tuple[str, ...]
    commands: dict[str, str]
    given: str = ""  # what stands for {x}: the folder of the file, or this file beside it
    name: str = "llama"


def _folder(name: str, files: dict[str, tuple[str, ...]]) -> list[Expected]:
    """Files of a checkpoint, which is proven against files that were made of one with the same weights."""
    made = "llama" if name in ("sharded", "zip", "legacy") else name
    commands = {key: words for key, words in _CHECKPOINT.items() if made in NAMES or "{name}" not in words}
    return [Expected(f"{name}/{file}", how, commands, name=made) for file, how in files.items()]


SUBJECTS = [
    *_folder(
        "llama",
        {
            **{"config.json": ("json", "json", "json", "bytes"), "generation_config.json": ("json", "bytes")},
            **{
                "tokenizer.json": ("json", "json", "bytes"),
                "tokenizer_config.json": ("json", "chat", "bytes"),
            },
            **{"model.safetensors": ("safetensors", "safetensors", "bytes")},
        },
    ),
    *_folder("sharded", {"model.safetensors.index.json": ("json", "json", "bytes")}),
    *_folder("sharded", {"model-00001-of-00002.safetensors": ("safetensors", "bytes")}),
    *_folder("zip", {"pytorch_model.bin": ("zip", "zip", "bytes")}),
    *_folder("legacy", {"pytorch_model.bin": ("bytes",)}),
    *_folder("spm", {"tokenizer.model": ("bytes",), "tokenizer_config.json": ("json", "bytes")}),
    *_folder("bpe", {"vocab.json": ("json", "bytes"), "merges.txt": ("bytes",)}),
    *_folder("bpe", {"special_tokens_map.json": ("json",), "added_tokens.json": ("json",)}),
    *_folder("gptj", {"config.json": ("json",), "pytorch_model.bin": ("zip", "bytes")}),
    *_folder("byt5", {"config.json": ("json",), "model.safetensors": ("safetensors",)}),
    *_folder("gbst", {"config.json": ("json", "bytes"), "model.safetensors": ("safetensors",)}),
    Expected("made/llama.gguf", ("gguf", "gguf", "bytes"), _GGUF, "llama.gguf"),
    Expected("made/llama-f32.gguf", ("gguf", "bytes"), _GGUF, "llama-f32.gguf"),
    Expected("made/llama.gguf.manifest.json", ("json", "bytes"), _GGUF, "llama.gguf"),
    Expected("made/byt5.gguf", ("gguf", "gguf", "bytes"), _GGUF, "byt5.gguf", "byt5"),
    Expected("made/gbst.gguf", ("gguf", "bytes"), _GGUF, "gbst.gguf", "gbst"),
    Expected("made/gbst-gbst.gguf", ("gguf", "bytes"), _GGUF, "gbst.gguf", "gbst"),
    Expected(
        "split/llama-00001-of-00002.gguf", ("gguf", "gguf", "bytes"), _SPLIT, "llama-00001-of-00002.gguf"
    ),
    Expected(
        "split/llama-00002-of-00002.gguf", ("gguf", "gguf", "bytes"), _SPLIT, "llama-00001-of-00002.gguf"
    ),
    Expected("made/llama-onnx/model.onnx", ("onnx", "onnx", "bytes"), _ONNX),
    Expected("made/llama-onnx/model.onnx_data", ("bytes",), _ONNX),
    Expected("made/llama-onnx/config.json", ("json", "bytes"), _ONNX),
    Expected("made/llama-onnx/tokenizer.json", ("json", "parts", "bytes"), _ONNX),
    Expected("made/llama-onnx/kconv.manifest.json", ("json", "bytes"), _ONNX),
    Expected("made/byt5-onnx/decoder_model.onnx", ("onnx", "bytes"), _ONNX, name="byt5"),
    Expected("imatrix.gguf", ("gguf", "gguf", "bytes"), _IMATRIX, "imatrix.gguf"),
    Expected("imatrix.dat", ("bytes",), _IMATRIX, "imatrix.dat"),
    Expected("text.txt", ("bytes",), _TEXT, "text.txt"),
    Expected("pairs.tsv", ("bytes",), _TEXT, "pairs.tsv"),
    Expected("template.jinja", ("template",), _TEMPLATE, "template.jinja"),
]
"""Mutations that find more stand more than once."""


def make_samples(folder: Path, kconv: Kconv) -> Path:
    """Every kind of file, whole, as small as it may be."""
    import torch
    from gbst_material import random_gbswt5
    from gptj_material import byte_level_tokenizer, random_gptj
    from imatrix_material import legacy_bytes
    from llama_material import random_llama
    from safetensors.torch import load_file
    from t5_material import random_byt5
    from vocab_material import dot42_like, sentencepiece_like

    (folder / "nothing").mkdir(parents=True)
    llama = random_llama(folder / "llama", byte_level_tokenizer(folder / "tokenizer", 400), vocab_size=400)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (llama / "tokenizer_config.json").write_text(json.dumps(config))
    weights = load_file(llama / "model.safetensors")
    for name in ("sharded", "zip", "legacy"):
        shutil.copytree(llama, folder / name)
        (folder / name / "model.safetensors").unlink()
    for name, legacy in (("zip", False), ("legacy", True)):
        path = folder / name / "pytorch_model.bin"
        torch.save(weights, path, _use_new_zipfile_serialization=not legacy)
    _shards(folder / "sharded", weights)
    rows = {"spm": sentencepiece_like(folder / "spm"), "bpe": dot42_like(folder / "bpe", 600)}
    for name, count in rows.items():
        random_llama(folder / name, folder / "nothing", vocab_size=count)
    random_gptj(folder / "gptj", vocab_size=400, n_positions=64)
    byte_level_tokenizer(folder / "gptj", 400)
    random_byt5(folder / "byt5")
    random_gbswt5(folder / "gbst")
    (folder / "text.txt").write_text(KOREAN * 4)
    (folder / "pairs.tsv").write_text("한국의 수도\t서울\n일본의 수도\t도쿄\n" * 4)
    (folder / "template.jinja").write_text(TEMPLATE)
    (folder / "imatrix.dat").write_bytes(
        legacy_bytes({"blk.0.ffn_up.weight": (3, [1.0] * 64)}, 3, "text.txt")
    )
    made = folder / "made"
    made.mkdir()
    for words in (
        *(["to-gguf", folder / name, "-o", made / f"{name}.gguf", "-q", "q8_0"] for name in NAMES),
        *(["to-onnx", folder / name, "-o", made / f"{name}-onnx"] for name in NAMES if name != "gbst"),
        ["to-gguf", llama, "-q", "f32", "-o", made / "llama-f32.gguf"],
        ["to-gguf", llama, "-q", "f16", "-o", folder / "split" / "llama.gguf", "--split-max-size", "150K"],
    ):
        done = kconv.run(*words, "--no-verify", cwd=folder)
        assert done.code == 0, done.err
    done = kconv.run(*f"imatrix {llama} --text text.txt --chunks 2 -o imatrix.gguf".split(), cwd=folder)
    assert done.code == 0, done.err
    return folder


def _shards(folder: Path, weights: dict[str, object]) -> None:
    from safetensors.torch import save_file

    names, placed = list(weights), {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
        placed.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@dataclass
class Fuzz:
    """Tries recipes on the samples and counts what was tried."""

    kconv: Kconv
    samples: Path
    scratch: Path
    tried: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")

    def recipes(self, seed: str) -> Iterator[str]:
        """Recipes without end, the same for the same seed."""
        choose = random.Random(seed)
        while True:
            for subject in choose.sample(SUBJECTS, len(SUBJECTS)):
                mutation, number = choose.choice(subject.mutations), choose.randrange(10**6)
                yield f"{subject.file} {mutation} {number} {choose.choice(list(subject.commands))}"

    def try_one(self, recipe: str) -> tuple[list[str], Done]:
        """What is wrong with the way a damaged file is taken, and all that was said."""
        file, mutation, seed, command = recipe.split(" ", 3)
        subject = next(each for each in SUBJECTS if each.file == file)
        place, out = self.scratch / "x", self.scratch / "out"
        shutil.rmtree(self.scratch, ignore_errors=True)
        source = self.samples / file
        shutil.copytree(source.parent, place, ignore=lambda folder, names: _others(subject, names))
        content = mutated(source.read_bytes(), mutation, int(seed))
        (place / source.name).write_bytes(content)
        out.mkdir()
        given = place / subject.given if subject.given else place
        words = subject.commands[command].split()
        words = [each.format(x=given, s=self.samples, o=out, name=subject.name) for each in words]
        threads = [] if words[0] == "inspect" else ["--threads", 1]
        done = self.kconv.run(*words, *threads, cwd=out)
        self.tried[words[0]] += 1
        self.codes[f"{words[0]} {done.code}"] += 1
        self.slowest = max(self.slowest, (done.seconds, recipe))
        self.largest = max(self.largest, (done.memory, recipe))
        problems = wrong(done, sorted(path.name for path in out.rglob("*") if path.is_file()))
        if (place / source.name).read_bytes() != content:
            problems.append("the input was changed")
        return problems, done


def _others(subject: Expected, names: list[str]) -> list[str]:
    """Of many files in one folder only those that belong to the subject are needed."""
    if not subject.file.startswith("made/") or "-onnx/" in subject.file:
        return []
    stems = (subject.name, "gbst-") if subject.name == "gbst" else (Path(subject.given).stem,)
    return [name for name in names if not name.startswith(stems) or name.endswith("-onnx")]


def wrong(done: Done, left: list[str]) -> list[str]:
    """What is wrong with the end of a command that was given a damaged file; ``left`` are files it made."""
    collected = []
    if done.code is None:
        collected.append(f"not done after {done.seconds:.0f} s")
    elif done.code not in CODES:
        collected.append(f"exit code {done.code}")
    if "Traceback" in done.err or "panicked" in done.err:
        collected.append("a traceback")
    if done.memory > MEMORY:
        collected.append(f"{done.memory >> 20} MiB of memory")
    if done.code in (2, 3, 4) and not re.search(r"kconv: error: \S", done.err):
        collected.append("no error message")
    if not done.err.replace("\n", "").replace("\t", "").replace("\r", "").replace("\x1b", "").isprintable():
        collected.append("unprintable output")
    if len(done.err) > 20_000:
        collected.append(f"a message of {len(done.err)} characters")
    whole = "complete, but not proven" in done.err
    if any(name.endswith((".partial", ".old")) for name in left):
        collected.append(f"left behind: {left}")
    elif left and done.code not in (0, 1) and not whole:
        collected.append(f"half done: {left}")
    return collected


def main(words: list[str]) -> None:
    """Try the recipes given or, without any, look for new ones; the samples are kept in KCONV_FUZZ_HOME."""
    home = Path(os.environ.get("KCONV_FUZZ_HOME") or tempfile.mkdtemp(prefix="kconv-fuzz-"))
    seed, seconds = os.environ.get("KCONV_FUZZ_SEED", str(time.time_ns())), _budget(300)
    with Kconv() as kconv:
        if not (home / "samples" / "imatrix.gguf").exists():
            shutil.rmtree(home / "samples", ignore_errors=True)
            make_samples(home / "samples", kconv)
        fuzz = Fuzz(kconv, home / "samples", home / f"scratch-{os.getpid()}")
        until = time.monotonic() + seconds
        for recipe in words or fuzz.recipes(seed):
            if time.monotonic() > until:
                break
            problems, done = fuzz.try_one(recipe)
            if words:
                print(done.err, done, sep="\n")
            if problems:
                last = [line for line in done.err.splitlines() if line.strip()][-2:]
                print(f"{recipe} -> {'; '.join(problems)} | {' / '.join(last)[:300]}", flush=True)
        print(f"seed {seed}: {sum(fuzz.tried.values())} damaged files; {dict(sorted(fuzz.codes.items()))}")
        print(f"slowest: {fuzz.slowest}, largest: {fuzz.largest}")


def _budget(usual: float) -> float:
    return float(os.environ.get("KCONV_FUZZ_SECONDS") or usual)


if __name__ == "__main__":
    main(sys.argv[1:])
