"""A service adds items to threads, with or without an answer, once each."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from chatkit_grpc.v1.item_pb2 import ThreadItem
from chatkit_grpc.v1.run_pb2 import RunState

from tests.runs_fixtures import Pair, everywhere, failure, open_pair, pair, tokens, until, until_true

__all__ = ["pair"]


def message(text: str, item_id: str = "") -> ThreadItem:
    item = ThreadItem()
    item.user_message.id = item_id
    item.user_message.content.add().input_text.text = text
    item.user_message.inference_options.SetInParent()
    return item


def answer(text: str, item_id: str = "") -> ThreadItem:
    item = ThreadItem()
    item.assistant_message.id = item_id
    item.assistant_message.content.add().output_text.text = text
    return item


def hidden(item_id: str = "") -> ThreadItem:
    item = ThreadItem()
    item.hidden_context.id = item_id
    item.hidden_context.content = '{"a":1}'
    return item


def task() -> ThreadItem:
    item = ThreadItem()
    item.task.task.custom.title = "done elsewhere"
    return item


def end_of_turn() -> ThreadItem:
    item = ThreadItem()
    item.end_of_turn.SetInParent()
    return item


VISIBLE = {
    "user_message": message("hi"),
    "assistant_message": answer("hi"),
    "task": task(),
    "end_of_turn": end_of_turn(),
}


@everywhere
@pytest.mark.parametrize("kind", VISIBLE)
async def test_an_item_is_added_and_told_to_those_who_watch(pair: Pair, where: str, kind: str) -> None:
    thread_id = await pair.make_thread()
    start = (await pair.fetch("select log_position from chat_sessions"))[0]["log_position"]
    watchers = [side.watch(thread_id, str(start)) for side in (pair.here, pair.elsewhere)]
    response = await pair.at(where).append(thread_id, VISIBLE[kind])
    added = getattr(response.item, response.item.WhichOneof("item"))
    assert added.id
    assert added.thread_id == thread_id
    assert added.HasField("created_at")
    assert not response.HasField("run_id")
    assert (await pair.types(thread_id))[-1] == kind
    page = await pair.elsewhere.list(thread_id)
    assert page.data[0] == response.item
    for watcher in watchers:
        await until(lambda watcher=watcher: watcher.changes)  # type: ignore[misc]
        assert [event.thread_item_done.item for event in watcher.changes] == [response.item]


@everywhere
async def test_a_hidden_item_is_seen_by_nobody_but_the_assistant(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    start = (await pair.fetch("select log_position from chat_sessions"))[0]["log_position"]
    watchers = [side.watch(thread_id, str(start)) for side in (pair.here, pair.elsewhere)]
    await pair.at(where).append(thread_id, hidden())
    await pair.at(where).append(thread_id, message("seen"))
    assert (await pair.types(thread_id))[-2:] == ["hidden_context_item", "user_message"]
    assert (await pair.here.list(thread_id)).data[0].HasField("user_message")
    for watcher in watchers:
        await until(lambda watcher=watcher: watcher.changes)  # type: ignore[misc]
        assert len(watcher.responses) == 1
        assert len(watcher.changes) == 1


@everywhere
@pytest.mark.parametrize("item", [message("hi", "msg_1"), hidden("msg_1")])
async def test_the_same_item_twice_is_added_once(pair: Pair, where: str, item: ThreadItem) -> None:
    thread_id = await pair.make_thread()
    first = await pair.here.append(thread_id, item)
    second = await pair.at(where).append(thread_id, item)
    assert second.item == first.item  # as it is on the thread, the time included
    assert len(await pair.items(thread_id)) == 3


@everywhere
async def test_the_same_item_at_once_is_added_once(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    sides = (pair.here, pair.at(where))
    await asyncio.gather(*(side.append(thread_id, message("hi", "msg_1")) for side in sides for _ in range(10)))
    assert len(await pair.items(thread_id)) == 3


@everywhere
@pytest.mark.parametrize("members", [{}, {"start_run": True}, {"start_run": True, "request_id": "new"}])
async def test_another_item_with_an_id_that_is_there_is_refused(
    pair: Pair, where: str, members: dict[str, Any]
) -> None:
    thread_id = await pair.make_thread()
    await pair.here.append(thread_id, message("hi", "msg_1"))
    try:
        error = await failure(pair.at(where).append(thread_id, message("tokens 5", "msg_1"), **members))
        assert (error.code, error.grpc_status) == ("ITEM_EXISTS", grpc.StatusCode.ALREADY_EXISTS)
    finally:
        await until(lambda: not len(pair.at(where).server.runs))
        assert await pair.asked(thread_id) == ["tokens 1", "hi"]
    assert await pair.said(thread_id) == [tokens(1)]


@everywhere
@pytest.mark.parametrize("item", [ThreadItem(), ThreadItem(unknown="{}"), message("x")])
async def test_an_item_that_can_not_be_is_refused(pair: Pair, where: str, item: ThreadItem) -> None:
    thread_id = await pair.make_thread()
    if item.HasField("user_message"):
        item.user_message.thread_id = "thr_other"
    error = await failure(pair.at(where).append(thread_id, item))
    assert error.grpc_status is grpc.StatusCode.INVALID_ARGUMENT
    assert len(await pair.items(thread_id)) == 2


@everywhere
async def test_to_somebody_elses_thread_nothing_is_added(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    for members in ({}, {"start_run": True}):
        error = await failure(pair.at(where).append(thread_id, message("hi"), user="bob", **members))
        assert error.code == "THREAD_NOT_FOUND"
    assert len(await pair.items(thread_id)) == 2


@everywhere
async def test_a_run_of_an_added_item_goes_on_though_nobody_watches(database_url: str, where: str) -> None:
    async with open_pair(database_url, run_grace_seconds=0) as pair:
        thread_id = await pair.make_thread()
        response = await pair.here.append(thread_id, message("steps 2"), start_run=True)
        await pair.here.assistant.is_silent.wait()
        reader = pair.at(where).watch(thread_id)
        await until(lambda: reader.what[:1] == ["run_started"])
        assert reader.responses[0].run_started.run_id == response.run_id
        for _ in range(2):
            pair.here.assistant.steps.release()
        await until(lambda: reader.what[-1:] == ["run_ended"])
        assert await pair.said(thread_id) == [tokens(1), tokens(2)]
        replayed = pair.at(where).resume(response.run_id)
        assert await replayed.end() is grpc.StatusCode.OK
        assert replayed.text == tokens(2)
        assert replayed.state == RunState.RUN_STATE_COMPLETED
        done = [event.thread_item_done.item for event in replayed.events if event.HasField("thread_item_done")]
        assert done[0] == response.item


async def test_a_run_that_nobody_ever_watches_ends_by_itself(database_url: str) -> None:
    async with open_pair(database_url, run_grace_seconds=0) as pair:
        thread_id = await pair.make_thread()
        response = await pair.here.append(thread_id, message("tokens 10 0.05"), start_run=True)
        await until_true(lambda: has_ended(pair, response.run_id))
        assert await pair.state(response.run_id) == "completed"
        assert await pair.said(thread_id) == [tokens(1), tokens(10)]


@everywhere
async def test_hidden_context_may_be_answered_too(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    response = await pair.at(where).append(thread_id, hidden(), start_run=True)
    reader = pair.at(where).resume(response.run_id)
    await reader.end()
    assert reader.text == tokens(3)
    assert reader.kinds.count("thread_item_done") == 1
    assert await pair.types(thread_id) == [
        "user_message",
        "assistant_message",
        "hidden_context_item",
        "assistant_message",
    ]


@everywhere
async def test_the_same_request_adds_and_answers_once(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    members: dict[str, Any] = {"start_run": True, "request_id": "r1"}
    first = await pair.here.append(thread_id, message("tokens 2"), **members)
    second = await pair.at(where).append(thread_id, message("tokens 2"), **members)
    assert first.run_id == second.run_id
    await until_true(lambda: has_ended(pair, first.run_id))
    third = await pair.at(where).append(thread_id, message("tokens 2"), **members)
    assert third.run_id == first.run_id
    assert await pair.asked(thread_id) == ["tokens 1", "tokens 2"]
    # The item as it is on the thread.
    on_thread = (await pair.items(thread_id))[2]["id"]
    assert [r.item.user_message.id for r in (first, second, third)] == [on_thread] * 3
    error = await failure(pair.at(where).append(thread_id, message("tokens 3"), **members))
    assert error.code == "REQUEST_ID_REUSED"


async def has_ended(pair: Pair, run_id: str) -> bool:
    return await pair.state(run_id) != "running"


@everywhere
async def test_a_repeated_request_adds_its_item_once_without_a_run(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    first = await pair.here.append(thread_id, message("hi"), request_id="key")
    again = await pair.at(where).append(thread_id, message("hi"), request_id="key")
    assert again.item == first.item
    assert await pair.asked(thread_id) == ["tokens 1", "hi"]
    error = await failure(pair.at(where).append(thread_id, message("ho"), request_id="key"))
    assert error.code == "ITEM_EXISTS"


@everywhere
async def test_an_item_with_an_id_is_answered_once_from_however_many_sides(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    item = message("tokens 20 0.02", "msg_1")
    sides = (pair.here, pair.at(where), pair.here, pair.at(where))
    responses = await asyncio.gather(*(side.append(thread_id, item, start_run=True) for side in sides))
    (run_id,) = {response.run_id for response in responses}
    await until_true(lambda: has_ended(pair, run_id))
    assert await pair.state(run_id) == "completed"
    assert await pair.said(thread_id) == [tokens(1), tokens(20)]
    again = await pair.at(where).append(thread_id, item, start_run=True)
    assert again.run_id == run_id
