"""An open session with an MCP server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import mcp
from mcp.client.session import MessageHandlerFnT
from mcp.types import Tool

from server.mcp_servers.child import Streams

_PATIENCE_SECONDS = 5.0
_MOST_PAGES = 20
_MOST_TOOLS = 10_000
"""How many pages a list of tools may have; and how many tools, before the rest isn't asked for."""

OpenStreams = Callable[[], AbstractAsyncContextManager[Streams]]
"""Opens the way to a server."""

T = TypeVar("T")


class TooManyPagesError(Exception):
    """A list of tools that has no end."""


class Connection:
    """A session, held by a task of its own.

    What breaks a session cancels whoever has opened it, as anyio's task groups do. That mustn't be a task which has
    other things to do.

    on_message: is told what the server says by itself.
    on_end: is called once the session has ended, whoever ended it.
    """

    def __init__(
        self,
        open_streams: OpenStreams,
        *,
        on_message: MessageHandlerFnT | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._open_streams = open_streams
        self._on_message = on_message
        self._on_end = on_end
        self._closing = asyncio.Event()
        self._client: asyncio.Future[mcp.Client] = asyncio.get_running_loop().create_future()
        self._holder: asyncio.Task[None] | None = None
        self._abandoned: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Connect. Raises whatever may go wrong with that; has left nothing behind then."""
        self._holder = asyncio.create_task(self._hold(), name="MCP session")
        self._holder.add_done_callback(self._ended)
        try:
            futures: list[asyncio.Future[Any]] = [self._holder, self._client]
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            if self._holder.done():
                _outcome(self._holder)
        except BaseException:
            await self.close(at_once=True)
            raise

    async def close(self, *, at_once: bool = False) -> None:
        """End the session, and wait for that. A server that takes its time isn't listened to any more."""
        self._closing.set()
        if self._holder is not None and not self._holder.done():
            if not at_once:
                await asyncio.wait([self._holder], timeout=_PATIENCE_SECONDS)
            self._holder.cancel()
            await asyncio.wait([self._holder])
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=_PATIENCE_SECONDS)

    async def list_tools(self) -> list[Tool]:
        """All tools that the server has. Raises TooManyPagesError, and what may go wrong with a call."""
        client = self._client.result()
        tools: list[Tool] = []
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            page = await self._while_open(client.list_tools(cursor=cursor))
            tools += page.tools
            cursor = page.next_cursor
            if cursor is None or len(tools) >= _MOST_TOOLS:
                return tools
        raise TooManyPagesError

    async def call_tool(self, name: str, arguments: dict[str, Any], meta: dict[str, Any]) -> mcp.types.CallToolResult:
        """What a tool gives. Raises MCPError, ConnectionError, and whatever else an odd server makes of a call."""
        return await self._while_open(self._client.result().call_tool(name, arguments, meta=meta or None))  # type: ignore[arg-type] # any metadata

    async def _while_open(self, request: Coroutine[Any, Any, T]) -> T:
        """What is asked for. A session that breaks may leave it without an answer for ever."""
        assert self._holder is not None  # noqa: S101 # nothing is asked before it is open
        asking = asyncio.create_task(request)
        asking.add_done_callback(_look_at)
        try:
            await asyncio.wait([asking, self._holder], return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise ConnectionError("the session has ended")
            return _outcome(asking)
        finally:
            # Not waited for: the SDK tells the server that nobody waits any more, for seconds where that is stuck.
            if not asking.done():
                asking.cancel()
                self._abandoned.add(asking)
                asking.add_done_callback(self._abandoned.discard)

    async def _hold(self) -> None:
        # No time-out of the SDK's: it would be one for all requests.
        async with mcp.Client(self._open_streams(), cache=None, message_handler=self._on_message) as client:
            # A schema of the server's may take its checker hours, here, where nothing can interrupt it.
            client.session.validate_tool_result = _unchecked  # type: ignore[method-assign] # of this one session
            self._client.set_result(client)
            await self._closing.wait()

    def _ended(self, holder: asyncio.Task[None]) -> None:
        _look_at(holder)  # whoever opens or calls is told by other means
        self._on_end()


async def _unchecked(name: str, result: mcp.types.CallToolResult) -> None:
    """What a tool gives is text for a model, whatever its schema says."""


def _look_at(task: asyncio.Task[Any]) -> None:
    """Asyncio logs the words of an exception that nobody has looked at."""
    if not task.cancelled():
        task.exception()


def _outcome(task: asyncio.Task[T]) -> T:
    """What a task gave. That the SDK has cancelled it is a failure like others, and no cancel of whoever waits."""
    if task.cancelled():
        raise ConnectionError("the session was cancelled")
    error = task.exception()
    if isinstance(error, BaseExceptionGroup) and not isinstance(error, Exception):
        raise ConnectionError("the session was cancelled") from error
    return task.result()
