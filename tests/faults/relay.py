"""A connection that the test owns: TCP to TCP or to a Unix socket, which can be cut, stalled and resumed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]
_CHUNK = 64 * 1024


def to_port(port: int) -> Connect:
    """How to reach a port of this machine."""
    return lambda: asyncio.open_connection("127.0.0.1", port)


def to_unix(path: Path) -> Connect:
    """How to reach a Unix socket."""
    return lambda: asyncio.open_unix_connection(path)


class Relay:
    """Listens on `port` and passes on to wherever `connect` leads."""

    def __init__(self, connect: Connect) -> None:
        self.port = 0
        self._connect = connect
        self._is_cut = False
        self._gates = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.resume()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Reset all connections, and each new one as soon as it is there."""
        self._is_cut = True
        for writer in tuple(self._writers):
            writer.transport.abort()

    def stall(self, *directions: str) -> None:
        """Pass on nothing more, without a word: both directions, or "up" (what the client says) or "down"."""
        for direction in directions or tuple(self._gates):
            self._gates[direction].clear()

    def resume(self) -> None:
        """Be a good connection again; what was held back goes on first."""
        self._is_cut = False
        for gate in self._gates.values():
            gate.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if not self._is_cut:
                await self._pass_on(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # an end of the test, or of either side, is an ordinary end of a connection
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await self._connect()
        self._writers.add(far_writer)
        up = asyncio.create_task(self._pump("up", reader, far_writer))
        down = asyncio.create_task(self._pump("down", far_reader, writer))
        try:
            # An end of either side ends both: nothing here uses half a connection.
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in (up, down):
                pump.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            far_writer.transport.abort()
            self._writers.discard(far_writer)

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._gates[direction].wait()
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
