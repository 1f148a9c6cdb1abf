"""Attachments after their upload: what a model is told of them, how long they stay, and an assistant of one's own."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from chatkit.server import ChatKitServer
from chatkit.types import AssistantMessageContent, AssistantMessageItem, ThreadItemDoneEvent
from chatkit_grpc.errors import NotFoundError
from chatkit_grpc.v1 import thread_service_pb2, thread_service_pb2_grpc

from bridge.settings import Settings as BridgeSettings
from server.attachments import statements
from server.attachments.for_the_model import contents_for
from server.attachments.postgres_bytes import PostgresBytes
from server.attachments.settings import AttachmentSettings
from server.attachments.sweep import AttachmentSweep
from server.lease import Lease
from server.retention import Retention
from server.store import PostgresStore
from server.token_estimate import tokens_in
from tests.attachments_fixtures import (
    HTTP,
    PDF,
    assistant,
    chunks_left,
    code_of,
    limited,
    message_with,
    picture,
    put,
    registered,
    rows,
    uploaded,
    usage,
)
from tests.database import context_of, execute
from tests.fake_openai import Fail, FakeOpenAI, Say
from tests.page import SSE, body_of, events_of, post, say
from tests.scripted import ScriptedServer
from tests.system import System, open_system


@pytest.fixture
async def system(database_url: str) -> AsyncIterator[System]:
    settings = limited()
    async with open_system(database_url, assistant(settings), server=settings) as system:
        yield system


@asynccontextmanager
async def with_model(database_url: str, fake: FakeOpenAI, kind: str, **settings: Any) -> AsyncIterator[System]:
    """The default assistant with a model behind one of the two interfaces."""
    made = replace(limited(**settings), model_base_url=fake.base_url, model_name="fake")
    if kind == "responses":
        made = replace(made, model_base_url=None, openai_api_key="key")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", fake.base_url)
        async with open_system(database_url, assistant(made), server=made) as system:
            yield system


def user_parts(fake: FakeOpenAI) -> list[Any]:
    """What the model was last told that the user sent, in the words of its interface."""
    request = fake.requests[-1]
    messages = request.get("input") or request["messages"]
    content = next(message["content"] for message in messages if message.get("role") == "user")
    assert isinstance(content, list)
    return content


async def test_a_model_behind_responses_sees_pictures_pdfs_and_text(database_url: str) -> None:
    png = picture(64, 64)
    async with FakeOpenAI([Say(text="seen")]) as fake, with_model(database_url, fake, "responses") as system:
        ids = [
            (await uploaded(system, content, name, kind))["id"]
            for content, name, kind in (
                (png, "a.png", "image/png"),
                (PDF, "b.pdf", "application/pdf"),
                ("grüß".encode(), "c.txt", "text/plain"),
            )
        ]
        answer = await message_with(system, *ids, **SSE)
    assert not [event for event in events_of(answer) if event["type"] in {"error", "notice"}]
    assert fake.paths[-1].endswith("/responses")
    _, image, file, text = user_parts(fake)
    assert image["type"] == "input_image"
    assert image["image_url"] == f"data:image/png;base64,{base64.b64encode(png).decode()}"
    assert (file["type"], file["filename"]) == ("input_file", "b.pdf")
    assert file["file_data"] == f"data:application/pdf;base64,{base64.b64encode(PDF).decode()}"
    assert text == {"type": "input_text", "text": "Attached file: c.txt (text/plain). Its text:\n\ngrüß"}


async def test_chat_completions_see_pictures_and_are_told_of_pdfs(database_url: str) -> None:
    png = picture(64, 64)
    async with FakeOpenAI([Say(text="seen")]) as fake, with_model(database_url, fake, "chat") as system:
        ids = [
            (await uploaded(system, png, "a.png", "image/png"))["id"],
            (await uploaded(system, PDF, "b.pdf", "application/pdf"))["id"],
        ]
        answer = await message_with(system, *ids, **SSE)
        thread_id = events_of(answer)[0]["thread"]["id"]
        (notice,) = [event for event in events_of(answer) if event["type"] == "notice"]
        assert notice["message"] == "b.pdf: The model can't read files of the type application/pdf."
        _, image, told = user_parts(fake)
        assert image["type"] == "image_url"
        assert image["image_url"]["url"].startswith("data:image/png;base64,")
        assert told["text"].startswith("Attached file: b.pdf (application/pdf). You can't see what is in it")
        # Told once: the next answer is about another message.
        answer = await post(system, say("and now?", thread_id=thread_id), **SSE)
        assert not [event for event in events_of(answer) if event["type"] == "notice"]
        assert len(user_parts(fake)) == 3


async def test_the_operator_says_what_a_model_takes_and_how_many_bytes(database_url: str) -> None:
    settings = {"attachments_for_model": ("text",), "attachment_bytes_for_model": 10}
    async with FakeOpenAI([Say(text="seen")]) as fake, with_model(database_url, fake, "chat", **settings) as system:
        image = await uploaded(system, picture(64, 64), "a.png", "image/png")
        small = await uploaded(system, b"ten bytes!", "b.txt")
        large = await uploaded(system, b"x", "c.txt")
        answer = await message_with(system, image["id"], small["id"], large["id"], **SSE)
    notices = [event["message"] for event in events_of(answer) if event["type"] == "notice"]
    assert [notice.partition(": ")[0] for notice in notices] == ["a.png", "c.txt"]
    assert "too large for the model" in notices[1]
    texts = [part["text"] for part in user_parts(fake)]
    assert texts[2].endswith("ten bytes!")


def test_a_model_that_is_known_to_take_no_pictures_is_shown_none() -> None:
    made = contents_for(None, "chat_completions", "mimo-v2-flash", AttachmentSettings(), context_of("alice"))
    assert made._takes == {"text"}
    made = contents_for(None, "chat_completions", "other", AttachmentSettings(), context_of("alice"))
    assert made._takes == {"image", "text"}


async def test_of_a_long_text_the_model_is_told_the_beginning(database_url: str) -> None:
    async with FakeOpenAI([Say(text="seen")]) as fake, with_model(database_url, fake, "chat") as system:
        made = await uploaded(system, b"a" * 70_000)
        answer = await message_with(system, made["id"], **SSE)
    (notice,) = [event for event in events_of(answer) if event["type"] == "notice"]
    assert notice["message"] == "a.txt: Of its 70,000 characters the model sees the first 60,000."
    assert user_parts(fake)[1]["text"].endswith("\n\n" + "a" * 60_000)


@pytest.mark.parametrize("kind", ["responses", "chat"])
async def test_a_file_that_the_provider_refuses_ends_no_thread(database_url: str, kind: str) -> None:
    async with (
        FakeOpenAI((Fail(400), Say(text="I can't see it"))) as fake,
        with_model(database_url, fake, kind) as system,
    ):
        made = await uploaded(system, picture(64, 64), "a.png", "image/png")
        events = events_of(await message_with(system, made["id"], **SSE))
        assert events[-1]["item"]["content"][0]["text"].strip() == "I can't see it"
        assert len(fake.requests) == 2
        sent = [json.dumps(request) for request in fake.requests]
        assert ["data:image/png" in request for request in sent] == [True, False]
        assert "your server refused it" in sent[1]
        fake.then(Fail(400))
        refused = events_of(await post(system, say("Well?", thread_id=events[0]["thread"]["id"]), **SSE))
        assert "did not accept" in refused[-1]["message"]
        assert len(fake.requests) == 4


async def test_what_is_gone_is_told_as_gone(database_url: str) -> None:
    async with FakeOpenAI([Say(text="seen")]) as fake, with_model(database_url, fake, "chat") as system:
        made = await uploaded(system, b"text")
        answer = await message_with(system, made["id"], **SSE)
        thread_id = events_of(answer)[0]["thread"]["id"]
        assert (await post(system, body_of("attachments.delete", attachment_id=made["id"]))).status_code == 200
        await post(system, say("and now?", thread_id=thread_id), **SSE)
    assert "The file is not there any more." in user_parts(fake)[1]["text"]


def test_every_statement_names_its_user_but_for_the_sweep() -> None:
    named = {name: value for name, value in vars(statements).items() if name.isupper()}
    assert len(named) == 15
    tables = r"(?:from|update|into|join) (?:attachments|attachment_chunks|attachment_usage)\b"
    unscoped = {
        name
        for name, statement in named.items()
        if len(re.findall(r"user_id = \$1|select \$1", statement)) < len(re.findall(tables, statement))
    }
    assert unscoped == {"FORGET_EXPIRED"}


async def test_bytes_count_for_few_tokens() -> None:
    told: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "12345"}]},
        {"role": "user", "content": [{"type": "input_image", "image_url": "x" * 10**6, "detail": "auto"}]},
        {"role": "user", "content": [{"type": "input_file", "file_data": "x" * 10**6, "filename": "a.pdf"}]},
    ]
    assert 3000 < tokens_in(told) < 6000


async def swept(system: System) -> None:
    """What retention does every 20 seconds."""
    database = system.server.database
    await Retention(database, limited(), AttachmentSweep(database, PostgresBytes(database))).sweep()


async def test_what_is_abandoned_is_swept_and_what_a_thread_shows_stays(system: System, database_url: str) -> None:
    shown, kept = await uploaded(system, b"shown"), await uploaded(system, b"kept")
    await registered(system, 5)
    await uploaded(system, b"abandoned")
    await message_with(system, shown["id"], **SSE)
    await rows(
        database_url,
        "update attachments set expires_at = expires_at - interval '86401 s' where attachment_id <> $1",
        kept["id"],
    )
    await swept(system)
    left = {row["attachment_id"] for row in await rows(database_url, "select attachment_id from attachments")}
    assert left == {shown["id"], kept["id"]}
    assert await chunks_left(database_url) == 2
    assert await usage(database_url) == (2, 9)


async def test_with_a_thread_go_the_bytes_of_what_it_showed(system: System, database_url: str) -> None:
    made = await uploaded(system, picture(), "a.png", "image/png")
    answer = await message_with(system, made["id"], **SSE)
    thread_id = events_of(answer)[0]["thread"]["id"]
    assert (await post(system, body_of("threads.delete", thread_id=thread_id))).status_code == 200
    await swept(system)
    assert await rows(database_url, "select from attachments") == []
    assert await chunks_left(database_url) == 0
    assert await usage(database_url) == (0, 0)
    assert code_of(await system.http.get(made["preview_url"])) == (404, "ATTACHMENT_NOT_FOUND")


async def test_a_reader_is_not_told_that_he_has_all_of_what_was_deleted_meanwhile(
    system: System, database_url: str
) -> None:
    made = await uploaded(system, b"a" * 600_000)
    await execute(database_url, "delete from attachment_chunks where number = 1")
    with pytest.raises(Exception, match=r"peer closed|incomplete"):
        await system.http.get(f"{HTTP}/{made['id']}")


async def test_a_service_may_append_a_message_with_what_is_uploaded_and_nothing_else(system: System) -> None:
    threads: Any = thread_service_pb2_grpc.ThreadServiceStub(system.channel)
    thread_id = events_of(await post(system, say("hi"), **SSE))[0]["thread"]["id"]
    awaited, there = await registered(system, 5), await uploaded(system, b"text")

    async def append(attachment_id: str) -> Any:
        request = thread_service_pb2.AppendItemRequest(thread_id=thread_id)
        request.item.user_message.content.add().input_text.text = "look"
        request.item.user_message.attachments.add().file.id = attachment_id
        return await threads.AppendItem(request)

    with pytest.raises(Exception, match="has not been uploaded yet"):
        await append(awaited["id"])
    added = await append(there["id"])
    assert added.item.user_message.attachments[0].file.name == "a.txt"
    shown = "select session_id, expires_at from attachments where attachment_id = $1"
    assert tuple(await system.server.database.fetchrow(shown, there["id"]) or ()) == (thread_id, None)
    thread_id, other = "thr_none", await uploaded(system, b"text")
    with pytest.raises(Exception, match="no such thread"):
        await append(other["id"])
    assert (await system.server.database.fetch(shown, other["id"]))[0]["session_id"] is None


async def test_a_message_brings_no_attachment_that_is_deleted_meanwhile(system: System) -> None:
    made = await uploaded(system, b"text")
    context, store = context_of("dev-user"), system.server.store
    attachment = await store.load_attachment(made["id"], context)
    await store.delete_attachment(made["id"], context)
    await system.server.database.fetch(
        "insert into chat_sessions (user_id, session_id, active_run_id, run_epoch) values ('dev-user', 'thr_1', 'r', 1)"
    )
    attachment.thread_id = "thr_1"
    Lease("dev-user", "thr_1", "r", 1).give_to(context)
    with pytest.raises(NotFoundError):
        await store.save_attachment(attachment, context)
    assert not await system.server.database.fetch("select 1 from attachments")


class Own(ChatKitServer[Any]):
    """An assistant of one's own, that lets the server keep attachments."""

    def __init__(self, store: PostgresStore) -> None:
        super().__init__(store, store.attachments)

    async def respond(self, thread: Any, input_user_message: Any, context: Any) -> AsyncIterator[Any]:
        attachment = input_user_message.attachments[0]
        text = f"{attachment.name} of {attachment.thread_id == thread.id}"
        content = [AssistantMessageContent(text=text)]
        item_id = self.store.generate_item_id("message", thread, context)
        yield ThreadItemDoneEvent(
            item=AssistantMessageItem(id=item_id, thread_id=thread.id, created_at=datetime.now(), content=content)
        )


