"""An MCP server as a child process, spoken to over its standard input and output.

The MCP SDK's own stdio transport does the same without bounds: it joins a line without end piece by piece, and logs
lines that are no message with what stands in them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

from server.mcp_servers.settings import ChildSettings

Incoming: TypeAlias = MemoryObjectReceiveStream[SessionMessage | Exception]
Streams: TypeAlias = tuple[Incoming, MemoryObjectSendStream[SessionMessage]]
"""What comes from a server, and what goes to it, as the SDK's transports have them."""

_PATIENCE_SECONDS = 1.0
_LOOK_SECONDS = 0.2
"""How long a child may take to end once its input has ended, and once more after SIGTERM."""
_MOST_JUNK_LINES = 100
"""How many lines that are no message are passed over: some programs greet on standard output."""
_MOST_MESSAGES_PER_SECOND = 1000

log = logging.getLogger(__name__)


@asynccontextmanager
async def run_child(name: str, settings: ChildSettings, on_end: Callable[[], None]) -> AsyncIterator[Streams]:
    """Start a server; leaving the context ends it and whatever it has started. Raises OSError where it can't be.

    on_end: is called once nothing more comes from it.
    """
    process = await asyncio.create_subprocess_exec(
        settings.command,
        *settings.args,
        env=get_default_environment() | settings.env,
        cwd=settings.cwd,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # It may hold what users say.
        stderr=None if settings.show_stderr else asyncio.subprocess.DEVNULL,
        # Its own group: signals for us don't reach it, and ours reach all that it starts.
        start_new_session=True,
        limit=settings.max_message_bytes,
    )
    incoming, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    to_send, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    reading = asyncio.create_task(_Reader(name, process, incoming).read(), name=f"from {name}")
    reading.add_done_callback(lambda _: on_end())
    writing = asyncio.create_task(_write(process, outgoing), name=f"to {name}")
    watching = asyncio.create_task(_end_with(process, reading), name=f"end of {name}")
    try:
        yield received, to_send
    finally:
        # Once begun it is done to its end: what is left of a child would be there for ever.
        try:
            await asyncio.shield(asyncio.create_task(_stop(process, [reading, writing, watching])))
        finally:
            for stream in (incoming, received, to_send, outgoing):
                stream.close()


class FloodMeter:
    """Counts messages, second by second."""

    def __init__(self) -> None:
        self._second = 0
        self._messages = 0

    def is_flood(self, messages: int) -> bool:
        """Whether so many more are too many."""
        second = int(asyncio.get_running_loop().time())
        self._messages = messages + (self._messages if second == self._second else 0)
        self._second = second
        return self._messages > _MOST_MESSAGES_PER_SECOND


class _Reader:
    """Reads what a child says until it ends, or says what can't be taken."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        incoming: MemoryObjectSendStream[SessionMessage | Exception],
    ) -> None:
        self._name = name
        self._process = process
        self._incoming = incoming
        self._junk = 0
        self._meter = FloodMeter()

    async def read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 # for the type checker: it was asked for
        # Closing it tells the session that there is nothing more to wait for.
        with self._incoming, suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            while True:
                try:
                    line = await self._process.stdout.readuntil()
                except (asyncio.IncompleteReadError, OSError):
                    return
                except asyncio.LimitOverrunError:
                    log.warning("the MCP server %s sent a message that is too large", self._name)
                    return
                if self._meter.is_flood(1) or self._junk > _MOST_JUNK_LINES:
                    log.warning("the MCP server %s sends too much", self._name)
                    return
                await self._take(line)

    async def _take(self, line: bytes) -> None:
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            if not self._junk:
                log.warning("the MCP server %s prints what is no message", self._name)
            self._junk += 1
            return
        await self._incoming.send(SessionMessage(message))


async def _write(process: asyncio.subprocess.Process, outgoing: MemoryObjectReceiveStream[SessionMessage]) -> None:
    assert process.stdin is not None  # noqa: S101 # as above
    with outgoing, suppress(OSError, RuntimeError):  # RuntimeError: uvloop's word for a pipe that is closed
        async for message in outgoing:
            process.stdin.write(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            await process.stdin.drain()


async def _stop(process: asyncio.subprocess.Process, tasks: list[asyncio.Task[None]]) -> None:
    """End its input, wait, and then end its whole group, less and less politely."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 # as above
    # One that can't get rid of its output doesn't look at its input; and what isn't read to its end stays open.
    draining = asyncio.create_task(_drain(process.stdout))
    process.stdin.close()
    if not await _ends(process):
        _signal_group(process, signal.SIGTERM)
        await _ends(process)
    # Also where it has ended: what it started may be left.
    _signal_group(process, signal.SIGKILL)
    if not await _ends(process):
        log.error("the MCP server with the process id %d can't be ended", process.pid)
    await asyncio.wait([draining], timeout=_PATIENCE_SECONDS)
    draining.cancel()


async def _end_with(process: asyncio.subprocess.Process, reading: asyncio.Task[None]) -> None:
    """End the reading of a child that has ended: what it started may keep its output open."""
    while process.returncode is None:  # noqa: ASYNC110 # nothing else tells of the process alone
        await asyncio.sleep(_LOOK_SECONDS)
    await asyncio.sleep(_LOOK_SECONDS)  # for its last words
    reading.cancel()


async def _drain(output: asyncio.StreamReader) -> None:
    while await output.read(2**16):
        pass


async def _ends(process: asyncio.subprocess.Process) -> bool:
    # Not process.wait(): that waits for the end of its output too, which what it started may keep open.
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while process.returncode is None:  # noqa: ASYNC110 # nothing else tells of the process alone
                await asyncio.sleep(0.01)
    return process.returncode is not None


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
