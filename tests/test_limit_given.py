"""A right file that loses more than a limit somebody gave: the report says so, and not that it is wrong."""

from __future__ import annotations

import pytest

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.language import speaking
from kconv.report import html
from kconv.verify import Proof, verify


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    folder = tmp_path_factory.mktemp("limit")
    checkpoint = write_sample("42dot", folder / "42dot")
    (made,) = to_gguf(checkpoint, folder / "made.gguf", types=("q4_0",), verify=False).outputs
    return verify(made.path, checkpoint, tokens=40, threads=1, max_kl=1e-7)


def test_a_right_file_above_a_given_limit_is_not_called_wrong(proof: Proof) -> None:
    assert (proof.verdict, proof.right) == ("failed", "passed")
    assert proof.logits.diagnosis is not None
    page = html.report_html([proof])
    assert "loses more than the limit given for this run allows" in page
    assert "Where the loss arises" in page
    for wrong in ("Do not use or distribute", "Where it goes wrong"):
        assert wrong not in page
    with speaking("ko"):
        korean = html.report_html([proof])
    assert "이번 실행에 지정한 한계를 넘습니다" in korean
    assert "손실이 생기는 곳" in korean
