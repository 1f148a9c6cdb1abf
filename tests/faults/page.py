"""A ChatKit page on a bare socket, so that it can leave, stall and crawl in every way that a real one may."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

from tests.faults.http_body import HttpBody
from tests.faults.witness import Witness

_CHUNK = 64 * 1024
_CONNECT_SECONDS = 10.0


class Page:
    """One POST and the stream that answers it. `witness` is what it has seen, `body` what it asked.

    receive_buffer: how many bytes the system may take in before it reads; None: as many as it likes.
    """

    def __init__(self, witness: Witness, *, receive_buffer: int | None = None) -> None:
        self.witness = witness
        self.body: Mapping[str, Any] = {}
        self._socket = socket.socket()
        self._socket.setblocking(False)
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._body = HttpBody()
        self._text = b""
        self._raw = b""
        self._chunk = _CHUNK
        self._pause = 0.0
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._reading: asyncio.Task[None] | None = None

    @property
    def status(self) -> int:
        """The status of the answer, or 0 where none came yet."""
        return self._body.status

    async def post(self, port: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        """Send a request and begin to read. Where nobody listens the stream is broken from the start."""
        self.body = body
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await loop.sock_connect(self._socket, ("127.0.0.1", port))
                await loop.sock_sendall(self._socket, _request(port, body, headers))
        except OSError as error:  # a timeout is one
            self.witness.ended("broken", repr(error))
            return
        self._reading = asyncio.create_task(self._read(), name=self.witness.name)

    def freeze(self) -> None:
        """Read nothing more."""
        self._may_read.clear()

    def thaw(self) -> None:
        """Read again, as fast as it comes."""
        self._chunk, self._pause = _CHUNK, 0.0
        self._may_read.set()

    def crawl(self, pause: float = 1.0) -> None:
        """Read a byte each second."""
        self._chunk, self._pause = 1, pause

    async def close(self) -> None:
        """Leave as a tab that is closed."""
        await self._stop_reading()
        self._socket.close()

    async def reset(self) -> None:
        """Leave with a RST."""
        await self._stop_reading()
        if self._socket.fileno() >= 0:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def half_close(self) -> None:
        """Leave by saying that nothing more will be said, and read on."""
        self.witness.ended("left")
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other side was faster

    async def _stop_reading(self) -> None:
        self.witness.ended("left")
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while not self._body.is_complete:
                await self._may_read.wait()
                data = await loop.sock_recv(self._socket, self._chunk)
                if not data:
                    self.witness.ended("broken", "the connection was closed in the middle")
                    return
                self._take(data)
                await asyncio.sleep(self._pause)
        except OSError as error:
            self.witness.ended("broken", repr(error))
            return
        if self.status == 200:
            self.witness.ended("clean")
        else:
            self.witness.ended("refused", f"{self.status} {self._raw.decode(errors='replace')}")

    def _take(self, data: bytes) -> None:
        body = self._body.feed(data)
        self._raw = (self._raw + body)[:500]
        self._text += body
        *frames, self._text = self._text.split(b"\n\n")
        for frame in frames:
            self._take_frame(frame.decode())

    def _take_frame(self, frame: str) -> None:
        lines = [line.partition(": ") for line in frame.split("\n") if not line.startswith(":")]
        fields = {name: value for name, _, value in lines}
        if "data" not in fields:
            return
        run_id, _, number = fields.get("id", "").rpartition(":")
        self.witness.saw(json.loads(fields["data"]), run_id, int(number) if number else None)


def _request(port: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> bytes:
    content = json.dumps(body).encode()
    given = {
        "Host": f"127.0.0.1:{port}",
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "Content-Length": str(len(content)),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"POST /api/chatkit HTTP/1.1\r\n{head}\r\n".encode() + content
