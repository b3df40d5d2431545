"""No room asks for a family by its name: what it has to know of one is in the family's value."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from family_names import Finding, Search, known_names, registered
from test_house import ROOMS, ROOT

from kconv.converters.families import FAMILIES

_KIND = "a kind of vocabulary (tokenizer.ggml.model), whatever the architecture"
_PRE = "names of pre-tokenizers (tokenizer.ggml.pre), whatever the architecture"
_LLAMA_QUANTIZE = "llama-quantize's own rule for files of any architecture, most of which no family describes"
_LICENCE = "a licence"
_SAMPLE = "what users call the demo checkpoints"
_PUBLISHED = "the model that a published figure was measured on"

EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("core/vocabulary.py", "BPE"): _KIND,
    ("core/vocabulary.py", "SPM"): _KIND,
    ("core/vocabulary.py", "UNIGRAM"): _KIND,
    ("core/vocabulary.py", "GEMMA4"): _KIND,
    ("core/vocabulary.py", "WORDPIECE"): _KIND,
    ("vocab/in_gguf.py", "_ADD_BOS"): _PRE,
    ("vocab/in_gguf.py", "_NO_BOS"): _PRE,
    ("vocab/in_gguf.py", "ALWAYS_BOS"): _PRE,
    ("cli/slip_words.py", "COMMANDS"): "llama.cpp's programs",
    ("cli/slip_words.py", "OTHERWISE"): "llama.cpp's programs",
    ("vocab/ollama.py", "_BY_FORMAT"): "the chat formats of model cards",
    ("quant/named_recipes.py", "FALCON"): _LLAMA_QUANTIZE,
    ("quant/parts.py", "FOREIGN"): _LLAMA_QUANTIZE,
    ("quant/parts.py", "_LARGE"): _LLAMA_QUANTIZE,
    ("quant/parts.py", "model.arch == 'llama'"): _LLAMA_QUANTIZE,
    ("converters/card.py", "_LICENCE_TEXTS"): _LICENCE,
    ("converters/card.py", "_OF_THEIR_OWN"): _LICENCE,
    ("converters/samples/__init__.py", "TRAINED"): _SAMPLE,
    ("converters/samples/__init__.py", "SAMPLES"): _SAMPLE,
    ("runtimes/llama_loaded.py", "startswith('LLAMA_')"): "environment variables of llama.cpp",
    ("runtimes/llama_test_child.py", "_NUMBERS"): "the keys of the self-test's own file",
    ("quant/gate_table.py", "_PERPLEXITY"): _PUBLISHED,
    ("quant/published.py", "['Llama-3-8B with importance data ']"): _PUBLISHED,
}
"""Paths and names of constants, or code: why they are none of a family's business."""


# What must not stand in a room, and what is reported of it.
PLANTED: Mapping[str, str] = {
    "arch == 't5'": "arch == 't5'",
    "kind != 'gpt_neox'": "kind != 'gpt_neox'",
    "'GPT-NeoX' == title": "'GPT-NeoX' == title",
    "arch.lower() == 'QWEN3'": "arch.lower() == 'QWEN3'",
    "model_type in ('t5', 'mt5')": "model_type in ('t5', 'mt5')",
    "model_type not in frozenset({'bert'})": "model_type not in frozenset({'bert'})",
    "'Exaone4ForCausalLM' in config['architectures']": "'Exaone4ForCausalLM' in config['architectures']",
    "'llama' in name": "'llama' in name",
    "key == 'phi2.block_count'": "key == 'phi2.block_count'",
    "name == 'Llama-3-8B'": "name == 'Llama-3-8B'",
    "sample == 'gbst-kebyt5'": "sample == 'gbst-kebyt5'",
    "arch is HERE": "arch is HERE",
    "any(arch == each for each in SEVERAL)": "arch == each",
    "arch in [*SEVERAL, 'unknown']": "arch in [*SEVERAL, 'unknown']",
    "arch in ELSEWHERE": "arch in ELSEWHERE",
    "arch in renamed": "arch in renamed",
    "arch in elsewhere.ELSEWHERE": "arch in elsewhere.ELSEWHERE",
    "arch in TABLE": "arch in TABLE",
    "arch == Graph.GPTJ": "arch == Graph.GPTJ",
    "arch == elsewhere_class.MOE": "arch == elsewhere_class.MOE",
    "{'qwen3moe': 1}": "{'qwen3moe': …}",
    "{HERE: 1}": "{'exaone4': …}",
    "{each: 1 for each in SEVERAL}": "{'mt5', 't5': …}",
    "dict(gptneox=1)": "dict('gptneox')",
    "dict.fromkeys(SEVERAL)": "fromkeys('mt5', 't5')",
    "sizes['falcon']": "['falcon']",
    "sizes.get('mistral', 0)": "get('mistral')",
    "{*SEVERAL} & archs": "{*SEVERAL} & archs",
    "archs.isdisjoint({'gemma3'})": "isdisjoint('gemma3')",
    "set(SEVERAL).issubset(archs)": "'mt5', 't5'.issubset",
    "arch.startswith('qwen')": "startswith('qwen')",
    "arch.startswith(('t5', 'x'))": "startswith('t5')",
    "arch.removeprefix('llama.')": "removeprefix('llama.')",
    "re.fullmatch('m?t5|t5', arch)": "fullmatch('t5')",
    "Rule(1, arch='falcon')": "arch='falcon'",
    "match arch:\n    case 'x' | 'mt5': pass": "case 'mt5'",
    "match config:\n    case {'gpt2': _}: pass": "{'gpt2': …}",
    "def f(*, arch='llama'): pass": "arch='llama'",
    "class C:\n    model_type: str = 'gptj'": "model_type='gptj'",
    "from ..converters.families.t5 import T5": "from ..converters.families.t5 import T5",
    "from ..converters.families.t5.facts import F": "from ..converters.families.t5.facts import F",
    "from ..converters.families import LLAMA": "from ..converters.families import LLAMA",
    "from ..converters.families import gptj": "from ..converters.families import gptj",
    "import kconv.converters.families.gbst as g": "import kconv.converters.families.gbst as g",
}  # fmt: skip
ELSEWHERE = """
ELSEWHERE = ("t5", "other")
class Kinds:
    MOE = "qwen3_moe"
"""
BEFORE = """
import re
from typing import Any
from ..core import elsewhere
from ..core.elsewhere import ELSEWHERE, ELSEWHERE as renamed, Kinds as elsewhere_class
HERE = "exaone4"
SEVERAL: Any = ("t5", "mt5")
TABLE = sorted([("x", 1), ("t5", 2)])
class Graph:
    GPTJ = "gptj"
"""
HARMLESS = (
    "family.name == name", "arch in SUPPORTED", "config.get('model_type')", "library == 'llama.cpp'",
    "write(path, 'llama')", "config = {'model_type': 't5'}", "f'llama.{key}'", "name == 'fill-in'",
    "kind = 't5'\ndef f(kind): return kind == other",
    "from ..converters.families import FAMILIES, family_for",
)  # fmt: skip


