"""Taking the bytes of a file: no more than is allowed, of the type that was said, and all of them or nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, cast

from server.attachments import refusals
from server.attachments.byte_store import PIECE_BYTES, Writer
from server.attachments.file_types import PICTURES

_IN_MEMORY_BYTES = 2**20
"""How much of a picture is kept in memory until its preview is made; larger ones go to a file."""

Reserve = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Taken:
    """What has come. etag: the version that the store of bytes says it has."""

    size: int
    preview: bytes | None
    etag: str | None


class Intake:
    """Takes one file.

    most: how many bytes a file may have. expected: how many were announced. reserve: is told of bytes that weren't.
    make_preview: makes the preview of a picture.
    """

    def __init__(
        self,
        most: int,
        expected: int | None,
        reserve: Reserve,
        make_preview: Callable[[IO[bytes]], Awaitable[bytes]],
    ) -> None:
        self._most = most
        self._expected = expected
        self._reserve = reserve
        self._make_preview = make_preview
        self._size = 0

    async def take(self, mime_type: str, pieces: AsyncIterator[bytes], writer: Writer) -> Taken:
        """Take all pieces. Raises what is wrong with them, as soon as that is clear."""
        if mime_type not in PICTURES:
            async for piece in pieces:
                await self._count(piece)
                await writer.write(piece)
            self._check_end()
            return Taken(self._size, None, await writer.complete())
        with picture_file() as picture:
            async for piece in pieces:
                await self._count(piece)
                picture.write(piece)
                await writer.write(piece)
            self._check_end()
            preview = await self._make_preview(picture)
            return Taken(self._size, preview, await writer.complete())

    async def _count(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._expected is not None and self._size > self._expected:
            raise refusals.other_size(self._expected, "more")
        if self._size > self._most:
            raise refusals.too_large(self._most)
        if self._expected is None:
            await self._reserve(len(piece))

    def _check_end(self) -> None:
        if self._size == 0:
            raise refusals.empty()
        if self._expected is not None and self._size < self._expected:
            raise refusals.other_size(self._expected, f"{self._size:,}")


def picture_file() -> IO[bytes]:
    """A file for a picture, that is gone once it is closed."""
    return cast("IO[bytes]", SpooledTemporaryFile(_IN_MEMORY_BYTES))  # the caller closes it


async def in_pieces(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The same bytes in pieces of one size, but for the last."""
    gathered = bytearray()
    async with aclosing(chunks):
        async for chunk in chunks:
            gathered += chunk
            while len(gathered) >= PIECE_BYTES:
                yield bytes(gathered[:PIECE_BYTES])
                del gathered[:PIECE_BYTES]
    if gathered:
        yield bytes(gathered)


async def with_first(first: bytes, others: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Pieces of which the first one was read already."""
    if first:
        yield first
    async with aclosing(others):
        async for piece in others:
            yield piece
