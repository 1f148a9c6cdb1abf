"""A run is stopped by who asks for it, by nobody watching it, by its thread's deletion and by its server's end."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from chatkit_grpc.errors import ChatKitError, DatabaseError
from chatkit_grpc.v1 import chat_service_pb2
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.run_pb2 import RunState

from server.store import PostgresStore
from tests.runs_fixtures import Pair, Reader, Side, everywhere, failure, open_pair, open_side, pair, until, until_true

__all__ = ["pair"]

CANCELLED = RunState.RUN_STATE_CANCELLED


async def begun(side: Side, text: str = "wait") -> Reader:
    """A run that has said all it says before it waits."""
    reader = side.create(text)
    await until(lambda: "two " in reader.text)
    return reader


async def kept(pair: Pair, reader: Reader, *, state: str = "cancelled") -> None:
    """What was said is on the thread and in the stream, and the model is told that it was cut off."""
    assert await pair.said(reader.thread_id) == ["one two "]
    assert (await pair.types(reader.thread_id))[-1] == "sdk_hidden_context"
    assert await pair.state(reader.run_id) == state


@everywhere
@pytest.mark.parametrize("by", ["run_id", "thread_id"])
async def test_a_run_is_cancelled_from_any_server_with_what_it_said_kept(pair: Pair, where: str, by: str) -> None:
    reader = await begun(pair.here)
    side = pair.at(where)
    response = await side.cancel(**{by: getattr(reader, by)})
    # All is stored when the call answers.
    await kept(pair, reader)
    assert (response.run_id, response.state) == (reader.run_id, CANCELLED)
    assert await reader.end() is grpc.StatusCode.OK
    assert reader.state == CANCELLED
    done = reader.events[-1].thread_item_done.item.assistant_message
    assert [part.output_text.text for part in done.content] == ["one two "]
    assert done.id == (await pair.items(reader.thread_id))[1]["id"]


@everywhere
async def test_to_cancel_twice_or_too_late_is_no_error(pair: Pair, where: str) -> None:
    reader = await begun(pair.here)
    side = pair.at(where)
    both = await asyncio.gather(side.cancel(reader.run_id), pair.here.cancel(reader.run_id))
    again = await side.cancel(reader.run_id)
    assert [(r.run_id, r.state) for r in (*both, again)] == [(reader.run_id, CANCELLED)] * 3
    assert await pair.said(reader.thread_id) == ["one two "]
    assert (await pair.types(reader.thread_id)).count("sdk_hidden_context") == 1
    finished = pair.here.create("tokens 1")
    await finished.end()
    response = await side.cancel(finished.run_id)
    assert (response.run_id, response.state) == (finished.run_id, RunState.RUN_STATE_COMPLETED)
    nothing = await side.cancel(thread_id=finished.thread_id)
    assert not nothing.HasField("run_id")


@everywhere
async def test_somebody_elses_run_can_not_be_cancelled_nor_told_from_none(pair: Pair, where: str) -> None:
    reader = await begun(pair.here)
    side = pair.at(where)
    run_id, thread_id = reader.run_id, reader.thread_id
    others = [
        await failure(side.cancel(run_id, user="bob")),
        await failure(side.cancel(thread_id=thread_id, user="bob")),
        await failure(side.acknowledge(run_id, user="bob")),
    ]
    await side.cancel(run_id)
    await side.delete(thread_id)
    nobodys = [
        await failure(side.cancel(run_id)),
        await failure(side.cancel(thread_id=thread_id)),
        await failure(side.acknowledge(run_id)),
    ]
    assert [of(error) for error in others] == [of(error) for error in nobodys]
    assert [error.code for error in others] == ["RUN_NOT_FOUND", "THREAD_NOT_FOUND", "RUN_NOT_FOUND"]
    assert {error.grpc_status for error in others} == {grpc.StatusCode.NOT_FOUND}


def of(error: ChatKitError) -> bytes:
    serialised: bytes = error.to_status().SerializeToString()
    return serialised


@everywhere
async def test_a_run_cancelled_in_its_first_moment_keeps_the_users_message(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    for attempt in range(10):
        reader = pair.here.say(thread_id, "wait")
        async with asyncio.timeout(5):
            while not (response := await pair.at(where).cancel(thread_id=thread_id)).HasField("run_id"):
                await asyncio.sleep(0)
        assert await reader.end() is grpc.StatusCode.OK
        assert response.state == reader.state == CANCELLED
        assert await pair.asked(thread_id) == ["tokens 1", *["wait"] * (attempt + 1)]
        assert (await pair.types(thread_id))[-1] == "sdk_hidden_context"


@everywhere
async def test_an_assistant_that_swallows_its_cancel_is_left_behind(
    pair: Pair, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.runs.run.PATIENCE_SECONDS", 1.0)
    reader = await begun(pair.here, "deaf")
    loop = asyncio.get_running_loop()
    began = loop.time()
    response = await pair.at(where).cancel(reader.run_id)
    assert loop.time() - began > 0.9
    assert response.state == CANCELLED
    assert await reader.end() is grpc.StatusCode.OK
    assert await pair.said(reader.thread_id) == ["one two "]
    following = pair.at(where).say(reader.thread_id, "tokens 2")
    assert await following.end() is grpc.StatusCode.OK
    # What it says now comes too late for anybody.
    pair.here.assistant.may_go_on.set()
    assert await pair.said(reader.thread_id) == ["one two ", "t0 t1 "]


async def test_without_grace_a_run_stops_with_its_last_watcher(database_url: str) -> None:
    async with open_pair(database_url, run_grace_seconds=0) as pair:
        reader = await begun(pair.here)
        await reader.leave()
        await until(lambda: not len(pair.here.server.runs))
        await kept(pair, reader)


async def test_without_grace_a_run_goes_on_while_another_server_watches_it(database_url: str) -> None:
    async with open_pair(database_url, run_grace_seconds=0) as pair:
        reader = await begun(pair.here)
        other = pair.elsewhere.resume(reader.run_id)
        await until(lambda: other.text == "one two ")
        await until_true(lambda: promised(pair, reader))
        await reader.leave()
        await asyncio.sleep(0.5)  # in which it would be stopped
        assert await pair.state(reader.run_id) == "running"
        await other.leave()
        await until_true(lambda: ended(pair, reader))
        await kept(pair, reader)


async def promised(pair: Pair, reader: Reader) -> bool:
    return bool(await pair.fetch("select 1 from runs where run_id = $1 and watched_until > now()", reader.run_id))


async def ended(pair: Pair, reader: Reader) -> bool:
    return await pair.state(reader.run_id) != "running"


async def test_with_grace_a_run_is_stopped_when_nobody_comes(database_url: str) -> None:
    async with open_pair(database_url, run_grace_seconds=0.5) as pair:
        reader = await begun(pair.here)
        left = asyncio.get_running_loop().time()
        await reader.leave()
        await until_true(lambda: ended(pair, reader))
        assert asyncio.get_running_loop().time() - left > 0.4
        await kept(pair, reader)


@everywhere
async def test_with_grace_a_run_goes_on_when_somebody_comes_in_time(database_url: str, where: str) -> None:
    async with open_pair(database_url, run_grace_seconds=2) as pair:
        reader = await begun(pair.here)
        await reader.leave()
        again = pair.at(where).resume(reader.run_id)
        await until(lambda: again.text == "one two ")
        await asyncio.sleep(4)  # twice the grace
        pair.here.assistant.may_go_on.set()
        assert await again.end() is grpc.StatusCode.OK
        assert again.state == RunState.RUN_STATE_COMPLETED
        assert await pair.said(reader.thread_id) == ["one two three"]


@everywhere
@pytest.mark.parametrize("glance", ["get", "list"])
async def test_with_grace_a_run_goes_on_while_somebody_looks_now_and_then(
    database_url: str, where: str, glance: str
) -> None:
    async with open_pair(database_url, run_grace_seconds=2) as pair:
        reader = await begun(pair.here)
        await reader.leave()
        for _ in range(4):
            await asyncio.sleep(0.6)
            await getattr(pair.at(where), glance)(reader.thread_id)
        assert await pair.state(reader.run_id) == "running"
        await until_true(lambda: ended(pair, reader))
        await kept(pair, reader)


@everywhere
async def test_with_grace_a_run_goes_on_while_somebody_watches_its_thread(database_url: str, where: str) -> None:
    async with open_pair(database_url, run_grace_seconds=2) as pair:
        reader = await begun(pair.here)
        watcher = pair.at(where).watch(reader.thread_id)
        await until(lambda: watcher.text == "one two ")
        await reader.leave()
        await asyncio.sleep(3)
        assert await pair.state(reader.run_id) == "running"
        await watcher.leave()
        await until_true(lambda: ended(pair, reader))
        await kept(pair, reader)


async def test_with_endless_grace_a_run_goes_on_to_its_end(database_url: str) -> None:
    async with open_pair(database_url, run_grace_seconds=-1) as pair:
        reader = pair.here.create("tokens 20 0.03")
        await reader.run()
        await reader.leave()
        await until_true(lambda: ended(pair, reader))
        assert await pair.state(reader.run_id) == "completed"
        assert await pair.said(reader.thread_id) == ["".join(f"t{n} " for n in range(20))]


@everywhere
async def test_to_delete_a_thread_stops_its_run(pair: Pair, where: str) -> None:
    reader = await begun(pair.here)
    await pair.at(where).delete(reader.thread_id)
    await reader.end()
    await until(lambda: not len(pair.here.server.runs))
    assert await pair.fetch("select 1 from chat_messages") == []
    assert await pair.fetch("select 1 from runs") == []


async def test_a_server_that_goes_down_interrupts_its_runs_and_says_so(database_url: str) -> None:
    async with open_pair(database_url) as rest:
        async with open_side(database_url) as side:
            reader = await begun(side)
            elsewhere = rest.here.resume(reader.run_id)
            thread = rest.elsewhere.watch(reader.thread_id)
            await until(lambda: elsewhere.text == thread.text == "one two ")
        for told in (reader, elsewhere):
            assert await told.end() is grpc.StatusCode.OK
            assert told.state == RunState.RUN_STATE_INTERRUPTED
            assert told.kinds[-2:] == ["thread_item_done", "error"]
            assert told.events[-1].error.allow_retry
        await until(lambda: thread.what[-1] == "run_ended")
        assert thread.responses[-1].run_ended.state == RunState.RUN_STATE_INTERRUPTED
        assert thread.events == elsewhere.events == reader.events
        await kept(rest, reader, state="interrupted")
        following = rest.elsewhere.say(reader.thread_id, "tokens 2")
        assert await following.end() is grpc.StatusCode.OK


async def test_a_server_that_goes_down_sends_away_who_watches_foreign_runs(database_url: str) -> None:
    async with open_pair(database_url) as pair:
        reader = await begun(pair.here)
        async with open_side(database_url) as leaving:
            run = leaving.resume(reader.run_id)
            thread = leaving.watch(reader.thread_id)
            await until(lambda: run.text == thread.text == "one two ")
        assert await run.end() is grpc.StatusCode.UNAVAILABLE
        assert await thread.end() is grpc.StatusCode.UNAVAILABLE
        assert run.error is not None
        assert run.error.message == "The chat server is restarting."
        again = pair.elsewhere.watch(reader.thread_id, thread.cursor)
        pair.here.assistant.may_go_on.set()
        await until(lambda: again.what[-1:] == ["run_ended"])
        assert again.text == "three"


async def test_a_cancel_while_the_database_is_away_is_told_to_the_model_all_the_same(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = pair.here.create("wait")
    await until(lambda: reader.text == "one two ")
    add, is_away = PostgresStore.add_thread_item, True

    async def away(*arguments: Any) -> None:
        if is_away:
            raise DatabaseError("away", reason=reasons.ERROR_REASON_DATABASE_UNAVAILABLE)
        await add(*arguments)

    monkeypatch.setattr(PostgresStore, "add_thread_item", away)
    cancelling = asyncio.create_task(pair.here.cancel(reader.run_id))
    await asyncio.sleep(0.3)
    is_away = False
    await cancelling
    assert await reader.end() is grpc.StatusCode.OK
    assert await pair.types(reader.thread_id) == ["user_message", "assistant_message", "sdk_hidden_context"]


async def test_an_interrupted_run_resumed_after_its_last_event_repeats_nothing(database_url: str) -> None:
    async with open_side(database_url) as rest:
        async with open_side(database_url) as side:
            reader = side.create("tokens 10000 0.004")
            await until(lambda: "t50 " in reader.text)
        await reader.end()
        assert reader.kinds[-1] == "error"
        for after in reader.numbers[-3:]:
            resumed = rest.resume(reader.run_id, after)
            assert await resumed.end() is grpc.StatusCode.OK
            assert resumed.numbered == [(number, event) for number, event in reader.numbered if number > after]
            assert resumed.state == RunState.RUN_STATE_INTERRUPTED


async def test_a_client_that_leaves_while_the_server_waits_to_write_to_it_ends_the_run(database_url: str) -> None:
    async with open_pair(database_url, run_grace_seconds=0) as pair:
        request = chat_service_pb2.CreateThreadRequest()
        request.input.content.add().input_text.text = "large 800 20000"
        call = pair.here.chat.CreateThread(request, metadata=[("x-user-id", "alice")])
        thread_id = (await call.read()).batch.events[0].thread_created.thread.id
        await pair.here.assistant.is_silent.wait()
        (run,) = pair.here.server.runs._runs.values()
        await until(lambda: run.logged == run.sequence)
        assert run.is_watched  # 16 MB were said, of which no more than what fits gRPC's windows can have been sent
        call.cancel()
        await until(lambda: not len(pair.here.server.runs))
        assert await pair.state(run.id) == "cancelled"
        (text,) = await pair.said(thread_id)
        assert len(text) == 800 * 20000
        assert (await pair.types(thread_id))[-1] == "sdk_hidden_context"


async def test_a_client_that_leaves_between_two_items_ends_the_run(database_url: str) -> None:
    async with open_pair(database_url, run_grace_seconds=0) as pair:
        reader = pair.here.create("between")
        await until(lambda: reader.kinds.count("thread_item_done") == 2)
        await reader.leave()
        await until(lambda: not len(pair.here.server.runs))
        assert await pair.state(reader.run_id) == "cancelled"
        assert await pair.said(reader.thread_id) == ["first"]
        assert (await pair.types(reader.thread_id))[-1] == "sdk_hidden_context"
