"""Small checkpoints to try kconv on: what ``kconv demo-checkpoint FAMILY DIR`` writes.

Nothing is downloaded and no real weight is used: some are models trained by this project (a folder of data/
each, with its card), the others are made on the spot with random weights (synthetic.py).
"""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path

from ...core.claims import claimed_folder, temporary_beside
from ...core.errors import OutputExists, UsageError
from ...core.files import explained
from ...core.leftovers import sweep
from .decoders import write_exaone4, write_gpt_neox, write_mistral, write_qwen3, write_qwen3_moe
from .encoders import write_bert, write_roberta, write_xlm_roberta
from .llamas import write_exaone, write_kanana
from .positioned import write_gpt2, write_mpt
from .qwen_gemma import write_gemma2, write_gemma3, write_qwen2
from .synthetic import write_eagle, write_llama_3_ko
from .t5_encoder import write_t5_encoder
from .umt5 import write_umt5

TRAINED = ("42dot", "kogpt", "kebyt5", "gbst-kebyt5", "hyperclovax", "opt", "xglm")
"""Families whose sample was trained; the others have random weights."""


def write_trained(family: str, folder: Path) -> Path:
    """Write the trained model of a family of TRAINED (data/<family>/README.md: its card) as new folder."""
    folder.mkdir()
    for source in files(__name__).joinpath("data", family).iterdir():
        with source.open("rb") as data, (folder / source.name).open("xb") as copy:
            shutil.copyfileobj(data, copy)
    return folder


SAMPLES: Mapping[str, Callable[[Path], Path]] = {
    **{family: partial(write_trained, family) for family in TRAINED},
    "eagle": write_eagle,
    "llama-3-ko": write_llama_3_ko,
    "qwen2": write_qwen2,
    "qwen3": write_qwen3,
    "qwen3-moe": write_qwen3_moe,
    "gpt-neox": write_gpt_neox,
    "exaone": write_exaone,
    "exaone4": write_exaone4,
    "kanana": write_kanana,
    "mistral": write_mistral,
    "gemma2": write_gemma2,
    "gemma3": write_gemma3,
    "gpt2": write_gpt2,
    "mpt": write_mpt,
    "umt5": write_umt5,
    "t5-encoder": write_t5_encoder,
    "bert": write_bert,
    "roberta": write_roberta,
    "xlm-roberta": write_xlm_roberta,
}
"""Family name -> function that writes a Hugging Face checkpoint as a folder that does not exist yet."""


def write_sample(family: str, folder: Path, *, force: bool = False) -> Path:
    """Write the sample checkpoint of ``family`` as ``folder`` and return ``folder``.

    It is made under a temporary name beside ``folder`` and renamed, so that it is there whole or not at all.
    A folder with files in it is refused; with ``force`` only when some of its files are not the sample's,
    since they might be somebody's, and a stray tokenizer file would change what the checkpoint means. Raises
    UsageError for an unknown family, OutputExists, and EnvironmentProblem.
    """
    write = SAMPLES.get(family)
    if write is None:
        near = difflib.get_close_matches(family.lower(), SAMPLES, n=1)
        raise UsageError(
            f"unknown sample family {family!r}, expected one of {', '.join(sorted(SAMPLES))}",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    folder = Path(os.path.abspath(folder))
    _refuse_occupied(folder, force=force)
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        place = temporary_beside(folder)
        with claimed_folder(place):
            _publish(write(place / "whole"), folder, aside=place / "before")
    return folder


def _refuse_occupied(folder: Path, *, force: bool) -> None:
    """Refuse early, before anything is written; _publish looks again."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise OutputExists(f"{folder} exists and is not a folder", hint="choose another folder")
    if any(folder.iterdir()) and not force:
        raise OutputExists(
            f"{folder} exists and is not empty", hint="choose another folder, or pass --force to overwrite it"
        )


def _publish(whole: Path, folder: Path, *, aside: Path) -> None:
    """Give the finished ``whole`` the name ``folder``; what stood there goes, if it was the sample's."""
    if not folder.is_dir():
        whole.rename(folder)
        return
    strangers = sorted({path.name for path in folder.iterdir()} - {path.name for path in whole.iterdir()})
    if strangers:
        raise OutputExists(
            f"{folder} contains files that do not belong to the sample: {', '.join(strangers[:5])}",
            hint="choose another folder, or remove these first",
        )
    folder.rename(aside)
    try:
        whole.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
