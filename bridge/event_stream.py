"""A stream as an HTTP response: frames as they come, heartbeats while none come, and an end whoever ends it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bridge import sse
from bridge.streams import Stream

_BEATS_MISSED_AT_MOST = 2
"""While one more is pending: with a beat each 5 s a client that takes nothing is given up in 15 s."""

log = logging.getLogger(__name__)


class EventStream(Response):
    """Sends a stream, and ends its call whichever way the response ends, begun or not.

    Ours and not sse-starlette's: that one runs five tasks a stream and a cancel scope a chunk (measured: a third of the
    bridge's CPU while streams start, an eighth while tokens flow), and logs what people say at DEBUG.

    heartbeat: seconds of silence after which a comment is sent. It keeps proxies from closing the connection, and a
    client that vanished without a word is noticed by the failure to send it.
    when_seen: called once head and first frames have left for a client that is still there.
    """

    def __init__(self, stream: Stream, heartbeat: float, when_seen: Callable[[], None] | None = None) -> None:
        # Not by super().__init__, which would declare a length.
        self.status_code = 200
        self.background = None
        self.init_headers(sse.HEADERS)
        self._stream = stream
        self._heartbeat = heartbeat
        self._when_seen = when_seen
        self._has_client_left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        leaving = asyncio.create_task(self._end_when_the_client_leaves(receive))
        try:
            async with asyncio.timeout(None) as patience:
                await self._send(send, patience)
        except TimeoutError:
            log.info("a client stopped reading, its stream is ended")
        finally:
            leaving.cancel()
            self._stream.end()

    async def _send(self, send: Send, patience: asyncio.Timeout) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        heart = _Heart(self._heartbeat, send, patience)
        try:
            async for frames in self._stream.frames():
                heart.rest()
                await send({"type": "http.response.body", "body": frames, "more_body": True})
                if self._when_seen is not None:
                    await self._tell_that_it_is_seen(self._when_seen)
        finally:
            heart.stop()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _end_when_the_client_leaves(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._has_client_left = True
        self._stream.end()

    async def _tell_that_it_is_seen(self, when_seen: Callable[[], None]) -> None:
        self._when_seen = None
        # Sending to a client that has left is no error, so whoever waits for that gets a turn to say so.
        await asyncio.sleep(0)
        if not self._has_client_left:
            when_seen()


class _Heart:
    """Beats while nothing else is sent. Where a beat can't be sent for long, the client reads no more: it gives up.

    patience: what is made to expire then.
    """

    def __init__(self, interval: float, send: Send, patience: asyncio.Timeout) -> None:
        self._interval = interval
        self._send = send
        self._patience = patience
        self._missed = 0
        self._loop = asyncio.get_running_loop()
        self._silent_since = self._loop.time()
        self._beat: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(interval, self._tick)

    def rest(self) -> None:
        """Something else is sent now."""
        self._silent_since = self._loop.time()

    def stop(self) -> None:
        """Beat no more."""
        self._timer.cancel()
        if self._beat is not None:
            self._beat.cancel()

    def _tick(self) -> None:
        left = self._silent_since + self._interval - self._loop.time()
        if left <= 0:
            left = self._interval
            self._silent_since = self._loop.time()
            if self._beat is None or self._beat.done():
                self._missed = 0
                self._beat = asyncio.create_task(self._send_beat())
            else:
                self._missed += 1
            if self._missed >= _BEATS_MISSED_AT_MOST:
                self._patience.reschedule(self._loop.time())
                return
        self._timer = self._loop.call_later(left, self._tick)

    async def _send_beat(self) -> None:
        await self._send({"type": "http.response.body", "body": sse.HEARTBEAT, "more_body": True})