async def test_an_assistant_of_ones_own_takes_attachments_too(database_url: str) -> None:
    async with open_system(database_url, Own) as system:
        made = await uploaded(system, b"text", "own.txt")
        answer = await message_with(system, made["id"], **SSE)
        assert "own.txt of True" in answer.text
    async with open_system(database_url, ScriptedServer) as system:
        assert code_of(await system.http.get(f"{HTTP}/{made['id']}")) == (400, "UNSUPPORTED")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("chat.test", "http://chat.test/api"),
        ("chat.test:8443", "http://chat.test:8443/api"),
        ("evil.test/x?y=", "http://127.0.0.1:8000/api"),
        ("a@b", "http://127.0.0.1:8000/api"),
    ],
)
async def test_urls_begin_as_the_page_called(system: System, host: str, expected: str) -> None:
    asked = body_of("attachments.create", name="a", size=5, mime_type="image/png")
    made = (await post(system, asked, host=host)).json()
    assert made["upload_descriptor"]["url"].startswith(expected)
    assert made["preview_url"].startswith(expected)


async def test_urls_begin_as_the_setting_says(database_url: str) -> None:
    settings, bridge = limited(), BridgeSettings(shutdown_grace_seconds=0, public_url="https://chat.test/")
    async with open_system(database_url, assistant(settings), server=settings, bridge=bridge) as system:
        made = await registered(system, 5, "a.png", "image/png")
        assert made["upload_descriptor"]["url"] == f"https://chat.test{HTTP}/{made['id']}"


async def test_a_preview_is_shown_across_servers_and_restarts(database_url: str) -> None:
    settings = limited()
    async with open_system(database_url, assistant(settings), server=settings) as system:
        content = picture()
        made = await registered(system, len(content), "a.png", "image/png")
        assert (await put(system, made, content)).status_code == 200
    async with open_system(database_url, assistant(settings), server=settings) as system:
        path = made["preview_url"].partition("/api/")[2]
        assert (await system.http.get(f"/api/{path}")).status_code == 200


async def test_behind_the_second_wall_all_of_it_works(database_url: str) -> None:
    settings = replace(limited(), row_level_security=True)
    async with open_system(database_url, assistant(settings), server=settings) as system:
        made = await uploaded(system, picture(), "a.png", "image/png")
        assert (await system.http.get(made["preview_url"])).status_code == 200
        assert (await system.http.get(f"{HTTP}/{made['id']}")).status_code == 200
        answer = await message_with(system, made["id"], **SSE)
        thread_id = events_of(answer)[0]["thread"]["id"]
        await post(system, body_of("threads.delete", thread_id=thread_id))
        await swept(system)
        assert await usage(database_url) == (0, 0)
