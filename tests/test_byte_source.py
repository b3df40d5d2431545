"""Whatever the bytes come from: readers of every container ask a source, and local files are one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from checkpoint_material import bits
from requantize_material import llama_file
from safetensors.torch import save_file

from kconv.core.byte_source import ByteSource, Identity, Opener
from kconv.core.errors import CheckpointError, EnvironmentProblem, GgufError
from kconv.core.gguf_file import read_header
from kconv.core.input_files import InputFile, file_sha256
from kconv.core.safetensors_file import open_safetensors
from kconv.core.torch_file import open_torch
from kconv.core.weight_file import WeightFile
from kconv.quant.gguf_weights import open_gguf


class Ranges:
    """Bytes that come a few at a time, as over a network; ``version`` is what a server says of them."""

    def __init__(self, data: bytes, most: int = 1000) -> None:
        self.data, self.most, self.version, self.requests = data, most, 1, 0
        self.size, self.identity = len(data), (0, 0, len(data), 1)

    def identity_now(self) -> Identity:
        return 0, 0, len(self.data), self.version

    def read_into(self, view: memoryview, offset: int) -> int:
        self.requests += 1
        some = self.data[offset : offset + min(len(view), self.most)]
        view[: len(some)] = some
        return len(some)


def elsewhere(sources: Mapping[str, Ranges]) -> Opener:
    """Opens paths of which this machine knows nothing, by their names."""

    def open_path(path: Path) -> ByteSource:
        if path.name not in sources:
            raise FileNotFoundError(2, "No such file or directory")
        return sources[path.name]

    return open_path


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a": torch.randn(70, 33),
        "b": torch.randn(5).to(torch.bfloat16),
        "c": torch.randn(6, 8, 4).half(),
    }


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (lambda tensors, path: save_file(tensors, path), open_safetensors),
        (lambda tensors, path: torch.save(tensors, path), open_torch),
        (lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False), open_torch),
        (lambda tensors, path: torch.save({"t": tensors["a"].T}, path), open_torch),
    ],
    ids=["safetensors", "torch", "torch before 1.6", "a transposed view"],
)
def test_weight_files_are_read_from_any_source(
    tmp_path: Path,
    write: Callable[[dict[str, torch.Tensor], Path], None],
    read: Callable[[Path, Opener], WeightFile],
) -> None:
    write(weights(), tmp_path / "file")
    source = Ranges((tmp_path / "file").read_bytes())
    file = read(Path("far/away/file"), elsewhere({"file": source}))
    expected = weights() if "a" in file.tensors else {"t": weights()["a"].T}
    assert set(file.tensors) == set(expected)
    for name, tensor in file.tensors.items():
        assert tensor.read(0, tensor.rows).tobytes() == bits(expected[name]).tobytes(), name
    before = source.requests
    file.tensors[next(iter(expected))].read(1, 2)
    assert source.requests > before
    file.file.check_unchanged()
    assert file_sha256(file.file) == file_sha256(tmp_path / "file")


def test_gguf_is_read_from_any_source(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "model.gguf")
    source = Ranges(path.read_bytes(), most=100_000)
    opener = elsewhere({"model.gguf": source})
    far = Path("far/away/model.gguf")
    assert read_header(far, opener) == read_header(path)
    with open_gguf(path) as here, open_gguf(far, opener) as there:
        for info in here.header.tensors:
            assert there.read(info, 0, info.shape[0]).tobytes() == here.read(info, 0, info.shape[0]).tobytes()
            actual, expected = (file.tensor(info).read(0, info.shape[0]) for file in (there, here))
            assert actual.tobytes() == expected.tobytes()
        info = here.header.tensors[0]
        source.version = 2
        with pytest.raises(GgufError, match="changed while tensor"):
            there.read(info, 0, 1)
        source.data = source.data[: there.header.data_offset]
        with pytest.raises(GgufError, match="it was longer when it was opened"):
            there.read(info, 0, 1)


def test_what_changes_meanwhile_or_ends_early_is_told() -> None:
    source = Ranges(b"0123456789")
    file = InputFile(Path("far/file"), elsewhere({"file": source}))
    assert (file.read(3, 4), file.size) == (b"3456", 10)
    with pytest.raises(CheckpointError, match="far/file ends after 10 bytes, expected 11"):
        file.read(3, 8)
    source.version = 2
    with pytest.raises(EnvironmentProblem, match="far/file was changed while it was read"):
        file.check_unchanged()
    source.data = b"0123"
    with pytest.raises(EnvironmentProblem, match="it was longer when it was opened"):
        file.read(3, 4)
    with pytest.raises(CheckpointError, match="far/other does not exist"):
        InputFile(Path("far/other"), elsewhere({}))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder, expected a file"):
        InputFile(tmp_path)
    with pytest.raises(GgufError, match="is a folder, expected a GGUF file"):
        read_header(tmp_path)
