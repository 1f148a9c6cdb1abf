"""Attachments in an S3-compatible store: a real one over a socket, that pages write to and read from by signed URLs."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from chatkit_grpc.environment import SettingsError
from chatkit_grpc.errors import UnavailableError
from chatkit_grpc.v1 import attachment_service_pb2 as pb
from moto.server import ThreadedMotoServer

from server.attachments import sweep
from server.attachments.byte_store import Place
from server.attachments.s3_bytes import S3Bytes
from server.attachments.s3_client import S3Client
from server.attachments.settings import AttachmentSettings, S3Location
from server.settings import Settings
from tests.attachments_fixtures import (
    HTTP,
    PDF,
    assistant,
    by_grpc,
    code_of,
    downloaded,
    limited,
    message_with,
    noise,
    picture,
    registered,
    rows,
    uploaded,
    usage,
)
from tests.database import execute
from tests.faults.program import free_port
from tests.page import body_of, post
from tests.system import System, open_system

PREFIX = "chat files"


@dataclass(frozen=True, slots=True)
class Bucket:
    """The store's bucket. url: as ATTACHMENTS_URL has it."""

    endpoint: str
    url: str

    def asked(self, method: str, path: str) -> str:
        return httpx.request(method, f"{self.endpoint}{path}").text

    def objects(self) -> list[str]:
        """The keys in it, as the store lists them."""
        listed = self.asked("GET", "/files?list-type=2")
        return [part.partition("</Key>")[0] for part in listed.split("<Key>")[1:]]


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    server = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    httpx.post(f"{endpoint}/moto-api/reset")
    httpx.put(f"{endpoint}/files")
    try:
        yield Bucket(endpoint, f"s3://files/{PREFIX}?endpoint={endpoint}&region=eu-central-1")
    finally:
        server.stop()


def keyed(bucket: Bucket, **settings: Any) -> Settings:
    keys: dict[str, Any] = {"aws_access_key_id": "id", "aws_secret_access_key": "secret", "aws_session_token": "token"}
    return limited(attachments_url=bucket.url, **keys, **settings)


@pytest.fixture
async def system(database_url: str, bucket: Bucket) -> AsyncIterator[System]:
    settings = keyed(bucket, attachment_types=("*/*",))
    async with open_system(database_url, assistant(settings), server=settings) as system:
        yield system


async def put_there(attachment: Any, content: bytes) -> int:
    described = attachment["upload_descriptor"]
    assert described["method"] == "PUT"
    async with httpx.AsyncClient() as page:
        return (await page.put(described["url"], content=content, headers=described["headers"])).status_code


async def test_a_page_puts_its_file_into_the_store_itself(system: System, bucket: Bucket, database_url: str) -> None:
    content = picture()
    made = await registered(system, len(content), "cat.png", "image/png")
    signed = urlsplit(made["upload_descriptor"]["url"])
    assert f"{signed.scheme}://{signed.netloc}" == bucket.endpoint
    query = {name: values[0] for name, values in parse_qs(signed.query).items()}
    assert query["X-Amz-SignedHeaders"] == "content-length;content-type;host"
    assert query["X-Amz-Credential"].endswith("/eu-central-1/s3/aws4_request")
    assert query["X-Amz-Security-Token"] == "token"
    assert made["upload_descriptor"]["headers"] == {"Content-Type": "image/png"}
    assert code_of(await message_with(system, made["id"])) == (409, "ATTACHMENT_NOT_UPLOADED")
    assert await put_there(made, content) == 200
    assert bucket.objects() == [f"{PREFIX}/dev-user/{made['id']}"]
    # It is looked at once somebody asks for it.
    assert (await system.http.get(made["preview_url"])).headers["content-type"] == "image/webp"
    assert (await message_with(system, made["id"], accept="text/event-stream")).status_code == 200
    (row,) = await rows(database_url, "select uploaded_at, etag, attachment::text from attachments")
    assert row["uploaded_at"]
    assert row["etag"]
    assert "X-Amz" not in row["attachment"]
    assert await usage(database_url) == (1, len(content))


