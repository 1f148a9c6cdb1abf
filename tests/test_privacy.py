"""What people say, and what they log in with, stands in no log: a canary through every field and every error."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from chatkit_grpc import codec
from chatkit_grpc.redaction import RedactingFormatter, describe
from chatkit_grpc.schema import is_map, value_field
from chatkit_grpc.v1 import chat_service_pb2, thread_service_pb2
from chatkit_grpc.v1.chatkit_request_pb2 import ChatKitRequest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from tests.database import execute
from tests.fake_openai import Fail, FakeOpenAI, Misbehave, Say, Step
from tests.filled import METHODS, OPERATIONS, VARIANTS, filled, message_of
from tests.page import SSE, body_of, say
from tests.processes import Both, both
from tests.scripted import WHAT_WAS_SAID

ROOT = Path(__file__).parent.parent
CANARY = "canary-in-a-coal-mine"
KEY = "sk-canary-of-a-key"
NOT_PERSONAL = {
    *(
        "id",
        "user_id",
        "thread_id",
        "item_id",
        "item_ids",
        "run_id",
        "attachment_id",
        "attachments",
        "request_id",
        "call_id",
    ),
    *("component_id", "after", "cursor", "mime_type", "type", "icon", "code", "model", "domains"),
}
NAMES_OF_THE_DEVELOPERS = {"ClientToolCallItem.name", "ClientEffectEvent.name"}
"""Tools and effects: what they are called, the assistant's author has said."""


