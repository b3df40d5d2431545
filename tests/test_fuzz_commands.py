"""Mutated files of every kind, given to every command that takes them (fuzz_material.py says what must hold).

CORPUS holds what once went wrong; the rest is drawn anew from one seed, so that every run is the same.
``make test-fuzz`` draws from the clock, for minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_server import Kconv
from fuzz_material import SUBJECTS, Fuzz, make_samples
from mutations import MUTATIONS, gguf_numbers, mutated

SEED, BUDGET, LEAST = "kconv", 12.0, 30

CORPUS: tuple[str, ...] = (
    "llama/tokenizer.json parts 6 plan",  # a Replace of "(a+)+$" by nothing: a panic in the library
    "llama/tokenizer.json parts 11 verify",  # a broken charsmap: the library printed its backtrace
)


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzz]:
    folder = tmp_path_factory.mktemp("fuzz")
    with Kconv() as kconv:
        yield Fuzz(kconv, make_samples(folder / "samples", kconv), folder / "scratch")


@pytest.mark.parametrize("recipe", CORPUS)
def test_what_once_went_wrong(recipe: str, fuzz: Fuzz) -> None:
    problems, done = fuzz.try_one(recipe)
    assert not problems, done


def test_mutated_files(fuzz: Fuzz) -> None:
    """As many as fit into the time, in the same order on every machine; a slow one does fewer."""
    begun, wrong = time.monotonic(), {}
    for recipe in fuzz.recipes(SEED):
        tried = sum(fuzz.tried.values())
        if tried >= LEAST and time.monotonic() - begun > BUDGET:
            break
        problems, done = fuzz.try_one(recipe)
        if problems:
            wrong[recipe] = (problems, done)
    assert not wrong
    assert len(fuzz.tried) > 5  # commands
    refused = sum(count for end, count in fuzz.codes.items() if end.endswith(" 3"))
    assert refused > LEAST // 4  # the damage is seen


def test_mutations_are_reproducible_and_change_something(fuzz: Fuzz) -> None:
    used = set()
    for subject in SUBJECTS:
        content = (fuzz.samples / subject.file).read_bytes()
        for mutation in set(subject.mutations):
            used.add(mutation)
            made = [mutated(content, mutation, seed) for seed in range(6)]
            assert made == [mutated(content, mutation, seed) for seed in range(6)]
            assert sum(each != content for each in made) > 3, (subject.file, mutation)
    assert used == set(MUTATIONS)


def test_the_numbers_of_a_gguf_header_are_found(fuzz: Fuzz) -> None:
    content = (fuzz.samples / "made" / "llama.gguf").read_bytes()
    places = list(gguf_numbers(content))
    assert places[:3] == [(4, "I", "type"), (8, "Q", "count"), (16, "Q", "count")]
    assert len(places) > 500


@pytest.mark.parametrize("path", ["missing/config.json", "made/no.gguf"])
def test_the_samples_themselves_are_taken(path: str, fuzz: Fuzz) -> None:
    """Without damage all is well, and a file that is not there is refused: the harness sees both."""
    good = fuzz.kconv.run("inspect", fuzz.samples / "llama", cwd=fuzz.samples)
    bad = fuzz.kconv.run("inspect", fuzz.samples / Path(path), cwd=fuzz.samples)
    assert (good.code, bad.code) == (0, 3), (good, bad)
