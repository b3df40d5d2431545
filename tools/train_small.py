"""Train the small models, one of the layout of each family named below, from the texts in tools/demo_texts.

    python tools/train_small.py kogpt                    # into converters/samples/data/kogpt
    python tools/train_small.py kebyt5 --steps 2 --out /tmp/kebyt5

What a family is, its module in tools/small_models says; what is the same for all is here. Everything
follows from the seed, the weights only on one kind of machine with the same torch and number of threads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from small_models import gbst_kebyt5, hyperclovax, kebyt5, kogpt, opt, xglm
from train_demo import ROOT, SMOOTHING, learning_rate, write_json

FAMILIES: dict[str, ModuleType] = {
    family.NAME: family for family in (kogpt, kebyt5, gbst_kebyt5, hyperclovax, opt, xglm)
}
# Steps, rows in a batch and the highest learning rate.
DEFAULTS = {
    "kogpt": (3000, 8, 3e-3),
    "kebyt5": (5000, 16, 6e-3),
    "gbst-kebyt5": (2000, 12, 6e-3),
    "hyperclovax": (2000, 8, 3e-3),
    "opt": (900, 8, 4e-3),
    "xglm": (1500, 8, 4e-3),
}


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, write."""
    options = parse(arguments)
    family = FAMILIES[options.family]
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = family.new_tokenizer()
    started = time.monotonic()
    model, seen = train(family, tokenizer, options)
    figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": options.steps,
        "tokens": seen,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "held_out": family.measure(model, tokenizer),
        "sample": family.show(model, tokenizer),
    }
    family.save(model, tokenizer, options.out)
    write_json(options.out / "config.json", family.CONFIG)
    write_card(family, options.out, figures)
    print(json.dumps(figures, indent=2, ensure_ascii=False))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=sorted(FAMILIES))
    parser.add_argument("--out", type=Path, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rows", type=int, help="sequences in a batch")
    parser.add_argument("--rate", type=float, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 products (for older processors)")
    options = parser.parse_args(arguments)
    options.out = options.out or ROOT / "converters" / "samples" / "data" / options.family
    for name, value in zip(("steps", "rows", "rate"), DEFAULTS[options.family], strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def train(family: ModuleType, tokenizer: Any, options: argparse.Namespace) -> tuple[Any, int]:
    """Fresh documents without epochs; the model as stored, and how many ids (its encoder) read."""
    import torch

    torch.manual_seed(family.SEED)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    model = family.new_model()
    optimizers = family.optimizers(model, options.rate)
    rows, seen = family.batches(tokenizer, options.rows), 0
    started = time.monotonic()
    for step in range(options.steps):
        batch = next(rows)
        seen += batch["input_ids"].numel()
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(step, options.steps, options.rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=not options.float32):
            loss = family.loss(model, batch, SMOOTHING)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0 or step + 1 == options.steps:
            spent = time.monotonic() - started
            print(f"step {step:5d}  loss {loss.item():.3f}  {spent:5.0f} s", file=sys.stderr, flush=True)
        if step % 500 == 499:
            model.eval()
            print(json.dumps(family.measure(model, tokenizer)), file=sys.stderr)
            print(family.show(model, tokenizer), file=sys.stderr, flush=True)
            model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(family.stored(parameter).float())
    return model.eval(), seen


def write_card(family: ModuleType, folder: Path, figures: dict[str, Any]) -> None:
    """The model card from tools/small_models/<family>.md, with the run's figures."""
    rows = "\n".join(
        f"| {name} | {part['tokens']} | {part['loss']} | {part['bits_per_byte']} |"
        for name, part in figures["held_out"].items()
    )
    card = (Path(__file__).parent / "small_models" / f"{family.NAME}.md").read_text("utf-8")
    for slot in ("parameters", "steps", "tokens", "minutes"):
        card = card.replace(f"@{slot}@", f"{figures[slot]:,}")
    card = card.replace("@held_out@", rows).replace("@sample@", figures["sample"])
    (folder / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
