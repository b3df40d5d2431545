"""Documents for the demo model, made from the committed texts alone.

``documents(seed)`` yields stories grown from plots.txt, chats grown from chat.txt, and the written texts
(stories.txt, facts.txt, udhr_kor.txt), mixed and in an order that depends on nothing but the seed.
``held_out()`` gives the written texts that are never trained on.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).parent
END = "<|endoftext|>"

# After a final consonant, after a vowel. What is not listed is the same after both (의, 도, 에서, 에게 …).
PARTICLES = {
    "은": ("은", "는"),
    "이": ("이", "가"),
    "을": ("을", "를"),
    "과": ("과", "와"),
    "아": ("아", "야"),
    "으로": ("으로", "로"),
    "이야": ("이야", "야"),
    "이나": ("이나", "나"),
    "이라고": ("이라고", "라고"),
    "이라는": ("이라는", "라는"),
    "이에요": ("이에요", "예요"),
    "이었어요": ("이었어요", "였어요"),
}
# Stands between a word and its particle until a document is finished.
JOINT = "\x1f"
SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")
# How often a block of chat.txt is drawn; any other table 4 times, a single question once.
BLOCK_WEIGHTS = {"@capital": 6, "@sum": 12, "@words": 6, "@opposite": 6}
CHOICE = re.compile(r"\[(?:(\d)#)?([^\[\]]*)\]")
# How the digits are read: a number takes its particle after the sound of its last digit.
DIGIT_SOUNDS = "영일이삼사오육칠팔구"


def final_consonant(word: str) -> int:
    """Index of the last syllable's final consonant in Unicode's order; 0 for none, 8 for ㄹ."""
    last = word[-1]
    if last.isdigit():
        last = DIGIT_SOUNDS[int(last)] if last != "0" or len(word) == 1 else "십"
    return (ord(last) - 0xAC00) % 28 if "가" <= last <= "힣" else 0


def particle(word: str, kind: str) -> str:
    """The form of a particle that fits the end of ``word``; ``kind`` is its form after a consonant."""
    after_consonant, after_vowel = PARTICLES.get(kind, (kind, kind))
    final = final_consonant(word)
    open_syllable = final == 0 or (kind == "으로" and final == 8)
    return after_vowel if open_syllable else after_consonant


def expand(text: str, words: Mapping[str, str], rng: Random, picks: dict[str, int]) -> str:
    """Take one branch of every ``[a|b]`` and fill every ``{slot:particle}``.

    Choices tagged alike (``[1#a|b]``) take the branch of the same number; ``picks`` remembers it.
    """

    def choose(match: re.Match[str]) -> str:
        branches: list[str] = match[2].split("|")
        if match[1] is None:
            return rng.choice(branches)
        return branches[picks.setdefault(match[1], rng.randrange(len(branches)))]

    def fill(match: re.Match[str]) -> str:
        word = words[match[1]]
        return word + JOINT + (particle(word, match[2]) if match[2] else "")

    return SLOT.sub(fill, CHOICE.sub(choose, text))


def paragraphs(name: str) -> list[str]:
    """The texts of a file, separated by blank lines; lines that start with # are notes."""
    lines = [line for line in (HERE / name).read_text("utf-8").splitlines() if not line.startswith("#")]
    return [text.strip() for text in re.split(r"\n\s*\n", "\n".join(lines)) if text.strip()]


def read_tables() -> dict[str, Any]:
    """tables.toml: ``pool`` (slot -> words) and ``table`` (name -> columns, rows)."""
    return tomllib.loads((HERE / "tables.toml").read_text("utf-8"))


def story_words(pools: Mapping[str, list[str]], rng: Random) -> dict[str, str]:
    """One word for every slot of a story; people and animals differ from one another."""
    words = {slot: rng.choice(choices) for slot, choices in pools.items()}
    for role, name in zip(("who", "pal"), rng.sample(pools["name"], 2), strict=True):
        # A given name that ends in a consonant takes 이 when it is told of: 민준 -> 민준이가, 민준아.
        words[f"{role}_name"] = name
        words[f"{role}_call"] = name + JOINT + particle(name, "아")
        words[role] = name + JOINT + "이" if final_consonant(name) else name
    words |= dict(zip(("beast", "beast2", "beast3"), rng.sample(pools["beast"], 3), strict=True))
    return words


def grow_story(plots: list[str], pools: Mapping[str, list[str]], rng: Random) -> tuple[str, str]:
    """A story from one plot, in one or two paragraphs, and the name of whom it tells of ('' if nobody)."""
    plot = rng.choice(plots)
    words, picks = story_words(pools, rng), dict[str, int]()
    beats = [expand(beat, words, rng, picks) for beat in plot.splitlines()]
    hero = next((words[role] for role in ("beast", "who_name") if words[role] in " ".join(beats[:2])), "")
    if rng.random() < 0.5:
        return " ".join(beats), hero
    middle = rng.randrange(3, len(beats) - 2)
    return " ".join(beats[:middle]) + "\n" + " ".join(beats[middle:]), hero


def sum_words(rng: Random) -> dict[str, str]:
    """Two small numbers with their sum and difference."""
    left, right = rng.randint(1, 6), rng.randint(1, 6)
    high, low = max(left, right), min(left, right)
    numbers = {
        "left": left,
        "right": right,
        "sum": left + right,
        "high": high,
        "low": low,
        "rest": high - low,
    }
    return {name: str(number) for name, number in numbers.items()}


def grow_turn(block: str, data: Mapping[str, Any], rng: Random) -> tuple[str, str]:
    """One question with its answer from a block of chat.txt (its notes say how a block is written)."""
    lines = block.splitlines()
    words: dict[str, str] = {}
    if lines[0].startswith("@"):
        name = lines.pop(0)[1:].strip()
        if name == "sum":
            words = sum_words(rng)
        elif name == "words":
            words = story_words(data["pool"], rng)
        else:
            table = data["table"][name]
            words = dict(zip(table["columns"], rng.choice(table["rows"]), strict=True))
    questions = [line[3:] for line in lines if line.startswith("Q: ")]
    answers = [line[3:] for line in lines if line.startswith("A: ")]
    question = expand(rng.choice(questions), words, rng, {})
    return question, expand(rng.choice(answers), words, rng, {})


def chat(turns: list[tuple[str, str]], system: str = "") -> str:
    """42dot's prompt format, without the last turn's end of text."""
    return system + END.join(f"<human>: {question} <bot>: {answer}" for question, answer in turns)


def grow_story_turn(plots: list[str], pools: Mapping[str, list[str]], rng: Random) -> tuple[str, str]:
    """Somebody asks for a story, and is told one; if they name somebody, one of them."""
    asks = [
        "[짧은 |재미있는 |]이야기 하나 [해 줘|들려줘|해 주세요|들려주세요].",
        "[옛날이야기를|재미있는 이야기를|짧은 동화를] [들려줘|들려주세요|해 줘|써 줘].",
        "[심심해.|잠이 안 와.|오늘은 비가 와.] 이야기 [하나 해 줘|하나만 들려줘].",
    ]
    story, hero = grow_story(plots, pools, rng)
    if hero:
        asks += [
            "{hero} 이야기를 [해 줘|들려줘|들려주세요|해 주세요].",
            "{hero:이} 나오는 이야기를 [해 줘|들려주세요|써 줘].",
            "{hero:에} 대한 [짧은 이야기를|동화를] [써 줘|지어 줘|들려주세요].",
        ]
    return expand(rng.choice(asks), {"hero": hero}, rng, {}), story.replace("\n", " ")


def documents(seed: int, *, joint: str = "") -> Iterator[str]:
    """Training documents without end: 40 % chats, 10 % written texts, the rest stories.

    ``joint`` is put between words and their particles. Written texts come round after round, each round
    shuffled, so that none is seen more often than others.
    """
    for text in _documents(seed, chats=0.40, written=0.10):
        yield text.replace(JOINT, joint)


def _documents(seed: int, *, chats: float, written: float) -> Iterator[str]:
    rng = Random(seed)
    plots, blocks = paragraphs("plots.txt"), paragraphs("chat.txt")
    weights = [
        BLOCK_WEIGHTS.get(block.split("\n", 1)[0], 4 if block.startswith("@") else 1) for block in blocks
    ]
    system = paragraphs("system.txt")[0] + " "
    data = read_tables()
    pools = data["pool"]
    texts = paragraphs("stories.txt") + paragraphs("facts.txt") + udhr_articles()
    pending: list[str] = []
    while True:
        draw = rng.random()
        if draw < chats:
            drawn = rng.choices(blocks, weights, k=rng.randint(1, 5))
            turns = [grow_turn(block, data, rng) for block in drawn]
            if rng.random() < 0.2:
                turns.insert(rng.randrange(len(turns) + 1), grow_story_turn(plots, pools, rng))
            yield chat(turns, system if rng.random() < 0.15 else "")
        elif draw < chats + written:
            if not pending:
                pending = rng.sample(texts, len(texts))
            yield expand(pending.pop(), story_words(pools, rng), rng, {})
        else:
            yield grow_story(plots, pools, rng)[0]


def udhr_articles() -> list[str]:
    """The declaration, one article a document."""
    text = (HERE / "udhr_kor.txt").read_text("utf-8")
    return [part.strip() for part in re.split(r"\n(?=제 \d+ 조)", text) if part.strip()]


def held_out() -> dict[str, list[str]]:
    """Texts never trained on: ``written`` by hand, and ``grown`` from the plots with another seed."""
    stream = _documents(987_654_321, chats=0.0, written=0.0)
    turns = [block.splitlines() for block in paragraphs("held_out_chat.txt")]
    return {
        "written": paragraphs("held_out.txt"),
        "chat": [chat([(lines[0][3:], lines[1][3:])]) for lines in turns],
        "grown": [next(stream).replace(JOINT, "") for _ in range(64)],
    }
