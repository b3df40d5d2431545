"""The conversation ``kconv run FILE`` opens in a terminal."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import KconvError, OutputExists, UsageError
from ..core.files import atomic_file
from ..core.language import _, phrase, translated
from .answers import show_text
from .console import say
from .errors import forget_interrupt

if TYPE_CHECKING:
    from ..flows.conversation import Conversation, Turn

COMMANDS = {
    "/system": phrase("/system TEXT: set the system prompt and begin anew; alone: show it"),
    "/regenerate": phrase("/regenerate: another answer to the last question"),
    "/clear": phrase("/clear: begin anew"),
    "/save": phrase("/save FILE: write the conversation as JSON (messages with role and content)"),
    "/help": phrase("/help: this list"),
    "/exit": phrase("/exit, or Ctrl-D: leave"),
}
_COMMAND = re.compile(r"/[a-z]*")
"""A first word that is meant for kconv; ``/etc/hosts`` is not."""
_MULTI_LINE = phrase(
    "Enter sends; Alt-Enter (or Esc, Enter) begins a new line; Ctrl-C stops an answer; arrow keys recall"
)


def converse(conversation: Conversation, read: Callable[[], str] | None = None) -> None:
    """Ask and answer until the user leaves. ``read`` gives the next input; EOFError ends the conversation."""
    read = read or _reader()
    say(
        _("{file}: context {size:,} tokens", file=conversation.loaded.path, size=conversation.context),
        err=True,
    )
    if not conversation.chats:
        say(_("no chat template: each text is completed by itself, without the ones before"), err=True)
    say(_("/help lists the commands; Ctrl-D leaves"), err=True)
    while True:
        try:
            text = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:  # with nothing to stop: the line is given up
            continue
        if not text:
            continue
        word = text.split()[0]
        if word in ("/exit", "/quit", "/bye"):
            return
        with _told():
            if _COMMAND.fullmatch(word):
                _command(conversation, text)
            else:
                _show(conversation.ask(text, show_text))
        forget_interrupt()


def _command(conversation: Conversation, text: str) -> None:
    name, rest = (*text.split(maxsplit=1), "")[:2]
    if name == "/help":
        say("\n".join(translated(line) for line in (*COMMANDS.values(), _MULTI_LINE)), err=True)
    elif name == "/clear":
        conversation.history.clear()
        say(_("begun anew"), err=True)
    elif name == "/system":
        if rest and not conversation.chats:
            raise UsageError(
                "this model has no chat format, so a system prompt has no place in what it reads"
            )
        if rest:
            conversation.system = rest
            conversation.history.clear()
            say(_("system prompt set; begun anew"), err=True)
        else:
            say(conversation.system or _("there is no system prompt but the template's own"), err=True)
    elif name == "/regenerate":
        _show(conversation.regenerate(show_text))
    elif name == "/save":
        _save(conversation, rest)
    else:
        raise UsageError(f"there is no command {name}", hint=f"commands are: {', '.join(COMMANDS)}")


def _save(conversation: Conversation, name: str) -> None:
    if not name:
        raise UsageError("/save needs the name of a file", hint="/save chat.json")
    import json

    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    content = {
        "model": str(conversation.loaded.path),
        "messages": [*system, *conversation.history],
    }
    path = Path(name).expanduser()
    if os.path.lexists(path):
        raise OutputExists(f"{path} already exists", hint="choose another name")
    with atomic_file(path, force=False) as temporary:
        text = json.dumps(content, ensure_ascii=False, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    say(_("{file} written", file=path), err=True)


def _show(turn: Turn) -> None:
    """The end of an answer: how fast it was, and how full the context is."""
    click.echo()
    used = turn.prompt_tokens + turn.tokens
    ended = {
        "length": _(" · cut off (-n or --ctx allows more; /clear makes room)"),
        "interrupted": _(" · stopped"),
    }.get(turn.stop_reason, "")
    rate = _("{rate:.1f} tokens/s · ", rate=turn.rate) if turn.rate else ""
    room = _("{used:,} of {size:,} tokens", used=used, size=turn.context)
    say(f"[{rate}{room}{ended}]", err=True)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What is wrong with one input is said, and the conversation goes on."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(err=True)
    except KconvError as error:
        say(f"kconv: {error.message}", err=True)
        if error.hint:
            say(f"  {error.hint}", err=True)


def _reader() -> Callable[[], str]:
    """Input with history, completion of commands, and several lines."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    kept = _history_file()
    history: History = InMemoryHistory() if kept is None else FileHistory(str(kept))
    session: PromptSession[str] = PromptSession(
        history=history,
        key_bindings=keys,
        multiline=True,
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
    )
    return lambda: session.prompt("> ")


def _history_file() -> Path | None:
    """Where inputs are remembered, for their owner alone; None where there is no such place."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    path = Path(state).expanduser() / "kconv" / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError:
        return None
    return path
