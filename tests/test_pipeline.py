"""The pipeline as a whole: every recipe, equal runs, what is read and recorded, what is imported."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_material import llama_cpp_logits, random_llama
from recipe_material import REFUSED
from t5_checkpoints import t5_logits

from kconv.converters import to_gguf
from kconv.converters.families import FAMILIES
from kconv.converters.samples import SAMPLES, write_sample
from kconv.core.errors import CheckpointError, MappingError
from kconv.core.windows import Window
from kconv.quant.policy import POLICIES
from kconv.runtimes.llama_encoder import LlamaEncoder

# Sample checkpoints by family; a new family has to name one, or is another's in another name.
MATERIAL = {
    "llama": ("42dot", "eagle", "llama-3-ko", "kanana"),
    "gptj": ("kogpt",),
    "t5": ("kebyt5",),
    "mt5": (),  # t5 with another class: tests/test_t5.py
    "umt5": ("umt5",),
    "t5-encoder": ("t5-encoder",),
    "mt5-encoder": (),  # tests/test_t5_encoders.py
    "umt5-encoder": (),  # tests/test_t5_encoders.py
    "gbswt5": ("gbst-kebyt5",),
    "qwen2": ("qwen2",),
    "qwen3": ("qwen3",),
    "qwen3_moe": ("qwen3-moe",),
    "gpt_neox": ("gpt-neox",),
    "exaone": ("exaone",),
    "exaone4": ("exaone4",),
    "hyperclovax": ("hyperclovax",),
    "mistral": ("mistral",),
    "gemma2": ("gemma2",),
    "gemma3_text": ("gemma3",),
    "gpt2": ("gpt2",),
    "mpt": ("mpt",),
    "opt": ("opt",),
    "xglm": ("xglm",),
    "bert": ("bert",),
    "roberta": ("roberta",),
    "xlm-roberta": ("xlm-roberta",),
}


PLAIN = [name for name in POLICIES if name not in (*REFUSED, "q1_0")]  # q1_0 has no way out for small rows


def test_every_recipe_and_family_has_material() -> None:
    assert set(MATERIAL) == {family.name for family in FAMILIES}
    assert {family for families in MATERIAL.values() for family in families} == set(SAMPLES)


@pytest.mark.parametrize("family", sorted(SAMPLES))
def test_every_recipe_to_every_type_runs_in_llama_cpp(family: str, tmp_path: Path) -> None:
    folder = write_sample(family, tmp_path / family)
    made = to_gguf(folder, tmp_path / "out", types=PLAIN, verify=False)
    assert made.parity.verdict == ("ordinary-words" if family in ("bert", "roberta") else "exact")
    assert [output.type for output in made.outputs] == PLAIN
    ids = list(range(3, 40))
    if family in (
        *MATERIAL["t5"],
        *MATERIAL["umt5"],
        *MATERIAL["gbswt5"],
    ):  # a GBST body can be read without its front end
        logits = {output.type: t5_logits(output.path, ids, ids) for output in made.outputs}
    elif family in ("bert", "roberta", "xlm-roberta", "t5-encoder"):
        logits = {output.type: hidden_states(output.path, ids) for output in made.outputs}
    else:
        logits = {output.type: llama_cpp_logits(output.path, ids) for output in made.outputs}
    spread = logits["f32"].std()
    for name, values in logits.items():
        error = np.sqrt(((values - logits["f32"]) ** 2).mean()) / spread
        # random weights, which nothing is learnt from, are gone at two bits and less
        coarse = POLICIES[name].default.block_bytes * 8 < 3 * POLICIES[name].default.block_size
        limit = 1.6 if coarse else 0.9
        assert error < {"f32": 1e-6, "bf16": 0.05, "f16": 0.01, "q8_0": 0.1}.get(name, limit), (name, error)


def hidden_states(path: Path, ids: list[int]) -> Any:
    with LlamaEncoder(path, threads=1) as reader:
        return reader.states(Window(0, tuple(ids)))


def test_equal_runs_give_equal_bytes_whatever_the_threads(tmp_path: Path, small_tokenizer: Path) -> None:
    folder = random_llama(tmp_path / "model", small_tokenizer)
    for number, threads in enumerate((1, 2, 3)):
        to_gguf(folder, tmp_path / str(number), types=["q8_0", "Q4_0"], threads=threads, verify=False)
    for path in sorted((tmp_path / "0").iterdir()):
        data = path.read_bytes()
        assert data == (tmp_path / "1" / path.name).read_bytes()
        assert data == (tmp_path / "2" / path.name).read_bytes()


def test_several_types_from_one_read_equal_one_by_one(tmp_path: Path, small_tokenizer: Path) -> None:
    folder = random_llama(tmp_path / "model", small_tokenizer, "bfloat16")
    to_gguf(folder, tmp_path / "together", types=PLAIN, verify=False)
    for name in PLAIN:
        (alone,) = to_gguf(folder, tmp_path / "alone", types=[name], verify=False).outputs
        assert alone.path.read_bytes() == (tmp_path / "together" / alone.path.name).read_bytes()


def test_pytorch_files_give_the_same_tensors(tmp_path: Path, small_tokenizer: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = random_llama(tmp_path / "model", small_tokenizer)
    (one,) = to_gguf(folder, tmp_path / "one.gguf", types=["q8_0"], verify=False).outputs
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (other,) = to_gguf(folder, tmp_path / "other.gguf", types=["q8_0"], verify=False).outputs
    assert one.path.read_bytes() == other.path.read_bytes()


def test_manifest_records_source_options_and_proof(tmp_path: Path, small_tokenizer: Path) -> None:
    folder = random_llama(tmp_path / "model", small_tokenizer)
    conversion = to_gguf(folder, tmp_path / "out.gguf", types=["q4_0"], pure=True)
    (made,), (proof,) = conversion.outputs, conversion.proofs
    manifest = json.loads(made.manifest.read_text(encoding="utf-8"))
    hashed = {file["name"]: (file["bytes"], file["sha256"]) for file in manifest["source"]["files"]}
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        data = (folder / name).read_bytes()
        assert hashed[name] == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest["options"]["pure"] is True
    size, digest = made.path.stat().st_size, hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert manifest["output"] == {
        "file": "out.gguf",
        "type": "q4_0",
        "bytes": size,
        "bits_per_weight": round(made.bits_per_weight, 4),
        "files": [{"name": "out.gguf", "bytes": size, "sha256": digest, "hashed": "now"}],
    }
    assert manifest["options"]["verify"] == "quick"
    assert manifest["proof"]["verdict"] == proof.verdict == conversion.verdict
    assert manifest["proof"]["tokens"]["parity"]["verdict"] == "exact"
    assert manifest["proof"]["metadata"]["verdict"] == "passed"
    assert manifest["proof"]["logits"]["figures"]["positions"] > 100
    assert manifest["proof"]["logits"]["gate"]["type"] == "q4_0"
    assert manifest["versions"]["kconv"]
    reader = gguf.GGUFReader(made.path)
    assert manifest["tensors"] == {t.name: t.tensor_type.name.lower() for t in reader.tensors}


def test_hub_cache_names_the_file_and_the_revision(tmp_path: Path, small_tokenizer: Path) -> None:
    """Files are links into blobs/, the folder is named by its commit."""
    plain = random_llama(tmp_path / "plain", small_tokenizer)
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--42dot--42dot_LLM-SFT-1.3B"
    snapshot, blobs = cache / "snapshots" / commit, cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in plain.iterdir():
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    (made,) = to_gguf(snapshot, tmp_path / "out", types=["q8_0"], verify=False).outputs
    assert made.path.name == "42dot_LLM-SFT-1.3B-Q8_0.gguf"
    source = json.loads(made.manifest.read_text(encoding="utf-8"))["source"]
    assert (source["repository"], source["revision"]) == ("42dot/42dot_LLM-SFT-1.3B", commit)


def test_conversion_imports_neither_torch_nor_transformers(tmp_path: Path, small_tokenizer: Path) -> None:
    folder = random_llama(tmp_path / "model", small_tokenizer)
    arguments = ["kconv", "to-gguf", str(folder), "--no-verify", "-o", str(tmp_path / "out.gguf")]
    code = (
        "import sys\n"
        f"sys.argv = {arguments!r}\n"
        "from kconv.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(sorted({'torch', 'transformers', 'llama_cpp'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


class TestHead:
    """lm_head.weight, where config.json and the files disagree about it."""

    def change(self, folder: Path, *, tied: bool, head: str) -> Path:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        if head == "missing":
            tensors.pop("lm_head.weight")
        elif head == "equal":
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        save_file(tensors, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        config["tie_word_embeddings"] = tied
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    @pytest.mark.parametrize(
        ("tied", "head", "written"),
        [
            (True, "missing", False),
            (True, "equal", False),
            (True, "different", True),
            (False, "equal", True),
            (False, "different", True),
        ],
    )
    def test_head_is_written_where_it_is_one(
        self, tied: bool, head: str, written: bool, tmp_path: Path, small_tokenizer: Path
    ) -> None:
        folder = self.change(random_llama(tmp_path / "model", small_tokenizer), tied=tied, head=head)
        conversion = to_gguf(folder, tmp_path / "out.gguf", verify=False)
        names = {tensor.name for tensor in gguf.GGUFReader(conversion.outputs[0].path).tensors}
        assert ("output.weight" in names) is written
        assert any(note.name == "untied-head" for note in conversion.notes) is (tied and written)

    def test_missing_head_of_an_untied_model_is_an_error(self, tmp_path: Path, small_tokenizer: Path) -> None:
        folder = self.change(random_llama(tmp_path / "model", small_tokenizer), tied=False, head="missing")
        with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing.*tie_word_embeddings"):
            to_gguf(folder, tmp_path / "out.gguf", verify=False)


def test_one_error_lists_every_gap(tmp_path: Path, small_tokenizer: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = random_llama(tmp_path / "model", small_tokenizer)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.extra.weight"] = np.ones(64, np.float32)
    tensors["extra.weight"] = np.zeros((2, 2), np.float32)
    tensors["model.norm.weight"] = np.zeros(63, np.float32)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(MappingError) as caught:
        to_gguf(folder, tmp_path / "out.gguf", verify=False)
    for gap in (
        "4 tensors",
        "missing: model.layers.1.mlp.up_proj.weight (for blk.1.ffn_up.weight)",
        "unexpected: model.layers.0.extra.weight [64]",
        "unexpected: extra.weight [2, 2]",
        "shape of model.norm.weight: [63], but config.json implies [64] (hidden)",
    ):
        assert gap in str(caught.value)
