"""The tokens part: what llama.cpp makes of texts with the file's vocabulary, and its entries one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core.errors import ChildDied
from ..core.gguf_file import GgufHeader
from ..core.language import phrase
from ..core.vocabulary import BPE, Vocab
from ..vocab.decoding import token_bytes
from ..vocab.exam import Exam
from ..vocab.in_gguf import PREFIX, read_vocab
from ..vocab.parity import Difference, Parity, examine
from ..vocab.reasons import explanation
from ..vocab.selection import EMBEDDING, notes_on_text
from ..vocab.tokenizer import Source
from .entries import check_lengths, compare_entries, malformed
from .proof import Finding, TokensPart, Verdict, undecided, verdict_of
from .token_text import is_byte_level, readable, shown_text

_MOST = 8  # findings
_PIECE = 400  # characters of the user's text read at a time, so that a difference can be shown
_READ = 2_000_000  # characters of the user's texts in all
_AROUND = 2  # tokens shown before the first that differs
_SHOWN = 7
_NOT_OF_SPACES = ("nfc", "sentencepiece", "tokenizer-json", "in-vocabulary", "plain-letters")


def check_tokens(
    path: Path,
    header: GgufHeader,
    source: Source,
    expected: Vocab,
    texts: Sequence[str] = (),
    *,
    strict: bool = False,
    allow_mismatch: bool = False,
) -> TokensPart:
    """Hold the vocabulary of a file against the checkpoint's tokenizer, ``source``.

    ``expected`` is the vocabulary of ``vocab.expected.expected_model``, ``texts`` are the user's (at most two
    million characters, taken evenly). ``strict``: the file was made by this very kconv, so all entries have
    to be equal. ``allow_mismatch``: the conversion was told to write the nearest vocabulary, so different
    token ids only warn. llama.cpp runs in a child: what it refuses is a finding, where the child dies
    nothing is decided.
    """
    vocab, faults = read_vocab(header.metadata)
    findings = malformed(faults, lists=True)
    rows = next((info.shape[0] for info in header.tensors if info.name == EMBEDDING and info.shape), None)
    findings += check_lengths(vocab, expected, rows)
    findings += compare_entries(vocab, expected, source, strict=strict)
    try:
        parity, questions = examine(path, vocab, source, cut(texts))
    except ChildDied as death:
        grave = any(finding.grave for finding in findings)
        shown = (*_fewer(findings), undecided(death, "llama.cpp"))
        return TokensPart("failed" if grave else "not decided", None, 0, shown)
    findings += _of_parity(parity, questions, source, allow_mismatch, _missing_pre(header, expected))
    findings.sort(key=lambda finding: not finding.grave)
    return tokens_part(parity, source, findings, entries=min(vocab.size, expected.size))


def tokens_part(
    parity: Parity, source: Source, findings: Sequence[Finding] = (), *, entries: int = 0
) -> TokensPart:
    """The part from what was measured and found, with what to do about spaces and NFC."""
    verdict: Verdict = verdict_of(tuple(findings))
    notes = notes_on_text(parity, source)
    if verdict == "passed" and any(note.warning for note in notes):
        verdict = "warned"
    remarks = [
        Finding(note.name if note.name in _NOT_OF_SPACES else "spaces", note.message, grave=False)
        for note in notes
    ]
    return TokensPart(verdict, parity, entries, (*_fewer(findings), *remarks))


def _fewer(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The first of them and the number of the rest."""
    if len(findings) <= _MOST:
        return tuple(findings)
    rest = findings[_MOST - 1 :]
    message = phrase("{count} more vocabulary entries differ").of(count=len(rest))
    return (*findings[: _MOST - 1], Finding("tokens", message, grave=any(one.grave for one in rest)))


def cut(texts: Sequence[str]) -> list[str]:
    """Texts in pieces of some lines, short enough to be shown; of very long ones a part, evenly spread."""
    pieces = [piece for text in texts for piece in _pieces(text)]
    total = sum(map(len, pieces))
    if total <= _READ:
        return pieces
    step = -(-total // _READ)
    return pieces[::step]


def _pieces(text: str) -> Iterator[str]:
    """Whole lines as long as they fit; longer lines at spaces, or where they must."""
    piece = ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > _PIECE:
            yield piece
            piece = ""
        while len(line) > _PIECE:
            end = line.rfind(" ", _PIECE // 2, _PIECE)
            end = _PIECE if end < 0 else end
            yield line[:end]
            line = line[end:]
        piece += line
    if piece:
        yield piece


def _missing_pre(header: GgufHeader, expected: Vocab) -> str:
    """What to do where the file does not say how text is cut before BPE; llama.cpp then guesses."""
    key = PREFIX + "pre"
    if key in header.metadata or expected.model != BPE:
        return ""
    return f"the file has no {key}: add it with the value {expected.pre!r} or convert the checkpoint again"


def _of_parity(
    parity: Parity, questions: Exam, source: Source, allow_mismatch: bool, cure: str
) -> Iterator[Finding]:
    if parity.error:
        message = phrase("llama.cpp cannot use the vocabulary: {error}").of(error=parity.error)
        yield Finding("vocabulary", message, "token ids", parity.error)
        return
    if parity.verdict != "mismatch" or parity.difference is None:
        return
    reason = cure or explanation(parity, questions, source)
    expected, actual, passage = _apart(parity.difference, source)
    message = phrase(
        "llama.cpp reads {differing} of {texts} texts as other tokens than the checkpoint's "
        "tokenizer, the first being {passage}"
    ).of(differing=parity.texts - parity.exact, texts=parity.texts, passage=shown_text(passage))
    if reason:
        message = phrase("{message}; {reason}").of(message=message, reason=reason)
    if allow_mismatch:
        message = phrase("{message}; allowed at the conversion").of(message=message)
    yield Finding("texts", message, expected, actual, grave=not allow_mismatch)


def _apart(difference: Difference, source: Source) -> tuple[str, str, str]:
    """Both token lists around the first that differs, and the passage they are of."""
    expected, got = difference.expected, difference.got
    pairs = enumerate(zip(expected, got, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(expected), len(got)))
    shown = slice(max(at - _AROUND, 0), max(at - _AROUND, 0) + _SHOWN)
    listed = [
        " ".join(
            f"{index} {readable(piece, byte_level=is_byte_level(source))}"
            for index, piece in zip(ids[shown], pieces[shown], strict=True)
        )
        for ids, pieces in ((expected, difference.expected_pieces), (got, difference.got_pieces))
    ]
    passage = b"".join(token_bytes(source, token) for token in expected[shown]).decode("utf-8", "ignore")
    return listed[0] or "(no tokens)", listed[1] or "(no tokens)", passage or difference.text[:_SHOWN]