def sources(root: Path) -> dict[str, str]:
    files = sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))
    return {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in files}


def test_no_room_asks_for_a_family_by_its_name() -> None:
    search = Search(sources(ROOT), EXCEPTIONS)
    assert [str(each) for each in search.findings()] == []
    assert search.used == set(EXCEPTIONS)  # none that is not needed any more


def of_planted(code: str, path: str = "flows/planted.py") -> list[str]:
    """What is found in a file with that code, after the constants of ``BEFORE``."""
    registry = (ROOT / "converters" / "families").rglob("*.py")
    texts = {each.relative_to(ROOT).as_posix(): "" for each in registry}
    search = Search({**texts, "core/elsewhere.py": ELSEWHERE, path: f"{BEFORE}\n{code}\n"})
    return [each.code for each in search.findings() if each.path == path]


@pytest.mark.parametrize("code", PLANTED)
def test_the_search_finds_every_way_of_asking(code: str) -> None:
    assert of_planted(code) == [PLANTED[code]]


@pytest.mark.parametrize("code", HARMLESS)
def test_the_search_leaves_alone_what_asks_for_no_family(code: str) -> None:
    assert of_planted(code) == []


@pytest.mark.parametrize(
    ("path", "code", "found"),
    [
        ("converters/families/gptj.py", "arch == 'phi2'", False),
        ("converters/families/t5/facts.py", "arch in ('t5', 'mt5')", False),
        ("converters/families/gbst/family.py", "arch == 't5'", False),  # llama.cpp's graph is the same
        ("converters/families/qwen3.py", "arch == 'qwen3moe'", True),
        ("converters/families/t5_other.py", "arch == 't5'", True),
        ("converters/onnx/t5.py", "arch == 't5'", True),
        ("converters/families/gptj.py", "family is not ANOTHER", True),
    ],
)
def test_a_name_may_stand_in_its_own_family_only(path: str, code: str, found: bool) -> None:
    assert of_planted(f"from .llama import LLAMA as ANOTHER\n{code}", path) == [code] * found


def test_the_names_are_those_of_families_samples_llama_cpp_and_transformers() -> None:
    names = known_names()
    assert {place for place, _ in registered()} == {place for places in names.values() for place in places}
    assert len({family.name for _, family in registered()}) == len(FAMILIES)
    assert {"gbswt5", "gptneox", "gptneoxforcausallm", "phi2", "42dot", "mistral", "deepseek2"} <= set(names)
    assert len(names) > 500


def test_one_line_in_a_real_file_is_found(tmp_path: Path) -> None:
    for room in ("core", "converters", "runtimes"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    file = tmp_path / "runtimes" / "prompts.py"
    line = len(file.read_text("utf-8").splitlines()) + 1
    with file.open("a", encoding="utf-8") as end:
        end.write("_ENCODERS = ('t5',)\n\n\ndef _asks(arch: str) -> bool:\n    return arch in _ENCODERS\n")
    found = Search(sources(tmp_path), EXCEPTIONS).findings()
    assert found == [Finding("runtimes/prompts.py", line + 4, "arch in _ENCODERS")]
