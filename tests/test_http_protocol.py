"""The bridge's HTTP against those who send too much, too slowly, or nothing: over real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import psutil
import pytest

from bridge.settings import Settings as BridgeSettings
from tests.page import body_of, say
from tests.scripted import ScriptedServer
from tests.system import System, open_bridge, open_system


@pytest.fixture
async def small(database_url: str) -> AsyncIterator[System]:
    async with open_system(database_url, ScriptedServer) as system:
        yield system


HEAD = b"POST /api/chatkit HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = json.dumps(body_of("threads.list")).encode()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


@asynccontextmanager
async def strict_bridge(small: System, **changes: Any) -> AsyncIterator[str]:
    async with open_bridge(small.target, replace(BridgeSettings(shutdown_grace_seconds=0), **changes)) as (url, _):
        yield url


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        body = await reader.readexactly(int(headers["content-length"]))
        return int(lines[0].split()[1]), headers, json.loads(body)


async def drip(writer: asyncio.StreamWriter, part: Callable[[int], bytes]) -> None:
    """Send a byte now and then, as an attack does that keeps connections."""
    number = 0
    while not writer.is_closing():
        writer.write(part(number))
        number += 1
        await asyncio.sleep(0.05)


async def test_a_head_that_comes_too_slowly_is_not_waited_for(small: System) -> None:
    async with strict_bridge(small, request_timeout_seconds=0.5) as url, connected(url) as (reader, writer):
        dripping = asyncio.create_task(drip(writer, lambda n: HEAD[n : n + 1]))
        began = time.monotonic()
        status, headers, body = await answer_of(reader)
        assert (status, headers["connection"]) == (408, "close")
        assert body["error"]["message"] == "The headers of the request did not arrive within 0.5 s."
        assert 0.4 < time.monotonic() - began < 2
        assert await reader.read() == b""
        dripping.cancel()


async def test_a_body_that_comes_too_slowly_is_not_waited_for(small: System) -> None:
    async with strict_bridge(small, request_timeout_seconds=0.5) as url, connected(url) as (reader, writer):
        writer.write(HEAD + b"content-length: 10000\r\n\r\n")
        dripping = asyncio.create_task(drip(writer, lambda _: b" "))
        status, _, body = await answer_of(reader)
        assert (status, body["error"]["message"]) == (400, "The body of the request did not arrive within 0.5 s.")
        dripping.cancel()


async def test_who_connects_and_says_nothing_is_let_go(small: System) -> None:
    async with strict_bridge(small, request_timeout_seconds=0.3) as url, connected(url) as (reader, _):
        async with asyncio.timeout(3):
            assert await reader.read() == b""


async def test_a_second_request_on_a_connection_has_as_much_time_as_the_first(small: System) -> None:
    async with strict_bridge(small, request_timeout_seconds=0.5) as url, connected(url) as (reader, writer):
        for _ in range(3):
            writer.write(HEAD + f"content-length: {len(BODY)}\r\n\r\n".encode() + BODY)
            assert (await answer_of(reader))[0] == 200
            await asyncio.sleep(0.3)
        dripping = asyncio.create_task(drip(writer, lambda n: HEAD[n : n + 1]))
        assert (await answer_of(reader))[0] == 408
        dripping.cancel()


@pytest.mark.parametrize("ends", [True, False])
async def test_headers_have_a_limit(small: System, ends: bool) -> None:
    async with strict_bridge(small, max_header_bytes=4096) as url, connected(url) as (reader, writer):
        writer.write(HEAD + b"x-large: " + b"x" * 5000 + (b"\r\ncontent-length: 0\r\n\r\n" if ends else b""))
        status, headers, body = await answer_of(reader)
        assert (status, headers["connection"]) == (431, "close")
        assert body["error"]["message"] == "The headers are larger than 4096 bytes."


async def test_a_head_that_never_ends_takes_no_memory(small: System) -> None:
    async with strict_bridge(small, max_header_bytes=4096) as url, connected(url) as (_, writer):
        writer.write(HEAD)
        sent = 0
        with suppress(ConnectionError):
            while sent < 100_000_000:
                writer.write(b"x-large: " + b"x" * 1000 + b"\r\n")
                sent += 1011
                await writer.drain()
                await asyncio.sleep(0)
        assert sent < 10_000_000  # what the sockets hold


async def test_a_large_body_is_no_large_head(small: System) -> None:
    async with strict_bridge(small, max_header_bytes=4096) as url, connected(url) as (reader, writer):
        body = BODY + b" " * 100_000
        writer.write(HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        assert (await answer_of(reader))[0] == 200


async def test_a_bridge_takes_so_many_connections_and_those_that_are_there_go_on(small: System) -> None:
    async with strict_bridge(small, max_connections=2) as url, AsyncExitStack() as stack:
        request = HEAD + f"content-length: {len(BODY)}\r\n\r\n".encode() + BODY
        first = [await stack.enter_async_context(connected(url)) for _ in range(2)]
        for reader, writer in first:
            writer.write(request)
            assert (await answer_of(reader))[0] == 200
        async with connected(url) as (reader, writer):
            writer.write(request)
            status, headers, body = await answer_of(reader)
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert body["error"]["code"] == "TOO_MANY_CONNECTIONS"
        silent = [await stack.enter_async_context(connected(url)) for _ in range(150)]
        for reader, writer in first:
            writer.write(request)
            assert (await answer_of(reader))[0] == 200
        # Those who say nothing are let go, the most of them at once.
        ends = await asyncio.gather(*(is_closed_within(reader, 3) for reader, _ in silent))
        assert all(ends)


async def is_closed_within(reader: asyncio.StreamReader, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await reader.read() == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


LATE = {"request_timeout_seconds": 0.5}


async def test_an_empty_line_now_and_then_keeps_no_connection(small: System) -> None:
    async with strict_bridge(small, **LATE) as url, connected(url) as (reader, writer):
        writer.write(HEAD + f"content-length: {len(BODY)}\r\n\r\n".encode() + BODY)
        assert (await answer_of(reader))[0] == 200
        writer.write(b"\r\n")
        assert await is_late_or_closed(reader)


async def is_late_or_closed(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(3):
        rest = await reader.read()
    return rest == b"" or rest.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n",
        b"POST /nothing HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
        HEAD + b"content-length: 100000000\r\n\r\n",
    ],
)
async def test_what_is_left_of_a_body_after_its_answer_is_not_waited_for(small: System, head: bytes) -> None:
    async with strict_bridge(small, **LATE) as url, connected(url) as (reader, writer):
        writer.write(head)
        assert (await answer_of(reader))[0] in {404, 413}
        writer.write(b"5")  # uvicorn waits no longer once a byte has come
        assert await is_late_or_closed(reader)


async def test_what_comes_after_a_chunked_body_is_not_kept(small: System) -> None:
    async with strict_bridge(small) as url, connected(url) as (reader, writer):
        before = psutil.Process().memory_info().rss
        writer.write(b"POST /nothing HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n")
        assert (await answer_of(reader))[0] == 404
        with suppress(ConnectionError):
            for _ in range(40_000):
                writer.write(b"x-trailer: " + b"x" * 1000 + b"\r\n")
                await writer.drain()
        assert psutil.Process().memory_info().rss - before < 15 * 2**20


async def test_a_stray_line_ends_no_stream(small: System) -> None:
    """As old clients send it after a body."""
    body = json.dumps(say("tokens 12 0.1")).encode()
    async with strict_bridge(small, **LATE) as url, connected(url) as (reader, writer):
        writer.write(HEAD + f"accept: text/event-stream\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        await reader.readuntil(b"thread.created")
        writer.write(b"\r\n")
        async with asyncio.timeout(10):
            assert b"t11 " in await reader.readuntil(b"t11 ")
