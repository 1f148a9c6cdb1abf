"""Uvicorn's HTTP/1.1, with limits that it leaves to whoever stands before it: of heads, and of connections.

A head must have come within REQUEST_TIMEOUT_SECONDS and in MAX_HEADER_BYTES, so that neither a client that sends a byte
now and then nor one that never ends keeps anything. Bodies are the endpoint's business while it reads them; what is
left of one when its answer is complete has as long as a head.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bridge.errors import json_error
from bridge.settings import Settings

_LEFT_TO_SAY_NO = 100
"""How many connections beyond the limit are told so; more are closed without a word."""
_NEWCOMERS_SECONDS = 1.0
"""How long one of those may take to ask."""


def limited_protocol(settings: Settings) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn's `http`, with the limits of the settings."""

    class Limited(_LimitedProtocol):
        limits = settings

    return Limited


class _LimitedProtocol(HttpToolsProtocol):
    limits: Settings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._is_in_head = True
        self._is_in_message = False
        self._is_one_too_many = False
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        beyond = len(self.connections) - self.limits.max_connections
        if beyond > _LEFT_TO_SAY_NO:
            transport.abort()
            return
        # Those who were there before go on.
        self._is_one_too_many = beyond > 0
        self._wait(_NEWCOMERS_SECONDS if self._is_one_too_many else self.limits.request_timeout_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_in_message and self._patience is None and not self._is_answering:
            # Between two requests: uvicorn waits no longer once a byte has come, be it an empty line.
            self._await_head()
        self._head_bytes += len(data) if self._is_in_head else 0
        super().data_received(data)
        # Asked afterwards: what came with the end of a head is its body.
        if self._is_in_head and self._head_bytes > self.limits.max_header_bytes:
            self._refuse_large_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_message = True
        if not self._is_in_head:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        # What comes after a chunked body is of no use to anybody here, and uvicorn would keep it.
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_waiting()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_header_bytes:
            self.app = json_error("HEADERS_TOO_LARGE", self._too_large, {}, 431, {"Connection": "close"})
        elif self._is_one_too_many:
            message = "There are too many connections; try again in a moment."
            headers = {"Connection": "close", "Retry-After": "1"}
            self.app = json_error("TOO_MANY_CONNECTIONS", message, {}, 503, headers)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_message = False
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_in_message:
            self._wait(self.limits.request_timeout_seconds)

    def _await_head(self) -> None:
        self._is_in_head = True
        self._head_bytes = 0
        self._wait(self.limits.request_timeout_seconds)

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._patience = self.loop.call_later(seconds, self._is_late)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _is_late(self) -> None:
        self._patience = None
        if self._is_answering:
            return  # what comes meanwhile is waited for afterwards
        if self._is_in_head and self._head_bytes:
            seconds = self.limits.request_timeout_seconds
            message = f"The headers of the request did not arrive within {seconds:g} s."
            self._refuse(408, "REQUEST_TIMEOUT", message)
        else:
            self.transport.close()  # nobody asked for anything, or the answer is there already

    @property
    def _is_answering(self) -> bool:
        # There is none before the first request, whatever its type says.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    @property
    def _too_large(self) -> str:
        return f"The headers are larger than {self.limits.max_header_bytes} bytes."

    def _refuse_large_head(self) -> None:
        self._refuse(431, "HEADERS_TOO_LARGE", self._too_large)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer what is no request, and close."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if not self._is_answering:
            response = json_error(code, message, {}, status, {"Connection": "close"})
            head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
            self.transport.write(STATUS_LINE[status] + head + b"\r\n" + bytes(response.body))
        self.transport.close()
