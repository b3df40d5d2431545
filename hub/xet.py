"""The bytes of a file out of Xet, the Hub's store of chunks, through hf_xet.

hf_xet gives a file from any offset, in order; whoever takes it hashes it, since a stream may pass on a chunk
that was damaged in the store. Where it is not installed, switched off (HF_HUB_DISABLE_XET) or fails, the same
file comes by plain HTTP.
https://huggingface.co/docs/hub/xet
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .names import endpoint
from .source import HubFile, HubSource


class XetFailed(Exception):
    """It did not work; plain HTTP may."""


class Xet:
    """The connection for the files of one source, made when the first is asked for."""

    def __init__(self, source: HubSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._group: Any = None

    def offers(self, file: HubFile) -> bool:
        """Whether the file is to be had this way."""
        from huggingface_hub import constants

        allowed = not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None
        return file.xet is not None and allowed

    def pieces(
        self, file: HubFile, start: int = 0, *, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[bytes]:
        """The bytes from ``start`` to the end, in order. Raises XetFailed; InterruptedError once stopped."""
        try:
            from hf_xet import XetFileInfo

            stream = self._opened().download_stream(XetFileInfo(file.xet, file.size), start, file.size)
        except Exception as error:
            raise XetFailed(type(error).__name__) from error
        try:
            while True:
                try:
                    piece = next(stream, None)
                except Exception as error:
                    raise XetFailed(type(error).__name__) from error
                if piece is None:
                    return
                if stopped():
                    raise InterruptedError(f"fetching {file.path} was stopped")
                if piece:
                    yield bytes(piece)
        finally:
            stream.cancel()

    def _opened(self) -> Any:
        with self._lock:
            if self._group is None:
                self._group = self._open()
            return self._group

    def _open(self) -> Any:
        import hf_xet
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        source, headers = self._source, build_hf_headers()
        refresh = f"{endpoint()}/api/models/{source.repository}/xet-read-token/{source.commit}"
        answer = get_session().get(refresh, headers=headers, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        hf_raise_for_status(answer)
        told = answer.json()
        self._session = hf_xet.XetSession()
        return self._session.new_download_stream_group(
            endpoint=told["casUrl"],
            token=told["accessToken"],
            token_expiry_unix_secs=int(told["exp"]),
            token_refresh_url=refresh,
            token_refresh_headers=headers,
            custom_headers={key: text for key, text in headers.items() if key.lower() != "authorization"},
        )
