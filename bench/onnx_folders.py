"""make bench: ONNX folders, how fast they are made and how fast they read and write.

Made: kconv to-onnx -q f32 CHECKPOINT --no-verify against torch.onnx.export of transformers' model of it in
fp32, of 412 million random weights in bf16, the median of three of each, both synced. What the exporter
makes has no cache and no tokenizer; its TorchScript way is taken, since the other needs another package.

Running: 42dot's shape (1.44 billion random weights) as f32 and q4_0 folders in onnxruntime and as a Q4_0
GGUF in llama.cpp, two threads each, the same 128 tokens of a prompt and then 64 more, one by one through the
cache.

    python bench/onnx_folders.py [--repeat N] [--small]

Memory is private memory (memory.py), watched in a run of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import material
from timing import KCONV, Cost, checked, medians, save, workplace

EXPORT = """
import os, sys, warnings
import torch
from transformers import AutoModelForCausalLM
warnings.simplefilter("ignore")
checkpoint, target = sys.argv[1:]

class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

model = Logits(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval())
ids = torch.arange(8)[None]
names = ["input_ids", "attention_mask"]
axes = {name: {0: "batch", 1: "length"} for name in (*names, "logits")}
with torch.no_grad():
    torch.onnx.export(
        model, (ids, torch.ones_like(ids)), target, dynamo=False, opset_version=18,
        input_names=names, output_names=["logits"], dynamic_axes=axes,
    )
os.sync()
"""

# Both scripts: a file, the length of the prompt, how many tokens follow; seconds of the two as JSON.
ONNXRUNTIME = """
import json, sys, time
import numpy as np
import onnxruntime
path, prompt, more = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
value = onnxruntime.OrtValue.ortvalue_from_numpy
names = [each.name for each in session.get_outputs()]
caches = [each for each in session.get_inputs() if each.name.startswith("past_key_values.")]
ids = (np.arange(prompt + more) * 97 % 50000)[None]

def read(past, begin, end):
    given = {"input_ids": ids[:, begin:end].copy(), "attention_mask": np.ones((1, end), np.int64)}
    given["position_ids"] = np.arange(begin, end)[None]
    given = {name: value(each) for name, each in given.items()}
    made = dict(zip(names, session.run_with_ort_values(names, {**given, **past})))
    return {each.name: made[each.name.replace("past_key_values", "present")] for each in caches}

empty = {each.name: value(np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)) for each in caches}
read(empty, 0, prompt)
times = [time.perf_counter()]
past = read(empty, 0, prompt)
times.append(time.perf_counter())
for place in range(prompt, prompt + more):
    past = read(past, place, place + 1)
times.append(time.perf_counter())
print(json.dumps([times[1] - times[0], times[2] - times[1]]))
"""
LLAMA_CPP = """
import json, sys, time
from llama_cpp import Llama
path, prompt, more = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = Llama(path, n_ctx=512, n_batch=512, n_threads=2, n_threads_batch=2, verbose=False)
ids = [place * 97 % 50000 for place in range(prompt + more)]
model.eval(ids[:prompt])
model.reset()
times = [time.perf_counter()]
model.eval(ids[:prompt])
times.append(time.perf_counter())
for token in ids[prompt:]:
    model.eval([token])
