"""Every key llama.cpp reads, wrong, missing or too many; and files that are right though others made them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damage_material import DAMAGES, edited
from vocabulary_material import SAMPLES, Made, converted_by_llama_cpp, graves, made_of, only, sample

from kconv.core.gguf_file import read_header
from kconv.runtimes.llama_keys import Key, Required, keys_of
from kconv.verify.metadata import check_metadata

L = "llama."
T = "tokenizer.ggml."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    folder = tmp_path_factory.mktemp("metadata")
    return {name: sample(name, folder) for name in SAMPLES}


def llama_keys(good: Made) -> tuple[Key, ...]:
    """The keys llama.cpp reads of a Llama."""
    return keys_of({key.removeprefix(L): value for key, value in good.expected().hparams.items()})


@pytest.fixture(scope="module")
def stories(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_of(real / "hf_stories260K", tmp_path_factory.mktemp("stories"), "f32")


@pytest.mark.parametrize("of_manifest", [True, False])
@pytest.mark.parametrize("name", SAMPLES)
def test_what_kconv_made_passes(name: str, of_manifest: bool, made: dict[str, Made]) -> None:
    part = made[name].metadata(made[name].file, of_manifest=of_manifest)
    assert part.findings == ()
    assert part.verdict == "passed"
    assert part.keys > 40


def test_stories_passes(stories: Made) -> None:
    assert stories.metadata(stories.file).findings == ()


@pytest.mark.parametrize("damage", [name for name, it in DAMAGES.items() if it.part == "metadata"])
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("of_manifest", [True, False])
def test_damages_fail(
    name: str, damage: str, of_manifest: bool, made: dict[str, Made], tmp_path: Path
) -> None:
    bad = DAMAGES[damage].make(made[name].file, tmp_path / "bad.gguf")
    assert made[name].metadata(bad, of_manifest=of_manifest).verdict == "failed"


# Key, new value (None: left out), words of the message; all are grave.
WRONG: tuple[tuple[str, Any, str], ...] = (
    ("general.architecture", "qwen2", "computes another model"),
    (L + "block_count", 1, "layers are skipped"),
    (L + "embedding_length", 512, "refuses"),
    (L + "feed_forward_length", 895, "refuses"),
    (L + "attention.head_count", 4, "attention heads"),
    (L + "attention.head_count_kv", 8, "attention heads"),
    (L + "attention.key_length", 16, "attention heads"),
    (L + "attention.value_length", 16, "attention heads"),
    (
        L + "attention.layer_norm_rms_epsilon",
        1e-6,
        "epsilon is 1e-06 in the file, but 1e-05 in the checkpoint",
    ),
    (L + "rope.dimension_count", 16, "wrong dimensions"),
    (
        L + "rope.freq_base",
        10000.0,
        "rope.freq_base is 10000 in the file, but 500000 in the checkpoint: .* breaking long texts",
    ),
    # missing, where llama.cpp's own choice is another, or there is none
    (L + "block_count", None, "block_count is missing in the file"),
    (L + "context_length", None, "context_length is missing in the file"),
    (L + "embedding_length", None, "embedding_length is missing in the file"),
    (L + "attention.layer_norm_rms_epsilon", None, "attention.layer_norm_rms_epsilon is missing in the file"),
    (L + "attention.head_count_kv", None, "uses 8; in the checkpoint it is 2"),
    (L + "attention.head_count", None, "uses 0"),
    (L + "rope.freq_base", None, "uses 10000; in the checkpoint it is 500000"),
    # too many
    (L + "rope.scaling.type", "yarn", "scaling of positions is yarn"),
    (
        L + "rope.scaling.factor",
        4.0,
        "scaling of positions is linear by 4 in the file, but none in the checkpoint",
    ),
    (L + "rope.scale_linear", 2.0, "scaling of positions is linear by 2"),
    (L + "rope.scaling.attn_factor", 1.2, "attention is not scaled"),
    (L + "expert_count", 8, "experts are missing"),
    (L + "nextn_predict_layers", 1, "last layers"),
    (L + "attention.causal", False, "attend to later ones"),
    # the vocabulary's
    (T + "model", "llama", "other rules|by other rules"),
    (T + "add_bos_token", False, "BOS would not be put before texts"),
    (T + "add_eos_token", True, "EOS would be put after every text"),
    (T + "bos_token_id", 5, "begin with the wrong token: bos is 5 '&' instead of 1800"),
    (T + "eos_token_id", 0, "stop at the wrong token: eos is 0 '!' instead of 1801 '<|end_of_text|>'"),
    (T + "eos_token_id", None, r"eos is missing \(so 11 ','\) instead of 1801"),
    (T + "eot_token_id", 77, "would stop at 77 'n', which does not end answers"),
    (T + "eom_token_id", 78, "would stop at 78 'o', which does not end answers"),
)


@pytest.mark.parametrize(("key", "value", "words"), WRONG)
def test_a_wrong_key_is_named(
    key: str, value: Any, words: str, made: dict[str, Made], tmp_path: Path
) -> None:
    good = made["llama-3-ko"]
    bad = edited(good.file, tmp_path / "bad.gguf", metadata={key: value})
    part = good.metadata(bad)
    assert part.verdict == "failed"
    findings = [finding for finding in graves(part) if re.search(words, finding.message)]
    assert findings, part.findings
    if key != L + "rope.scale_linear":
        assert findings[0].where == key
    assert findings[0].message.isprintable()


def test_missing_keys_that_change_nothing(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["42dot"]
    same = ("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base")
    same += ("attention.head_count_kv", "vocab_size")
    gone = {L + key: None for key in same} | {T + "add_eos_token": None, T + "add_bos_token": None}
    bare = edited(good.file, tmp_path / "bare.gguf", metadata=gone)
    assert good.metadata(bare).findings == ()


def test_keys_that_say_what_llama_cpp_takes_anyway(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["42dot"]
    layers = read_header(good.file).metadata[L + "block_count"]
    heads = read_header(good.file).metadata[L + "attention.head_count"]
    more = {
        L + "rope.scaling.type": "none",
        L + "rope.scaling.finetuned": False,
        L + "rope.scaling.attn_factor": 1.0,
        L + "attention.causal": True,
        L + "expert_count": 0,
        L + "attention.sliding_window": 0,
        L + "something.new": 77,
        T + "remove_extra_whitespaces": False,
        T + "cls_token_id": 3,
        "general.file_type": 1,
    }
    full = edited(good.file, tmp_path / "full.gguf", metadata=more)
    assert good.metadata(full).findings == ()
    listed = edited(full, tmp_path / "listed.gguf", metadata={L + "attention.head_count": None})
    listed = edited(listed, tmp_path / "again.gguf", metadata={L + "attention.head_count": [heads] * layers})
    assert good.metadata(listed).findings == ()


def test_keys_only_other_programs_read_are_no_failure(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["42dot"]
    odd = edited(good.file, tmp_path / "odd.gguf", metadata={L + "attention.sliding_window": 512})
    part = good.metadata(odd)
    assert part.verdict == "warned"
    assert "other programs may" in only(part, L + "attention.sliding_window").message


def test_linear_scaling_is_compared_as_it_works(real: Path, tmp_path: Path) -> None:
    folder = tmp_path / "linear"
    shutil.copytree(real / "hf_stories260K", folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = {"type": "linear", "factor": 2.5}
    (folder / "config.json").write_text(json.dumps(config))
    good = made_of(folder, tmp_path)
    assert good.metadata(good.file).findings == ()
    old = {L + "rope.scaling.type": None, L + "rope.scaling.factor": None, L + "rope.scale_linear": 2.5}
    assert good.metadata(edited(good.file, tmp_path / "old.gguf", metadata=old)).findings == ()
    for number, change in enumerate(
        (
            {L + "rope.scaling.factor": 2.0},
            {L + "rope.scaling.factor": None},
            {L + "rope.scaling.type": "none"},
            {L + "rope.scaling.type": "yarn"},
        )
    ):
        bad = edited(good.file, tmp_path / f"bad{number}.gguf", metadata=change)
        part = good.metadata(bad)
        assert part.verdict == "failed"
        assert only(part, next(iter(change))).expected == "linear by 2.5"


def test_wrong_types_are_findings(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["42dot"]
    header = read_header(good.file)
    expected = good.expected()
    keys = [key for key in header.metadata if key.startswith((L, T)) or key == "general.alignment"]
    keys += [L + key.name for key in llama_keys(good)] + [L + "rope.scaling.type", L + "rope.scaling.factor"]
    lists = {T + name for name in ("tokens", "token_type", "scores", "merges")}
    for key in {*keys} - {T + "pre"}:
        for value in ("text", 1.5, -3, True, (1, 2), (), ("a",), 1e300, float("nan"), 2**63):
            part = check_metadata(replace(header, metadata={**header.metadata, key: value}), expected)
            assert all(finding.message.isprintable() for finding in part.findings)
            if key not in lists and key.startswith(L) and isinstance(value, tuple):
                assert part.verdict == "failed", (key, value)
    for key in [key for key in header.metadata if key.startswith(L)]:
        part = check_metadata(replace(header, metadata={**header.metadata, key: "text"}), expected)
        assert "but llama.cpp expects" in only(part, key).message
    part = check_metadata(replace(header, metadata={}), expected)
    assert part.verdict == "failed"


_LOADS = """
import sys
import llama_cpp
llama_cpp.llama_backend_init()
for path in sys.argv[1:]:
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    print("loads" if model else "refused")
"""


def test_required_keys_are_required_by_llama_cpp(made: dict[str, Made], tmp_path: Path) -> None:
    """The table against llama.cpp itself: it refuses a file without a key that has no default."""
    good = made["42dot"].file
    required = [key.name for key in llama_keys(made["42dot"]) if isinstance(key.default, Required)]
    free = ["attention.head_count_kv", "rope.freq_base", "attention.key_length", "vocab_size"]
    files = [
        edited(good, tmp_path / f"{name}.gguf", metadata={L + name: None}) for name in (*required, *free)
    ]
    result = subprocess.run(
        [sys.executable, "-c", _LOADS, *map(str, files)], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["refused"] * len(required) + ["loads"] * len(free)


def test_the_chat_template_only_warns(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["42dot"]
    other = edited(good.file, tmp_path / "other.gguf", metadata={"tokenizer.chat_template": "{{ 1 }}"})
    part = good.metadata(other)
    assert part.verdict == "warned"
    assert only(part, "tokenizer.chat_template").found == "7 characters, '{{ 1 }}' …"


def test_sampling_only_warns(made: dict[str, Made], tmp_path: Path) -> None:
    good = made["42dot"]
    other = edited(good.file, tmp_path / "other.gguf", metadata={"general.sampling.temp": 1.5})
    part = good.metadata(other)
    assert part.verdict == "warned"
    assert only(part, "general.sampling.temp").expected == "0.5"


def test_the_leading_space_is_part_of_a_sentencepiece_vocabulary(
    made: dict[str, Made], tmp_path: Path
) -> None:
    good = made["eagle"]
    bad = edited(good.file, tmp_path / "bad.gguf", metadata={T + "add_space_prefix": False})
    for of_manifest in (True, False):
        part = good.metadata(bad, of_manifest=of_manifest)
        assert part.verdict == "failed"
        assert "no space before a text" in only(part, T + "add_space_prefix").message


@pytest.fixture(scope="module")
def theirs(made: dict[str, Made], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """llama.cpp's own conversions."""
    folder = tmp_path_factory.mktemp("theirs")
    pre = {"42dot": "gpt-2", "eagle": "default", "llama-3-ko": "llama-bpe"}
    jobs = [(made[name].checkpoint, folder / f"{name}.gguf", pre[name]) for name in SAMPLES]
    converted_by_llama_cpp(jobs)
    return {name: path for name, (_, path, _) in zip(SAMPLES, jobs, strict=True)}


@pytest.mark.parametrize("name", ["42dot", "llama-3-ko"])
def test_what_llama_cpp_converts_rightly_passes(
    name: str, theirs: dict[str, Path], made: dict[str, Made]
) -> None:
    assert graves(made[name].metadata(theirs[name], of_manifest=False)) == []
    part = made[name].tokens(theirs[name], of_manifest=False)
    assert part.verdict == "passed"
    assert part.findings == ()


def test_what_llama_cpp_converts_wrongly_fails(theirs: dict[str, Path], made: dict[str, Made]) -> None:
    """EAGLE's kind: constant scores, so a third of the texts comes out otherwise, and a BOS nobody wants."""
    part = made["eagle"].tokens(theirs["eagle"], of_manifest=False)
    assert part.verdict == "failed"
    assert "texts as other tokens" in only(part, "texts").message
    assert not only(part, T + "scores").grave
    metadata = made["eagle"].metadata(theirs["eagle"], of_manifest=False)
    assert only(metadata, T + "add_bos_token").found == "missing (so true)"
