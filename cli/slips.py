"""Words of other tools and of haste, answered with kconv's own: commands, options, the order of arguments.

Nothing is guessed and done: the answer is an error (exit code 2) that names what was probably meant.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from ..core.errors import UsageError

# Words of llama.cpp, optimum, transformers and Ollama, and what people type from memory.
_COMMANDS = {
    "convert": ("to-gguf", "to-onnx"),
    "convert-hf-to-gguf": ("to-gguf",),
    "gguf": ("to-gguf",),
    "hf-to-gguf": ("to-gguf",),
    "export": ("to-gguf", "to-onnx"),
    "onnx": ("to-onnx",),
    "llama-quantize": ("quantize",),
    "requantize": ("quantize",),
    "calibrate": ("imatrix",),
    "llama-imatrix": ("imatrix",),
    "check": ("verify",),
    "prove": ("verify",),
    "proof": ("verify",),
    "test": ("verify", "doctor"),
    "perplexity": ("verify", "compare"),
    "chat": ("run",),
    "generate": ("run",),
    "cli": ("run",),
    "info": ("inspect",),
    "show": ("inspect",),
    "dump": ("inspect",),
    "list": ("models",),
    "ls": ("models",),
    "types": ("models",),
    "size": ("plan",),
    "estimate": ("plan",),
    "self-test": ("doctor",),
    "demo": ("demo-checkpoint",),
    "sample": ("demo-checkpoint",),
}

# Words for what is no command of its own.
_OTHERWISE = {
    "version": "use kconv --version",
    "download": "commands that read a checkpoint download it: kconv to-gguf ORG/NAME -q q4_k_m",
    "pull": "commands that read a checkpoint download it: kconv to-gguf ORG/NAME -q q4_k_m",
}

_OPTIONS = {
    "--outfile": ("--output",),
    "--out-file": ("--output",),
    "--out": ("--output",),
    "--output-dir": ("--output",),
    "--outdir": ("--output",),
    "--output-file": ("--output",),
    "--outtype": ("--type",),
    "--out-type": ("--type",),
    "--quant": ("--type",),
    "--quantization": ("--type",),
    "--quantize": ("--type",),
    "--qtype": ("--type",),
    "--ftype": ("--type",),
    "--dtype": ("--type",),
    "--token-embedding-type": ("--embedding-type",),
    "--output-tensor-type": ("--output-type",),
    "--nthreads": ("--threads",),
    "--thread": ("--threads",),
    "--jobs": ("--threads",),
    "--overwrite": ("--force",),
    "--yes": ("--force",),
    "--no-proof": ("--no-verify",),
    "--skip-verify": ("--no-verify",),
    "--text-file": ("--text", "--calibrate"),
    "--calibration": ("--calibrate",),
    "--calib": ("--calibrate",),
    "--temperature": ("--temp",),
    "--max-tokens": ("--tokens",),
    "--max-new-tokens": ("--tokens",),
    "--n-predict": ("--tokens",),
    "--predict": ("--tokens",),
    "--ctx-size": ("--ctx",),
    "--context": ("--ctx",),
    "--num-ctx": ("--ctx",),
    "--n-ctx": ("--ctx",),
    "--system-prompt": ("--system",),
    "--reference": ("--against",),
    "--checkpoint": ("--against",),
    "--html": ("--report",),
    "--debug": ("--verbose",),
    "--language": ("--lang",),
    "--locale": ("--lang",),
}


def unknown_command(word: str, commands: Sequence[str]) -> UsageError:
    """The answer to a command there is none of."""
    told = f"unknown command {word!r}; commands are: {', '.join(commands)}"
    if word.lower() in _OTHERWISE:
        return UsageError(told, hint=_OTHERWISE[word.lower()])
    known = [name for name in _COMMANDS.get(word.lower().replace("_", "-"), ()) if name in commands]
    meant = known or difflib.get_close_matches(word.lower().replace("_", "-"), commands, n=2, cutoff=0.6)
    return UsageError(
        told,
        hint=f"use {_either([f'kconv {name}' for name in meant])}" if meant else "see `kconv --help`",
    )


def answered(error: BaseException, words: Sequence[str]) -> BaseException:
    """What to report in place of ``error``, where it is a known slip in the command line ``words``."""
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return error
    command = error.ctx.command
    if isinstance(error, click.NoSuchOption):
        return _unknown_option(error, command)
    begin = words.index(command.name) + 1 if command.name in words else 1
    others = [word for word in words[begin:] if not word.startswith("-")]
    if command.name == "quantize" and 2 <= len(others) <= 4:
        return _order_of_llama_quantize(error, others)
    if command.name == "upload" and len(others) == 1 and Path(others[0]).exists():
        return UsageError(
            "kconv upload takes files and, last, the repository they are sent to",
            hint=f"kconv upload {shlex.quote(others[0])} ORG/NAME",
        )
    if command.name in ("to-gguf", "to-onnx") and len(others) >= 2 and "extra argument" in error.message:
        return _without_its_option(error, others)
    if isinstance(error, click.MissingParameter):
        return _missing(error, command, others)
    if isinstance(error, click.BadParameter) and _asks_for_no_proof(error):
        return UsageError(error.format_message(), hint="to leave the proof out: --no-verify")
    return error


def _missing(error: click.MissingParameter, command: click.Command, others: Sequence[str]) -> BaseException:
    """With an example of how the command is called; of ``verify FILE CHECKPOINT``, the right call itself."""
    if command.name == "verify" and len(others) == 2:
        file, checkpoint = (shlex.quote(word) for word in others)
        hint = f"kconv verify {file} --against {checkpoint}"
    else:
        examples = [line.strip() for line in (command.epilog or "").splitlines()]
        known = [line for line in examples if line.startswith("kconv ")]
        path = "kconv" if error.ctx is None else error.ctx.command_path
        hint = f"see `{path} --help`" + (f"; for example: {known[0]}" if known else "")
    return UsageError(error.format_message(), hint=hint)


def _asks_for_no_proof(error: click.BadParameter) -> bool:
    asked = error.param is not None and "--verify" in error.param.opts
    return asked and any(f"'{word}'" in error.message for word in ("none", "off", "no", "false", "skip"))


def _unknown_option(error: click.NoSuchOption, command: click.Command) -> BaseException:
    there = [name for option in command.params for name in option.opts if name.startswith("--")]
    word = error.option_name.replace("_", "-")
    meant = [name for name in _OPTIONS.get(word, ()) if name in there]
    meant = meant or difflib.get_close_matches(word, there, n=2, cutoff=0.7)
    path = "kconv" if error.ctx is None else error.ctx.command_path
    help_ = f"see `{path} --help`"
    return UsageError(
        f"{path} has no option {error.option_name}",
        hint=f"use {_either(meant)}; {help_}" if meant else help_,
    )


def _order_of_llama_quantize(error: click.UsageError, others: Sequence[str]) -> BaseException:
    """``IN.gguf [OUT.gguf] TYPE [THREADS]``."""
    source, rest = others[0], list(others[1:])
    if rest and rest[-1].isdecimal():
        rest.pop()
    type_name = rest.pop() if rest and _is_type(rest[-1]) else None
    if type_name is None or len(rest) > 1:
        return error
    output = f" -o {shlex.quote(rest[0])}" if rest else ""
    return UsageError(
        "kconv quantize takes one file; the output and the type are options, unlike llama-quantize's",
        hint=f"kconv quantize {shlex.quote(source)}{output} -q {type_name}",
    )


def _without_its_option(error: click.UsageError, others: Sequence[str]) -> BaseException:
    source, extra = others[0], others[1]
    if _is_type(extra):
        option = f"-q {shlex.quote(extra)}"
    elif extra.lower().endswith((".gguf", ".onnx", "/")) or Path(extra).is_dir():
        option = f"-o {shlex.quote(extra)}"
    else:
        return error
    name = "kconv" if error.ctx is None else error.ctx.command_path
    return UsageError(
        f"{name} takes one checkpoint, and {extra!r} is another argument",
        hint=f"{name} {shlex.quote(source)} {option}",
    )


def _is_type(word: str) -> bool:
    from ..quant.policy import parse_policy

    if word.lower() == "copy":
        return True
    try:
        parse_policy(word)
    except UsageError:
        return False
    return True


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)
