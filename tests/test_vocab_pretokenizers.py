"""The table of pre-tokenizers says what llama.cpp does: measured for every row."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import vocab_material as material

from kconv.vocab import exam, parity, pretokenizers
from kconv.vocab.candidates import candidates
from kconv.vocab.probe import LlamaProbe
from kconv.vocab.sources import read_source
from kconv.vocab.texts import CODE, HANJA, KOREAN, LATIN, MIXED, NUMBERS, SPACES

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def tokenizer_with(folder: Path, pre_tokenizer: Any, *, ignore_merges: bool = False) -> Any:
    spec = json.loads(json.dumps(material._byte_level(None, 2000)))
    spec["pre_tokenizer"] = pre_tokenizer
    spec["model"]["ignore_merges"] = ignore_merges
    material._write(folder, {"tokenizer.json": spec})
    return read_source(material.checkpoint(folder))


@pytest.mark.parametrize("row", pretokenizers.PRE_TOKENIZERS, ids=lambda row: row.name)
def test_every_row_splits_as_llama_cpp_does(tmp_path: Path, row: pretokenizers.PreTokenizer) -> None:
    if row.name == "tiny_aya":
        pytest.skip("llama.cpp approximates this regular expression (src/unicode.cpp says so)")
    steps = [*map(split, row.splits), BYTE_LEVEL]
    sequence = {"type": "Sequence", "pretokenizers": steps}
    source = tokenizer_with(tmp_path, sequence, ignore_merges=row.ignore_merges)
    candidate = next(iter(candidates(source)))
    assert candidate.vocab.pre == row.name
    path = tmp_path / "vocab.gguf"
    parity.write_vocab_only(path, "llama", candidate.vocab)
    texts = (*KOREAN, *HANJA, *LATIN, *MIXED, *NUMBERS, *CODE, *SPACES)
    texts = (*texts, *(f"{left}{right}" for left, right in itertools.pairwise(texts)))
    questions = exam.Exam(
        texts,
        tuple(exam.Question(index, True) for index in range(len(texts))),
        tuple(source.encode_batch(texts, True)),
    )
    with LlamaProbe(path) as child:
        result = parity.grade(row.name, child, questions, source, parity.declared(candidate.vocab))
    assert (result.verdict, result.difference) == ("exact", None)


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}, "gpt-2"),
        ({**BYTE_LEVEL, "use_regex": True}, "gpt-2"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {**BYTE_LEVEL, "use_regex": True},
                ],
            },
            "starcoder",
        ),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {**split(material.LLAMA_3_REGEX), "behavior": "Removed", "invert": True},
                    BYTE_LEVEL,
                ],
            },
            "dbrx",
        ),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    split(
                        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?+\p{L}++"
                        "|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}]++[\r\n]*+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
                    ),
                    BYTE_LEVEL,
                ],
            },
            "qwen2",
        ),
    ],
)
def test_structures_are_recognised_in_other_spellings(tmp_path: Path, pre_tokenizer: Any, name: str) -> None:
    source = tokenizer_with(tmp_path, pre_tokenizer)
    assert pretokenizers.is_known(source.splits)
    assert next(iter(candidates(source))).vocab.pre == name


def test_an_unknown_structure_is_tried_with_its_nearest(tmp_path: Path) -> None:
    regex = material.LLAMA_3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}{1,2}")
    source = tokenizer_with(tmp_path, {"type": "Sequence", "pretokenizers": [split(regex), BYTE_LEVEL]})
    assert not pretokenizers.is_known(source.splits)
    tried = [candidate.vocab.pre for candidate in candidates(source)]
    assert set(tried[:3]) <= {"llama-bpe", "dbrx", "qwen2", "minicpm5", "seed-coder", "bailingmoe", "jais-2"}
    assert 1 < len(tried) <= pretokenizers.MAX_CANDIDATES
    assert len(set(tried)) == len(tried)


def test_names_and_rows_are_unique() -> None:
    rows = pretokenizers.PRE_TOKENIZERS
    assert len({row.name for row in rows}) == len(rows)
    assert len({replace(row, name="") for row in rows}) == len(rows)
    for row in rows:
        assert tuple(map(pretokenizers.canonical, row.splits)) == row.splits
