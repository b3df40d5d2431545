"""What the Hub, or the way to it, said no to: one sentence each, with the page or the command that helps.

The texts of huggingface_hub and of its HTTP client hold addresses, some of them signed, so none goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..core.errors import EnvironmentProblem, HubRefusal, KconvError
from ..core.input_files import quoted

if TYPE_CHECKING:
    from .names import HubName

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
KEPT = "what was fetched is kept"
_NAMED = 8  # branches or files in a message
TEMPORARY = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529)
"""Answers that may be others a little later."""
_WORDS = {
    429: "too many requests",
    500: "an error of its own",
    502: "bad gateway",
    503: "not available for now",
    504: "no answer in time",
}


class Temporary(Exception):
    """What may go better at the next try, ``wait`` seconds from now if the server says so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait


def status_text(code: int) -> str:
    """``503 (not available for now)``."""
    return f"{code} ({_WORDS[code]})" if code in _WORDS else str(code)


def is_no_connection(error: Exception) -> bool:
    """Whether the Hub was not even reached."""
    import httpx2

    return isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)


def is_of_the_token(error: BaseException) -> bool:
    """Whether the token cannot be sent; the text of the exception may hold it."""
    import httpx2

    return isinstance(error, UnicodeEncodeError | httpx2.LocalProtocolError)


