"""Both flavours of ONNX graphs on this CPU: a prompt of 2,048 tokens and single tokens behind it.

``python bench/onnx_flavours.py [THREADS]``: attention alone, then one layer, of 16 heads of 128 and of
42dot's shape (32 of 64), with random weights in f32 and a small vocabulary. Flavours take turns, each round
in a process of its own whose largest memory is told; of the times the least counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPES = {"16 heads of 128": (16, 5504), "32 heads of 64 (42dot)": (32, 5632)}
HIDDEN, ROWS, PROMPT, STEPS, ROUNDS = 2048, 256, 2048, 16, 3


def main() -> None:
    """Write the graphs, measure, print a table."""
    if len(sys.argv) > 2:
        print(json.dumps(_measured(Path(sys.argv[1]), int(sys.argv[2]))))
        return
    threads = sys.argv[1] if len(sys.argv) > 1 else "2"
    for shape, (heads, _) in SHAPES.items():
        _attention_alone(shape, heads, int(threads))
    for shape, (heads, inner) in SHAPES.items():
        with tempfile.TemporaryDirectory() as place:
            graphs = _written(Path(place), heads, inner)
            found: dict[str, list[list[float]]] = {name: [] for name in graphs}
            for _ in range(ROUNDS):
                for name, graph in graphs.items():
                    command = [sys.executable, __file__, str(graph), threads]
                    found[name].append(json.loads(subprocess.check_output(command)))
        for name, rounds in found.items():
            prompt, step, memory = (min(each) for each in zip(*rounds, strict=True))
            times = f"prompt {prompt * 1000:.0f} ms, token {step * 1000:.1f} ms"
            print(f"{shape}, {name}: {times}, {memory:.0f} MiB", flush=True)


def _attention_alone(shape: str, heads: int, threads: int) -> None:
    """A prompt through the operators between three projections and the fourth; prints the least of times."""
    import onnxruntime

    from kconv.converters.onnx.causal import Heads, attention
    from kconv.converters.onnx.flavours import FLAVOURS
    from kconv.converters.onnx.graph import Element, Graph
    from kconv.converters.onnx.writer import plan_onnx

    sessions, size = {}, HIDDEN // heads
    for name, flavour in FLAVOURS.items():
        graph = Graph("attention", {}, {}, flavour=flavour)
        ids = graph.input("input_ids", Element.INT64, ("batch", "length"))
        mask = graph.input("attention_mask", Element.INT64, ("batch", "total"))
        _, positions = flavour.placed(graph, ids, mask, ids)
        rows = {each: graph.input(each, Element.FLOAT, ("rows", HIDDEN)) for each in "qkv"}
        seen = attention(graph, 0, positions, Heads(heads, heads, size, 0), rows)
        graph.output(seen, Element.FLOAT, ("rows", HIDDEN))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        data = plan_onnx({"model.onnx": graph}, "none")[1]["model.onnx"]
        sessions[name] = onnxruntime.InferenceSession(data, options)
    random, ones = np.random.default_rng(0), np.ones((1, PROMPT), np.int64)
    given = {each: random.standard_normal((PROMPT, HIDDEN), dtype=np.float32) for each in "qkv"}
    empty = np.zeros((1, heads, 0, size), np.float32)
    given |= {"input_ids": ones, "attention_mask": ones}
    given |= {f"past_key_values.0.{each}": empty for each in ("key", "value")}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(2 * ROUNDS):
        for name, session in sessions.items():
            begun = time.perf_counter()
            session.run(None, {each.name: given[each.name] for each in session.get_inputs()})
            times[name].append(time.perf_counter() - begun)
    told = ", ".join(f"{name} {min(each) * 1000:.0f} ms" for name, each in times.items())
    print(f"{shape}, attention alone, a prompt of {PROMPT:,}: {told}", flush=True)


def _written(place: Path, heads: int, inner: int) -> dict[str, Path]:
    from safetensors.numpy import save_file

    from kconv.converters.families import family_for
    from kconv.converters.onnx.flavours import FLAVOURS
    from kconv.converters.onnx.graphs import graphs_of
    from kconv.converters.onnx.writer import write_onnx
    from kconv.core.reading import open_checkpoint

    config = {
        **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"},
        **{"hidden_size": HIDDEN, "intermediate_size": inner, "num_hidden_layers": 1, "vocab_size": ROWS},
        **{"num_attention_heads": heads, "num_key_value_heads": heads, "rms_norm_eps": 1e-6},
        **{"max_position_embeddings": 4096, "tie_word_embeddings": False},
    }
    layer = "model.layers.0"
    shapes = {"model.embed_tokens": (ROWS, HIDDEN), "lm_head": (ROWS, HIDDEN), "model.norm": (HIDDEN,)}
    shapes |= {f"{layer}.self_attn.{each}_proj": (HIDDEN, HIDDEN) for each in "qkvo"}
    shapes |= {f"{layer}.mlp.{each}_proj": (inner, HIDDEN) for each in ("gate", "up")}
    shapes |= {f"{layer}.mlp.down_proj": (HIDDEN, inner)}
    shapes |= {f"{layer}.{each}_layernorm": (HIDDEN,) for each in ("input", "post_attention")}
    random = np.random.default_rng(0)
    weights = {
        f"{name}.weight": (random.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float32)
        for name, shape in shapes.items()
    }
    (place / "checkpoint").mkdir()
    save_file(weights, place / "checkpoint" / "model.safetensors")
    (place / "checkpoint" / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(place / "checkpoint")
    made = {}
    for name, flavour in FLAVOURS.items():
        (place / name).mkdir()
        write_onnx(graphs_of(family_for(config), checkpoint, {}, flavour=flavour), place / name)
        made[name] = place / name / "model.onnx"
    return made


def _measured(graph: Path, threads: int) -> tuple[float, float, float]:
    """Seconds of a prompt and of a token behind it, and the largest memory in MiB."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(graph, options)
    names = [each.name for each in session.get_outputs()]
    pasts = [each for each in session.get_inputs() if each.name.startswith("past")]
    ids = np.random.default_rng(1).integers(0, ROWS, (1, PROMPT + STEPS))

    def read(start: int, stop: int, cache: dict[str, object]) -> tuple[float, dict[str, object]]:
        given = {
            "input_ids": ids[:, start:stop],
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop)[None],
            **cache,
        }
        begun = time.perf_counter()
        values = session.run(names, given)
        seconds = time.perf_counter() - begun
        return seconds, dict(zip([each.name for each in pasts], values[1:], strict=True))

    empty: dict[str, object] = {
        each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32) for each in pasts
    }
    read(0, 16, empty)
    prompts = [read(0, PROMPT, empty) for _ in range(2)]
    cache, steps = prompts[-1][1], []
    for at in range(PROMPT, PROMPT + STEPS):
        seconds, cache = read(at, at + 1, cache)
        steps.append(seconds)
    status = Path("/proc/self/status").read_text()
    memory = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return min(seconds for seconds, _ in prompts), min(steps), memory


if __name__ == "__main__":
    main()
