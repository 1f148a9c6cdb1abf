"""Many streams at once, read by a client that only notes what came when, and looks into it after the last has ended.

It shares the machine with what it measures, so whatever can wait until then does.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

_DELTA = re.compile(rb'"delta":"(\d{5}) (\d{17}) "')
_DELTA_LENGTH = 24
_END = b"0\r\n\r\n"
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask for. Each of `streams` connections gets `deltas` text deltas, `per_second` of them or all at once."""

    streams: int
    deltas: int
    per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a stream got. Times in nanoseconds, of time.monotonic_ns().

    first_byte_at: when the first byte of the body came.
    delays: of each delta, from its making to its arrival.
    """

    events: int
    sent_at: int
    first_byte_at: int
    ended_at: int
    delays: list[int]


@dataclass(frozen=True, slots=True)
class Run:
    """All answers to a load, and what reading them cost this process."""

    answers: list[Answer]
    cpu_seconds: float


class WrongAnswerError(Exception):
    """A stream that isn't what was asked for."""


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.reads: list[tuple[int, bytes]] = []
        self.sent_at = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: Any = None
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Any: uvloop's own are no asyncio.Transport.
        self._transport = transport

    def send(self, request: bytes) -> None:
        self.sent_at = time.monotonic_ns()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.reads.append((time.monotonic_ns(), data))
        # The last chunk may come in two reads.
        self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        if self._tail == _END:
            self._finish(None)
        elif len(self.reads) == 1 and not data.startswith(b"HTTP/1.1 200 "):
            self._finish(WrongAnswerError(f"refused: {data[:500]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(WrongAnswerError(f"the connection was lost in the middle: {exc!r}"))

    def _finish(self, error: Exception | None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)

    def close(self) -> None:
        # What nobody waits for any more is no error that anybody has to be told of.
        self.done.cancel()
        self._transport.abort()


class _Body:
    """The body of a response without its transfer encoding, which still knows when each byte of it came."""

    def __init__(self, reads: list[tuple[int, bytes]]) -> None:
        self._times = [moment for moment, _ in reads]
        self._read_ends = list(accumulate(len(data) for _, data in reads))
        self._starts: list[int] = []
        self._shifts: list[int] = []
        raw = b"".join(data for _, data in reads)
        parts: list[bytes] = []
        length, position = 0, raw.index(b"\r\n\r\n") + 4
        while size := int(raw[position : (line_end := raw.index(b"\r\n", position))], 16):
            self._starts.append(length)
            self._shifts.append(line_end + 2 - length)
            parts.append(raw[line_end + 2 : line_end + 2 + size])
            length += size
            position = line_end + 2 + size + 2
        self.data = b"".join(parts)

    def arrival(self, end: int) -> int:
        """When the byte before `end` came."""
        raw_end = end + self._shifts[bisect_right(self._starts, end - 1) - 1]
        return self._times[bisect_left(self._read_ends, raw_end)]


async def run(port: int, load: Load, limit: float) -> Run:
    """Open all connections, send all requests at once, read all answers.

    Raises WrongAnswerError, and TimeoutError after `limit` seconds.
    """
    loop = asyncio.get_running_loop()
    connections: list[_Connection] = []
    try:
        async with asyncio.timeout(limit):
            for _ in range(load.streams):
                _transport, connection = await loop.create_connection(_Connection, "127.0.0.1", port)
                connections.append(connection)
            began = time.process_time()
            for number, connection in enumerate(connections):
                connection.send(_request(port, load, number))
            await asyncio.gather(*(connection.done for connection in connections))
            cpu_seconds = time.process_time() - began
    finally:
        for connection in connections:
            connection.close()
    return Run([_answer(connection, load) for connection in connections], cpu_seconds)


def _request(port: int, load: Load, number: int) -> bytes:
    # Spread evenly, since people don't type in step.
    delay = number * _GOLDEN % 1 / load.per_second if load.per_second else 0.0
    asked = json.dumps({"deltas": load.deltas, "per_second": load.per_second, "delay": delay})
    message = {"content": [{"type": "input_text", "text": asked}], "attachments": [], "inference_options": {}}
    body = json.dumps({"type": "threads.create", "params": {"input": message}}).encode()
    head = (
        "POST /api/chatkit HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{port}\r\n"
        "Content-Type: application/json\r\n"
        "Accept: text/event-stream\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _answer(connection: _Connection, load: Load) -> Answer:
    body = _Body(connection.reads)
    deltas = list(_DELTA.finditer(body.data))
    numbers = [int(delta[1]) for delta in deltas]
    if numbers != list(range(load.deltas)):
        raise WrongAnswerError(f"expected {load.deltas} deltas in order, got {len(numbers)}")
    return Answer(
        events=_count_events(body.data, load),
        sent_at=connection.sent_at,
        first_byte_at=body.arrival(1),
        ended_at=connection.reads[-1][0],
        delays=[body.arrival(delta.end()) - int(delta[2]) for delta in deltas],
    )


def _count_events(body: bytes, load: Load) -> int:
    events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: ")]
    kinds = [event["type"] for event in events]
    before = ["thread.created", "thread.item.done", "stream_options", "thread.item.added"]
    expected = [*before, *["thread.item.updated"] * load.deltas, "thread.item.done"]
    if kinds != expected:
        raise WrongAnswerError(f"expected {len(expected)} events, got {len(kinds)}: {kinds[:5]} … {kinds[-2:]}")
    text = events[-1]["item"]["content"][0]["text"]
    if len(text) != load.deltas * _DELTA_LENGTH:
        raise WrongAnswerError(f"the answer ends with {len(text)} characters of {load.deltas * _DELTA_LENGTH}")
    return len(events)
