"""Targets: losses that cannot be had are refused early, and no file is larger than what was asked for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kconv.converters.intake import open_model
from kconv.converters.mapping import build, parameters
from kconv.converters.results import Options
from kconv.converters.samples import write_sample
from kconv.converters.targets import Target, choose_targets
from kconv.core.errors import InputError
from kconv.flows.chooser import Chooser
from kconv.flows.convert import to_gguf
from kconv.flows.plan_files import plan_of_target
from kconv.flows.probing import Losses
from kconv.quant.choice_losses import MENU, offered
from kconv.quant.chosen_policy import choosable
from kconv.quant.formats import Format
from kconv.quant.importance import importance_to_be
from kconv.quant.wish import Wanted
from kconv.vocab.texts import udhr

TEXTS = Path(__file__).resolve().parent.parent / "tools" / "demo_texts"


@pytest.mark.parametrize(
    ("menu", "before"),
    [((), {"reference", "errors"}), (("q2_K", "q3_K"), {"errors"})],
    ids=["needs no importance data", "needs them"],
)
def test_a_loss_out_of_reach_is_refused_early(
    menu: tuple[str, ...], before: set[str], tmp_path: Path
) -> None:
    folder = write_sample("42dot", tmp_path / "sample")
    text = tmp_path / "text.txt"
    text.write_text((TEXTS / "stories.txt").read_text("utf-8")[:6000], encoding="utf-8")
    stages: list[str] = []
    with pytest.raises(InputError, match="no choice loses as little as 1e-07 nats") as caught:
        to_gguf(
            folder, tmp_path / "out", types=(), calibrate=(text,), target_kl=1e-7, menu=menu, threads=1,
            progress=lambda stage, done, total: stages.append(stage),
        )  # fmt: skip
    assert "--menu" in str(caught.value.hint)
    assert not before & set(stages)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_codes_are_not_chosen_on_the_text_of_the_proof(tmp_path: Path) -> None:
    folder = write_sample("42dot", tmp_path / "sample")
    text = tmp_path / "same.txt"
    text.write_text("\n".join(udhr("kor")), encoding="utf-8")
    stages: list[str] = []
    with pytest.raises(InputError, match="the one the files are proven on"):
        to_gguf(
            folder, tmp_path / "out", types=("q4_0",), calibrate=(text,), optimize=True, threads=1,
            progress=lambda stage, done, total: stages.append(stage),
        )  # fmt: skip
    assert "reference" not in stages


def bits_of(format: Format) -> float:
    return 8 * format.block_bytes / format.block_size


@pytest.mark.parametrize("sample", ["42dot", "gpt2", "qwen3-moe", "kebyt5"])
@pytest.mark.parametrize("split", [None, "1M"], ids=["one file", "parts"])
def test_no_file_is_larger_than_its_target(sample: str, split: str | None, tmp_path: Path) -> None:
    """Any losses whatever, any size that can be had: planned to the byte, never above it, nor far below."""
    checkpoint, family = open_model(write_sample(sample, tmp_path / "sample"))
    model, draw = build(family, checkpoint), random.Random(f"{sample} {split}")
    importance = importance_to_be(model.tensors)

    def chooser_of(target: Target) -> Chooser:
        tensors = choosable(model, target.policy)
        losses = {
            tensor.name: {
                format: weight * 4.0 ** -bits_of(format) for format in offered(tensor, MENU, importance)
            }
            for tensor in tensors
            for weight in [draw.lognormvariate(0, 2)]
        }
        return Chooser(
            tensors, Losses(losses, {}), model, lambda each: plan_of_target(model, (), importance, each)
        )

    def target_of(size: str) -> Target:
        options = Options((), split_max_size=split, chosen=Wanted((size,)))
        (target,) = choose_targets(checkpoint, model, tmp_path, options, modelfile=False, force=False)
        return target

    weights = parameters(model)
    for _ in range(12):
        bits = draw.uniform(2.0, 9.0)
        for size in (str(int(bits * weights / 8)), f"{bits:.3f}bpw"):
            target = target_of(size)
            chooser = chooser_of(target)
            try:
                found = chooser.choose(target)
            except InputError as error:
                assert "below the smallest file" in error.message  # noqa: PT017 - a size drawn may be too small
                continue
            weighs = chooser.size(target, found.formats)
            most = chooser.most(target)
            assert most is not None
            assert weighs <= most
            finest = {
                tensor.name: offered(tensor, MENU, importance)[-1]
                for tensor in choosable(model, target.policy)
            }
            bigger = chooser.size(target, finest)
            assert weighs > 0.75 * min(most, bigger)
