"""Uvicorn's HTTP/1.1, with limits that it leaves to whoever stands before it: heads and how many connections there are.

A head must have come within REQUEST_TIMEOUT_SECONDS and in MAX_HEADER_BYTES, so that neither a client that sends a byte
now and then nor one that never ends keeps anything. Bodies are the endpoint's business.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bridge.refusals import json_error
from bridge.settings import Settings


def limited_protocol(settings: Settings) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn's `http`, with the limits of the settings."""

    class Limited(_LimitedProtocol):
        limits = settings

    return Limited


class _LimitedProtocol(HttpToolsProtocol):
    limits: Settings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes: int | None = 0
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        # Asked afterwards: what came with the end of a head is its body.
        if self._head_bytes is not None and self._head_bytes > self.limits.max_header_bytes:
            self._refuse(431, *self._too_large)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_bytes is None:
            self._head_bytes = 0
            self._await_head()

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        self._stop_waiting()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_header_bytes:
            self.app = _refusal(431, *self._too_large)
        elif len(self.connections) > self.limits.max_connections:
            message = "There are too many connections; try again in a moment."
            self.app = _refusal(503, "TOO_MANY_CONNECTIONS", message, {"Retry-After": "1"})
        super().on_headers_complete()

    @property
    def _too_large(self) -> tuple[str, str]:
        return "HEADERS_TOO_LARGE", f"The headers are larger than {self.limits.max_header_bytes} bytes."

    def _await_head(self) -> None:
        self._stop_waiting()
        self._patience = self.loop.call_later(self.limits.request_timeout_seconds, self._head_is_late)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _head_is_late(self) -> None:
        if not self._head_bytes:
            self.transport.close()  # nobody asked for anything
            return
        seconds = self.limits.request_timeout_seconds
        self._refuse(408, "REQUEST_TIMEOUT", f"The headers of the request did not arrive within {seconds:g} s.")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer what is no request, and close."""
        self._head_bytes = None
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:  # type: ignore[redundant-expr] # None before the first one
            body = json.dumps({"error": {"code": code, "message": message, "details": {}}}).encode()
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()


def _refusal(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> ASGIApp:
    """An app for a connection that gets nothing but this, and is closed."""
    return json_error(code, message, {}, status, {"Connection": "close", **(headers or {})})