times.append(time.perf_counter())
print(json.dumps([times[1] - times[0], times[2] - times[1]]))
"""
PROMPT, MORE = 128, 64


@dataclass(frozen=True)
class Speed:
    """Medians of tokens a second, and peak private memory in bytes."""

    prompt: float
    answer: float
    peak_private: int


def main() -> int:
    """Measure, print two tables, keep them in .dev/bench-results."""
    parser = argparse.ArgumentParser(description="How fast ONNX folders are made and run.")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--small", action="store_true", help="run 0.4 billion weights, not 1.4")
    options = parser.parse_args()
    with workplace("onnx-folders") as out:
        costs = made(out, options.repeat)
        report = {"made": {name: asdict(cost) for name, cost in costs.items()}}
        save("onnx_folders", report)
        speeds = ran(out, options.repeat, material.DOT42_SMALL if options.small else material.DOT42_BF16)
        save("onnx_folders", {**report, "ran": {name: asdict(each) for name, each in speeds.items()}})
    return 0


def made(out: Path, repeat: int) -> dict[str, Cost]:
    """What it costs to make an f32 folder, and torch.onnx.export's file."""
    checkpoint = material.prepared(material.DOT42_SMALL)
    folder, file = out / "kconv", out / "torch" / "model.onnx"
    commands = {
        "kconv to-onnx": [KCONV, "to-onnx", str(checkpoint), "-o", str(folder), "-q", "f32", "--no-verify"],
        "torch.onnx.export": [sys.executable, "-c", EXPORT, str(checkpoint), str(file)],
    }
    print(
        "\n| f32 folder of 412 million weights | seconds | runs | peak private memory |\n|---|---:|---|---:|"
    )
    costs = {}
    for name, command in commands.items():
        runs = []
        for turn in range(repeat + 1):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(file.parent, ignore_errors=True)
            file.parent.mkdir()
            os.sync()
            runs.append(checked(command, watched=turn == repeat))
        cost = costs[name] = replace(medians(runs[:-1]), peak_private=runs[-1].peak_private)
        times = ", ".join(map(str, cost.runs))
        print(f"| {name} | {cost.seconds:.2f} | {times} | {cost.peak_private / 2**20:.0f} MiB |", flush=True)
    ours, theirs = costs.values()
    seconds, memory = theirs.seconds / ours.seconds, theirs.peak_private / ours.peak_private
    print(f"| torch.onnx.export / kconv | {seconds:.1f} | | {memory:.0f} |", flush=True)
    return costs


def ran(out: Path, repeat: int, shape: material.Shape) -> dict[str, Speed]:
    """Tokens a second of folders and of the GGUF."""
    checkpoint, gguf = material.prepared(shape), out / "model.gguf"
    exact = ("-q", "q4_0", "--accuracy-level", "0")
    print(f"\n| prompt of {PROMPT} tokens, then {MORE} | prompt, tokens/s | answer, tokens/s | MiB |")
    print("|---|---:|---:|---:|", flush=True)
    speeds = {}
    for name, extra in {
        "f32": ("-q", "f32"),
        "q4_0": ("-q", "q4_0"),
        "q4_0, accuracy level 0": exact,
    }.items():
        folder = out / "folder"
        checked([KCONV, "to-onnx", str(checkpoint), "-o", str(folder), "--no-verify", *extra])
        model = str(folder / "model.onnx")
        speeds[f"ONNX {name}"] = speed(f"ONNX {name}", [sys.executable, "-c", ONNXRUNTIME, model], repeat)
        shutil.rmtree(folder)
    checked([KCONV, "to-gguf", str(checkpoint), "-o", str(gguf), "--no-verify", "-q", "q4_0"])
    speeds["GGUF Q4_0"] = speed("GGUF Q4_0", [sys.executable, "-c", LLAMA_CPP, str(gguf)], repeat)
    return speeds


def speed(name: str, command: Sequence[str], repeat: int) -> Speed:
    """Run it several times, and once more for its memory; prints its row."""
    command = [*command, str(PROMPT), str(MORE)]
    runs = [json.loads(checked(command).stdout) for _ in range(repeat)]
    prompt, answer = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
    measured = Speed(PROMPT / prompt, MORE / answer, checked(command, watched=True).peak_private)
    cells = f"{measured.prompt:.1f} | {measured.answer:.1f} | {measured.peak_private / 2**20:.0f}"
    print(f"| {name} | {cells} |", flush=True)
    return measured


if __name__ == "__main__":
    sys.exit(main())
