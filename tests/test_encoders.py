"""One way from rows to bytes: the writers and the proof encode alike, whatever a tensor is cut into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quant_material import adversarial
from recipe_material import NARROW, as_model, random_arrays, random_importance, write_with_kconv

from kconv.converters import pieces
from kconv.converters.gguf_plan import plan_file
from kconv.core.errors import InputError
from kconv.core.tensor import DType, Tensor
from kconv.quant.encoders import Encoder, encoder_of
from kconv.quant.formats import F32, FORMATS, RECODABLE, Format
from kconv.quant.gguf_weights import open_gguf
from kconv.quant.importance import Importance
from kconv.quant.policy import POLICIES, choose_formats
from kconv.quant.slabs import Scratch, convert_slab
from kconv.verify.weights import check_weights

IMPORTANCE = np.exp(np.random.default_rng(0).standard_normal(4 * 512)).astype(np.float32)


@pytest.mark.parametrize("format", RECODABLE, ids=lambda format: format.name)
def test_some_rows_of_a_stack_are_weighed_by_what_flows_into_them(format: Format) -> None:
    stack = np.clip(adversarial(4 * 3, 512, 1), -100, 100).reshape(4, 3, 512)
    alone = [
        convert_slab(stack[i], DType.F32, [format], Scratch(), IMPORTANCE[i * 512 : (i + 1) * 512])
        .data[0]
        .tobytes()
        for i in range(4)
    ]
    encoder = Encoder([format], IMPORTANCE)
    assert encoder.encode(stack, DType.F32, Scratch()).data[0].tobytes() == b"".join(alone)
    for first, last in ((0, 1), (1, 2), (3, 4), (1, 4)):
        ids = encoder.encode(stack[first:last], DType.F32, Scratch(), first)
        assert ids.data[0].tobytes() == b"".join(alone[first:last]), (first, last)
    rows = stack.reshape(12, 512)  # of a matrix all rows are weighed alike
    matrix = Encoder([F32, format], IMPORTANCE[:512], kernels="none")
    whole = convert_slab(rows, DType.F32, [format], Scratch(), IMPORTANCE[:512]).data[0]
    ids = matrix.encode(rows[5:], DType.F32, Scratch(), 5)
    assert ids.data[0].tobytes() == rows[5:].tobytes()
    assert ids.data[1].tobytes() == whole.reshape(12, -1)[5:].tobytes()


def test_statistics_of_another_model_are_refused() -> None:
    tensor = Tensor("blk.0.attn_q.weight", (4, 64), DType.F32, lambda start, stop: np.zeros((4, 64)))
    other = Importance({tensor.name: np.ones(32, np.float32)}, "some.gguf", (), 1, 1)
    with pytest.raises(InputError, match="it belongs to another model"):
        encoder_of(tensor, [FORMATS["q8_0"]], other)
    assert encoder_of(tensor, [FORMATS["q8_0"]], None).statistics is None


@pytest.mark.parametrize("per_piece", [1, 3, 8])
def test_a_stack_in_pieces_is_proven_with_its_importance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_piece: int
) -> None:
    """Experts of real models have more weights than a piece holds; the proof must weigh each by its own."""
    family = NARROW["eight experts"]
    model, importance = as_model(family, random_arrays(family)), random_importance(family)
    stack = next(tensor for tensor in model.tensors if len(tensor.shape) == 3)
    monkeypatch.setattr(pieces, "SLAB", per_piece * stack.row_elements)
    cut = [rows for rows in pieces.cut(model.tensors) if model.tensors[rows.index] is stack]
    assert len(cut) == -(-8 // per_piece)
    choice = choose_formats(model, POLICIES["q4_K_M"], importance)
    plan = plan_file(tmp_path / "x.gguf", model, [choice[tensor.name] for tensor in model.tensors], {})
    write_with_kconv(model, [plan], importance)
    with open_gguf(plan.path) as file:
        part = check_weights(file, model, strict=True, threads=2, importance=importance)
    assert (part.verdict, part.findings) == ("passed", ())
    assert {tensor.state for tensor in part.tensors} == {"identical"}
