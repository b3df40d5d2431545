"""``kconv inspect``: what a checkpoint, a GGUF or an ONNX folder is, from headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..core.errors import InputError
from ..core.language import _
from .console import count_text, emit_json, printable, say, say_note, size_text, table
from .options import json_option, verbose_option
from .sources import SOURCE, revision_option

EXAMPLES = """\b
Examples:
  kconv inspect ./42dot_LLM-SFT-1.3B
  kconv inspect 42dot_LLM-SFT-1.3B-Q4_0.gguf --tensors
  kconv inspect ./42dot-onnx
  kconv inspect model.gguf --json | jq .vocabulary.special
"""

_LONG = 100  # characters of a metadata value that are shown


@click.command(
    "inspect", short_help=("Show what a checkpoint, GGUF file or ONNX folder contains."), epilog=EXAMPLES
)
@click.argument("path", type=SOURCE)
@revision_option
@click.option(
    "--tensors", "every_tensor", is_flag=True, help=("List every tensor instead of one line per kind.")
)
@json_option
@verbose_option
def command(path: str | Path, every_tensor: bool, as_json: bool, verbose: bool) -> None:
    """Show what PATH is: a checkpoint folder, a GGUF file or an ONNX folder.

    Architecture, tensors, parameters, sizes, vocabulary, special tokens, licence; for ONNX also the graphs.
    Only headers are read, so large models take no longer. With --json every tensor is listed.
    """
    if isinstance(path, Path) and not path.exists():
        raise InputError(f"{path} does not exist", hint="give a checkpoint, a GGUF file or an ONNX folder")
    from .progress import shown_progress

    with shown_progress():
        from .descriptions import describe

        description = describe(path)
    if as_json:
        emit_json(description)
        return
    _print_summary(description)
    _print_graphs(description.get("graphs", ()))
    _print_vocabulary(description["vocabulary"])
    say("\n" + _("Tensors") + "\n" + _tensor_table(description["tensors"], every_tensor=every_tensor))


def _print_summary(description: Mapping[str, Any]) -> None:
    """Everything above vocabulary and tensors."""
    bits, all_bytes = description["bits_per_weight"], description["bytes"]
    is_checkpoint = description["kind"] == "checkpoint"
    recipe = (description["supported"] or "none: not supported") if is_checkpoint else None
    facts = [
        (_("path"), description["path"]),
        (_("kind"), description["kind"]),
        (_("parts"), len(description.get("parts", ())) or None),
        (_("name"), description["name"]),
        (_("architecture"), description["architecture"]),
        (_("what it is"), description.get("purpose")),
        (_("recipe"), recipe),
        (_("problem"), description.get("problem")),
        (_("licence"), description["license"] or "not stated"),
        (_("parameters"), count_text(description["parameters"])),
        (_("size"), _("{size} ({bytes} bytes)", size=size_text(all_bytes), bytes=f"{all_bytes:,}")),
        (_("type"), description.get("file_type")),
        (_("flavour"), description.get("flavour")),
        (_("runs in"), _runtime_text(description.get("least_onnxruntime"))),
        (_("left to the CPU"), _left_text(description.get("left_to_cpu"))),
        (_("bits per weight"), None if bits is None else f"{bits:.2f}"),
        (_("formats chosen"), description.get("formats_chosen")),
        (_("codes chosen"), description.get("codes_chosen")),
        (_("manifest"), description.get("manifest")),
        (_("proof"), _proof_text(description.get("proof"))),
    ]
    say(table([(label, str(value)) for label, value in facts if value is not None]))
    for note in description.get("notes", ()):
        say_note(note["name"], note["message"], warning=note["warning"])
    rows = [
        (name, f"{line['tensors']:,}", f"{line['parameters']:,}", size_text(line["bytes"]))
        for name, line in description["types"].items()
    ]
    say("\n" + table(rows, header=("type", "tensors", "weights", "size"), right=(1, 2, 3)))
    for title, values in (
        (_("Hyper-parameters"), description["hyperparameters"]),
        (_("Metadata"), description["metadata"]),
    ):
        if values:
            say(f"\n{title}\n{table([('', key, _short(value)) for key, value in values.items()])}")


def _runtime_text(least: str | None) -> str | None:
    return None if least is None else _("onnxruntime {version} or newer", version=least)


def _left_text(left: Mapping[str, Sequence[str]] | None) -> str | None:
    """What providers leave to the CPU, such as ``Attention by WebGPU; nothing by OpenVINO``."""
    if left is None:
        return None
    return "; ".join(
        _("{operators} by {provider}", operators=", ".join(kinds) or _("nothing"), provider=provider)
        for provider, kinds in left.items()
    )


def _print_graphs(graphs: Sequence[Mapping[str, Any]]) -> None:
    """Each graph with its operators and what goes in and out, caches of all layers in one line."""
    for graph in graphs:
        versions = ", ".join(f"{domain} {version}" for domain, version in graph["opsets"].items())
        operators = ", ".join(f"{name} {count}" for name, count in graph["operators"].items())
        file, versions = printable(graph["file"]), printable(versions)
        say("\n" + _("Graph {file} (opset {versions})", file=file, versions=versions))
        say(f"  {printable(operators)}")
        rows: dict[tuple[str, ...], None] = {}
        for title, label in (("inputs", _("input")), ("outputs", _("output"))):
            for value in graph[title]:
                name = re.sub(r"\.[0-9]+\.", ".N.", value["name"])
                rows["", label, name, value["type"], _short(value["shape"])] = None
        say(table(list(rows)))


def _print_vocabulary(vocabulary: Mapping[str, Any] | None) -> None:
    if vocabulary is None:
        say("\nNo vocabulary")
        return
    say("\n" + _("Vocabulary"))
    apart = ("special", "chat_template", "notes")
    plain = {key: value for key, value in vocabulary.items() if key not in apart}
    say(
        table(
            [("", key.replace("_", " "), _short(value)) for key, value in plain.items() if value is not None]
        )
    )
    special = vocabulary.get("special") or {}
    for note in vocabulary.get("notes", ()):
        say("  " + _("note ({name}): {message}", name=note["name"], message=note["message"]))
    rows = [("", role, str(each["id"]), str(each["token"])) for role, each in special.items()]
    if rows:
        say(f"\nSpecial tokens\n{table(rows, right=(2,))}")
    if "error" in vocabulary:
        return
    template = vocabulary.get("chat_template")
    say("\nNo chat template" if not template else f"\nChat template\n{indented(template)}")


def _proof_text(proof: Mapping[str, Any] | None) -> str | None:
    """``passed (quick), mean KL 0.034``, as the manifest says; nothing of it is checked here."""
    if proof is None:
        return None
    from ..report.names import recorded_verdict

    scope = f" ({proof['scope']})" if proof["scope"] else ""
    detail = (
        ", " + _("mean KL {value}", value=f"{proof['kl_mean']:.3g}")
        if isinstance(proof["kl_mean"], float)
        else ""
    )
    cosine = proof.get("cosine_mean")
    detail += ", " + _("mean cosine {value}", value=f"{cosine:.6g}") if isinstance(cosine, float) else ""
    if proof["cause"]:
        detail = f": {_short(proof['cause'])}"
    return f"{recorded_verdict(proof['verdict'])}{scope}{detail}"


def indented(text: str) -> str:
    """Lines of ``text``, each two columns in."""
    return "\n".join(f"  {line}" for line in text.splitlines())


def _short(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{key} {item}" for key, item in value.items())
    elif isinstance(value, list):
        text = "; ".join(map(str, value))
    elif value is None:
        text = "none"
    elif isinstance(value, float):
        text = f"{value:.7g}"  # float32 in the file
    else:
        text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"


def _tensor_table(tensors: Sequence[Mapping[str, Any]], *, every_tensor: bool) -> str:
    """One line a tensor, or one for all that differ only in their layer."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for tensor in tensors:
        name = tensor["name"] if every_tensor else re.sub(r"\.\d+\.", ".*.", tensor["name"])
        shape = "[" + ", ".join(map(str, tensor["shape"])) + "]"
        groups.setdefault((name, shape, tensor["type"]), []).append(tensor["bytes"])
    rows = [
        (f"  {name}", f"× {len(sizes)}" if len(sizes) > 1 else "", shape, kind, size_text(sum(sizes)))
        for (name, shape, kind), sizes in groups.items()
    ]
    return table(rows, right=(4,)) if rows else "  none"