async def test_its_owner_is_sent_to_the_store_to_read_it(system: System) -> None:
    made = await uploaded(system, PDF, 'a "b"\u00e9.pdf', "application/pdf")
    answer = await system.http.get(f"{HTTP}/{made['id']}")
    assert answer.status_code == 307
    assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-store", "no-referrer")
    signed = answer.headers["location"]
    assert parse_qs(urlsplit(signed).query)["X-Amz-Expires"] == ["60"]
    async with httpx.AsyncClient() as page:
        read = await page.get(signed)
    assert (read.status_code, read.content, read.headers["content-type"]) == (200, PDF, "application/pdf")
    assert read.headers["content-disposition"] == "attachment; filename*=UTF-8''a%20%22b%22%C3%A9.pdf"
    assert await downloaded(system, made["id"]) == PDF


async def test_what_comes_through_the_server_is_sent_on_in_parts(system: System, bucket: Bucket) -> None:
    content = noise(17 * 2**20 + 5)
    first = pb.UploadAttachmentRequest(name="a.bin", mime_type="application/octet-stream")
    pieces = [content[at : at + 2**20] for at in range(0, len(content), 2**20)]
    made = (await by_grpc(system, first, pieces)).attachment.file
    assert await downloaded(system, made.id) == content
    assert bucket.objects() == [f"{PREFIX}/dev-user/{made.id}.1"]
    too_large = await by_grpc(system, first, [*pieces, *pieces])
    assert too_large.code == "ATTACHMENT_TOO_LARGE"
    assert len(bucket.objects()) == 1
    assert "<UploadId>" not in bucket.asked("GET", "/files?uploads")


@pytest.mark.parametrize(
    ("content", "mime_type", "expected"),
    [
        (PDF, "image/png", (415, "ATTACHMENT_TYPE")),
        (b"\x89PNG\r\n\x1a\n" + noise(500), "image/png", (422, "ATTACHMENT_UNREADABLE")),
        (PDF + b"more", "application/pdf", (400, "ATTACHMENT_SIZE")),
    ],
)
async def test_what_a_page_has_put_there_is_checked_before_it_counts(
    system: System, bucket: Bucket, content: bytes, mime_type: str, expected: tuple[int, str]
) -> None:
    size = len(PDF) if content.startswith(PDF) else len(content)
    made = await registered(system, size, "a", mime_type)
    await put_there(made, content)
    assert code_of(await message_with(system, made["id"])) == expected
    assert bucket.objects() == []
    assert code_of(await message_with(system, made["id"])) == (409, "ATTACHMENT_NOT_UPLOADED")


async def test_bytes_that_were_exchanged_after_they_were_checked_are_not_read(system: System, bucket: Bucket) -> None:
    made = await registered(system, 5)
    await put_there(made, b"first")
    assert (await message_with(system, made["id"])).status_code == 200
    await put_there(made, b"other")
    failure = await downloaded(system, made["id"])
    assert getattr(failure, "code", "") == "ATTACHMENT_STORE_FAILED"


async def test_deleting_deletes_the_object(system: System, bucket: Bucket, database_url: str) -> None:
    made = await registered(system, 5)
    await put_there(made, b"first")
    by_us = await uploaded(system, b"text")
    assert len(bucket.objects()) == 2
    for attachment in (made, by_us):
        assert (await post(system, body_of("attachments.delete", attachment_id=attachment["id"]))).status_code == 200
    assert bucket.objects() == []
    assert await usage(database_url) == (0, 0)


async def test_what_is_abandoned_is_swept_from_the_store_too(system: System, bucket: Bucket, database_url: str) -> None:
    await put_there(await registered(system, 5), b"first")
    await execute(database_url, "update attachments set expires_at = now() - interval '1 s'")
    client = S3Client(keyed(bucket).attachments)
    try:
        await sweep.AttachmentSweep(system.server.database, S3Bytes(client))()
    finally:
        await client.aclose()
    assert bucket.objects() == []
    assert await usage(database_url) == (0, 0)


