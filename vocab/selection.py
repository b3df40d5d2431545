"""Choosing the vocabulary llama.cpp reads exactly as the checkpoint's own tokenizer does."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from ..core.checkpoint import Checkpoint
from ..core.errors import KconvError, MappingError, TokenMismatch, VocabError
from ..core.files import explained
from ..core.model import Model, Note
from ..core.progress import Progress, silent
from ..core.scratch import scratch_folder
from ..core.vocabulary import Vocab
from .adapters import adapt, enabled_adapters
from .candidates import TO_ONNX, Candidate, candidates, unsupported_reason
from .context import AdapterContext, read_context
from .exam import Exam
from .parity import ON_SOME_TEXT, Difference, Parity, declared, exam_for, grade, write_vocab_only
from .probe import LlamaProbe
from .reasons import explanation
from .sources import read_source
from .tokenizer import Source

EMBEDDING = "token_embd.weight"
_SHOWN_TOKENS = 24


@dataclass(frozen=True)
class Trial:
    """A candidate after the adapters, and how it did."""

    vocab: Vocab
    parity: Parity
    notes: tuple[Note, ...]


def select_vocab(
    model: Model,
    checkpoint: Checkpoint,
    source: Source | None = None,
    *,
    disabled_adapters: Collection[str] = (),
    chat_template: str | None = None,
    allow_mismatch: bool = False,
    words_as_text: bool = False,
    progress: Progress = silent,
) -> tuple[Model, Parity]:
    """Give ``model`` the first candidate vocabulary with exactly the tokenizer's token ids.

    ``source`` is the checkpoint's tokenizer, for those who have read it already and need it further on.
    The number of embedding rows is that of ``token_embd.weight``; no weight is read. Raises VocabError where
    the tokenizer cannot be read or has more tokens than rows. Where no candidate is exact, not even but for
    spaces or for text that is not in NFC, it raises VocabError for a kind of tokenizer llama.cpp has no
    counterpart of and TokenMismatch for others, unless ``allow_mismatch`` and llama.cpp can at least load the
    best.
    """
    enabled = enabled_adapters(disabled_adapters)
    rows = embedding_rows(model)
    context = read_context(checkpoint, rows=rows, chat_template=chat_template, words_as_text=words_as_text)
    source = source or read_source(checkpoint)
    best, questions = _best(source, model.arch, context, enabled, progress)
    notes = [*source.notes, *best.notes, *notes_on_text(best.parity, source)]
    if questions.left_out:
        notes.append(_left_out(questions))
    if best.parity.ties:
        notes.append(_equally_good(best.parity))
    if best.parity.verdict == "mismatch":
        if not allow_mismatch or best.parity.error:  # a file that llama.cpp dies of helps nobody
            raise mismatch(best.parity, questions, source)
        notes.append(_allowed(best.parity))
    return replace(model, vocab=best.vocab, notes=(*model.notes, *notes)), best.parity


def embedding_rows(model: Model) -> int:
    """The rows of ``token_embd.weight``. Raises MappingError where there is no such tensor."""
    try:
        return model.tensor(EMBEDDING).rows
    except KeyError as error:
        raise MappingError(
            f"the model has no tensor {EMBEDDING}, so no vocabulary can be matched to it"
        ) from error


def _best(
    source: Source, arch: str, context: AdapterContext, enabled: Collection[str], progress: Progress
) -> tuple[Trial, Exam]:
    """Measure candidates until one is exact; else the best: equal but for spaces, then by equal texts."""
    trials: list[Trial] = []
    questions: Exam | None = None
    with scratch_folder("vocab") as folder:
        for candidate in candidates(source):
            path = folder / "vocab.gguf"
            with LlamaProbe(path) as probe:
                vocab, notes = adapted(candidate, context, enabled)
                with explained(path, elsewhere="set TMPDIR to another folder"):
                    write_vocab_only(path, arch, vocab)
                probe.load()
                questions = questions or exam_for(probe, declared(vocab), source)
                total = len(questions.texts)
                progress("tokens", 0, total)
                parity = grade(candidate.name, probe, questions, source, declared(vocab))
            trials.append(Trial(vocab, parity, notes))
            progress("tokens", total, total)
            # A tokenizer that normalizes, or has unknown words, is never equal on all texts.
            if parity.verdict in ("exact", "nfc", "ordinary-words", "plain-letters"):
                break
    assert questions is not None
    best = max(trials, key=lambda trial: (_rank(trial.parity), trial.parity.exact))
    tried = {trial.parity.candidate: trial.parity.exact for trial in trials}
    return replace(best, parity=replace(best.parity, tried=tried)), questions


def _rank(parity: Parity) -> int:
    ranks = {"exact": 4} | dict.fromkeys(ON_SOME_TEXT, 3)
    return ranks.get(parity.verdict, 0 if parity.error else 1)


def adapted(
    candidate: Candidate, context: AdapterContext, enabled: Collection[str]
) -> tuple[Vocab, tuple[Note, ...]]:
    """The candidate as it would be written; llama.cpp must not be asked to add an undefined token."""
    vocab, notes = adapt(candidate.vocab, context, enabled)
    for role, wanted in (("bos", vocab.add_bos), ("eos", vocab.add_eos)):
        if wanted and role not in vocab.special:
            vocab = replace(vocab, add_bos=False) if role == "bos" else replace(vocab, add_eos=False)
            message = f"{role.upper()} should be added to texts, but no token has that role; it is not added"
            notes = (*notes, Note(f"add-{role}", message, warning=True))
    return vocab, notes


def notes_on_text(parity: Parity, source: Source) -> tuple[Note, ...]:
    """What has to be done to the text where not all are equal as they are."""
    if parity.departing:
        return (_note_on_departing(parity, source),)
    if parity.verdict == "sentencepiece":
        return (_note_on_sentencepiece(parity),)
    if parity.verdict == "nfc":
        return (_note_on_nfc(parity),)
    if parity.verdict == "in-vocabulary":
        return (_note_on_bytes(parity),)
    if parity.verdict == "plain-letters":
        return (_note_on_letters(parity),)
    if parity.verdict == "ordinary-words":
        return (_note_on_words(parity, source),)
    if parity.verdict not in ("leading-space", "extra-spaces"):
        return ()
    equal = f"all {parity.texts} texts then give the same ids"
    notes = [_note_on_nfc(parity)] if parity.not_nfc else []
    if parity.verdict == "leading-space":
        each = source.prefix is not None and source.prefix.each
        where = "every stretch of text between special tokens" if each else "a text"
        message = (
            f"the tokenizer puts a space before {where}, which llama.cpp does not do with this "
            f"vocabulary ({parity.candidate}): add the space yourself; {equal}"
        )
        notes.append(Note("leading-space", message))
    if source.collapses_spaces or parity.verdict == "extra-spaces":
        does = (
            "removes spaces at both ends of a text and collapses repeated spaces, which llama.cpp does not do"
            if source.collapses_spaces
            else "adds no space to text that begins with one, while llama.cpp always does"
        )
        message = f"the tokenizer {does}: use text without such spaces; {equal}"
        notes.append(Note("extra-spaces", message, warning=source.collapses_spaces))
    return tuple(notes)


def _note_on_words(parity: Parity, source: Source) -> Note:
    """What llama.cpp does not take for unknown."""
    longest = 0 if source.pieces is None else source.pieces.longest
    message = (
        f"exact for ordinary words: the tokenizer takes words of more than {longest} characters, and words "
        "with the character U+2581, for unknown and drops control characters, which llama.cpp does not; so "
        f"{len(parity.different)} of {parity.texts} texts get other tokens"
    )
    return Note("ordinary-words", message)


def _note_on_nfc(parity: Parity) -> Note:
    """What has to be done to the text where all are equal but those that are not in NFC."""
    message = (
        "exact for text in NFC: the tokenizer normalizes to that Unicode form and llama.cpp does not, so "
        f"{parity.other_form} of {parity.not_nfc} texts not in it (decomposed Hangul, accents) get other "
        "tokens; kconv run normalizes prompts, llama.cpp's own programs do not"
    )
    return Note("nfc", message, warning=True)


def _note_on_sentencepiece(parity: Parity) -> Note:
    """What it means that the tokenizers library reads some texts as SentencePiece does not."""
    message = (
        "exact for plain text: the tokenizers library treats decomposed letters and surplus spaces by its "
        f"own rules, llama.cpp as SentencePiece does, so {parity.texts - parity.exact} of {parity.texts} "
        "texts with such get other tokens, all of them those of SentencePiece, with which such models are "
        "trained; use text in NFC without surplus spaces"
    )
    return Note("sentencepiece", message, warning=True)


def _note_on_bytes(parity: Parity) -> Note:
    """What becomes of characters the vocabulary spells in bytes."""
    message = (
        "exact for text whose characters are in the vocabulary: the tokenizer spells others in bytes, for "
        "which llama.cpp's unigram tokenizer gives the unknown token; "
        f"{parity.texts - parity.exact} of {parity.texts} texts have such (rare syllables, emoji, control "
        "characters), none of the Korean and English of the Declaration of Human Rights"
    )
    return Note("in-vocabulary", message, warning=True)


def _note_on_letters(parity: Parity) -> Note:
    """What llama.cpp divides otherwise."""
    message = (
        "exact for text without combining marks (Hindi, Thai, decomposed accents) and without capitals and "
        "small letters beyond ASCII (É, é, Ж), so for Korean and English: the tokenizer divides words by "
        "Unicode's classes of letters, llama.cpp by those of A to Z alone; "
        f"{parity.texts - parity.exact} of {parity.texts} texts have such letters and get other tokens"
    )
    return Note("plain-letters", message, warning=True)


def _note_on_departing(parity: Parity, source: Source) -> Note:
    """What it means that transformers reads the tokenizer.json beside the SentencePiece model."""
    message = (
        f"exact by {source.description.files[0]}, with which the model was trained; the tokenizer.json "
        f"beside it, which transformers reads, gives other ids for {parity.departing} of {parity.texts} "
        "texts (decomposed letters, surplus spaces): use text in NFC without these"
    )
    return Note("tokenizer-json", message)


def _left_out(questions: Exam) -> Note:
    message = (
        f"the tokenizer has no unknown token and rejects texts with characters it lacks: "
        f"{questions.left_out} of {questions.left_out + len(questions.texts)} texts are not compared"
    )
    return Note("unreadable-texts", message, warning=True)


def _equally_good(parity: Parity) -> Note:
    message = (
        f"in {parity.ties} of {parity.texts} texts two segmentations have the same score in the "
        "tokenizer and llama.cpp picks the other one, since it adds scores with higher precision; "
        "they count as equal"
    )
    return Note("equally-good", message)


def _allowed(parity: Parity) -> Note:
    message = (
        f"token ids differ from the checkpoint's tokenizer in {parity.texts - parity.exact} of {parity.texts}"
        f" texts ({parity.candidate}); written anyway (--allow-tokenizer-mismatch)"
    )
    return Note("tokenizer-mismatch", message, warning=True)


def mismatch(parity: Parity, questions: Exam, source: Source) -> KconvError:
    """The error for a vocabulary that was not matched, with the evidence.

    VocabError for a kind of tokenizer llama.cpp has no counterpart of, else TokenMismatch.
    """
    if homeless := unsupported_reason(source):
        equal = f"{parity.candidate}, the nearest, is equal for {parity.exact} of {parity.texts} texts"
        hint = f"{TO_ONNX}; --allow-tokenizer-mismatch writes the nearest anyway"
        return VocabError(f"{homeless} ({equal})", hint=hint)
    lines = [
        "llama.cpp does not give the checkpoint's token ids with any candidate vocabulary",
        f"  best of {max(len(parity.tried), 1)}: {parity.candidate}, {parity.exact} of {parity.texts} equal",
    ]
    if parity.error:
        lines.append(f"  {parity.error}")
    if parity.difference:
        lines += difference_lines(parity.difference, source.description.files[0])
    hint = "--allow-tokenizer-mismatch writes the best one anyway, with a warning in the manifest"
    if parity.error:
        hint = (
            "check for tokenizer files that were edited or belong to another checkpoint; nothing was written"
        )
    reason = explanation(parity, questions, source)
    if reason:
        hint = f"{reason}; {hint}"
    return TokenMismatch("\n".join(lines), hint=hint)


def difference_lines(difference: Difference, file: str) -> list[str]:
    """The text, and both token lists around the first place where they part."""
    parsed = "special tokens parsed" if difference.parse_special else "special tokens as plain text"
    added = ", BOS and EOS added" if difference.add_special else ""
    pairs = zip(difference.expected, difference.got, strict=False)
    apart = next((at for at, (left, right) in enumerate(pairs) if left != right), None)
    if apart is None:
        apart = min(len(difference.expected), len(difference.got))
    start = max(apart - _SHOWN_TOKENS // 3, 0)
    text = difference.text if len(difference.text) <= 200 else difference.text[:200] + "…"
    width = max(len(file), len("llama.cpp"))
    return [
        f"  first text that differs ({parsed}{added}): {text!r}",
        f"  {file:<{width}}: {_listed(difference.expected, difference.expected_pieces, start)}",
        f"  {'llama.cpp':<{width}}: {_listed(difference.got, difference.got_pieces, start)}",
    ]


def _listed(ids: tuple[int, ...], pieces: tuple[str, ...], start: int) -> str:
    stop = start + _SHOWN_TOKENS
    shown = [
        f"{token_id} {piece!r}" for token_id, piece in zip(ids[start:stop], pieces[start:stop], strict=True)
    ]
    return " ".join(["…"] * (start > 0) + shown + ["…"] * (stop < len(ids))) or "(no tokens)"
