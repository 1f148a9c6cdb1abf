"""An HTTP response as it comes in from a socket: its status, and its body without the transfer encoding."""

from __future__ import annotations


class HttpBody:
    """Takes bytes, gives those of the body."""

    def __init__(self) -> None:
        self.status = 0
        self.is_complete = False
        self._buffer = b""
        self._has_head = False
        self._length: int | None = None

    def feed(self, data: bytes) -> bytes:
        """What the bytes add to the body."""
        self._buffer += data
        if not self._has_head and not self._take_head():
            return b""
        return self._take_chunks() if self._length is None else self._take_rest()

    def _take_head(self) -> bool:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return False
        first, *lines = head.decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        self.status = int(first.split(" ")[1])
        self._length = int(headers["content-length"]) if "content-length" in headers else None
        self._has_head, self._buffer = True, rest
        return True

    def _take_rest(self) -> bytes:
        assert self._length is not None
        taken, self._buffer = self._buffer[: self._length], b""
        self._length -= len(taken)
        self.is_complete = self._length == 0
        return taken

    def _take_chunks(self) -> bytes:
        parts = []
        while not self.is_complete:
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end or len(rest) < (size := int(line, 16)) + 2:
                break
            parts.append(rest[:size])
            self._buffer = rest[size + 2 :]
            self.is_complete = size == 0
        return b"".join(parts)
