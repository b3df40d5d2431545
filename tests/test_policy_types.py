"""Which tensor gets which type under every named recipe: llama_model_quantize's own dry runs say the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from llama_quantize_jobs import Job, quantize, save_importance
from recipe_material import (
    FULL,
    NARROW,
    Family,
    as_model,
    random_importance,
    write_f32,
)

from kconv.core.errors import InputError
from kconv.core.model import Model
from kconv.quant.formats import FORMATS
from kconv.quant.importance import Importance
from kconv.quant.policy import POLICIES, Policy, choose_formats, parse_policy

QUANTIZED = [policy for policy in POLICIES.values() if policy.default.quantized]


def chosen(model: Model, policy: Policy, importance: Importance | None) -> dict[str, str] | None:
    """What kconv chooses, by tensor; None where it refuses."""
    try:
        return {
            name: format.name for name, format in choose_formats(model, policy, importance).formats.items()
        }
    except InputError:
        return None


@pytest.fixture(scope="module")
def dry_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, bool], dict[str, str] | None]:
    """What llama.cpp would do at full size, by family, recipe and whether there is importance data."""
    folder, cases, jobs = tmp_path_factory.mktemp("full"), [], []
    for number, (label, family) in enumerate(FULL.items()):
        source = write_f32(folder / f"{number}.gguf", family)
        save_importance(source, random_importance(family))
        for policy in QUANTIZED:
            for imatrix in (False, True):
                cases.append((label, policy.name, imatrix))
                jobs.append(Job(source, policy.file_type, imatrix=imatrix))
    return dict(zip(cases, quantize(jobs), strict=True))


@pytest.mark.parametrize("label", FULL)
def test_every_recipe_at_full_width_and_depth(
    label: str, dry_runs: dict[tuple[str, str, bool], dict[str, str] | None]
) -> None:
    model, importance = as_model(FULL[label]), random_importance(FULL[label])
    for policy in QUANTIZED:
        assert chosen(model, policy, importance) == dry_runs[label, policy.name, True], policy.name
        ours = chosen(model, policy, None)  # a dry run only warns of what is refused in earnest
        assert ours is None or ours == dry_runs[label, policy.name, False], policy.name


def test_every_recipe_where_rows_are_no_whole_blocks_and_pure(tmp_path: Path) -> None:
    cases, jobs = [], []
    for number, family in enumerate(NARROW.values()):
        source = write_f32(tmp_path / f"{number}.gguf", family)
        importance = random_importance(family, embedding=True)
        save_importance(source, importance)
        for policy in QUANTIZED:
            for pure in (False, True):
                cases.append((family, replace(policy, pure=pure), importance))
                jobs.append(Job(source, policy.file_type, pure=pure, imatrix=True))
    for (family, policy, importance), theirs in zip(cases, quantize(jobs), strict=True):
        assert chosen(as_model(family), policy, importance) == theirs, (family, policy.name, policy.pure)


ASKED: dict[str, dict[str, object]] = {
    "one pattern": {"tensor_types": ("attn_v=q8_0",)},
    "the first pattern decides": {"tensor_types": (r"blk\.[0-3]\.=q6_K", "ffn_down=Q5_1", "blk=iq4_nl")},
    "a pattern for rows that do not fit": {"tensor_types": ("ffn=q3_k", "attn_[qo]=nvfp4")},
    "values that are not counted": {"tensor_types": (r"blk\.(0|5|9)\.attn_v=f16",)},
    "output": {"output_type": "q5_0"},
    "embedding": {"embedding_type": "f16"},
    "all": {"tensor_types": ("token|output=q4_1",), "output_type": "q8_0", "embedding_type": "bf16"},
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_for_by_name(asked: str, tmp_path: Path) -> None:
    recipes = ("q4_K_M", "q2_K", "iq4_xs", "q8_0", "q3_K_M")
    for number, label in enumerate(("llama", "shared keys, tied", "t5", "phi2")):
        family = NARROW[label]
        source = write_f32(tmp_path / f"{number}.gguf", family)
        policies = [parse_policy(name, **ASKED[asked]) for name in recipes]  # type: ignore[arg-type]
        if label == "t5" and "values" in asked:
            continue  # has no blk.N.
        jobs = [
            Job(
                source,
                policy.file_type,
                overrides=[(pattern, format.ggml_type) for pattern, format in policy.overrides],
                output_type=policy.output_type and policy.output_type.ggml_type,
                embedding_type=policy.embedding_type and policy.embedding_type.ggml_type,
            )
            for policy in policies
        ]
        for policy, theirs in zip(policies, quantize(jobs), strict=True):
            assert chosen(as_model(family), policy, None) == theirs, (label, policy.name)


def test_without_importance_data_the_first_tensor_is_named() -> None:
    model = as_model(NARROW["llama"])
    with pytest.raises(
        InputError, match=r"IQ2_M stores blk\.0\.attn_q\.weight as IQ2_S.*none was given"
    ) as caught:
        choose_formats(model, POLICIES["iq2_m"])
    assert "kconv imatrix" in str(caught.value)
    assert "--calibrate" in str(caught.value)
    partly = Importance(
        {"blk.0.attn_q.weight": random_importance(NARROW["llama"]).values["blk.0.attn_q.weight"]},
        "",
        (),
        1,
        1,
    )
    with pytest.raises(
        InputError, match=r"Q2_K_S stores blk\.0\.attn_k\.weight as Q2_K.*the data given do not cover it"
    ):
        choose_formats(model, POLICIES["q2_K_S"], partly)


def test_an_embedding_that_cannot_be_encoded_without_importance_data_is_refused() -> None:
    """llama.cpp does not ask there and would abort in libggml."""
    policy = parse_policy("q4_K_M", embedding_type="iq2_xs")
    with pytest.raises(InputError, match=r"token_embd\.weight as IQ2_XS"):
        choose_formats(as_model(NARROW["llama"]), policy)


def test_rules_kconv_does_not_know_are_refused() -> None:
    model = replace(as_model(NARROW["llama"]), arch="glm5-next")
    with pytest.raises(InputError, match="rules for glm5-next"):
        choose_formats(model, POLICIES["q4_K_M"])


def test_heads_may_be_given_for_each_layer() -> None:
    family = Family("llama", 32, 256, 512, heads=8, kv_heads=2)
    model = as_model(family)
    keys = {
        **model.hparams,
        "llama.attention.head_count_kv": (2,) * 32,
        "llama.attention.head_count": (8,) * 32,
    }
    expected = choose_formats(model, POLICIES["q2_K"]).formats
    assert choose_formats(replace(model, hparams=keys), POLICIES["q2_K"]).formats == expected
    assert expected["blk.3.attn_v.weight"] == FORMATS["q4_K"]
