"""Who reads a thread while it is answered sees the answer as far as it is, once, on any server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from chatkit.types import (
    AssistantMessageContentPartTextDelta,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemUpdatedEvent,
    ThreadStreamEvent,
)
from chatkit_grpc.v1.thread_pb2 import ORDER_ASC, ORDER_DESC

from server.runs.in_progress import InProgress
from server.runs.pending_items import item_id
from server.runs.store import RunKey
from tests.runs_fixtures import Log, Pair, Reader, Side, everywhere, open_pair, pair, tokens, until, until_true
from tests.scripted import ScriptedServer

__all__ = ["pair"]

orders = pytest.mark.parametrize("order", [ORDER_ASC, ORDER_DESC])
reads = pytest.mark.parametrize("read", ["get", "list"])


async def items_of(side: Side, thread_id: str, read: str) -> list[Any]:
    if read == "get":
        return list((await side.get(thread_id)).items.data)
    return list((await side.list(thread_id, order=ORDER_ASC)).data)


def text_of(item: Any) -> str:
    return "".join(part.output_text.text for part in item.assistant_message.content)


def ids(items: list[Any]) -> list[str]:
    return [item_id(item) for item in items]


async def pages(side: Side, thread_id: str, limit: int, order: Any) -> list[Any]:
    """All items of a thread, page by page."""
    found: list[Any] = []
    after = None
    while True:
        page = await side.list(thread_id, limit=limit, order=order, after=after)
        assert 0 < len(page.data) <= limit
        found += page.data
        if not page.has_more:
            return found
        assert len(found) < 50
        after = page.after
        assert after == item_id(page.data[-1])


async def say_parts(assistant: ScriptedServer, thread: Any, context: Any) -> AsyncIterator[ThreadStreamEvent]:
    """Three messages begun one after another, nothing until `may_go_on` is set, then all ended."""
    items = [assistant._message(thread, context) for _ in range(3)]
    for number, item in enumerate(items):
        yield ThreadItemAddedEvent(item=item)
        delta = AssistantMessageContentPartTextDelta(content_index=0, delta=f"part {number}")
        yield ThreadItemUpdatedEvent(item_id=item.id, update=delta)
    await assistant.may_go_on.wait()
    for number, item in enumerate(items):
        done = assistant._message(thread, context, f"part {number}").model_copy(update={"id": item.id})
        yield ThreadItemDoneEvent(item=done)


async def waiting(pair: Pair, thread_id: str, text: str = "wait", said: str = "one two ") -> Reader:
    """A run that waits, with all that it said in the log."""
    assistant = pair.here.assistant
    assistant.say_parts = lambda thread, context: say_parts(assistant, thread, context)  # type: ignore[attr-defined]
    reader = pair.here.say(thread_id, text)
    await until(lambda: reader.text == said)
    await until_true(lambda: pair.logged(reader.run_id, reader.numbers[-1]))
    return reader


@everywhere
@reads
async def test_the_answer_grows(pair: Pair, where: str, read: str) -> None:
    reader = pair.here.create("steps 5")
    await until(lambda: "thread_item_added" in reader.kinds)
    side, thread_id = pair.at(where), reader.thread_id

    async def shown() -> str:
        found = await items_of(side, thread_id, read)
        assert len(found) <= 2
        assert len(set(ids(found))) == len(found)
        assert found[0].HasField("user_message")
        return text_of(found[-1]) if len(found) == 2 else ""

    for number in range(4):
        pair.here.assistant.steps.release()
        expected = tokens(number + 1)

        async def has_grown(expected: str = expected) -> bool:
            text = await shown()
            assert expected.startswith(text)
            return text == expected

        await until_true(has_grown, 3)
    (_, pending) = await items_of(side, thread_id, read)
    pair.here.assistant.steps.release()
    assert await reader.end() is grpc.StatusCode.OK
    (_, done) = await items_of(side, thread_id, read)
    assert text_of(done) == tokens(5)
    assert item_id(done) == item_id(pending)
    assert pending.assistant_message.thread_id == done.assistant_message.thread_id == thread_id


@everywhere
@pytest.mark.parametrize(("text", "parts"), [("wait", ["one two "]), ("parts", ["part 0", "part 1", "part 2"])])
async def test_pages_go_through_the_answer(pair: Pair, where: str, text: str, parts: list[str]) -> None:
    thread_id = await pair.make_thread()
    reader = await waiting(pair, thread_id, text, "".join(parts))
    side = pair.at(where)
    begun = [e.thread_item_added.item.assistant_message.id for e in reader.events if e.HasField("thread_item_added")]
    expected = [item["id"] for item in await pair.items(thread_id)] + begun
    assert len(expected) == 3 + len(parts)
    for limit in (1, 2, 3, 4, 10):
        found = await pages(side, thread_id, limit, ORDER_ASC)
        assert ids(found) == expected
        assert [text_of(item) for item in found[3:]] == parts
        assert await pages(side, thread_id, limit, ORDER_DESC) == found[::-1]
    pair.here.assistant.may_go_on.set()
    assert await reader.end() is grpc.StatusCode.OK
    for limit in (1, 10):
        assert ids(await pages(side, thread_id, limit, ORDER_ASC)) == expected
        assert ids(await pages(side, thread_id, limit, ORDER_DESC)) == expected[::-1]


@everywhere
@orders
async def test_pages_go_on_from_an_answer_that_is_done_meanwhile(pair: Pair, where: str, order: Any) -> None:
    thread_id = await pair.make_thread()
    reader = await waiting(pair, thread_id)
    side = pair.at(where)
    everything = ids(await pages(side, thread_id, 10, order))
    at = everything.index(reader.events[-1].thread_item_updated.item_id)
    pair.here.assistant.may_go_on.set()
    await reader.end()
    following = await side.list(thread_id, limit=10, order=order, after=everything[at])
    assert ids(following.data) == everything[at + 1 :]


@everywhere
@orders
@pytest.mark.parametrize("from_answer", [True, False])
async def test_an_answer_that_is_done_while_it_is_read_is_there_once(
    pair: Pair, where: str, order: Any, from_answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread_id = await pair.make_thread()
    reader = await waiting(pair, thread_id)
    side = pair.at(where)
    everything = ids(await pages(side, thread_id, 10, order))
    at = everything.index(reader.events[-1].thread_item_updated.item_id)
    look = InProgress.items

    async def slowly(self: InProgress, thread: Any) -> Any:
        found = await look(self, thread)
        pair.here.assistant.may_go_on.set()
        await reader.end()
        return found

    monkeypatch.setattr(InProgress, "items", slowly)
    after = everything[at] if from_answer else None
    page = await side.list(thread_id, limit=10, order=order, after=after)
    assert ids(page.data) == (everything[at + 1 :] if from_answer else everything)


@everywhere
@reads
async def test_an_answer_is_never_there_twice(pair: Pair, where: str, read: str) -> None:
    thread_id = await pair.make_thread()
    for _ in range(3):
        before = len(await pair.items(thread_id))
        reader = pair.here.say(thread_id, "tokens 40 0.005")
        await reader.run()
        text = ""
        while not reader.has_ended:
            found = await items_of(pair.at(where), thread_id, read)
            assert len(set(ids(found))) == len(found)
            assert before <= len(found) <= before + 2
            if len(found) == before + 2:
                assert text_of(found[-1]).startswith(text)
                text = text_of(found[-1])
            else:
                assert text == ""
            await asyncio.sleep(0.005)
        assert text
        assert len(await items_of(pair.at(where), thread_id, read)) == before + 2


@everywhere
async def test_a_cancelled_answer_is_shown_as_far_as_it_was(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    reader = await waiting(pair, thread_id)
    side = pair.at(where)
    before = await items_of(side, thread_id, "get")
    await pair.here.cancel(reader.run_id)
    assert ids(await items_of(side, thread_id, "get")) == ids(before)
    assert text_of((await items_of(side, thread_id, "list"))[-1]) == "one two "


@everywhere
async def test_somebody_else_sees_nothing(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    reader = await waiting(pair, thread_id)
    for call in (pair.at(where).get(thread_id, user="bob"), pair.at(where).list(thread_id, user="bob")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert not reader.has_ended


async def test_what_the_stream_may_not_show_yet_is_not_shown_by_a_look(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(monkeypatch)
    async with open_pair(database_url, run_log="ahead") as pair:
        reader = pair.here.create("steps 3")
        pair.here.assistant.steps.release()
        await until(lambda: reader.text == "t0 ")
        log.works.clear()
        pair.here.assistant.steps.release()
        run = pair.here.server.runs.get(RunKey("alice", reader.run_id))
        assert run is not None
        await until(lambda: run.sequence > run.logged)
        assert text_of((await items_of(pair.here, reader.thread_id, "get"))[-1]) == "t0 "
        log.works.set()
        pair.here.assistant.steps.release()
        assert await reader.end() is grpc.StatusCode.OK
