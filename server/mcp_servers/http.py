"""An MCP server at a URL, by streamable HTTP, with bounds on what it answers."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import httpx2
from mcp.client.streamable_http import streamable_http_client

from server.mcp_servers.child import FloodMeter, Streams
from server.mcp_servers.settings import HttpSettings


class TooLargeError(httpx2.StreamError):
    """An answer without end. The SDK takes an error of this kind for that of one call, and others for the session's."""


@asynccontextmanager
async def open_http(settings: HttpSettings, authorization: str | None = None) -> AsyncIterator[Streams]:
    """A way to a server; nothing is sent yet.

    authorization: the header of the user that all is asked for, in place of what the settings have.
    """
    # Compressed answers would have to be bounded once more.
    headers = httpx2.Headers({**settings.headers, "accept-encoding": "identity"})
    if authorization is not None:
        headers["authorization"] = authorization
    async with (
        httpx2.AsyncClient(
            headers=headers,
            # A stream may be silent for long; how long a call may take is seen to by whoever makes it.
            timeout=httpx2.Timeout(settings.connect_timeout_seconds, read=None),
            transport=_BoundedTransport(settings.max_message_bytes),
        ) as client,
        streamable_http_client(settings.url, http_client=client, max_sse_event_size=settings.max_message_bytes) as (
            received,
            to_send,
        ),
    ):
        yield received, to_send  # type: ignore[misc] # the SDK's streams are of its own kind, with the same methods


class _BoundedTransport(httpx2.AsyncBaseTransport):
    """Lets answers through that are as they were asked for and not too large."""

    def __init__(self, most: int) -> None:
        self._inner = httpx2.AsyncHTTPTransport(verify=_trust())
        self._most = most

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        stream = response.stream
        assert isinstance(stream, httpx2.AsyncByteStream)  # noqa: S101 # an asynchronous transport has no other
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await stream.aclose()
            raise httpx2.RemoteProtocolError("a compressed answer, which wasn't asked for")
        has_events = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        response.stream = _SteadyStream(stream) if has_events else _BoundedStream(stream, self._most)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
        self._stream = stream
        self._left = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._left -= len(chunk)
            if self._left < 0:
                raise TooLargeError("the answer is too large")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class _SteadyStream(httpx2.AsyncByteStream):
    """Server-sent events: they have no end, and the SDK bounds each of them; here it is seen to how many there are."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream
        self._meter = FloodMeter()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            if self._meter.is_flood(chunk.count(b"data:")):
                raise TooLargeError("too many events")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


@cache
def _trust() -> ssl.SSLContext:
    """Whom we trust. To read the authorities takes 20 ms, and a user's connection is made for each call."""
    return httpx2.create_ssl_context()
