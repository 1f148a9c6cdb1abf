"""A request that comes twice is answered once: it watches the run that it started, or is told what that run said."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from chatkit_grpc.errors import DatabaseError
from chatkit_grpc.v1 import error_reason_pb2 as reasons
from chatkit_grpc.v1.run_pb2 import RunState

from server.database import Database
from server.retention import Retention
from server.runs.watching import SETTLED_SECONDS
from server.statements import SAVE_ITEM
from tests.runs_fixtures import (
    PATIENT,
    Metadata,
    Pair,
    Reader,
    Side,
    everywhere,
    open_pair,
    pair,
    tokens,
    until,
    until_true,
)
from tests.scripted import ScriptedServer

__all__ = ["pair"]

calls = pytest.mark.parametrize("call", ["create", "say"])
"""On a new thread, and on one that is there."""


class Asker:
    """Asks the same again and again, on any server."""

    def __init__(self, pair: Pair, thread_id: str) -> None:
        self._pair = pair
        self.thread_id = thread_id

    def ask(self, where: str, text: str, request_id: str, *, user: str = "alice", metadata: Metadata = ()) -> Reader:
        side = self._pair.at(where)
        if not self.thread_id:
            return side.create(text, request_id=request_id, user=user, metadata=metadata)
        return side.say(self.thread_id, text, request_id=request_id, user=user, metadata=metadata)

    async def runs(self) -> int:
        """How many runs were started but for the one that made the thread."""
        (row,) = await self._pair.fetch("select count(*) as runs from runs")
        return int(row["runs"]) - bool(self.thread_id)


async def asker_of(pair: Pair, call: str) -> Asker:
    return Asker(pair, "" if call == "create" else await pair.make_thread())


async def forget_the_log(pair: Pair) -> None:
    await pair.fetch("update runs set ended_at = now() - interval '1 hour'")
    await Retention(pair.here.database, PATIENT).sweep()
    assert await pair.fetch("select 1 from run_events") == []


@everywhere
@calls
async def test_while_the_run_is_active_it_is_watched(pair: Pair, where: str, call: str) -> None:
    asker = await asker_of(pair, call)
    first = asker.ask("here", "wait", "key")
    await until(lambda: first.text == "one two ")
    again = asker.ask(where, "wait", "key")
    await until(lambda: again.text == "one two ")
    pair.here.assistant.may_go_on.set()
    assert await first.end() is await again.end() is grpc.StatusCode.OK
    assert again.numbered == first.numbered
    assert again.run_id == first.run_id
    assert await asker.runs() == 1


@everywhere
@calls
async def test_after_its_end_the_run_is_replayed(pair: Pair, where: str, call: str) -> None:
    asker = await asker_of(pair, call)
    first = asker.ask("here", "tokens 5", "key")
    await first.end()
    for _ in range(2):
        again = asker.ask(where, "tokens 5", "key")
        assert await again.end() is grpc.StatusCode.OK
        assert again.numbered == first.numbered
        assert again.state == RunState.RUN_STATE_COMPLETED
    assert await asker.runs() == 1


@everywhere
@calls
async def test_without_its_log_the_run_is_replayed_from_its_items(pair: Pair, where: str, call: str) -> None:
    asker = await asker_of(pair, call)
    first = asker.ask("here", "tokens 5", "key")
    await first.end()
    thread_id = asker.thread_id or first.thread_id
    await forget_the_log(pair)
    await pair.here.say(thread_id, "tokens 2").end()
    again = asker.ask(where, "tokens 5", "key")
    assert await again.end() is grpc.StatusCode.OK
    expected = [event for event in first.events if event.HasField("thread_item_done")]
    assert [event for event in again.events if event.HasField("thread_item_done")] == expected
    assert len(expected) == 2
    assert again.kinds[:-2] == (["thread_created"] if call == "create" else [])
    assert again.state == RunState.RUN_STATE_COMPLETED
    assert await asker.runs() == 2


@everywhere
async def test_without_its_log_a_cancelled_run_is_replayed_as_such(pair: Pair, where: str) -> None:
    asker = Asker(pair, "")
    first = asker.ask("here", "wait", "key")
    await until(lambda: first.text == "one two ")
    await pair.here.cancel(first.run_id)
    await first.end()
    await forget_the_log(pair)
    again = asker.ask(where, "wait", "key")
    assert await again.end() is grpc.StatusCode.OK
    assert again.state == RunState.RUN_STATE_CANCELLED
    assert again.kinds == ["thread_created", "thread_item_done", "thread_item_done"]
    assert again.events[-1] == first.events[-1]


@everywhere
@calls
async def test_it_goes_on_after_the_last_event_that_the_caller_has(pair: Pair, where: str, call: str) -> None:
    asker = await asker_of(pair, call)
    first = asker.ask("here", "tokens 5", "key")
    await first.end()
    run_id, last = first.run_id, first.numbers[-1]
    for after in (1, last // 2, last - 1, last):
        again = asker.ask(where, "tokens 5", "key", metadata=[("last-event-id", f"{run_id}:{after}")])
        assert await again.end() is grpc.StatusCode.OK
        assert again.numbered == first.numbered[after:]
        assert again.state == RunState.RUN_STATE_COMPLETED
    for nonsense in ("", "3", f"{run_id}:", f"{run_id}:-1", f"{run_id}:x", f"run_other:{last}", f"{run_id}:{10**30}"):
        again = asker.ask(where, "tokens 5", "key", metadata=[("last-event-id", nonsense)])
        assert await again.end() is grpc.StatusCode.OK
        assert again.numbers == first.numbers


@everywhere
async def test_it_goes_on_live_after_the_last_event_and_repeats_no_effect(pair: Pair, where: str) -> None:
    asker = Asker(pair, "")
    first = asker.ask("here", "effects", "key")
    await until(lambda: first.text == "one two ")
    after = first.numbers[-1] - 1
    some = asker.ask(where, "effects", "key", metadata=[("last-event-id", f"{first.run_id}:{after}")])
    again = asker.ask(where, "effects", "key")
    await until(lambda: again.text == "one two " and some.text == "two ")
    await asyncio.sleep(SETTLED_SECONDS)
    pair.here.assistant.may_go_on.set()
    for reader in (first, some, again):
        assert await reader.end() is grpc.StatusCode.OK
    assert some.numbered == first.numbered[after:]
    assert (first.effects, again.effects) == (["early", "late"], ["late"])
    assert again.text == "one two three"
    replayed = asker.ask(where, "effects", "key")
    await replayed.end()
    assert (replayed.effects, replayed.text) == ([], "one two three")


async def refused(reader: Reader, code: str) -> None:
    await reader.end()
    assert reader.error is not None
    assert reader.error.code == code
    assert reader.error.grpc_status is grpc.StatusCode.INVALID_ARGUMENT
    assert reader.responses == []


@everywhere
async def test_the_same_id_for_something_else_is_refused(pair: Pair, where: str) -> None:
    one, other = await pair.make_thread(), await pair.make_thread()
    first = pair.here.say(one, "wait", request_id="key")
    await until(lambda: first.text == "one two ")
    side = pair.at(where)
    (message, *_) = await pair.items(one)
    for reader in (
        side.say(one, "tokens 1", request_id="key"),
        side.say(other, "wait", request_id="key"),
        side.create("wait", request_id="key"),
        side.retry(one, message["id"], request_id="key"),
    ):
        await refused(reader, "REQUEST_ID_REUSED")
    assert await pair.state(first.run_id) == "running"
    pair.here.assistant.may_go_on.set()
    await first.end()
    await refused(side.say(one, "tokens 1", request_id="key"), "REQUEST_ID_REUSED")
    assert await pair.asked(one) == ["tokens 1", "wait"]
    assert await pair.asked(other) == ["tokens 1"]


@everywhere
async def test_another_user_may_have_the_same_id(pair: Pair, where: str) -> None:
    first = pair.here.create("tokens 2", request_id="key")
    bobs = pair.at(where).create("tokens 2", request_id="key", user="bob")
    assert await first.end() is await bobs.end() is grpc.StatusCode.OK
    assert bobs.run_id != first.run_id
    rows = await pair.fetch("select user_id from runs order by user_id")
    assert [row["user_id"] for row in rows] == ["alice", "bob"]


@everywhere
@calls
async def test_two_at_once_start_one_run(pair: Pair, where: str, call: str) -> None:
    asker = await asker_of(pair, call)
    for attempt in range(6):
        both = [asker.ask(at, "tokens 20 0.005", f"key {attempt}".replace(" ", "-")) for at in ("here", where, where)]
        for reader in both:
            assert await reader.end() is grpc.StatusCode.OK
        assert len({reader.run_id for reader in both}) == 1
        assert both[0].numbered == both[1].numbered == both[2].numbered
        assert both[0].state == both[1].state == RunState.RUN_STATE_COMPLETED
        assert await asker.runs() == attempt + 1
    if asker.thread_id:
        assert await pair.asked(asker.thread_id) == ["tokens 1", *["tokens 20 0.005"] * 6]
    else:
        assert len(await pair.fetch("select 1 from chat_sessions")) == 6


@everywhere
@calls
async def test_an_id_of_the_bridge_counts_until_it_is_acknowledged(pair: Pair, where: str, call: str) -> None:
    asker = await asker_of(pair, call)
    first = asker.ask("here", "tokens 2", "auto-1")
    await first.end()
    again = asker.ask(where, "tokens 2", "auto-1")
    await again.end()
    assert again.numbered == first.numbered
    await pair.at(where).acknowledge(first.run_id)
    await pair.at(where).acknowledge(first.run_id)
    new = asker.ask(where, "tokens 2", "auto-1")
    assert await new.end() is grpc.StatusCode.OK
    assert new.run_id != first.run_id
    assert await asker.runs() == 2


@everywhere
async def test_an_id_of_the_bridge_may_be_acknowledged_while_its_run_is_active(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    first = pair.here.say(thread_id, "wait", request_id="auto-1")
    await until(lambda: first.text == "one two ")
    await pair.at(where).acknowledge(first.run_id)
    pair.here.assistant.may_go_on.set()
    second = pair.here.say(thread_id, "wait", request_id="auto-1")
    assert await first.end() is await second.end() is grpc.StatusCode.OK
    assert second.run_id != first.run_id
    assert await pair.asked(thread_id) == ["tokens 1", "wait", "wait"]


@everywhere
@pytest.mark.parametrize("request_id", ["auto-1", "key"])
async def test_an_id_that_has_expired_counts_no_longer(pair: Pair, where: str, request_id: str) -> None:
    asker = Asker(pair, "")
    first = asker.ask("here", "tokens 2", request_id)
    await first.end()
    await pair.fetch("update runs set request_expires_at = now() - interval '1 second'")
    new = asker.ask(where, "tokens 2", request_id)
    other = asker.ask(where, "tokens 2", request_id)
    assert await new.end() is await other.end() is grpc.StatusCode.OK
    assert new.run_id == other.run_id != first.run_id
    assert await asker.runs() == 2


async def test_how_long_an_id_counts_depends_on_who_made_it(pair: Pair) -> None:
    for request_id, seconds in (("auto-1", 60), ("key", 86400)):
        reader = pair.here.create("tokens 1", request_id=request_id)
        await reader.end()
        query = "select extract(epoch from request_expires_at - created_at) as seconds from runs where run_id = $1"
        (row,) = await pair.fetch(query, reader.run_id)
        assert abs(float(row["seconds"]) - seconds) < 1


@everywhere
async def test_an_id_of_the_callers_own_counts_on_when_it_is_acknowledged(pair: Pair, where: str) -> None:
    first = pair.here.create("tokens 2", request_id="key")
    await first.end()
    await pair.at(where).acknowledge(first.run_id)
    again = pair.at(where).create("tokens 2", request_id="key")
    await again.end()
    assert again.run_id == first.run_id


@calls
@pytest.mark.parametrize("request_id", ["a b", "x" * 129, "é", "a\n", "\x7f", " "])
async def test_an_id_that_is_none_is_refused(pair: Pair, call: str, request_id: str) -> None:
    asker = await asker_of(pair, call)
    reader = asker.ask("here", "tokens 1", request_id)
    await refused(reader, "INVALID_REQUEST")
    assert reader.error is not None
    assert [violation.path for violation in reader.error.violations] == ["$.params.request_id"]
    assert await asker.runs() == 0


@calls
async def test_an_empty_id_is_none_and_a_long_one_is_fine(pair: Pair, call: str) -> None:
    asker = await asker_of(pair, call)
    for request_id, expected in (("", 1), ("", 2), ("~" * 128, 3), ("~" * 128, 3)):
        assert await asker.ask("here", "tokens 1", request_id).end() is grpc.StatusCode.OK
        assert await asker.runs() == expected


@everywhere
async def test_a_run_that_said_nothing_frees_its_id(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    failed = pair.here.hand_in(thread_id, request_id="key")
    assert await failed.end() is grpc.StatusCode.FAILED_PRECONDITION
    assert failed.responses == []
    await pair.here.say(thread_id, "tool").end()
    again = pair.at(where).hand_in(thread_id, request_id="key")
    assert await again.end() is grpc.StatusCode.OK
    assert again.text == "t0 t1 t2 "


@everywhere
async def test_a_run_that_left_nothing_on_its_thread_frees_its_id(pair: Pair, where: str) -> None:
    def ask(side: Side) -> Reader:
        return side.create_with_attachment("atc_nowhere", request_id="key")

    first = ask(pair.here)
    assert await first.end() is grpc.StatusCode.NOT_FOUND
    assert first.kinds == ["thread_created"]
    again = ask(pair.at(where))
    assert await again.end() is grpc.StatusCode.NOT_FOUND
    assert again.thread_id != first.thread_id


@everywhere
async def test_a_repeated_request_stops_nobody_and_is_not_refused_by_a_lock(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    first = pair.here.say(thread_id, "tokens 2", request_id="key")
    await first.end()
    active = pair.here.say(thread_id, "wait")
    await until(lambda: active.text == "one two ")
    again = pair.at(where).say(thread_id, "tokens 2", request_id="key")
    assert await again.end() is grpc.StatusCode.OK
    assert again.numbered == first.numbered
    assert await pair.state(active.run_id) == "running"
    pair.here.assistant.may_go_on.set()
    await active.end()
    await pair.fetch("update chat_sessions set status = 'locked'")
    again = pair.at(where).say(thread_id, "tokens 2", request_id="key")
    assert await again.end() is grpc.StatusCode.OK
    assert again.numbered == first.numbered


@everywhere
async def test_an_action_that_leaves_nothing_on_its_thread_is_done_once(
    pair: Pair, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    action = ScriptedServer.action

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return action(*arguments)

    monkeypatch.setattr(ScriptedServer, "action", counted)
    thread_id = await pair.make_thread()
    for side in (pair.here, pair.here, pair.at(where)):
        assert await side.act(thread_id, request_id="key").end() is grpc.StatusCode.OK
    assert calls == 1


@everywhere
async def test_a_repeated_retry_attaches_though_its_item_is_gone(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    answer_id = (await pair.items(thread_id))[-1]["id"]
    first = pair.here.retry(thread_id, answer_id, request_id="key")
    assert await first.end() is grpc.StatusCode.OK
    again = pair.at(where).retry(thread_id, answer_id, request_id="key")
    assert await again.end() is grpc.StatusCode.OK
    assert again.text == first.text
    assert await pair.said(thread_id) == [tokens(1)]


@everywhere
async def test_a_message_that_was_stored_is_not_stored_again_though_nobody_heard_of_it(
    pair: Pair, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetchrow, is_first = Database.fetchrow, True

    async def cut(self: Database, statement: str, *values: object) -> Any:
        nonlocal is_first
        row = await fetchrow(self, statement, *values)
        if statement == SAVE_ITEM and is_first:
            is_first = False
            raise DatabaseError("cut", reason=reasons.ERROR_REASON_DATABASE_UNAVAILABLE)
        return row

    thread_id = await pair.make_thread()
    monkeypatch.setattr(Database, "fetchrow", cut)
    assert await pair.here.say(thread_id, "tokens 2", request_id="key").end() is grpc.StatusCode.UNAVAILABLE
    assert await pair.at(where).say(thread_id, "tokens 2", request_id="key").end() is grpc.StatusCode.UNAVAILABLE
    assert await pair.asked(thread_id) == ["tokens 1", "tokens 2"]


async def test_a_repeated_request_does_not_wait_behind_a_message_that_waits_for_it(database_url: str) -> None:
    async with open_pair(database_url, run_conflict="enqueue") as pair:
        thread_id = await pair.make_thread()
        first = pair.here.say(thread_id, "wait", request_id="key")
        await until(lambda: first.text == "one two ")
        second = pair.here.say(thread_id, "tokens 2")
        await asyncio.sleep(0.3)  # until it waits
        again = pair.here.say(thread_id, "wait", request_id="key")
        await until(lambda: again.text == "one two ", 3)
        pair.here.assistant.may_go_on.set()
        for reader in (first, again, second):
            assert await reader.end() is grpc.StatusCode.OK


@everywhere
async def test_an_effect_of_the_time_without_a_connection_is_told(pair: Pair, where: str) -> None:
    first = pair.here.create("effects")
    await until(lambda: first.text == "one two ")
    run_id, last = first.run_id, first.numbers[-1]
    await first.leave()
    pair.here.assistant.may_go_on.set()
    await until_true(lambda: has_ended(pair, run_id))
    resumed = pair.at(where).resume(run_id, last)
    assert await resumed.end() is grpc.StatusCode.OK
    assert resumed.effects == ["late"]


async def has_ended(pair: Pair, run_id: str) -> bool:
    return await pair.state(run_id) != "running"
