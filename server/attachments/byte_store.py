"""What keeps the bytes of attachments, as the rest of this package sees it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from chatkit.types import AttachmentUploadDescriptor

PIECE_BYTES = 256 * 1024
"""How many bytes travel at once."""

Storage = Literal["postgres", "s3"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of an upload are. epoch: which upload of the attachment it is, of several; 0 before the first."""

    user_id: str
    attachment_id: str
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What was found where the bytes should be.

    etag: the version that was found, where there may be several.
    """

    size: int
    etag: str | None


class Writer(Protocol):
    """Takes the bytes of one upload, piece by piece."""

    async def write(self, piece: bytes) -> None:
        """Take the next piece. Raises ConflictError where the upload is no longer the last one."""

    async def complete(self) -> str | None:
        """Say that this was all. Returns the version that was written, where there may be several."""


class ByteStore(Protocol):
    """Keeps bytes."""

    storage: Storage

    def writing(self, place: Place) -> AbstractAsyncContextManager[Writer]:
        """Write the bytes of an upload. What isn't complete when the context is left is given up."""

    def read(self, place: Place, etag: str | None) -> AsyncGenerator[bytes, None]:
        """The bytes, piece by piece. Raises NotFoundError where they are gone, or aren't those that were checked."""

    async def find(self, place: Place) -> Found | None:
        """What somebody else has put there: the page itself, by the descriptor below. None where nothing is there."""

    async def delete(self, place: Place) -> None:
        """Delete what isn't deleted with the attachment's row."""

    def descriptor(self, place: Place, mime_type: str, size: int) -> AttachmentUploadDescriptor | None:
        """How a page puts the bytes there itself. None where it can't."""

    def url(self, place: Place, name: str, mime_type: str) -> str | None:
        """Where the bytes can be read for a short time. None where they can't."""

    async def aclose(self) -> None:
        """Close its connections."""
