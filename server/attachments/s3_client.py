"""Requests to an S3-compatible store, signed by botocore and made by httpx2."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx2
from chatkit_grpc.environment import SettingsError, is_loopback
from chatkit_grpc.errors import UnavailableError

from server.attachments import refusals
from server.attachments.byte_store import PIECE_BYTES
from server.attachments.settings import AttachmentSettings, S3Location

log = logging.getLogger(__name__)

_TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
_TRIES = 3
_PAUSE_SECONDS = 0.2
_DONE = frozenset({200, 204})
_NOT_THERE = frozenset({404, 412})
"""Also an answer, to those who ask for an object, or delete it; 412 is another version."""
_UPLOAD_ID = re.compile(rb"<UploadId>([^<]+)</UploadId>")


class S3Client:
    """The objects of one bucket. A key is a path, quoted as in a URL. Close it.

    Each method raises UnavailableError where the store can't be reached, or fails, also the third time.
    """

    def __init__(self, settings: AttachmentSettings) -> None:
        self._location = S3Location.parse(settings.attachments_url or "")
        self._signers = _Signers(settings, self._location.region)
        # What http_proxy names is not on the way to this machine itself.
        is_here = is_loopback(urlsplit(self._location.bucket_url).hostname or "")
        self._http = httpx2.AsyncClient(timeout=_TIMEOUT, trust_env=not is_here)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def put(self, key: str, body: bytes) -> str | None:
        """Write an object. Returns its ETag."""
        return (await self._request("PUT", key, body=body)).headers.get("etag")

    async def head(self, key: str) -> httpx2.Headers | None:
        """The headers of an object. None where there is none."""
        answer = await self._request("HEAD", key)
        return None if answer.status_code == 404 else answer.headers

    async def delete(self, key: str) -> None:
        """Delete an object, if there is one."""
        await self._request("DELETE", key)

    async def begin_parts(self, key: str) -> str:
        """Begin an object that comes in parts. Returns the id of that upload."""
        found = _UPLOAD_ID.search((await self._request("POST", key, {"uploads": ""})).content)
        if found is None:
            raise refusals.store_failed()
        return found[1].decode()

    async def put_part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        """Write a part; the first has the number 1. Returns its ETag."""
        answer = await self._request("PUT", key, {"partNumber": str(number), "uploadId": upload_id}, body=body)
        return str(answer.headers.get("etag", ""))

    async def complete_parts(self, key: str, upload_id: str, etags: list[str]) -> None:
        """Make the parts an object."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
            for number, etag in enumerate(etags, start=1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        answer = await self._request("POST", key, {"uploadId": upload_id}, body=body)
        # S3 may say 200 before it fails.
        if b"<Error>" in answer.content:
            raise refusals.store_failed()

    async def abort_parts(self, key: str, upload_id: str) -> None:
        """Give up an object that comes in parts."""
        await self._request("DELETE", key, {"uploadId": upload_id})

    async def read(self, key: str, etag: str | None) -> AsyncGenerator[bytes, None]:
        """An object's bytes, if it still is the version of that ETag; otherwise none."""
        headers = {"If-Match": etag} if etag else {}
        async with self._opened(key, headers) as answer:
            if answer.status_code == 200:
                # As they lie there: who put them there may have said that they are packed, and be many times as many.
                async with aclosing(answer.aiter_raw(PIECE_BYTES)) as pieces:
                    async for piece in pieces:
                        yield piece

    def presigned(
        self, method: str, key: str, seconds: int, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> str:
        """A URL that lets anybody make one request, with exactly these headers, for so long."""
        url = f"{self._location.public_bucket_url}/{key}"
        if query:
            url += "?" + urlencode(query, quote_via=quote)
        return self._signers.presign(method, url, headers, seconds)

    @property
    def prefix(self) -> str:
        """What all keys begin with."""
        return self._location.prefix

    async def _request(
        self, method: str, key: str, query: Mapping[str, str] | None = None, *, body: bytes = b""
    ) -> httpx2.Response:
        url = self._url(key, query)
        problem = ""
        for tried in range(1, _TRIES + 1):
            try:
                headers = self._signers.sign(method, url, {}, body)
                answer = await self._http.request(method, url, headers=headers, content=body)
            except httpx2.TransportError as error:
                problem = type(error).__name__
            else:
                needs_no_object = method in {"HEAD", "DELETE"} and answer.status_code in _NOT_THERE
                if answer.status_code in _DONE or needs_no_object:
                    return answer
                problem = str(answer.status_code)
                if answer.status_code < 500:
                    break
            if tried < _TRIES:
                await asyncio.sleep(_PAUSE_SECONDS * tried)
        raise _failed(method, problem)

    @asynccontextmanager
    async def _opened(self, key: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        url = self._url(key, None)
        signed = self._signers.sign("GET", url, headers, b"")
        try:
            asked = {**signed, "Accept-Encoding": "identity"}
            async with self._http.stream("GET", url, headers=asked) as answer:
                if answer.status_code not in _DONE | _NOT_THERE:
                    raise _failed("GET", str(answer.status_code))
                yield answer
        except httpx2.TransportError as error:
            problem = type(error).__name__
        else:
            return
        raise _failed("GET", problem)

    def _url(self, key: str, query: Mapping[str, str] | None) -> str:
        url = f"{self._location.bucket_url}/{key}"
        return f"{url}?{urlencode(query, quote_via=quote)}" if query else url


def _failed(method: str, problem: str) -> UnavailableError:
    """What callers are told. Whoever runs the server sees what it was; the rest is in the store's own log."""
    log.warning("the store of attachments failed a %s: %s", method, problem)
    return refusals.store_failed()


class _Signers:
    """AWS Signature Version 4, by botocore. Raises SettingsError where that isn't installed."""

    def __init__(self, settings: AttachmentSettings, region: str) -> None:
        try:
            from botocore import auth, awsrequest, credentials
        except ImportError:
            raise SettingsError("ATTACHMENTS_URL: s3:// needs botocore: pip install 'chatkit-grpc[s3]'") from None
        self._auth: Any = auth
        self._request: Any = awsrequest.AWSRequest
        self._region = region
        self._credentials: Any = credentials.Credentials(
            settings.aws_access_key_id, settings.aws_secret_access_key, settings.aws_session_token
        )

    def sign(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
        request = self._request(method=method, url=url, headers=dict(headers), data=body)
        self._auth.S3SigV4Auth(self._credentials, "s3", self._region).add_auth(request)
        return dict(request.headers.items())

    def presign(self, method: str, url: str, headers: Mapping[str, str], seconds: int) -> str:
        request = self._request(method=method, url=url, headers=dict(headers))
        self._auth.S3SigV4QueryAuth(self._credentials, "s3", self._region, expires=seconds).add_auth(request)
        return str(request.url)
