"""The bytes of every named recipe are llama_model_quantize's, on narrow models of 32 layers and more."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_quantize_jobs import Job, quantize, save_importance
from recipe_material import (
    NARROW,
    REFUSED,
    Floats,
    as_model,
    contents,
    random_arrays,
    random_importance,
    write_f32,
    write_with_kconv,
)

from kconv.converters.gguf_plan import plan_file
from kconv.core.errors import InputError
from kconv.quant.importance import Importance
from kconv.quant.policy import POLICIES, choose_formats, quantization_metadata
from kconv.quant.requirements import needs_importance

QUANTIZED = [policy for policy in POLICIES.values() if policy.default.quantized]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, bool], Path | None]:
    """llama.cpp's files by family, recipe and whether with importance data; None where it refuses."""
    folder, cases, jobs = tmp_path_factory.mktemp("narrow"), [], []
    for number, (label, family) in enumerate(NARROW.items()):
        source = write_f32(folder / f"{number}.gguf", family, random_arrays(family))
        save_importance(source, random_importance(family))
        for policy in QUANTIZED:
            for imatrix in (False, True):
                cases.append((label, policy.name, imatrix))
                target = folder / f"{number}-{policy.name}-{imatrix}.gguf"
                jobs.append(Job(source, policy.file_type, target, imatrix=imatrix, threads=1 + imatrix))
    done = quantize(jobs)
    return {
        case: None if converted is None else job.target
        for case, job, converted in zip(cases, jobs, done, strict=True)
    }


@pytest.mark.parametrize("imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("label", NARROW)
def test_every_recipe(
    label: str, imatrix: bool, theirs: dict[tuple[str, str, bool], Path | None], tmp_path: Path
) -> None:
    """All recipes from one read of the weights, on one thread without importance data and on two with it."""
    family = NARROW[label]
    arrays, importance = random_arrays(family), random_importance(family) if imatrix else None
    model, plans, expected = as_model(family, arrays), [], []
    for policy in QUANTIZED:
        path = theirs[label, policy.name, imatrix]
        if path is None:
            with pytest.raises(InputError):
                choose_formats(model, policy, importance)
            continue
        choice = choose_formats(model, policy, importance)
        formats = [choice[tensor.name] for tensor in model.tensors]
        plans.append(plan_file(tmp_path / path.name, model, formats, quantization_metadata(policy)))
        expected.append(path)
    write_with_kconv(model, plans, importance, threads=1 + imatrix)
    for plan, path in zip(plans, expected, strict=True):
        assert contents(plan.path) == contents(path), path.name
    refused = {policy.name for policy in QUANTIZED} - {path.stem.split("-")[1] for path in expected}
    assert set(REFUSED) == {policy.name for policy in QUANTIZED if needs_importance(policy)}
    if label in ("llama", "shared keys, tied", "phi2", "t5", "eight experts", "falcon"):
        assert refused == (set() if imatrix else set(REFUSED))
    else:
        assert refused == {"q1_0"}


def test_importance_reaches_every_matrix(tmp_path: Path) -> None:
    """Without it other bytes come out, and equal importance everywhere is not the same as none."""
    family = NARROW["llama"]
    arrays: dict[str, Floats] = random_arrays(family)
    model, importance = as_model(family, arrays), random_importance(family)
    choice = choose_formats(model, POLICIES["q5_K_S"])
    plan = plan_file(tmp_path / "x.gguf", model, [choice[tensor.name] for tensor in model.tensors], {})
    differing = {}
    for name, given in (("none", None), ("some", importance), ("partly", partly(importance))):
        write_with_kconv(model, [plan], given)
        differing[name] = contents(plan.path)
    for tensor, plain in differing["none"].items():
        weighed = len(arrays[tensor].shape) > 1 and tensor != "token_embd.weight"
        assert (differing["some"][tensor] != plain) == weighed, tensor
        assert (differing["partly"][tensor] != plain) == (weighed and "ffn" in tensor), tensor


def partly(importance: Importance) -> Importance:
    """Only the feed-forward matrices of it."""
    values = {name: value for name, value in importance.values.items() if "ffn" in name}
    return Importance(values, "", (), 1, 1)
