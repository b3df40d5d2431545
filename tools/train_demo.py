"""Train the demo model of 42dot's layout from the texts in tools/demo_texts, on a CPU in minutes.

    python tools/train_demo.py                      # the committed model, into converters/samples/data/42dot
    python tools/train_demo.py --steps 2 --out /tmp/demo

Everything follows from the seed: documents, tokenizer, order, initial weights. The tokenizer's files come
out the same byte for byte everywhere; the weights do on one kind of machine with the same torch and number
of threads, since the order in which a processor adds floats is its own.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo_texts import generator

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "converters" / "samples" / "data" / "42dot"
SEED = 20231028

# 42dot_LLM has 50256 BPE tokens, 4 special ones right after them, and 50304 rows: 44 rows have no token.
BPE_TOKENS = 2000
ROWS = 2048
SPECIALS = {"<|endoftext|>": 2000, "<||bos||>": 2001, "<||pad||>": 2002, "<||unk||>": 2003}
EOS, BOS = SPECIALS["<|endoftext|>"], SPECIALS["<||bos||>"]
CONTEXT = 512
TOKENIZER_DOCUMENTS = 6000
SMOOTHING = 0.05

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": CONTEXT,
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 3,
    "num_key_value_heads": 8,
    "pad_token_id": SPECIALS["<||pad||>"],
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "tokenizer_class": "GPT2TokenizerFast",
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": ROWS,
}
GENERATION_CONFIG = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": SPECIALS["<||pad||>"]}


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, write."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    tokenizer = train_tokenizer()
    save_tokenizer(tokenizer, options.out)
    model, seen = train(tokenizer, options)
    held_out = measure(model, tokenizer)
    save_model(model, options.out)
    figures = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": options.steps,
        "tokens": seen,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "held_out": held_out,
    }
    write_card(options.out, figures)
    print(json.dumps(figures, indent=2))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--rows", type=int, default=4, help="sequences in a batch")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 products (for older processors)")
    return parser.parse_args(arguments)


def train_tokenizer() -> Any:
    """Byte-level BPE as GPT-2 has it, from the training documents; special tokens after the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # A line break keeps names and their particles in tokens of their own: the model can then repeat a name
    # with whatever particle comes next, without having met the two together.
    stream = generator.documents(SEED, joint="\n")
    texts = [next(stream).replace(generator.END, "\n") for _ in range(TOKENIZER_DOCUMENTS)]
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != BPE_TOKENS:
        sys.exit(f"the texts gave {tokenizer.get_vocab_size()} BPE tokens, expected {BPE_TOKENS}")
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return tokenizer


def sequences(tokenizer: Any, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """Rows of CONTEXT ids, and for each id the number of its document in the row.

    A row is filled with whole documents, each ended by <|endoftext|>, the last one cut. Every fourth row
    starts with <||bos||>, so that programs that put it there (42dot's own does) find the model used to it.
    """
    stream = generator.documents(seed)
    for number in range(sys.maxsize):
        ids: list[int] = [BOS] if number % 4 == 0 else []
        owners = [0] * len(ids)
        for document in range(CONTEXT):
            part = [*tokenizer.encode(next(stream)).ids, EOS]
            ids += part
            owners += [document] * len(part)
            if len(ids) >= CONTEXT:
                break
        yield ids[:CONTEXT], owners[:CONTEXT]


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Warm up over 4 % of the steps, then fall along a cosine to 2 % of the highest rate."""
    warm = max(1, steps // 25)
    if step < warm:
        return highest * (step + 1) / warm
    part = (step - warm) / max(1, steps - warm)
    return highest * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))


def new_model() -> Any:
    """The untrained model, with initial weights for so small a width.

    transformers' 0.02 suits widths of thousands: here attention would start flat and louder than the
    embeddings, and take very long to find the names it has to repeat. So every matrix starts at
    1 / sqrt(inputs), those that write to the residual stream smaller by sqrt(2 * layers), the embeddings
    at 0.1. The head is a matrix of its own, but starts as the embeddings' smaller twin: so the model learns
    sooner to say a word again that it has read.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {key: value for key, value in CONFIG.items() if key != "torch_dtype"}
    model = LlamaForCausalLM(LlamaConfig(**settings)).float().train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                layers = CONFIG["num_hidden_layers"] if residual else 0.5
                weight.normal_(0.0, (2 * layers * weight.shape[1]) ** -0.5)
        model.model.embed_tokens.weight.normal_(0.0, 0.1)
        model.lm_head.weight.copy_(model.model.embed_tokens.weight * 0.3)
    return model


def next_batch(rows: Iterator[tuple[list[int], list[int]]], count: int) -> tuple[Any, Any]:
    """Ids (count, CONTEXT) and a mask (count, 1, CONTEXT, CONTEXT): each document sees itself alone."""
    import torch

    drawn = [next(rows) for _ in range(count)]
    ids = torch.tensor([row for row, _ in drawn])
    owners = torch.tensor([numbers for _, numbers in drawn])
    causal = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril()
    return ids, (owners[:, None, :, None] == owners[:, None, None, :]) & causal


def train(tokenizer: Any, options: argparse.Namespace) -> tuple[Any, int]:
    """AdamW over fresh documents; no document is drawn twice on purpose, so there are no epochs."""
    import torch

    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    model = new_model()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.95))
    rows = sequences(tokenizer, SEED)
    started = time.monotonic()
    for step in range(options.steps):
        ids, mask = next_batch(rows, options.rows)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=not options.float32):
            logits = model(input_ids=ids, attention_mask=mask).logits
        # Smoothing keeps a model of so little text from being certain of everything.
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=SMOOTHING
        )
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step + 1 == options.steps:
            spent = time.monotonic() - started
            print(f"step {step:5d}  loss {loss.item():.3f}  {spent:5.0f} s", file=sys.stderr, flush=True)
        if step % 500 == 499:
            print(json.dumps(measure(model, tokenizer)), file=sys.stderr, flush=True)
            save_model(model, options.out)  # to look at on the way
    return model.half().float().eval(), options.steps * options.rows * CONTEXT


