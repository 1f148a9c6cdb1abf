"""Lists of verdicts: a user's own, page by page, and all users' for a service that evaluates."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Literal

import grpc
import pytest
from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageItem,
    InferenceOptions,
    ThreadItem,
    ThreadMetadata,
    UserMessageItem,
    UserMessageTextContent,
)
from chatkit_grpc.errors import ChatKitError, from_rpc_error
from chatkit_grpc.v1 import thread_service_pb2 as pb
from chatkit_grpc.v1.thread_pb2 import ORDER_ASC

from server import feedback
from server.store import PostgresStore
from tests.database import context_of, execute
from tests.issuer import AUDIENCE, hs256
from tests.scripted import ScriptedServer
from tests.system import IMPATIENT, PRODUCTION, System, open_system
from tests.test_auth import SERVICES_TOO

SERVICE = "/chatkit_grpc.v1.ThreadService/"
EVALUATOR = {"sub": "evaluator", "scope": "chat:act"}
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_numbers = count(1)


@pytest.fixture
async def system(database_url: str) -> AsyncIterator[System]:
    settings = replace(PRODUCTION, auth=SERVICES_TOO, row_level_security=True)
    async with open_system(database_url, ScriptedServer, server=settings) as system:
        yield system


async def own(system: System, user: str, **fields: Any) -> pb.ListFeedbackResponse:
    return pb.ListFeedbackResponse.FromString(
        await call(system, "ListFeedback", pb.ListFeedbackRequest(**fields), {"sub": user})
    )


async def of_all(system: System, **fields: Any) -> pb.ListAllFeedbackResponse:
    return pb.ListAllFeedbackResponse.FromString(
        await call(system, "ListAllFeedback", pb.ListAllFeedbackRequest(**fields), EVALUATOR)
    )


async def call(system: System, rpc: str, request: Any, claims: dict[str, Any], **headers: str) -> bytes:
    sent = (("authorization", f"Bearer {hs256(**claims)}"), *headers.items())
    made: Any = system.channel.unary_unary(SERVICE + rpc)
    try:
        answer: bytes = await made(request.SerializeToString(), metadata=sent, timeout=20)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None
    return answer


async def a_thread(store: PostgresStore, user: str, answers: int = 1) -> tuple[str, list[str]]:
    """A thread with a question and answers to it, and the ids of the answers."""
    context, number = context_of(user), next(_numbers)
    thread_id, ids = f"thr_{number}", [f"msg_{number}_{at}" for at in range(answers)]
    await store.save_thread(ThreadMetadata(id=thread_id, created_at=datetime.now()), context)
    question = UserMessageItem(
        id=f"msg_{number}_question", thread_id=thread_id, created_at=datetime.now(),
        content=[UserMessageTextContent(text=f"question {number}")], attachments=[],
        inference_options=InferenceOptions(),
    )  # fmt: skip
    said: list[ThreadItem] = [
        AssistantMessageItem(
            id=item_id, thread_id=thread_id, created_at=datetime.now(),
            content=[AssistantMessageContent(text=f"answer {item_id}")],
        )
        for item_id in ids
    ]  # fmt: skip
    for item in (question, *said):
        await store.add_thread_item(thread_id, item, context)
    return thread_id, ids


async def judge(
    system: System, user: str, kind: Literal["positive", "negative"] = "positive", answers: int = 1
) -> tuple[str, list[str]]:
    store = system.server.store
    thread_id, ids = await a_thread(store, user, answers)
    await store.save_feedback(thread_id, ids, kind, context_of(user))
    return thread_id, ids


def entries(response: pb.ListFeedbackResponse | pb.ListAllFeedbackResponse) -> list[tuple[str, str]]:
    return [(entry.user_id, entry.item_id) for entry in response.data]


async def test_a_user_lists_his_own_newest_first(system: System) -> None:
    first, (one,) = await judge(system, "alice")
    second, (other,) = await judge(system, "alice", "negative")
    await judge(system, "bob")
    response = await own(system, "alice")
    assert entries(response) == [("alice", other), ("alice", one)]
    assert [(entry.thread_id, entry.kind) for entry in response.data] == [
        (second, pb.FEEDBACK_KIND_NEGATIVE),
        (first, pb.FEEDBACK_KIND_POSITIVE),
    ]
    assert not response.has_more
    entry = response.data[0]
    assert entry.created_at == entry.updated_at
    assert abs(entry.created_at.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)
    assert not entry.HasField("item")
    assert entries(await own(system, "nobody")) == []


async def test_a_verdict_that_is_changed_moves_to_the_newer_end(system: System) -> None:
    thread_id, (one,) = await judge(system, "alice")
    _, (other,) = await judge(system, "alice")
    before = await own(system, "alice", order=ORDER_ASC)
    await system.server.store.save_feedback(thread_id, [one], "negative", context_of("alice"))
    assert entries(await own(system, "alice", order=ORDER_ASC)) == [("alice", other), ("alice", one)]
    # Whoever goes on from where he was is told of it.
    (changed,) = (await own(system, "alice", order=ORDER_ASC, after=before.after)).data
    assert (changed.item_id, changed.kind) == (one, pb.FEEDBACK_KIND_NEGATIVE)
    assert changed.updated_at.ToNanoseconds() > changed.created_at.ToNanoseconds()
    rest = await own(system, "alice", order=ORDER_ASC, after=(await own(system, "alice", order=ORDER_ASC)).after)
    assert (entries(rest), rest.has_more, rest.HasField("after")) == ([], False, False)


@pytest.mark.parametrize("order", [ORDER_ASC, 0], ids=["ascending", "descending"])
async def test_pages_hold_each_verdict_once(system: System, order: int) -> None:
    """Also those that were given at the same moment."""
    for user in ("alice", "bob"):
        for answers in (1, 5, 3):
            await judge(system, user, answers=answers)
    every = entries(await own(system, "alice", order=order, limit=1000))
    assert len(every) == 9
    seen, after = [], None
    for page in range(5):
        response = await own(system, "alice", order=order, limit=2, after=after)
        seen += entries(response)
        assert response.has_more is (page < 4)
        after = response.after
    assert seen == every
    everybody, after = [], None
    while True:
        answer = await of_all(system, order=order, limit=4, after=after)
        everybody += entries(answer)
        if not answer.has_more:
            break
        after = answer.after
    assert everybody == entries(await of_all(system, order=order, limit=1000))
    assert len(set(everybody)) == 18
    assert [entry for entry in everybody if entry[0] == "alice"] == every


async def test_verdicts_are_filtered_by_kind_time_and_thread(system: System, database_url: str) -> None:
    good, (one,) = await judge(system, "alice")
    _, (two,) = await judge(system, "alice", "negative")
    _, (three,) = await judge(system, "bob", "negative")
    for minutes, item in enumerate((one, two, three)):
        when = BEGAN + timedelta(minutes=minutes)
        await execute(database_url, f"update feedback set updated_at = '{when}' where message_id = '{item}'")  # noqa: S608

    def between(since: int | None = None, until: int | None = None, kind: int = 0) -> dict[str, Any]:
        found: Any = pb.FeedbackFilter(kind=kind)  # type: ignore[arg-type]  # a number of it
        for name, minutes in (("since", since), ("until", until)):
            if minutes is not None:
                getattr(found, name).FromDatetime(BEGAN + timedelta(minutes=minutes))
        return {"filter": found}

    async def items(user: str, **fields: Any) -> list[str]:
        return [item for _, item in entries(await own(system, user, **fields))]

    assert await items("alice", **between(kind=pb.FEEDBACK_KIND_NEGATIVE)) == [two]
    assert await items("alice", thread_id=good) == [one]
    assert await items("alice", thread_id=good, **between(since=1)) == []
    assert await items("alice", **between(since=1)) == [two]
    assert await items("alice", **between(until=1)) == [one]
    assert await items("alice", **between(since=0, until=1)) == [one]
    assert await items("alice", **between(since=2, until=1)) == []
    all_of = [item for _, item in entries(await of_all(system, **between(since=1, kind=pb.FEEDBACK_KIND_NEGATIVE)))]
    assert all_of == [three, two]


async def test_an_evaluator_gets_question_and_answer(system: System) -> None:
    thread_id, ids = await judge(system, "alice", answers=2)
    lonely = AssistantMessageItem(
        id="lonely", thread_id="thr_lonely", created_at=datetime.now(), content=[AssistantMessageContent(text="hello")]
    )
    store = system.server.store
    await store.save_thread(ThreadMetadata(id="thr_lonely", created_at=datetime.now()), context_of("bob"))
    await store.add_thread_item("thr_lonely", lonely, context_of("bob"))
    await store.save_feedback("thr_lonely", ["lonely"], "negative", context_of("bob"))
    response = await of_all(system, include_items=True, order=ORDER_ASC)
    assert [entry.item.assistant_message.content[0].output_text.text for entry in response.data] == [
        *(f"answer {item_id}" for item_id in ids),
        "hello",
    ]
    for entry in response.data[:2]:
        assert entry.item.assistant_message.thread_id == thread_id
        assert entry.user_message.user_message.content[0].input_text.text.startswith("question ")
    assert not response.data[2].HasField("user_message")
    assert [entry.HasField("item") for entry in (await own(system, "alice", include_items=True)).data] == [True, True]


async def test_a_verdict_goes_with_its_item(system: System) -> None:
    thread_id, (one, two) = await judge(system, "alice", answers=2)
    await system.server.store.delete_thread_item(thread_id, one, context_of("alice"))
    assert entries(await own(system, "alice")) == [("alice", two)]


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"limit": -1}, "INVALID_REQUEST", "expected 0 or more"),
    ({"after": "x"}, "UNKNOWN_CURSOR", "no page has given such a cursor"),
    ({"after": "W10"}, "UNKNOWN_CURSOR", "no page has given such a cursor"),
    ({"filter": pb.FeedbackFilter(kind=9)}, "INVALID_REQUEST", "expected positive or negative"),  # type: ignore[arg-type]
    ({"filter": {"since": {"seconds": 2**62}}}, "INVALID_REQUEST", "expected a time"),
    ({"filter": {"until": {"seconds": -(2**62)}}}, "INVALID_REQUEST", "expected a time"),
    ({"filter": {"until": {"nanos": -5}}}, "INVALID_REQUEST", "expected a time"),
]


async def test_bad_requests_say_what_was_expected(system: System) -> None:
    for fields, code, said in BAD:
        for ask in (own(system, "alice", **fields), of_all(system, **fields)):
            with pytest.raises(ChatKitError) as caught:
                await ask
            assert (caught.value.code, said in caught.value.message) == (code, True), caught.value.message


async def test_a_thread_of_somebody_else_is_as_if_it_were_not_there(system: System) -> None:
    theirs, _ = await judge(system, "bob")
    for thread_id in (theirs, "thr_nowhere"):
        with pytest.raises(ChatKitError, match="There is no such thread") as caught:
            await own(system, "alice", thread_id=thread_id)
        assert caught.value.code == "THREAD_NOT_FOUND"
    # A cursor of somebody else's list is but a place in time.
    after = (await own(system, "bob")).after
    await judge(system, "alice")
    assert {entry.user_id for entry in (await own(system, "alice", after=after, order=ORDER_ASC)).data} <= {"alice"}


# Who may see those of all


async def test_only_a_service_sees_those_of_all_users_and_it_is_logged(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    await judge(system, "alice")
    request = pb.ListAllFeedbackRequest()
    refused: list[tuple[dict[str, Any], dict[str, str], str]] = [
        ({"sub": "alice"}, {}, "only a service may"),
        ({"sub": "alice", "scope": "chat:act2"}, {}, "only a service may"),
        ({"sub": "alice"}, {"x-user-id": "alice"}, "only a service may"),
        (EVALUATOR, {"x-user-id": "alice"}, "call without it"),
    ]
    with caplog.at_level(logging.INFO, "server.auth"):
        for claims, headers, said in refused:
            with pytest.raises(ChatKitError, match=said) as caught:
                await call(system, "ListAllFeedback", request, claims, **headers)
            assert caught.value.code == "PERMISSION_DENIED"
        assert "reads of all users" not in caplog.text
        for claims in (EVALUATOR, {"sub": "evaluator", "aud": "https://services.test"}):
            caplog.clear()
            answer = await call(system, "ListAllFeedback", request, claims)
            assert len(pb.ListAllFeedbackResponse.FromString(answer).data) == 1
            assert "evaluator reads of all users" in caplog.text


async def test_without_a_token_nobody_sees_them(system: System) -> None:
    made: Any = system.channel.unary_unary(f"{SERVICE}ListAllFeedback")
    for metadata in ((), (("x-user-id", "alice"),), (("cookie", "better-auth.session_token=x"),)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await made(b"", metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_without_services_nobody_sees_them(database_url: str) -> None:
    async with open_system(database_url, ScriptedServer, server=PRODUCTION) as system:
        for claims in ({"aud": AUDIENCE}, EVALUATOR):
            with pytest.raises(ChatKitError) as caught:
                await call(system, "ListAllFeedback", pb.ListAllFeedbackRequest(), claims)
            assert caught.value.code == "PERMISSION_DENIED"


async def test_in_development_they_can_be_seen_without_a_token(database_url: str) -> None:
    async with open_system(database_url, ScriptedServer, server=IMPATIENT) as system:
        await judge(system, "alice")
        made: Any = system.channel.unary_unary(f"{SERVICE}ListAllFeedback")
        assert entries(pb.ListAllFeedbackResponse.FromString(await made(b""))) != []


MANY_ITEMS = """
insert into chat_messages
    (user_id, session_id, message_id, position, item_type, sender_type, "timestamp", item)
select user_id, session_id, 'many' || n, n + 100, item_type, sender_type, "timestamp", item
from chat_messages, generate_series(1, 3000) as n
where message_id = '{}'
"""
MANY_VERDICTS = """
insert into feedback (user_id, session_id, message_id, kind, updated_at)
select user_id, session_id, message_id, 'positive', now() - position * interval '1 s'
from chat_messages where message_id like 'many%'
"""


async def test_long_lists_are_read_from_an_index(database_url: str) -> None:
    async with open_system(database_url, ScriptedServer, server=IMPATIENT) as system:
        _, (answer,) = await a_thread(system.server.store, "alice")
        await execute(database_url, MANY_ITEMS.format(answer), MANY_VERDICTS, "analyze feedback")
        values: list[Any] = [None, None, None, None, BEGAN, "x", "y", 21, False]
        for statements, user_id in ((feedback._OWN, "alice"), (feedback._ALL, None)):
            for statement in statements.values():
                plan = await system.server.database.fetch("explain " + statement, user_id, *values)
                lines = "\n".join(row[0] for row in plan)
                assert "Index Scan" in lines or "Index Only Scan" in lines, lines
                assert "feedback_by" in lines, lines
                assert "Seq Scan on feedback" not in lines