def fields(descriptor: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    if descriptor.full_name in seen or descriptor.file.package != "chatkit_grpc.v1":
        return
    seen.add(descriptor.full_name)
    for field in descriptor.fields:
        yield field
        if field.message_type is not None:
            yield from fields(field.message_type, seen)


def holds_text(field: FieldDescriptor) -> bool:
    """Of a map its values count; its keys are never shown."""
    assert field.containing_type is not None
    if field.containing_type.GetOptions().map_entry:
        return False
    held = value_field(field) if is_map(field) else field
    return held.type in {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES}


def all_fields() -> list[FieldDescriptor]:
    seen: set[str] = set()
    types = [method.input_type for method in METHODS] + [method.output_type for method in METHODS]
    return [field for descriptor in [*types, ChatKitRequest.DESCRIPTOR] for field in fields(descriptor, seen)]


def test_the_schema_says_of_each_text_whether_it_is_personal() -> None:
    unsaid = [
        field.full_name
        for field in all_fields()
        if holds_text(field)
        and not field.GetOptions().debug_redact
        and field.name not in NOT_PERSONAL
        and field.full_name.removeprefix("chatkit_grpc.v1.") not in NAMES_OF_THE_DEVELOPERS
    ]
    assert unsaid == []


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_message_is_described_without_what_it_says(method: MethodDescriptor) -> None:
    for kind in (method.input_type, method.output_type):
        for variant in range(VARIANTS):
            described = describe(filled(message_of(kind), CANARY, {}, variant))
            assert CANARY not in described
            assert "\n" not in described


def test_a_description_says_what_helps() -> None:
    request = chat_service_pb2.AddUserMessageRequest(thread_id="thr_1")
    request.input.content.add().input_text.text = "secret"
    request.input.attachments.append("atc_1")
    assert describe(request) == (
        "AddUserMessageRequest(thread_id='thr_1', input=UserMessageInput(content=[UserMessageContent("
        "input_text=UserMessageTextContent(text=<6>))], attachments=['atc_1']))"
    )


def test_the_formatter_describes_whatever_message_it_is_given() -> None:
    request = thread_service_pb2.UpdateThreadRequest(thread_id="thr_1", title=CANARY)
    record = logging.LogRecord("server", logging.INFO, "", 1, "%s: %s", ("renamed", request), None)
    assert RedactingFormatter("%(message)s").format(record) == (
        f"renamed: UpdateThreadRequest(thread_id='thr_1', title=<{len(CANARY)}>)"
    )


async def called(system: Both, *call: Any) -> None:
    with suppress(grpc.aio.AioRpcError):  # an error path, too
        await system.call(*call)


async def a_thread(both: Both) -> tuple[str, str]:
    """The ids of a thread and of the message on it."""
    answer = await both.post(say("tokens 1"), **SSE)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    items = [event["item"]["id"] for event in events if event["type"] == "thread.item.done"]
    return events[0]["thread"]["id"], items[0]


async def test_no_field_of_any_operation_gets_into_a_log(database_url: str) -> None:
    async with both(database_url, CHATKIT_SERVER="tests.scripted:ScriptedServer") as system:
        thread_id, item_id = await a_thread(system)
        ids = {"thread_id": thread_id, "item_id": item_id, "item_ids": item_id, "id": ""}
        for method in METHODS:
            for variant in range(VARIANTS):
                request = filled(message_of(method.input_type), CANARY, ids, variant)
                await called(system, method, request.SerializeToString())
        for field in OPERATIONS:
            for variant in range(VARIANTS):
                message: Any = ChatKitRequest(metadata=json.dumps({CANARY: CANARY}))
                assert field.message_type is not None
                getattr(message, field.name).CopyFrom(filled(message_of(field.message_type), CANARY, ids, variant))
                body = codec.encode(message).encode()
                # The watcher of a run that never ends would wait for it.
                async with asyncio.timeout(20):
                    await system.post(body, **(SSE if variant % 2 else {}))
    assert "AddUserMessage" in system.server.printed
    system.say_nothing_of(CANARY)


BAD_BODIES = [
    f'{{"type": "{CANARY}"',
    f'"{CANARY}"',
    json.dumps({"type": CANARY, "params": {}}),
    json.dumps({"type": "threads.update", "params": {"thread_id": {CANARY: CANARY}, "title": 1}}),
    json.dumps({"type": "threads.update", "params": {"thread_id": "thr_1", "title": {CANARY: CANARY}}}),
    json.dumps({"type": "items.list", "params": {"thread_id": "thr_1", "limit": CANARY, "order": CANARY}}),
    json.dumps({**say("tokens 1"), "metadata": CANARY}),
    json.dumps({**say("tokens 1"), "metadata": {CANARY: CANARY * 1000}}),
    json.dumps(say(CANARY * 50_000)),
    json.dumps(say("fail")),
    json.dumps(say("refuse")),
    json.dumps(say(f"unheard_of {CANARY}")),
    json.dumps(body_of("threads.custom_action", thread_id="t", action={"type": "press", "payload": CANARY})),
    json.dumps(body_of("input.transcribe", audio_base64=CANARY, mime_type=CANARY)),
    CANARY,
    f"\x00{CANARY}",
]
BAD_HEADERS = [
    {"authorization": f"Bearer {CANARY}"},
    {"authorization": f"Basic {CANARY}"},
    {"authorization": CANARY},
    {"cookie": f"better-auth.session_token={CANARY}.{CANARY}; __Secure-better-auth.session_token={CANARY}"},
    {"x-user-id": f"{CANARY} !"},
    {"idempotency-key": f"{CANARY} {CANARY}"},
    {"last-event-id": CANARY},
    {"content-type": CANARY},
    {"accept-language": CANARY, "user-agent": CANARY, "x-request-id": CANARY, "traceparent": CANARY, "origin": CANARY},
]


async def test_no_error_path_puts_it_there(database_url: str) -> None:
    """Bad bodies, bad headers, an assistant's bug, a database that refuses, and one that is gone."""
    async with both(database_url, CHATKIT_SERVER="tests.scripted:ScriptedServer") as system:
        thread_id, _ = await a_thread(system)
        for body in BAD_BODIES:
            for accept in ({}, SSE):
                await system.post(body.encode(), **accept)
        for headers in BAD_HEADERS:
            await system.post(say(f"tokens 1 0 {CANARY}"), **headers)
        for method in METHODS:
            await called(system, method, CANARY.encode())
            await called(system, method, b"", ("authorization", f"Bearer {CANARY}"), ("x-user-id", f"{CANARY} !"))
            await called(system, method, b"", ("chatkit-request-metadata-bin", CANARY.encode()))
        renamed = body_of("threads.update", thread_id=thread_id, title=CANARY)
        await execute(database_url, "alter table chat_messages rename to elsewhere")
        # An answer that can't be stored can't be ended either, until recovery does.
        with suppress(TimeoutError):
            async with asyncio.timeout(4):
                await system.post(say(f"tokens 3 0.1 {CANARY}"))
        await execute(database_url, "alter table elsewhere rename to chat_messages")
        await execute(database_url, "alter table chat_sessions add constraint short check (length(title) < 5)")
        assert (await system.post(renamed)).status_code == 500
        await execute(database_url, "alter table chat_sessions rename to elsewhere")
        for refused in (renamed, say(CANARY)):
            await system.post(refused)
        await execute(database_url, "alter table elsewhere rename to chat_sessions")
    assert "the assistant failed: KeyError" in system.server.printed
    system.say_nothing_of(CANARY, WHAT_WAS_SAID)


async def test_what_the_model_hears_and_says_stands_in_no_log_and_neither_does_its_key(database_url: str) -> None:
    steps: list[Step] = [
        Say(text=CANARY),
        Fail(401),
        Fail(500),
        Misbehave("empty"),
        Say(text=CANARY, break_after=1),
        Say(text="x"),
    ]
    async with FakeOpenAI(steps) as fake:
        env = {"MODEL_BASE_URL": fake.base_url, "MODEL_NAME": "fake", "MODEL_API_KEY": KEY, "TOKENS_PER_DAY": "10000"}
        async with both(database_url, **env) as system:
            for _ in steps:
                await system.post(say(CANARY), **SSE)
    assert len(fake.requests) >= len(steps)
    assert fake.headers[0]["authorization"] == f"Bearer {KEY}"
    system.say_nothing_of(CANARY, KEY)
