"""Documents for the small models, from the texts of the demo model (tools/demo_texts) in plain prose.

The demo model learns 42dot's chat format; KoGPT and KEByT5 have none, so here questions and answers are
ordinary sentences, written out as each family's own training text wants them.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from demo_texts import generator
from demo_texts.generator import BLOCK_WEIGHTS, JOINT

STORIES, QUESTIONS = 0.5, 0.35
"""Shares of the documents; the rest are the written texts, each as often as any other."""


def documents(seed: int, asked: str) -> Iterator[str]:
    """Documents without end, words and particles parted by JOINT.

    ``asked`` says how a question and its answer are written, with the slots {question} and {answer}; one
    document holds one to four of them.
    """
    rng = Random(seed)
    plots, blocks = generator.paragraphs("plots.txt"), generator.paragraphs("chat.txt")
    weights = [BLOCK_WEIGHTS.get(block.split("\n", 1)[0], 4 if block[0] == "@" else 1) for block in blocks]
    data = generator.read_tables()
    pools = data["pool"]
    written = generator.paragraphs("stories.txt") + generator.paragraphs("facts.txt")
    written += generator.udhr_articles()
    pending: list[str] = []
    while True:
        draw = rng.random()
        if draw < STORIES:
            yield generator.grow_story(plots, pools, rng)[0]
        elif draw < STORIES + QUESTIONS:
            drawn = rng.choices(blocks, weights, k=rng.randint(1, 4))
            turns = [generator.grow_turn(block, data, rng) for block in drawn]
            yield "\n".join(asked.format(question=question, answer=answer) for question, answer in turns)
        else:
            pending = pending or rng.sample(written, len(written))
            yield generator.expand(pending.pop(), generator.story_words(pools, rng), rng, {})


def held_out(asked: str) -> dict[str, list[str]]:
    """Texts never trained on: ``written`` by hand, ``questions`` in new words, ``grown`` by another seed."""
    turns = [block.splitlines() for block in generator.paragraphs("held_out_chat.txt")]
    stories = generator.held_out()
    return {
        "written": stories["written"],
        "questions": [asked.format(question=lines[0][3:], answer=lines[1][3:]) for lines in turns],
        "grown": [text.replace(JOINT, "") for text in stories["grown"]],
    }
