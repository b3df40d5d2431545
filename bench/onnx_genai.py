"""Tokens a second and memory: a q4_0 folder and what onnxruntime-genai's builder makes, and a Q4_0 GGUF.

    python bench/onnx_genai.py CHECKPOINT BUILT [THREADS]

BUILT is the builder's folder of the same checkpoint, in int4 with the same blocks and level:

    python -m onnxruntime_genai.models.builder -i CHECKPOINT -o BUILT -p int4 -e cpu -c /tmp/cache \
        --extra_options int4_block_size=32 int4_accuracy_level=4

Both folders run in onnxruntime-genai (the environment of make test-genai), the GGUF in llama.cpp: 128 tokens
of a prompt, then 64 more. The three take turns, each time in a process of its own; of rates the best counts,
of the largest memory the least.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

KCONV = str(Path(sys.executable).parent / "kconv")
GENAI = ".dev/genai/bin/python"
PROMPT, MORE, ROUNDS = 128, 64, 5

# All: a model, the length of the prompt, how many tokens follow, threads; prints as JSON the rates of both by
# the clock, those by processor time, which other work on the machine leaves alone (of one thread: several
# wait for each other by computing), and MiB.
BEGIN = """
import json, sys, time
path, prompt, more, threads = sys.argv[1], *map(int, sys.argv[2:])
now = lambda: (time.perf_counter(), time.process_time())
"""
END = """
print()
status = open("/proc/self/status").read()
memory = int(status.partition("VmHWM:")[2].split()[0]) / 1024
counts = (prompt, more)
rates = [
    count / (after - before)
    for clock in zip(*times)
    for count, before, after in zip(counts, clock, clock[1:])
]
print(json.dumps([*rates, memory]))
"""
IN_GENAI = (
    BEGIN
    + """
import onnxruntime_genai as genai
config = genai.Config(path)
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
model = genai.Model(config)
ids = [place * 97 % 40000 for place in range(prompt + more)]

def run():
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=512, do_sample=False)
    generator = genai.Generator(model, parameters)
    times = [now()]
    generator.append_tokens(ids[:prompt])
    times.append(now())
    for token in ids[prompt:]:
        generator.append_tokens([token])
    times.append(now())
    return times

run()
times = run()
"""
    + END
)
IN_LLAMA_CPP = (
    BEGIN
    + """
from llama_cpp import Llama
model = Llama(path, n_ctx=512, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
ids = [place * 97 % 40000 for place in range(prompt + more)]
model.eval(ids[:prompt])
model.reset()
times = [now()]
model.eval(ids[:prompt])
times.append(now())
for token in ids[prompt:]:
    model.eval([token])
times.append(now())
"""
    + END
)


def main() -> None:
    """Make folder and GGUF, measure in turns, print a table."""
    checkpoint, built, threads = sys.argv[1], sys.argv[2], (*sys.argv[3:], "2")[0]
    with tempfile.TemporaryDirectory() as place:
        folder, gguf = f"{place}/folder", f"{place}/model.gguf"
        made = (KCONV, "to-onnx", checkpoint, "-q", "q4_0", "--flavour", "contrib", "-o", folder)
        subprocess.run([*made, "--no-verify"], check=True, stdout=subprocess.DEVNULL)
        made = (KCONV, "to-gguf", checkpoint, "-q", "q4_0", "-o", gguf)
        subprocess.run([*made, "--no-verify"], check=True, stdout=subprocess.DEVNULL)
        programs = {
            "kconv's folder, genai": [GENAI, "-c", IN_GENAI, folder],
            "genai's builder, genai": [GENAI, "-c", IN_GENAI, built],
            "GGUF, llama.cpp": [sys.executable, "-c", IN_LLAMA_CPP, gguf],
        }
        found: dict[str, list[list[float]]] = {name: [] for name in programs}
        for _ in range(ROUNDS):
            for name, program in programs.items():
                command = [*program, str(PROMPT), str(MORE), threads]
                found[name].append(json.loads(subprocess.check_output(command).splitlines()[-1]))
    measured = f"{PROMPT} tokens, then {MORE}, {threads} threads"
    print(f"| {measured} | prompt/s | answer/s | prompt, processor | answer, processor | MiB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, rounds in found.items():
        *rates, memory = zip(*rounds, strict=True)
        cells = " | ".join(f"{max(each):.1f}" for each in rates)
        print(f"| {name} | {cells} | {min(memory):.0f} |", flush=True)


if __name__ == "__main__":
    main()
