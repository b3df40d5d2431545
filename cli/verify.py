"""``kconv verify``: hold a GGUF file or an ONNX folder against the checkpoint it was made from."""

from __future__ import annotations

from pathlib import Path

import click

from ..core.errors import InputError
from ..core.language import _
from .console import emit_json, end_unproven, say
from .options import PATH, json_option, rehash_option, threads_option, verbose_option
from .report_option import naming_the_report, refuse_report
from .sources import SOURCE

EXAMPLES = """\b
Examples:
  kconv verify 42dot-Q4_0.gguf --against ./42dot_LLM-SFT-1.3B
  kconv verify 42dot-Q4_0.gguf --against ./42dot_LLM-SFT-1.3B --report proof.html
  kconv verify 42dot-Q4_0.gguf --against ./42dot_LLM-SFT-1.3B --text news.txt --tokens 4096
  kconv verify 42dot-Q4_0.gguf --against ./42dot_LLM-SFT-1.3B --max-kl 0.1 --json
  kconv verify kebyt5-Q8_0.gguf --against ./kebyt5-base-preview --text pairs.tsv
  kconv verify ./42dot-onnx --against ./42dot_LLM-SFT-1.3B

Exit codes: 0 passed, or passed with warnings; 1 failed; 2 wrong usage; 3 input refused; 4 environment,
or not decided (a process that measured the file died).
"""


@click.command(
    "verify", short_help="Prove a GGUF file or an ONNX folder against its checkpoint.", epilog=EXAMPLES
)
@click.argument("artifact", type=SOURCE)
@click.option("--against", type=SOURCE, required=True, metavar="CHECKPOINT", help="Folder of the checkpoint.")
@click.option(
    "--text",
    "texts",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="UTF-8 text to compare on. Repeatable. For an encoder-decoder: pairs, SOURCE<TAB>TARGET on each "
    "line; text without tabs is turned into gap-filling pairs, as in pre-training.  [default: a few "
    "thousand tokens of built-in Korean and English]",
)
@click.option("--tokens", type=click.IntRange(min=2), metavar="N", help="Use at most N tokens of each text.")
@click.option(
    "--window",
    type=click.IntRange(min=2),
    metavar="N",
    help="Tokens per window, each read from an empty cache (by the encoder, if there is one).  [default: "
    "512, or the model's context if smaller]",
)
@click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="[TYPE=]VALUE",
    help="Fail if a file of this type loses more: mean KL divergence in nats (f32: NMSE of the logits). "
    "Repeatable.",
)
@click.option("--max-kl", type=float, metavar="X", help="Fail if the mean KL divergence is above X nats.")
@click.option(
    "--min-cosine",
    type=float,
    metavar="X",
    help="Fail if an encoder's embeddings have a mean cosine below X with the checkpoint's.",
)
@click.option(
    "--policy",
    type=PATH,
    metavar="FILE",
    help="TOML file with such limits: max_kl = X, and a table [gates] by type.",
)
@click.option(
    "--diagnose/--no-diagnose",
    default=None,
    help="Find the layer that goes wrong, at the cost of two more passes over the weights.  [default: if "
    "the file is wrong]",
)
@click.option(
    "--ignore-manifest",
    is_flag=True,
    help="Continue even if the checkpoint is not the one recorded in the manifest.",
)
@click.option(
    "--front-end",
    type=PATH,
    metavar="FILE",
    help="Front end of a GBST model.  [default: the matching gbst-….gguf next to ARTIFACT]",
)
@click.option("--report", type=PATH, metavar="FILE.html", help="Write a detailed report to an HTML file.")
@rehash_option
@threads_option
@click.option("--force", is_flag=True, help="Overwrite an existing report.")
@json_option
@verbose_option
def command(
    artifact: str | Path,
    against: str | Path,
    texts: tuple[Path, ...],
    tokens: int | None,
    window: int | None,
    gates: tuple[str, ...],
    max_kl: float | None,
    min_cosine: float | None,
    policy: Path | None,
    diagnose: bool | None,
    ignore_manifest: bool,
    front_end: Path | None,
    report: Path | None,
    rehash: bool,
    threads: int | None,
    force: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Prove ARTIFACT, a GGUF file or an ONNX folder, against the checkpoint it was made from.

    Two questions are answered. Is the file right? Its vocabulary gives the checkpoint's token ids, its
    metadata and every tensor are as they should be, and llama.cpp computes what the file contains (recomputed
    matrix by matrix, with the file's own weights). And how much does it lose? Its logits on the CPU are
    compared with the checkpoint's in fp32; a loss only fails above a limit you give. Files made by other
    programs can be verified, too, and files of decoders kconv cannot convert, if transformers has a class for
    them: what names do not tell is then "not compared".

    For an ONNX folder the tokenizer, the settings, the weights (by the checkpoint's names) and the logits in
    onnxruntime are compared: of whole windows and, to test cache and mask, token by token and in padded
    batches. Files that differ from the folder's kconv.manifest.json only cause warnings.
    """
    if report is not None:
        refuse_report(report, force=force)
    _refuse_folder(artifact, against)

    from .progress import announce, shown_progress
    from .telling import ProofTeller

    with shown_progress() as progress, ProofTeller(quiet=as_json) as observer:
        from ..core.text_files import read_texts
        from ..flows.verify import verify
        from ..verify.gates import parse_gates, positive
        from .policy import read_policy

        limits, upper = ({}, None) if policy is None else read_policy(policy)
        limits.update(parse_gates(gates))
        most = upper if max_kl is None else positive(max_kl, f"--max-kl {max_kl}")
        read = read_texts(texts) if texts else None
        proof = verify(
            artifact,
            against,
            texts=read,
            tokens=tokens,
            window=window,
            gates=limits,
            max_kl=most,
            min_cosine=min_cosine,
            diagnose=diagnose,
            ignore_manifest=ignore_manifest,
            front_end=front_end,
            rehash=rehash,
            threads=threads,
            progress=progress,
            announce=announce,
            observer=observer,
        )
    if not as_json:  # before the report, so that a full disk does not cost the verdict
        with shown_progress():
            from .proof_text import proof_rest

            text = proof_rest(proof)
        click.echo(f"\n{text}")
    if report is not None:
        with naming_the_report(), shown_progress():
            from ..report.html import write_report

            write_report([proof], report, force=force)
    if as_json:
        emit_json({**proof.to_json(), "report": None if report is None else str(report)})
    elif report is not None:
        say(_("report: {path}", path=report))
    from ..report.words import cause

    end_unproven([(proof.verdict, f"{artifact}: {cause(proof)}")], silently=not as_json)


def _refuse_folder(artifact: str | Path, against: str | Path) -> None:
    from ..runtimes.onnx_folder import holds_onnx

    if isinstance(artifact, str) or not artifact.is_dir() or holds_onnx(artifact):
        return
    hint = (
        f"the file comes first: kconv verify {against} --against {artifact}"
        if Path(against).is_file()
        else f"convert it first: kconv to-gguf {artifact}"
    )
    raise InputError(
        f"{artifact} is a folder without ONNX files; expected a GGUF file or an ONNX folder",
        hint=hint,
    )