def measure(model: Any, tokenizer: Any) -> dict[str, dict[str, float]]:
    """Perplexity of the stored (float16) weights on held-out texts, each from its start; and bits a byte."""
    import torch

    figures = {}
    for name, texts in generator.held_out().items():
        loss, tokens, size = 0.0, 0, 0
        for text in texts:
            ids = torch.tensor([[*tokenizer.encode(text).ids, EOS]])[:, :CONTEXT]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1]
            loss += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            tokens += ids.shape[1] - 1
            size += len(text.encode())
        figures[name] = {
            "tokens": tokens,
            "perplexity": round(math.exp(loss / tokens), 2),
            "bits_per_byte": round(loss / math.log(2) / size, 3),
        }
    return figures


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """vocab.json, merges.txt and the three small files of 42dot's folder; no tokenizer.json, as there."""
    roles = {"bos": "<||bos||>", "eos": "<|endoftext|>", "pad": "<||pad||>", "unk": "<||unk||>"}
    flags = {
        # 42dot's file marks only <|endoftext|> as normalized; there is no normalizer, so it means nothing.
        text: {"lstrip": False, "normalized": text == "<|endoftext|>", "rstrip": False, "single_word": False}
        for text in SPECIALS
    }
    described = {text: {"content": text, **flags[text]} for text in SPECIALS}
    tokenizer.model.save(str(folder))
    write_json(folder / "added_tokens.json", SPECIALS)
    write_json(folder / "special_tokens_map.json", {f"{r}_token": described[t] for r, t in roles.items()})
    config: dict[str, Any] = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {**described[t], "special": True} for t, i in SPECIALS.items()},
        **{f"{role}_token": text for role, text in roles.items()},
        "clean_up_tokenization_spaces": True,
        "errors": "replace",
        "model_max_length": 8192,
        "tokenizer_class": "GPT2Tokenizer",
    }
    write_json(folder / "tokenizer_config.json", config)


def save_model(model: Any, folder: Path) -> None:
    """model.safetensors in float16, config.json and generation_config.json."""
    import torch
    from safetensors.torch import save_file

    tensors = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "generation_config.json", GENERATION_CONFIG)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Two spaces and Hangul as itself, as transformers writes these files."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_card(folder: Path, figures: dict[str, Any]) -> None:
    """The model card from tools/demo_texts/card.md, with the run's figures."""
    rows = "\n".join(
        f"| {name} | {part['tokens']} | {part['perplexity']} | {part['bits_per_byte']} |"
        for name, part in figures["held_out"].items()
    )
    card = (generator.HERE / "card.md").read_text("utf-8")
    for slot in ("parameters", "steps", "tokens", "minutes"):
        value = figures[slot]
        card = card.replace(f"@{slot}@", f"{value:,}")
    (folder / "README.md").write_text(card.replace("@held_out@", rows), encoding="utf-8")


if __name__ == "__main__":
    main()
