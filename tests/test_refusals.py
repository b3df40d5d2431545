"""Models without a family: each gets a reason and what works instead, within a screen."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from command_material import kconv
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kconv.converters.families import FAMILIES, NEAR, family_for, has_family
from kconv.converters.known_classes import CONVERTED, KINDS
from kconv.converters.refusals import refusal
from kconv.core.errors import UnsupportedModel

ROOT = Path(__file__).parent.parent
SCREEN = 24, 80


def said(architecture: str = "", model_type: str | None = None, **more: Any) -> str:
    config = {"architectures": [architecture] if architecture else [], "model_type": model_type, **more}
    with pytest.raises(UnsupportedModel) as raised:
        family_for(config)
    return str(raised.value)


def rows_of(text: str) -> int:
    """Lines of a terminal."""
    return sum(1 + len(line) // SCREEN[1] for line in text.splitlines())


@pytest.mark.parametrize("kind", sorted(CONFIG_MAPPING_NAMES))
def test_every_model_type_of_transformers_gets_a_reason(kind: str) -> None:
    given = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    name = given[0] if isinstance(given, tuple | list) else given or ""
    config = {"architectures": [name] if name else [], "model_type": kind}
    if has_family(config):
        return
    text = str(refusal(config, FAMILIES))
    assert rows_of(text) <= SCREEN[0]
    lines = text.splitlines()
    assert lines[1].startswith("  ")
    assert not lines[1].startswith("  supported:")


@pytest.mark.parametrize(
    ("config", "reasons"),
    [
        (("DeepseekV3ForCausalLM", "deepseek_v3"), ("Kanana 2", "deepseek2", "kconv verify FILE.gguf")),
        (("SolarOpenForCausalLM", "solar_open"), ("Solar Open 100B", "glm4moe", "kconv verify FILE.gguf")),
        (("ExaoneMoeForCausalLM", "exaone_moe"), ("K-EXAONE", "kconv verify FILE.gguf")),
        (("GptOssForCausalLM", "gpt_oss"), ("gpt-oss", "kconv verify FILE.gguf")),
        (("Qwen3_5ForCausalLM", "qwen3_5_text"), ("Qwen3.5", "kconv verify FILE.gguf")),
        (("Gemma4ForCausalLM", "gemma4_text"), ("Gemma 4", "kconv verify FILE.gguf")),
        (("MotifForCausalLM", "motif"), ("no graph", "transformers")),
        (("AXK1ForCausalLM", "axk1"), ("no graph", "transformers")),
        (("AXK2ForCausalLM", "axk2"), ("their branch", "transformers")),
        (("SolarOpen2ForCausalLM", "solar_open2"), ("no graph", "transformers")),
        (("DebertaV2ForMaskedLM", "deberta-v2"), ("relative attention", "optimum-cli")),
        (("Phi3ForCausalLM", "phi3"), ("llama.cpp's own converter takes it", "kconv verify FILE.gguf")),
        (("WhisperForConditionalGeneration", "whisper"), ("speech", "whisper.cpp")),
        (("LlamaForCausallM", "lama"), ("LlamaForCausalLM",)),
        (("", "lama"), ("LlamaForCausalLM",)),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_what_is_known_is_said(config: tuple[str, str], reasons: tuple[str, ...]) -> None:
    text = said(*config)
    assert rows_of(text) <= SCREEN[0]
    for reason in reasons:
        assert reason in text


def test_code_of_the_checkpoint_is_never_run() -> None:
    text = said("XForCausalLM", "x", auto_map={"AutoModelForCausalLM": "modeling_x.XForCausalLM"})
    assert "auto_map" in text
    assert "similar" not in text


def test_latent_attention_is_refused_whatever_the_class() -> None:
    assert "latent attention" in said("LlamaForCausalLM", "llama", kv_lora_rank=512)


def test_a_class_that_has_a_family_is_not_refused_for_what_was_known_of_it() -> None:
    for family in FAMILIES:
        for name in family.hf_classes:
            assert family_for({"architectures": [name]}) is family


def test_what_llama_cpp_computes_is_what_its_converter_takes() -> None:
    """A sentence that says so is of a class in the generated table."""
    for name, text in NEAR.items():
        assert ("llama.cpp computes" not in text) or name in CONVERTED, name


@pytest.mark.usefixtures("kconv_server")
def test_the_command_says_it_on_a_screen(tmp_path: Path) -> None:
    config = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    done = kconv("to-gguf", tmp_path)
    assert done.returncode == 3
    assert rows_of(done.stderr) <= SCREEN[0]


def test_the_table_is_the_generated_one() -> None:
    """What can be had without a network: transformers' part; the other is checked where it is fetched."""
    spec = importlib.util.spec_from_file_location("known_classes", ROOT / "tools" / "known_classes.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    made = {name: kind for kind, names in tool.kinds().items() for name in names}
    assert dict(KINDS) == made
    folder = ROOT / ".dev" / "llama.cpp" / "conversion"
    if folder.is_dir():
        assert set(tool.converted(folder)) == set(CONVERTED)
