"""Uvicorn, as the bridge runs it."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from bridge.http_protocol import limited_protocol
from bridge.settings import Settings
from bridge.streams import Streams


def http_config(app: Starlette, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the bridge."""
    return uvicorn.Config(
        app,
        http=limited_protocol(settings),
        access_log=False,
        log_config=None,
        backlog=2048,
        server_header=False,
        # Nothing here asks for the client's address, and who may say it for somebody else is not settled.
        proxy_headers=False,
        # Longer than the streams take to end.
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_seconds) + 3,
    )


class Server(uvicorn.Server):
    """Uvicorn, which on its way out lets the streams end before it closes their connections."""

    def __init__(self, config: uvicorn.Config, streams: Streams, grace: float) -> None:
        super().__init__(config)
        self._streams = streams
        self._grace = grace

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal, and no more: uvicorn would raise it again in the end, and the process die of it."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections, and wait for the open ones while their streams end."""
        drain = asyncio.create_task(self._streams.drain(self._grace))
        try:
            await super().shutdown(sockets)
        finally:
            drain.cancel()


def notice_who_vanishes(listener: socket.socket) -> None:
    """Let connections end whose other side took nothing for 15 s; those that are accepted inherit it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000)
