"""``kconv models``: what is supported, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from ..core.language import _, spoken, translated
from .console import emit_json, markdown_table, say, table
from .options import json_option, verbose_option

EXAMPLES = """\b
Examples:
  kconv models
  kconv models --json
  kconv models --markdown --lang ko
"""


@click.command("models", short_help="Show supported models and types.", epilog=EXAMPLES)
@click.option("--markdown", is_flag=True, help="Print the table of models in Markdown.")
@json_option
@verbose_option
def command(markdown: bool, as_json: bool, verbose: bool) -> None:
    """List the architectures, types, vocabulary adapters and chat templates that kconv supports."""
    from .progress import shown_progress

    with shown_progress():
        known = supported()
    if as_json:
        emit_json(known)
        return
    lang = spoken()
    header = _HEADERS[lang]
    rows = [
        (
            architecture["title"],
            _names(architecture["models"], lang),
            ", ".join(architecture["hf_classes"]),
            architecture["arch"],
        )
        for architecture in known["architectures"]
    ]
    if markdown:
        click.echo(markdown_table(rows, header=header))
        return
    classes = [(title, names, arch) for title, _models, names, arch in rows]
    say(table(classes, header=(header[0], *header[2:])))
    say(f"\n{_MODELS[lang]}:")
    say(table([("", title, names) for title, names, *_others in rows]))
    say(f"\nTypes: {', '.join(known['types'])}, or auto, the checkpoint's own float type")
    say(
        f"Of these need importance data (--imatrix, --calibrate): {', '.join(known['types_with_importance'])}"
    )
    say(f"\nQuantized by {_encoders(known['kernels'])}")
    say("\nVocabulary adapters (--no-adapter NAME leaves one out):")
    say(table([("", item["name"], item["summary"]) for item in known["adapters"]]))
    say("\nChat templates (--chat-template NAME):")
    say(table([("", item["name"], item["model"]) for item in known["chat_templates"]]))
    say(f"\nSample checkpoints (kconv demo-checkpoint): {', '.join(known['samples'])}")
    say("\nKnown, but not supported:")
    for remark in dict.fromkeys(item["remark"] for item in known["unsupported"]):
        say(f"  {remark}")


_HEADERS = {
    "en": ("family", "models, and those made of them", "Hugging Face class", "runs in llama.cpp as"),
    "ko": ("계열", "모델(이를 바탕으로 만든 모델 포함)", "Hugging Face 클래스", "llama.cpp 그래프"),
}
_MODELS = {"en": "Models, and those made of them", "ko": "모델(이를 바탕으로 만든 모델 포함)"}
# What a family's names of models have besides names, in Korean.
_KOREAN = (
    (r" and (?:its|their) fine-tunes", ""),
    (r"(\S+) to (\S+)", r"\1~\2"),
    (r"\(text only\)", "(텍스트만)"),
    (r" from (\S+) on", r" \1부터"),
    (r"(\S+) without byte fallback", r"바이트 폴백 없는 \1"),
    (r" but for (\S+)", r"(\1 제외)"),
    (r" in transformers' form", " (transformers 형식)"),
    (r"\bencoders of (.+?) alone", r"\1의 단독 인코더"),
    (r" and ", ", "),
)


def _names(models: Sequence[str], lang: str) -> str:
    """The names of models in one cell."""
    text = ", ".join(models)
    for pattern, replacement in _KOREAN if lang == "ko" else _KOREAN[:1]:
        text = re.sub(pattern, replacement, text)
    return text


def _encoders(kernels: Mapping[str, Any]) -> str:
    """What encodes, in words."""
    if not kernels["equal"]:
        return f"libggml: {kernels['why']}"
    plain = [name for name in kernels["equal"] if " " not in name]
    names = ", ".join(
        name if f"{name} with importance" in kernels["equal"] else _("{name} without importance", name=name)
        for name in plain
    )
    text = _(
        "kconv's {kernels} kernels ({why}), byte-identical to libggml: {names}",
        kernels=kernels["name"],
        why=translated(kernels["why"]),
        names=names,
    )
    if kernels["different"]:
        others = ", ".join(kernels["different"])
        text += _("; by libggml, since these kernels give other bytes: {names}", names=others)
    return text + _("; other types by libggml")


def supported() -> dict[str, Any]:
    """What kconv supports, from the tables that decide it."""
    from ..converters.families import FAMILIES, NEAR, has_family
    from ..converters.samples import SAMPLES
    from ..quant import ggml, native
    from ..quant.policy import POLICIES
    from ..quant.requirements import needs_importance
    from ..vocab.adapters import ADAPTERS
    from ..vocab.templates import FORMATS

    return {
        "architectures": [
            {
                "name": family.name,
                "title": family.title,
                "models": list(family.models),
                "hf_classes": list(family.hf_classes),
                "arch": family.arch,
            }
            for family in FAMILIES
        ],
        "types": list(POLICIES),
        "types_with_importance": [policy.name for policy in POLICIES.values() if needs_importance(policy)],
        "kernels": {**asdict(native.chosen()), **native.tried(ggml.library().ggml_quantize_chunk)},
        "adapters": [{"name": adapter.name, "summary": adapter.summary} for adapter in ADAPTERS],
        "chat_templates": [{"name": known.name, "model": known.model} for known in FORMATS],
        "samples": sorted(SAMPLES),
        "unsupported": [
            {"hf_class": name, "remark": remark}
            for name, remark in NEAR.items()
            if not has_family({"architectures": [name]})
        ],
    }
