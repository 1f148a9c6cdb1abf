"""Uploads by both doors: all of a file or nothing, of the type that it is, as large as allowed, for its owner only."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psutil
import pytest
from chatkit_grpc.errors import ChatKitError
from chatkit_grpc.v1 import attachment_service_pb2 as pb
from PIL import Image

from server.attachments import previews
from server.attachments.file_names import clean_name
from server.attachments.file_types import agreed_type, type_of
from tests.attachments_fixtures import (
    HTTP,
    PDF,
    assistant,
    bomb,
    by_grpc,
    chunks_left,
    code_of,
    downloaded,
    limited,
    message_with,
    noise,
    picture,
    put,
    registered,
    rows,
    stub,
    upload,
    uploaded,
    usage,
)
from tests.issuer import hs256
from tests.page import body_of, events_of, post
from tests.processes import both
from tests.system import System, open_system

FIELD = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n'
LIMITS: dict[str, Any] = {
    "max_attachment_bytes": 1_000_000,
    "max_user_attachments": 5,
    "max_user_attachment_bytes": 2_500_000,
    "attachment_types": ("image/png", "image/jpeg", "application/pdf", "text/*", "application/octet-stream"),
}


@pytest.fixture
async def system(database_url: str) -> AsyncIterator[System]:
    settings = limited(**LIMITS)
    async with open_system(database_url, assistant(settings), server=settings) as system:
        yield system


async def test_a_form_becomes_an_attachment_in_one_step(system: System, database_url: str) -> None:
    made = await uploaded(system, PDF, "report.pdf", "application/pdf")
    assert made.keys() == {"id", "name", "mime_type", "type"}
    assert (made["name"], made["mime_type"], made["type"]) == ("report.pdf", "application/pdf", "file")
    read = await system.http.get(f"{HTTP}/{made['id']}")
    assert (read.status_code, read.content) == (200, PDF)
    assert await usage(database_url) == (1, len(PDF))
    answer = await message_with(system, made["id"], accept="text/event-stream")
    (item,) = [event["item"] for event in events_of(answer) if event.get("item", {}).get("attachments")]
    assert item["attachments"][0]["id"] == made["id"]


async def test_two_phases_are_registering_and_putting(system: System, database_url: str) -> None:
    content = picture()
    made = await registered(system, len(content), "cat.png", "image/png")
    assert made["type"] == "image"
    assert made["upload_descriptor"]["url"].startswith(f"{system.url}{HTTP}/atc_")
    assert code_of(await system.http.get(made["preview_url"])) == (409, "ATTACHMENT_NOT_UPLOADED")
    assert code_of(await message_with(system, made["id"])) == (409, "ATTACHMENT_NOT_UPLOADED")
    assert await rows(database_url, "select from chat_sessions") == []
    answer = await put(system, made, content)
    assert answer.status_code == 200
    assert "upload_descriptor" not in answer.json()
    assert answer.json()["preview_url"] == made["preview_url"]
    assert code_of(await put(system, made, content)) == (409, "ATTACHMENT_UPLOADED")
    shown = await system.http.get(made["preview_url"])
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/webp")
    assert max(Image.open(io.BytesIO(shown.content)).size) == 512
    assert len((await rows(database_url, "select preview from attachments"))[0]["preview"]) == len(shown.content)
    assert await usage(database_url) == (1, len(content))


async def test_by_grpc_it_comes_in_pieces_of_any_size(system: System) -> None:
    content = noise(700_001)
    pieces = [content[:1], b"", content[1:300_000], content[300_000:]]
    first = pb.UploadAttachmentRequest(name="a.bin", mime_type="application/octet-stream", size=len(content))
    made = (await by_grpc(system, first, pieces)).attachment.file
    assert await downloaded(system, made.id) == content
    known = await stub(system.channel).GetAttachment(pb.GetAttachmentRequest(attachment_id=made.id))
    assert (known.uploaded, known.size, known.attachment.file.name) == (True, len(content), "a.bin")
    awaited = await registered(system, 5)
    known = await stub(system.channel).GetAttachment(pb.GetAttachmentRequest(attachment_id=awaited["id"]))
    assert (known.uploaded, known.size) == (False, 5)
    done = await by_grpc(system, pb.UploadAttachmentRequest(attachment_id=awaited["id"], chunk=b"hel"), [b"lo"])
    assert done.attachment.file.id == awaited["id"]
    assert await downloaded(system, awaited["id"]) == b"hello"


@pytest.mark.parametrize(
    ("content", "name", "mime_type", "expected"),
    [
        (PDF, "a.png", "image/png", (415, "ATTACHMENT_TYPE")),
        (b"MZ\x90\x00" + bytes(300), "a.txt", "text/plain", (415, "ATTACHMENT_TYPE")),
        (b"\x89PNG\r\n\x1a\n", "a.txt", "text/plain", (415, "ATTACHMENT_TYPE")),
        (b"<b>", "a.html", "application/xhtml", (415, "ATTACHMENT_TYPE")),
        (b"GIF89a" + bytes(50), "a.gif", "image/gif", (415, "ATTACHMENT_TYPE")),
        (b"GIF89a" + bytes(50), "a", "", (415, "ATTACHMENT_TYPE")),
        (b"\x89PNG\r\n\x1a\n" + noise(500), "a.png", "image/png", (422, "ATTACHMENT_UNREADABLE")),
        (picture()[:20_000], "cut.png", "image/png", (422, "ATTACHMENT_UNREADABLE")),
        (b"", "a.txt", "text/plain", (400, "ATTACHMENT_SIZE")),
        (noise(1_000_001), "a.bin", "application/octet-stream", (413, "ATTACHMENT_TOO_LARGE")),
    ],
    ids=[
        "pdf as png",
        "exe as text",
        "png as text",
        "not allowed",
        "gif",
        "gif untold",
        "noise",
        "cut",
        "empty",
        "large",
    ],
)
async def test_what_is_not_as_it_must_be_is_refused_and_leaves_nothing(
    system: System, database_url: str, content: bytes, name: str, mime_type: str, expected: tuple[int, str]
) -> None:
    answer = await upload(system, content, name, mime_type)
    assert code_of(answer) == expected
    failure = await by_grpc(system, pb.UploadAttachmentRequest(name=name, mime_type=mime_type), [content])
    assert isinstance(failure, ChatKitError)
    assert (failure.http_status, failure.code) == expected
    if mime_type:
        asked = body_of("attachments.create", name=name, size=len(content), mime_type=mime_type)
        made = await post(system, asked)
        refused = await put(system, made.json(), content) if made.status_code == 200 else made
        assert code_of(refused) == expected
    assert await rows(database_url, "select from attachments where uploaded_at is not null") == []
    await usage(database_url)


async def test_a_mismatch_is_told_with_what_was_found(system: System) -> None:
    answer = (await upload(system, PDF, "a.png", "image/png")).json()["error"]
    assert answer["details"] == {"declared": "image/png", "found": "application/pdf"}
    assert answer["message"] == "The file is not what it is said to be: expected image/png, found application/pdf."
    answer = (await upload(system, b"GIF89a" + bytes(50), "a", "image/gif")).json()["error"]
    assert answer["details"]["found"] == "image/gif"
    assert answer["details"]["allowed"].startswith("image/png, ")


async def test_who_is_refused_in_the_middle_is_told_why_however_fast_he_writes(system: System) -> None:
    async def endless(pieces: int = 40) -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield b"\x01" * 2**19

    for _ in range(10):
        failure = await by_grpc(system, pb.UploadAttachmentRequest(name="a"), [b"\x01" * 2**19] * 40)
        assert isinstance(failure, ChatKitError)
        assert failure.code == "ATTACHMENT_TOO_LARGE"
        made = await registered(system, 900_000, "a", "application/octet-stream")
        answer = await system.http.put(made["upload_descriptor"]["url"], content=endless())
        assert code_of(answer) == (400, "ATTACHMENT_SIZE")
        await post(system, body_of("attachments.delete", attachment_id=made["id"]))


async def test_a_stranger_is_sent_away_before_his_file_is_read(database_url: str) -> None:
    settings = limited(by_token=True)

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"\x01" * 2**16
            await asyncio.sleep(0.01)

    async with open_system(database_url, assistant(settings), server=settings) as system:
        for _ in range(5):
            answer = await system.http.put(f"{HTTP}/atc_1", content=slow())
            assert code_of(answer) == (401, "UNAUTHENTICATED")
        assert await rows(database_url, "select from attachments") == []


async def test_a_file_is_as_large_as_was_announced(system: System, database_url: str) -> None:
    made = await registered(system, 5)
    for content in (b"hell", b"hello!"):
        # Once by its Content-Length, once by what comes.
        assert code_of(await put(system, made, content)) == (400, "ATTACHMENT_SIZE")
        url = made["upload_descriptor"]["url"]

        async def chunked(content: bytes = content) -> AsyncIterator[bytes]:
            yield content

        assert code_of(await system.http.put(url, content=chunked())) == (400, "ATTACHMENT_SIZE")
    assert (await put(system, made, b"hello")).status_code == 200
    assert await usage(database_url) == (1, 5)
    assert await chunks_left(database_url) == 1
    for size in (-1, 0):
        asked = body_of("attachments.create", name="a", size=size, mime_type="text/plain")
        assert (await post(system, asked)).status_code == 400
    large = body_of("attachments.create", name="a", size=1_000_001, mime_type="text/plain")
    assert code_of(await post(system, large)) == (413, "ATTACHMENT_TOO_LARGE")


async def test_a_user_has_so_many_files_and_bytes_however_many_come_at_once(system: System, database_url: str) -> None:
    answers = await asyncio.gather(*(upload(system, b"text", f"{number}.txt") for number in range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [413] * 7
    refused = next(answer for answer in answers if answer.status_code == 413)
    assert code_of(refused) == (413, "ATTACHMENT_QUOTA")
    assert await usage(database_url) == (5, 20)
    for answer in answers:
        if answer.status_code == 200:
            await post(system, body_of("attachments.delete", attachment_id=answer.json()["id"]))
    assert await usage(database_url) == (0, 0)
    content = noise(900_000)
    # Announced and not, in about the same time: no more than two fit.
    announced = [
        post(system, body_of("attachments.create", name="a", size=900_000, mime_type="text/plain")) for _ in range(2)
    ]
    answers = await asyncio.gather(*(upload(system, content, "a", "") for _ in range(3)), *announced)
    assert sorted(answer.status_code for answer in answers)[2:] == [413, 413, 413]
    files, taken = await usage(database_url)
    assert files <= 2
    assert taken <= 2_500_000


async def test_a_connection_that_is_cut_leaves_nothing(system: System, database_url: str) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n' + noise(600_000)
    made = await registered(system, 900_000, "b.bin", "application/octet-stream")
    path = made["upload_descriptor"]["url"].removeprefix(system.url)
    address = httpx.URL(system.url)
    for method, target, body in (("POST", HTTP, head), ("PUT", path, noise(600_000))):
        _, writer = await asyncio.open_connection(address.host, address.port)
        lines = (
            f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            "Content-Length: 900000\r\n\r\n"
        )
        writer.write(lines.encode() + body)
        await writer.drain()
        before = 1 if method == "POST" else 0
        async with asyncio.timeout(10):
            while await chunks_left(database_url) <= before - 1:
                await asyncio.sleep(0.02)
        writer.transport.abort()
        if method == "POST":
            async with asyncio.timeout(10):
                while len(await rows(database_url, "select from attachments")) > 1:
                    await asyncio.sleep(0.02)
    assert await rows(database_url, "select from attachments where uploaded_at is not null") == []
    assert await usage(database_url) == (1, 900_000)
    again = await put(system, made, noise(900_000))
    assert again.status_code == 200
    assert await downloaded(system, made["id"]) == noise(900_000)


async def test_a_call_that_is_cancelled_leaves_nothing(system: System, database_url: str) -> None:
    call = stub(system.channel).UploadAttachment()
    await call.write(pb.UploadAttachmentRequest(name="a.txt", mime_type="text/plain", chunk=b"a" * 600_000))
    async with asyncio.timeout(10):
        while not await chunks_left(database_url):
            await asyncio.sleep(0.02)
    call.cancel()
    async with asyncio.timeout(10):
        while await rows(database_url, "select from attachments"):
            await asyncio.sleep(0.02)
    assert await usage(database_url) == (0, 0)
    assert await chunks_left(database_url) == 0


async def test_of_two_uploads_of_one_attachment_the_later_counts(system: System, database_url: str) -> None:
    made = await registered(system, 600_000)
    first = stub(system.channel).UploadAttachment()
    await first.write(pb.UploadAttachmentRequest(attachment_id=made["id"], chunk=b"a" * 300_000))
    async with asyncio.timeout(10):
        while not await chunks_left(database_url):
            await asyncio.sleep(0.02)
    assert (await put(system, made, b"b" * 600_000)).status_code == 200
    await first.write(pb.UploadAttachmentRequest(chunk=b"a" * 300_000))
    await first.done_writing()
    with pytest.raises(Exception, match="given up"):
        await first
    assert await downloaded(system, made["id"]) == b"b" * 600_000
    assert await usage(database_url) == (1, 600_000)


async def test_a_preview_is_turned_as_its_camera_was_held_and_says_nothing_of_where(system: System) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif.get_ifd(0x8825)[1] = "N"
    made = io.BytesIO()
    Image.new("RGB", (600, 300), "red").save(made, "JPEG", exif=exif)
    attachment = await uploaded(system, made.getvalue(), "a.jpg", "image/jpg")
    assert attachment["mime_type"] == "image/jpeg"
    preview = Image.open(io.BytesIO((await system.http.get(attachment["preview_url"])).content))
    assert preview.size == (256, 512)
    assert not dict(preview.getexif())


async def test_what_is_deleted_during_its_upload_stays_deleted(system: System, database_url: str) -> None:
    made = await registered(system, 600_000)
    call = stub(system.channel).UploadAttachment()
    await call.write(pb.UploadAttachmentRequest(attachment_id=made["id"], chunk=b"a" * 300_000))
    async with asyncio.timeout(10):
        while not await chunks_left(database_url):
            await asyncio.sleep(0.02)
    assert (await post(system, body_of("attachments.delete", attachment_id=made["id"]))).status_code == 200
    await call.write(pb.UploadAttachmentRequest(chunk=b"a" * 300_000))
    await call.done_writing()
    with pytest.raises(Exception, match="given up"):
        await call
    assert await usage(database_url) == (0, 0)
    assert await chunks_left(database_url) == 0


async def test_a_bomb_of_pixels_is_not_unpacked(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    before = psutil.Process().memory_info().rss
    answer = await upload(system, bomb(), "bomb.png", "image/png")
    assert code_of(answer) == (422, "ATTACHMENT_UNREADABLE")
    assert psutil.Process().memory_info().rss - before < 50 * 2**20
    monkeypatch.setattr(previews, "_MOST_PIXELS", 100)
    assert "expected at most 100, got 240,000" in (await upload(system, picture(), "a.png", "image/png")).text


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ('a\r\nSet-Cookie: x="y".txt', 'a  Set-Cookie: x="y".txt'),
        ("\u202efdp.exe", "fdp.exe"),
        ("é" * 300 + ".txt", "é" * 251 + ".txt"),
        ("../../etc/passwd", "passwd"),
        ("C:\\secret\\plan.txt", "plan.txt"),
        ("\u2066 .", "file"),
        ("👩\u200d👩\u200d👧.png", "👩\u200d👩\u200d👧.png"),
        ("", "file"),
    ],
)
async def test_a_name_is_one_line_that_reads_as_it_is_written(system: System, given: str, kept: str) -> None:
    assert clean_name(given) == kept
    made = await by_grpc(system, pb.UploadAttachmentRequest(name=given or "/", mime_type="text/plain"), [b"x"])
    assert made.attachment.file.name == kept
    read = await system.http.get(f"{HTTP}/{made.attachment.file.id}")
    disposition = read.headers["content-disposition"]
    assert disposition.isascii()
    assert disposition.startswith("attachment; filename=")
    assert httpx.URL("x:?" + disposition.rpartition("''")[2]).query.decode()
    assert disposition.count('"') == 2


async def test_a_download_has_headers_that_keep_it_from_doing_anything(system: System) -> None:
    made = await uploaded(system, b"<script>alert(1)</script>", "a.html", "text/html")
    read = await system.http.get(f"{HTTP}/{made['id']}")
    assert read.headers["content-type"] == "text/html"
    assert read.headers["x-content-type-options"] == "nosniff"
    assert read.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert read.headers["content-disposition"] == "attachment; filename=\"a.html\"; filename*=UTF-8''a.html"
    assert read.headers["cache-control"] == "private, max-age=300"
    assert read.headers["content-length"] == "25"
    asked = await system.http.head(f"{HTTP}/{made['id']}")
    assert (asked.status_code, asked.content) == (200, b"")
    assert dict(asked.headers) == dict(read.headers) | {"date": asked.headers["date"]}
    shown = await system.http.get((await uploaded(system, picture(), "a.png", "image/png"))["preview_url"])
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert shown.headers["cache-control"] == "private, max-age=86400, immutable"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b"no form"),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
        (
            "multipart/form-data; boundary=x",
            FIELD % b"other" + b"a\r\n--x--\r\n",
        ),
        ("multipart/form-data; boundary=x", FIELD % b"file" + b"abc"),
        ("multipart/form-data; boundary=x", b"--x\r\nA: " + b"a" * 10_000 + b"\r\n\r\nabc\r\n--x--\r\n"),
    ],
    ids=["json", "no boundary", "no form", "empty", "no file", "no end", "long head"],
)
async def test_what_is_no_form_with_a_file_is_told_so(
    system: System, database_url: str, content_type: str, body: bytes
) -> None:
    answer = await system.http.post(HTTP, content=body, headers={"content-type": content_type})
    assert code_of(answer) == (400, "INVALID_REQUEST")
    assert "expected" in answer.json()["error"]["message"]
    assert await rows(database_url, "select from attachments") == []


async def test_the_other_fields_of_a_form_are_passed_over(system: System) -> None:
    files: dict[str, Any] = {"other": ("b.txt", b"not this one"), "file": ("a.txt", b"this one", "text/plain")}
    made = await system.http.post(HTTP, files=files, data={"more": "x" * 100_000})
    assert await downloaded(system, made.json()["id"]) == b"this one"


async def test_only_its_owner_reads_writes_or_deletes_it(database_url: str) -> None:
    settings = limited(by_token=True)
    async with open_system(database_url, assistant(settings), server=settings) as system:
        alice, bob = [{"authorization": f"Bearer {hs256(sub=user)}"} for user in ("alice", "bob")]
        made = (await upload(system, picture(), "a.png", "image/png", **alice)).json()
        asked = body_of("attachments.create", name="a", size=3, mime_type="text/plain")
        awaited = (await post(system, asked, **alice)).json()
        for url in (f"{HTTP}/{made['id']}", f"{HTTP}/{made['id']}/preview"):
            assert (await system.http.get(url, headers=alice)).status_code == 200
            assert code_of(await system.http.get(url, headers=bob)) == (404, "ATTACHMENT_NOT_FOUND")
            assert code_of(await system.http.get(url)) == (401, "UNAUTHENTICATED")
        for attachment_id in (made["id"], awaited["id"], "atc_0"):
            answer = await system.http.put(f"{HTTP}/{attachment_id}", content=b"bob", headers=bob)
            assert code_of(answer) == (404, "ATTACHMENT_NOT_FOUND")
            assert code_of(await message_with(system, attachment_id, **bob)) == (404, "ATTACHMENT_NOT_FOUND")
            gone = await post(system, body_of("attachments.delete", attachment_id=attachment_id), **bob)
            assert code_of(gone) == (404, "ATTACHMENT_NOT_FOUND")
        assert code_of(await upload(system, b"x")) == (401, "UNAUTHENTICATED")
        # Who has the key sees the preview, and nothing else with it.
        key = made["preview_url"].rpartition("=")[2]
        other = (await upload(system, picture(), "b.png", "image/png", **alice)).json()
        assert (await system.http.get(made["preview_url"])).status_code == 200
        assert code_of(await system.http.get(f"{HTTP}/{other['id']}/preview?key={key}")) == (
            404,
            "ATTACHMENT_NOT_FOUND",
        )
        assert code_of(await system.http.get(f"{HTTP}/{made['id']}?key={key}")) == (401, "UNAUTHENTICATED")
        for wrong in (key[:-2] + "AA", "x", "", "ö", "a" * 5000, "%00"):
            answer = await system.http.get(f"{HTTP}/{made['id']}/preview?key={wrong}")
            assert code_of(answer) == (401, "UNAUTHENTICATED")
        assert "alice" not in made["preview_url"]


async def test_a_large_file_takes_little_memory_on_its_way_in_and_out(database_url: str) -> None:
    size, most = 64 * 2**20, 32 * 2**20

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // 2**20):
            yield b"\x01" * 2**20

    env = {"MAX_ATTACHMENT_BYTES": str(size), "ATTACHMENT_TYPES": "*/*"}
    async with both(database_url, **env) as system:
        processes = [psutil.Process(half.pid) for half in (system.server, system.bridge)]
        asked = {"name": "a", "mime_type": "application/octet-stream"}

        async def sent(size: int, content: Any) -> str:
            made = (await system.post(body_of("attachments.create", size=size, **asked))).json()
            answer = await system.http.put(made["upload_descriptor"]["url"], content=content)
            assert answer.status_code == 200, answer.text
            return f"{HTTP}/{made['id']}"

        await system.http.get(await sent(300_000, b"\x01" * 300_000))
        before = [process.memory_info().rss for process in processes]
        url = await sent(size, body())
        read = 0
        async with system.http.stream("GET", url) as answer:
            async for chunk in answer.aiter_bytes():
                read += len(chunk)
        assert read == size
        grown = [process.memory_info().rss - start for process, start in zip(processes, before, strict=True)]
        assert max(grown) < most, grown


async def test_what_a_file_is_called_and_its_key_stand_in_no_log(database_url: str) -> None:
    canary = "canary-in-a-coal-mine"
    async with both(database_url) as system:
        files = {"file": (f"{canary}.png", picture(), "image/png")}
        made = (await system.http.post(HTTP, files=files)).json()
        key = made["preview_url"].rpartition("=")[2]
        for url in (made["preview_url"], f"{made['preview_url']}x", f"{HTTP}/{made['id']}", f"{HTTP}/{canary}"):
            await system.http.get(url)
        await system.http.post(HTTP, files={"file": (canary, canary.encode() + b"\0", canary)})
        form = {"content-type": f"multipart/form-data; boundary={canary}"}
        await system.http.post(HTTP, content=canary, headers=form)
    assert "UploadAttachment" in system.server.printed
    system.say_nothing_of(f"{canary}.", key)


def test_types_are_told_from_bytes() -> None:
    assert type_of(b"BM is how this text begins") == "text/plain"
    assert type_of("grüß".encode()) == "text/plain"
    assert type_of("é".encode() * 2048 + "é".encode()[:1]) == "text/plain"
    assert type_of("grüß".encode("latin-1")) == "application/octet-stream"
    assert type_of("text".encode("utf-16")) == "text/plain"
    assert agreed_type("image/jpg", b"\xff\xd8\xff\xe0") == "image/jpeg"
    assert agreed_type("Text/Markdown; charset=utf-8", b"# x") == "text/markdown"
    assert agreed_type("", b"%PDF-1.4") == "application/pdf"
    docx = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    assert agreed_type(docx, b"PK\x03\x04" + bytes(50)) == docx