def refusal(error: Exception, name: HubName, what: str = "") -> KconvError | Temporary:
    """What an exception of huggingface_hub's or its HTTP client's means; ``what`` is the file asked for."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return offline(name, what)
    if isinstance(error, errors.HfHubHTTPError):
        return _by_answer(error, name, what)
    if isinstance(error, errors.RevisionResolutionError) and isinstance(error.__cause__, Exception):
        return refusal(error.__cause__, name, what)
    if is_of_the_token(error):
        return HubRefusal(
            "the token here has characters that no token has",
            hint="`hf auth login` again, or correct HF_TOKEN",
        )
    if isinstance(error, httpx2.ProxyError):
        return EnvironmentProblem(
            "the proxy refuses the connection to the Hub", hint="check HTTPS_PROXY and HTTP_PROXY"
        )
    if is_no_connection(error):
        return Temporary("it cannot be reached")
    if isinstance(error, httpx2.TimeoutException):
        return Temporary("it gave no answer in time")
    if isinstance(error, httpx2.TransportError | httpx2.StreamError | OSError):
        return Temporary(f"the connection failed ({type(error).__name__})")
    if isinstance(error, ValueError | TypeError | KeyError | AssertionError | AttributeError):
        return Temporary("its answer is not one of a Hub")  # the sign-in page of a network, say
    return EnvironmentProblem(
        f"the Hub cannot be asked for {name}: {type(error).__name__}",
        hint="`hf env` shows the settings in use",
    )


def _by_answer(error: Exception, name: HubName, what: str) -> KconvError | Temporary:
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    code, page = error.response.status_code, name.page
    if isinstance(error, errors.GatedRepoError):  # before RepositoryNotFoundError, of which it is one
        if code == 401:
            return HubRefusal(
                f"{name.repository} is gated: the Hub gives its files to those who were granted access",
                hint=f"ask for access at {page}, then {LOG_IN}",
            )
        return HubRefusal(
            f"{name.repository} is gated, and the account of your token has no access to its files (yet)",
            hint=f"ask for access at {page}; if you have it, the token must be allowed to read gated "
            "repositories (`hf auth whoami` says whose it is)",
        )
    if isinstance(error, errors.DisabledRepoError):
        return HubRefusal(f"{name.repository} was disabled by the Hub", hint=f"see {page}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubRefusal(
            f"the Hub shows no repository {name.repository}: there is no such one, or it is private; and no "
            "folder of that name is here",
            hint=f"check the name at {page}; for a private one {LOG_IN}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return no_revision(name)
    if isinstance(error, errors.EntryNotFoundError):
        return HubRefusal(f"{name} has no file {quoted(what)}", hint=f"see {page}")
    if code in TEMPORARY:
        return Temporary(f"it answers {status_text(code)}", retry_after(error.response.headers))
    if code == 401:
        return HubRefusal(
            "the Hub refuses the token it was shown", hint="`hf auth login` again, or correct HF_TOKEN"
        )
    if code == 403:
        return HubRefusal(
            f"the Hub does not allow access to {name.repository} with this token",
            hint=f"see {page} and `hf auth whoami`",
        )
    return EnvironmentProblem(
        f"the Hub answers {status_text(code)} where {what or name} was asked for",
        hint=f"see {page}, and whether HF_ENDPOINT names a Hub",
    )


def retry_after(headers: object) -> float | None:
    """The seconds a server wants to be left alone: by Retry-After, or RateLimit as huggingface.co has it."""
    from huggingface_hub.utils import parse_ratelimit_headers

    get = getattr(headers, "get", None)
    if get is None:
        return None
    text = str(get("Retry-After") or "")
    if text.isascii() and text.isdecimal():
        return float(text)
    limit = parse_ratelimit_headers(headers)  # type: ignore[arg-type]
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def no_revision(name: HubName) -> HubRefusal:
    """The error for a revision there is not, with those there are, as far as the Hub says them."""
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(name.repository)
        there = [each.name for each in (*refs.branches, *refs.tags)]
    except Exception:  # a list would have helped, that is all
        there = []
    listed = f"; there are: {_named(there)}" if there else ""
    return HubRefusal(
        f"{name.repository} has no revision {quoted(name.revision)}{listed}",
        hint=f"see {name.page}/tree/main for its branches; without a revision, main is taken",
    )


def gave_up(reason: str, name: HubName, what: str = "", tries: int = 1) -> EnvironmentProblem:
    """The error for what went wrong too often."""
    about = f"{what} of {name}" if what else str(name)
    once = f"{host()} was asked for {about}, but {reason}"
    return EnvironmentProblem(
        f"{host()} was asked {tries} times for {about}, but {reason}" if tries > 1 else once,
        hint=f"check the network and run it again: {KEPT}; HF_HUB_OFFLINE=1 takes what is here",
    )


def offline(name: HubName, what: str = "") -> HubRefusal:
    """The error for what is not here while the Hub must not be asked."""
    about = f"{what} of {name}" if what else str(name)
    return HubRefusal(
        f"HF_HUB_OFFLINE forbids to ask the Hub for {about}, which is not (all) in its cache here",
        hint="unset HF_HUB_OFFLINE, or put it into the cache on a machine with a connection: "
        f"hf download {name.repository}{_option(name)}",
    )


def incomplete(name: HubName, commit: str, missing: Sequence[str], size: str, why: KconvError) -> KconvError:
    """The error for a cache that holds a part of what is needed, while the Hub gives no more: ``why``."""
    shown = f"{_named(missing)} ({size})"
    message = f"the Hub's cache holds only a part of {name} (commit {commit[:12]}); missing: {shown}"
    return type(why)(f"{message}; {why.message}", hint=why.hint)


def partial_cache(name: HubName, commit: str, there: Sequence[str], why: KconvError) -> KconvError:
    """The same where the list of files is not known, but config.json or weights are not there."""
    shown = _named(there) or "nothing"
    held = (
        f"the Hub's cache holds only a part of {name} (commit {commit[:12]}), without weights or config.json"
    )
    return type(why)(f"{held}: {shown}; {why.message}", hint=why.hint)


def not_in_cache(name: HubName, commit: str, there: Sequence[str], why: KconvError) -> KconvError:
    """The same for a GGUF of a repository whose list is not known; ``there`` are those that are."""
    shown = f", which has {_named(there)}" if there else ""
    held = f"hf://{name} is not in the Hub's cache (commit {commit[:12]}){shown}"
    return type(why)(f"{held}; {why.message}", hint=why.hint)


def _named(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(quoted(each)[1:-1] for each in names[:_NAMED]) + more


def _option(name: HubName) -> str:
    return "" if name.revision is None else f" --revision {name.revision}"


def host() -> str:
    """The name of the Hub's machine."""
    from .names import endpoint

    return urlsplit(endpoint()).hostname or "the Hub"
