"""``kconv serve``: an OpenAI-compatible endpoint for a GGUF file or an ONNX folder, with a chat page."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import EnvironmentProblem, UsageError
from ..core.language import _
from ..runtimes import KV_TYPES
from .answers import show_note
from .console import say, show_log
from .errors import forget_interrupt
from .options import PATH, json_option, threads_option, verbose_option
from .progress import shown_progress
from .sources import SOURCE, revision_option

if TYPE_CHECKING:
    from ..flows.serving import ServedModel

EXAMPLES = """\b
Examples:
  kconv serve 42dot_LLM-SFT-1.3B-Q4_0.gguf
  kconv serve gbst-kebyt5-large-preview-Q8_0.gguf --port 8081
  KCONV_API_KEY=secret kconv serve model.gguf --host 0.0.0.0 --name models.example.com
"""
KEY = "KCONV_API_KEY"


@click.command("serve", short_help="Serve a model: OpenAI-compatible, with a chat page.", epilog=EXAMPLES)
@click.argument("artifact", type=SOURCE)
@revision_option
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen at."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    metavar="N",
    help="Port to listen at; 0: any that is free.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST",
    help="A name by which clients call this server, besides localhost. Repeatable.",
)
@click.option(
    "--ctx",
    "context",
    type=click.IntRange(1, 10_000_000),
    metavar="N",
    help="Context size in tokens.  [default: 4096, or what the model was trained with]",
)
@click.option(
    "--kv-type",
    type=click.Choice(KV_TYPES, case_sensitive=False),
    help="Type of llama.cpp's attention cache.  [default: f16]",
)
@click.option(
    "--front-end",
    type=PATH,
    metavar="FILE",
    help="Front end of a GBST model.  [default: the matching gbst-….gguf next to ARTIFACT]",
)
@threads_option
@json_option
@verbose_option
def command(
    artifact: str | Path,
    host: str,
    port: int,
    names: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Serve ARTIFACT, a GGUF file or an ONNX folder, until Ctrl-C.

    The server answers POST /v1/chat/completions, POST /v1/completions and GET /v1/models as OpenAI's does,
    one request after another, streamed where that is asked for; a chat page is at /. Encoder-decoders (T5,
    KEByT5, GBST-KEByT5) are served, too: the last message is what the encoder reads. Only programs and pages
    of this machine may ask. At another --host the key in the variable KCONV_API_KEY is demanded of clients.
    """
    key = os.environ.get(KEY) or None
    if host not in ("127.0.0.1", "localhost", "::1") and key is None:
        raise UsageError(
            f"--host {host} can be reached from other machines, and no key is set",
            hint=f"set a key that clients have to send: {KEY}=… kconv serve {shlex.quote(str(artifact))}",
        )
    listening = _listen(host, port)
    loaded = threading.Event()
    with contextlib.ExitStack() as stack:
        with shown_progress() as shown:
            from ..flows.conversation import open_conversation
            from ..flows.serving import ServedModel

            def progress(stage: str, done: int, total: int) -> None:
                if not loaded.is_set():  # what requests take is their own affair
                    shown(stage, done, total)

            conversation = open_conversation(
                artifact,
                **options,
                announce=partial(show_note, verbose=verbose),
                log=show_log if verbose else None,
                progress=progress,
            )
            model = ServedModel(stack.enter_context(conversation))
            loaded.set()
        _serve(model, listening, (*names, *([host] if key else [])), key, as_json=as_json)


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before anything is loaded. Raises EnvironmentProblem."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen()  # only this keeps another server from the address
    except OSError as error:
        made.close()
        raise EnvironmentProblem(
            f"cannot listen at {host}:{port}: {error.strerror or error}",
            hint="choose another --port, or 0 for any that is free",
        ) from error
    return made


def _serve(
    model: ServedModel, listening: socket.socket, names: tuple[str, ...], key: str | None, *, as_json: bool
) -> None:
    import uvicorn

    from ..flows.serving_app import application
    from .console import emit_json

    host, port = listening.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    settings = uvicorn.Config(application(model, names, key), log_level="warning", lifespan="off")
    server = uvicorn.Server(settings)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listening]}, name="kconv-http", daemon=True
    )
    thread.start()
    while thread.is_alive() and not server.started:
        thread.join(0.01)
    if not server.started:
        raise EnvironmentProblem(f"the server at {url} did not start", hint="choose another --port")
    if as_json:
        emit_json({"url": url, "model": model.name, "context": model.context})
        sys.stdout.flush()
    else:
        say(f"{model.name} at {url} (chat page) and {url}/v1 (OpenAI's interface); Ctrl-C ends it", err=True)
    try:
        while thread.is_alive():
            thread.join(0.5)
    except KeyboardInterrupt:  # the usual end
        server.should_exit = server.force_exit = True
        thread.join(10)
        forget_interrupt()
        say("\n" + _("kconv: stopped"), err=True)  # below the ^C that a terminal shows
