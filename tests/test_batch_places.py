"""Where in a list of jobs a mistake stands: its line, in the language that is spoken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_material import kconv

pytestmark = pytest.mark.usefixtures("kconv_server")


@pytest.mark.parametrize(
    ("text", "english", "korean"),
    [
        (
            '[[jobs]]\nsource = "x"\ntypes = ["q4_k_n"]\n',
            ", line 3 (job 1): unknown type 'q4_k_n'",
            " 3행(1번째 작업): 알 수 없는 타입 'q4_k_n'",
        ),
        (
            '[defaults]\nthreads = true\n[[jobs]]\nsource = "x"\n',
            ", line 2 ([defaults]): threads is True, expected text or a number",
            " 2행([defaults]): threads의 값이 True입니다",
        ),
        (
            '[defaults]\nthreads = 0\n[[jobs]]\nsource = "x"\n[[jobs]]\nsource = "y"\nthreads = -1\n',
            ", line 2 ([defaults]): ",
            " 2행([defaults]): ",
        ),
        (
            '[[jobs]]\nsource = "x"\noutput = "s3://shelf/x"\n',
            ", line 3 (job 1): output is in an object store, which a batch neither reads nor writes",
            " 3행(1번째 작업): output이(가) 오브젝트 스토리지에 있는데, batch는",
        ),
        (
            '[[jobs]]\nsource = "x"\n[[jobs]]\n',
            ", line 3 (job 2) has no source",
            " 3행(2번째 작업): source가 없",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, english: str, korean: str, tmp_path: Path) -> None:
    (tmp_path / "jobs.toml").write_text(text)
    for language, words in (("en", english), ("ko", korean)):
        environment = {**os.environ, "KCONV_LANG": language}
        done = kconv("batch", "jobs.toml", env=environment, cwd=tmp_path)
        assert done.returncode == 2
        assert f"jobs.toml{words}" in done.stderr