async def test_what_cannot_be_deleted_is_tried_again_later_and_keeps_nothing_else(
    system: System, bucket: Bucket, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [await registered(system, 5) for _ in range(3)]
    for attachment in made:
        await put_there(attachment, b"first")
    await execute(database_url, "update attachments set expires_at = now() - interval '1 s'")
    client = S3Client(keyed(bucket).attachments)
    delete = client.delete

    async def refuse(key: str) -> None:
        if made[0]["id"] in key:
            raise UnavailableError("locked")
        await delete(key)

    swept = sweep.AttachmentSweep(system.server.database, S3Bytes(client))
    try:
        monkeypatch.setattr(client, "delete", refuse)
        await swept()
        assert bucket.objects() == [f"{PREFIX}/dev-user/{made[0]['id']}"]
        # Nobody can bring to a thread what is being deleted.
        assert code_of(await message_with(system, made[0]["id"])) == (404, "ATTACHMENT_NOT_FOUND")
        monkeypatch.setattr(client, "delete", delete)
        await swept()
        assert len(bucket.objects()) == 1
        await execute(database_url, "update attachment_leftovers set try_at = now() - interval '1 s'")
        await swept()
        assert bucket.objects() == []
    finally:
        await client.aclose()


async def test_what_says_that_it_is_packed_is_read_as_it_is(system: System, bucket: Bucket) -> None:
    packed = gzip.compress(bytes(20_000_000))
    made = await registered(system, len(packed), "a.txt", "text/plain")
    described = made["upload_descriptor"]
    headers = {**described["headers"], "Content-Encoding": "gzip"}
    async with httpx.AsyncClient() as page:
        assert (await page.put(described["url"], content=packed, headers=headers)).status_code == 200
    assert code_of(await message_with(system, made["id"])) == (415, "ATTACHMENT_TYPE")


async def test_a_store_that_is_away_is_told_so_and_nothing_is_lost(
    system: System, bucket: Bucket, database_url: str
) -> None:
    made = await uploaded(system, b"text")
    bucket.asked("POST", "/moto-api/reset")  # no bucket any more
    assert getattr(await downloaded(system, made["id"]), "code", "") == "ATTACHMENT_STORE_FAILED"
    refused = await system.http.post(HTTP, files={"file": ("a.txt", b"text", "text/plain")})
    assert code_of(refused) == (503, "ATTACHMENT_STORE_FAILED")
    assert await usage(database_url) == (1, 4)


async def test_a_store_that_does_not_answer_is_asked_thrice() -> None:
    asked = 0

    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    keys: dict[str, Any] = {"aws_access_key_id": "id", "aws_secret_access_key": "secret"}
    client = S3Client(AttachmentSettings(attachments_url=f"s3://files?endpoint=http://127.0.0.1:{port}", **keys))
    try:
        with pytest.raises(Exception, match="can't be reached"):
            await S3Bytes(client).find(Place("alice", "atc_1"))
    finally:
        await client.aclose()
        server.close()
    assert asked == 3


def test_a_url_says_where_the_store_is() -> None:
    assert S3Location.parse("s3://files?region=eu-west-1") == S3Location(
        bucket_url="https://files.s3.eu-west-1.amazonaws.com",
        public_bucket_url="https://files.s3.eu-west-1.amazonaws.com",
        prefix="",
        region="eu-west-1",
    )
    inside = S3Location.parse("s3://files/a/b/?endpoint=http://minio:9000&public_endpoint=https://files.test")
    assert (inside.bucket_url, inside.prefix) == ("http://minio:9000/files", "a/b/")
    assert inside.public_bucket_url == "https://files.test/files"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"ATTACHMENTS_URL": "file:///tmp"}, "ATTACHMENTS_URL: expected s3://bucket"),
        ({"ATTACHMENTS_URL": "s3://files?endpoint=ftp://x"}, "ATTACHMENTS_URL: expected a URL"),
        ({"ATTACHMENTS_URL": "s3://files?zone=x"}, "ATTACHMENTS_URL: expected endpoint"),
        ({"ATTACHMENTS_URL": "s3://files"}, "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY: expected both"),
        ({"ATTACHMENTS_URL": "s3://files?endpoint=http://minio:9000"}, "files would travel in plaintext"),
        ({"ATTACHMENT_TYPES": "png"}, "ATTACHMENT_TYPES: expected MIME types"),
        ({"ATTACHMENTS_FOR_MODEL": "video"}, "ATTACHMENTS_FOR_MODEL: expected words of image, pdf, text"),
        ({"MAX_ATTACHMENT_BYTES": "0"}, "MAX_ATTACHMENT_BYTES"),
    ],
)
def test_settings_that_are_wrong_are_told_at_start(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], problem: str
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "development")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=problem):
        Settings.from_env()
