"""What other tools and haste call kconv's commands and options.

Words of llama.cpp, optimum, transformers, vLLM and Ollama, and what people type from memory.
"""

from __future__ import annotations

from collections.abc import Mapping

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "convert": ("to-gguf", "to-onnx"),
    "convert-hf-to-gguf": ("to-gguf",),
    "gguf": ("to-gguf",),
    "hf-to-gguf": ("to-gguf",),
    "export": ("to-gguf", "to-onnx"),
    "onnx": ("to-onnx",),
    "optimum": ("to-onnx",),
    "llama-quantize": ("quantize",),
    "requantize": ("quantize",),
    "calibrate": ("imatrix",),
    "importance": ("imatrix",),
    "llama-imatrix": ("imatrix",),
    "check": ("verify",),
    "validate": ("verify",),
    "prove": ("verify",),
    "proof": ("verify",),
    "test": ("verify", "doctor"),
    "perplexity": ("verify", "compare"),
    "ppl": ("verify", "compare"),
    "kl": ("verify", "compare"),
    "eval": ("verify", "compare"),
    "evaluate": ("verify", "compare"),
    "diff": ("verify", "compare"),
    "bench": ("compare",),
    "benchmark": ("compare",),
    "chat": ("run",),
    "chatbot": ("run", "serve"),
    "generate": ("run",),
    "infer": ("run",),
    "inference": ("run",),
    "predict": ("run",),
    "cli": ("run",),
    "llama-cli": ("run",),
    "llama-run": ("run",),
    "embed": ("run",),
    "embedding": ("run",),
    "embeddings": ("run",),
    "llama-server": ("serve",),
    "api": ("serve",),
    "web": ("serve",),
    "ui": ("serve",),
    "openai": ("serve",),
    "info": ("inspect",),
    "show": ("inspect",),
    "dump": ("inspect",),
    "view": ("inspect",),
    "list": ("models",),
    "ls": ("models",),
    "types": ("models",),
    "families": ("models",),
    "size": ("plan",),
    "estimate": ("plan",),
    "push": ("upload",),
    "publish": ("upload",),
    "share": ("upload",),
    "readme": ("card",),
    "many": ("batch",),
    "self-test": ("doctor",),
    "demo": ("demo-checkpoint",),
    "sample": ("demo-checkpoint",),
    "delete": ("clean",),
    "remove": ("clean",),
    "rm": ("clean",),
    "clear": ("clean",),
}

_DOWNLOAD = "commands that read a checkpoint download it: kconv to-gguf ORG/NAME -q q4_k_m"
_PACKAGE = "kconv is a Python package: pip installs and upgrades it (docs: install.md)"
_SPLIT = "kconv quantize MODEL.gguf -q copy splits with --split-max-size 2G, and joins without it"

OTHERWISE: Mapping[str, str] = {
    "version": "use kconv --version",
    "download": _DOWNLOAD,
    "pull": _DOWNLOAD,
    "hub": _DOWNLOAD,
    "search": "models of the Hub are searched on its site; kconv models lists what is supported",
    "login": "log in to the Hub with `hf auth login`",
    "split": _SPLIT,
    "gguf-split": _SPLIT,
    "llama-gguf-split": _SPLIT,
    "merge": _SPLIT,
    "install": _PACKAGE,
    "update": _PACKAGE,
    "upgrade": _PACKAGE,
    "init": "there is nothing to set up: begin with kconv doctor, then kconv to-gguf",
    "config": "kconv has no settings of its own; every command lists its options with --help",
}
"""Words for what is no command of its own."""

OPTIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("--outfile", "--out-file", "--out", "--output-dir", "--outdir", "--output-file", "-O"),
            *("--output-path", "--save", "--save-dir", "--dest", "--destination"),
        ),
        ("--output",),
    ),
    **dict.fromkeys(
        (
            *("--outtype", "--out-type", "--quant", "--quantization", "--quantize", "--qtype", "--ftype"),
            *("--dtype", "--format", "--precision", "--bits"),
        ),
        ("--type",),
    ),
    "--token-embedding-type": ("--embedding-type",),
    "--output-tensor-type": ("--output-type",),
    **dict.fromkeys(("--nthreads", "--thread", "--jobs", "--num-threads", "-t", "-j"), ("--threads",)),
    **dict.fromkeys(("--overwrite", "--yes", "-f", "-y"), ("--force",)),
    **dict.fromkeys(("--no-proof", "--skip-verify", "--skip-proof"), ("--no-verify",)),
    **dict.fromkeys(("--text-file", "--file", "--dataset", "--data"), ("--text", "--calibrate")),
    **dict.fromkeys(("--calibration", "--calib", "--calibration-data"), ("--calibrate",)),
    "--temperature": ("--temp",),
    **dict.fromkeys(
        (
            *("--max-tokens", "--max-new-tokens", "--max-length", "--n-predict", "--predict"),
            *("--num-predict", "--n-tokens"),
        ),
        ("--tokens",),
    ),
    **dict.fromkeys(("--ctx-size", "--context", "--num-ctx", "--n-ctx", "--max-model-len", "-c"), ("--ctx",)),
    **dict.fromkeys(("--system-prompt", "--sys", "-sys"), ("--system",)),
    "--repetition-penalty": ("--repeat-penalty",),
    **dict.fromkeys(("--cache-type-k", "--cache-type-v", "--cache-type", "--ctk", "--ctv"), ("--kv-type",)),
    **dict.fromkeys(
        ("--reference", "--checkpoint", "--with", "--base", "--original", "--source"), ("--against",)
    ),
    **dict.fromkeys(("--address", "--bind", "--listen"), ("--host",)),
    "-p": ("--port",),
    "--html": ("--report",),
    "--debug": ("--verbose",),
    "-v": ("--verbose", "--version"),
    "-V": ("--version",),
    **dict.fromkeys(("-?", "-help", "--usage", "--man"), ("--help",)),
    "--language": ("--lang",),
    "--locale": ("--lang",),
    "--branch": ("--revision",),
    "--commit": ("--revision",),
    "--size": ("--target-size",),
    "--split": ("--split-max-size",),
    "--max-shard-size": ("--split-max-size",),
}
"""What an option is called here, where the command has one of that name."""

_PROMPT_FILE = "the prompt is read from standard input: kconv run FILE < prompt.txt"
_CONVERSATION = "without a prompt kconv run opens a conversation: kconv run FILE"
_PROCESSOR = "kconv runs models on the processor alone; for a graphics card give the file to llama.cpp itself"
_MEMORY = "it is not needed: weights are converted piece by piece, in little memory"
_KEY = "give the key in the variable KCONV_API_KEY, where other users of the machine cannot see it"
_TOKEN = "the Hub's token is read from HF_TOKEN, or from `hf auth login`"
_PLAN = "kconv plan CHECKPOINT shows what would be made, with sizes"
_CODE = "nothing in a checkpoint is ever executed, so there is nothing to trust"

INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(("--prompt-file", "run --file", "run -f"), _PROMPT_FILE),
    **dict.fromkeys(
        ("--interactive", "--conversation", "-cnv", "run -i", "--interactive-first"), _CONVERSATION
    ),
    **dict.fromkeys(("-ngl", "--n-gpu-layers", "--gpu-layers", "--gpu", "--device", "--cuda"), _PROCESSOR),
    **dict.fromkeys(("--use-temp-file", "--no-lazy", "--low-memory"), _MEMORY),
    **dict.fromkeys(("--trust-remote-code",), _CODE),
    **dict.fromkeys(("--api-key",), _KEY),
    **dict.fromkeys(("--token", "--hf-token"), _TOKEN),
    **dict.fromkeys(("--dry-run",), _PLAN),
    "--remote": "give the repository in place of the folder: kconv to-gguf ORG/NAME",
    **dict.fromkeys(("imatrix -f", "imatrix --file"), "the text is given with --text"),
    "run --stream": "text is shown as it is written; there is nothing to ask for",
    "--quiet": "messages go to standard error, and 2>/dev/null leaves them out",
    "--outfile-type": "use --type",
}
"""What to do in place of an option kconv has not; first looked for behind the name of the command."""

SOURCES = (
    "--model",
    "-m",
    "--model-path",
    "--model-name-or-path",
    "--input",
    "-i",
    "--infile",
    "--in",
    "--path",
)
"""Options of other tools for what kconv takes as its first argument."""
