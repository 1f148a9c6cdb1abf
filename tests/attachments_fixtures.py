"""Files, pictures and uploads for the tests of attachments."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

import asyncpg
import grpc
import httpx
from chatkit_grpc.errors import ChatKitError, from_rpc_error
from chatkit_grpc.v1 import attachment_service_pb2 as pb
from chatkit_grpc.v1 import attachment_service_pb2_grpc
from PIL import Image

from server.app import Factory
from server.assistant import Assistant, Options, create_assistant
from server.attachments.settings import AttachmentSettings
from server.model_choice import choose_model
from server.models import OpenModel, OpenModels
from server.offline_model import OfflineModel
from server.settings import Settings
from tests.page import body_of, post
from tests.system import IMPATIENT, PRODUCTION, System

PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + b"1 0 obj\n" * 20
HTTP = "/api/chatkit/attachments"


def picture(width: int = 600, height: int = 400, kind: str = "PNG") -> bytes:
    made = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(made, kind)
    return made.getvalue()


def bomb() -> bytes:
    """A PNG of a few kilobytes that would be unpacked to 14 GB."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1_000_000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def noise(size: int) -> bytes:
    return random.Random(1).randbytes(size)


def limited(*, by_token: bool = False, **settings: Any) -> Settings:
    base = replace(PRODUCTION if by_token else IMPATIENT, thread_titles=False)
    return replace(base, attachments=AttachmentSettings(**settings))


def assistant(settings: Settings) -> Factory:
    """The default assistant, with its offline model in a hurry unless the settings say otherwise."""
    choice = choose_model(settings)
    if choice.kind != "offline":
        return lambda store: create_assistant(store, settings)
    models, options = OpenModels([OpenModel(OfflineModel(0), choice)]), Options(attachments=settings.attachments)
    return lambda store: Assistant(store, models, options)


async def upload(
    system: System, content: bytes, name: str = "a.txt", mime_type: str = "text/plain", **headers: str
) -> httpx.Response:
    return await system.http.post(HTTP, files={"file": (name, content, mime_type)}, headers=headers)


async def uploaded(system: System, content: bytes, name: str = "a.txt", mime_type: str = "text/plain") -> Any:
    answer = await upload(system, content, name, mime_type)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def registered(system: System, size: int, name: str = "a.txt", mime_type: str = "text/plain") -> Any:
    answer = await post(system, body_of("attachments.create", name=name, size=size, mime_type=mime_type))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def put(system: System, attachment: Any, content: bytes) -> httpx.Response:
    described = attachment["upload_descriptor"]
    assert described["method"] == "PUT"
    return await system.http.put(described["url"], content=content, headers=described["headers"])


async def message_with(system: System, *attachment_ids: str, **headers: str) -> httpx.Response:
    given = {"content": [{"type": "input_text", "text": "look"}], "attachments": list(attachment_ids)}
    return await post(system, body_of("threads.create", input=given), **headers)


def stub(channel: grpc.aio.Channel) -> Any:
    return attachment_service_pb2_grpc.AttachmentServiceStub(channel)


async def by_grpc(
    system: System, first: pb.UploadAttachmentRequest, chunks: Iterable[bytes] = (), **metadata: str
) -> Any:
    """Upload; the response, or the failure."""

    async def requests() -> AsyncIterator[pb.UploadAttachmentRequest]:
        yield first
        for chunk in chunks:
            yield pb.UploadAttachmentRequest(chunk=chunk)

    sent = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    try:
        return await stub(system.channel).UploadAttachment(requests(), metadata=sent)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)


async def downloaded(system: System, attachment_id: str, **metadata: str) -> bytes | ChatKitError:
    sent = tuple(metadata.items())
    request = pb.DownloadAttachmentRequest(attachment_id=attachment_id)
    try:
        return b"".join([part.chunk async for part in stub(system.channel).DownloadAttachment(request, metadata=sent)])
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)


async def rows(url: str, query: str, *values: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(query, *values))
    finally:
        await connection.close()


async def usage(url: str, user: str = "dev-user") -> tuple[int, int]:
    """What is counted as the user's, which must be what he has."""
    counted = await rows(url, "select files, bytes from attachment_usage where user_id = $1", user)
    there = await rows(url, "select count(*), coalesce(sum(size), 0)::bigint from attachments where user_id = $1", user)
    found = tuple(counted[0]) if counted else (0, 0)
    assert found == tuple(there[0])
    return found


async def chunks_left(url: str) -> int:
    found: int = (await rows(url, "select count(*) from attachment_chunks"))[0][0]
    return found


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]
