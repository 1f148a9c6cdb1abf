"""The bytes in an S3-compatible store. A page puts them there itself, by a URL that is signed for just that.

What comes through this server is sent on in parts of 8 MiB: of a file that is larger, no more is ever in memory.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import quote

from chatkit.types import AttachmentUploadDescriptor
from chatkit_grpc.errors import UnavailableError
from pydantic import AnyUrl

from server.attachments.byte_store import Found, Place, Storage, Writer
from server.attachments.s3_client import S3Client

_PART_BYTES = 8 * 2**20
_UPLOAD_SECONDS = 900
_DOWNLOAD_SECONDS = 60


class S3Bytes:
    """A ByteStore.

    Each upload that comes through this server is an object of its own, so that one that was overtaken writes nothing
    that counts; number 0 is the one that a page writes itself.
    """

    storage: Storage = "s3"

    def __init__(self, client: S3Client) -> None:
        self._client = client

    @asynccontextmanager
    async def writing(self, place: Place) -> AsyncIterator[Writer]:
        """Write the bytes of an upload. What isn't complete is deleted, where the store can be reached."""
        writer = _Writer(self._client, self._key(place))
        try:
            yield writer
        except BaseException:
            with suppress(UnavailableError):
                await writer.give_up()
            raise

    async def read(self, place: Place, etag: str | None) -> AsyncGenerator[bytes, None]:
        """The bytes that were checked. They end early where they are gone; who knows their size sees it."""
        async for piece in self._client.read(self._key(place), etag):
            yield piece

    async def find(self, place: Place) -> Found | None:
        """What a page has put there itself."""
        headers = await self._client.head(self._key(Place(place.user_id, place.attachment_id)))
        return None if headers is None else Found(int(headers.get("content-length", "-1")), headers.get("etag"))

    async def delete(self, place: Place) -> None:
        """Delete the objects of all uploads of an attachment."""
        for epoch in range(place.epoch + 1):
            await self._client.delete(self._key(Place(place.user_id, place.attachment_id, epoch)))

    def descriptor(self, place: Place, mime_type: str, size: int) -> AttachmentUploadDescriptor | None:
        """A URL that takes a file of that type and size. The browser says its size by itself, and can't lie."""
        signed = {"Content-Type": mime_type, "Content-Length": str(size)}
        url = self._client.presigned("PUT", self._key(place), _UPLOAD_SECONDS, {}, signed)
        return AttachmentUploadDescriptor(url=AnyUrl(url), method="PUT", headers={"Content-Type": mime_type})

    def url(self, place: Place, name: str, mime_type: str) -> str | None:
        """A URL of which a browser keeps what it gets as a file, and shows none of it."""
        disposition = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
        query = {"response-content-disposition": disposition, "response-content-type": mime_type}
        return self._client.presigned("GET", self._key(place), _DOWNLOAD_SECONDS, query, {})

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _key(self, place: Place) -> str:
        upload = f".{place.epoch}" if place.epoch else ""
        return f"{self._client.prefix}{quote(place.user_id, safe='')}/{quote(place.attachment_id, safe='')}{upload}"


class _Writer:
    def __init__(self, client: S3Client, key: str) -> None:
        self._client = client
        self._key = key
        self._gathered = bytearray()
        self._upload_id: str | None = None
        self._etags: list[str] = []

    async def write(self, piece: bytes) -> None:
        self._gathered += piece
        if len(self._gathered) >= _PART_BYTES:
            await self._send_part()

    async def complete(self) -> str | None:
        if self._upload_id is None:
            return await self._client.put(self._key, bytes(self._gathered))
        if self._gathered:
            await self._send_part()
        await self._client.complete_parts(self._key, self._upload_id, self._etags)
        headers = await self._client.head(self._key)
        return None if headers is None else headers.get("etag")

    async def give_up(self) -> None:
        if self._upload_id is not None:
            await self._client.abort_parts(self._key, self._upload_id)
        await self._client.delete(self._key)

    async def _send_part(self) -> None:
        if self._upload_id is None:
            self._upload_id = await self._client.begin_parts(self._key)
        number = len(self._etags) + 1
        self._etags.append(await self._client.put_part(self._key, self._upload_id, number, bytes(self._gathered)))
        self._gathered.clear()
