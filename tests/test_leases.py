"""A server that lost a run can write nothing more, and what it had said is kept by the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg
import grpc
import pytest
from chatkit.types import AssistantMessageContent, AssistantMessageItem, FileAttachment, ThreadMetadata
from chatkit_grpc.v1.run_pb2 import RunState

from server.database import Database
from server.lease import Lease, LeaseLostError
from server.runs import log_writer
from server.runs.run import Run
from server.runs.statements import HEARTBEAT
from server.runs.store import Piece, RunKey, RunStore, ThreadKey
from tests.runs_fixtures import (
    PATIENT,
    Log,
    Pair,
    Reader,
    Side,
    everywhere,
    open_pair,
    open_side,
    pair,
    until,
    until_true,
)

__all__ = ["pair"]

INTERRUPTED = RunState.RUN_STATE_INTERRUPTED


async def begun(pair: Pair, text: str = "wait") -> Reader:
    """A run that has said all it says before it waits, and has logged it."""
    reader = pair.here.create(text)
    await until(lambda: reader.text == "one two ")
    await until_true(lambda: pair.logged(reader.run_id, reader.numbers[-1]))
    return reader


def run_of(side: Side, reader: Reader) -> Run:
    run = side.server.runs.get(RunKey("alice", reader.run_id))
    assert run is not None
    return run


@asynccontextmanager
async def silent(side: Side) -> AsyncIterator[None]:
    """A server that can't tell the others that it lives."""
    membership = side.server.runs.membership
    for worker in membership._workers:
        await worker.__aexit__(None, None, None)
    try:
        yield
    finally:
        for worker in membership._workers:
            await worker.__aenter__()


async def forget(pair: Pair, side: Side) -> None:
    await pair.fetch("delete from servers where server_id = $1", side.server.runs.membership.server_id)


async def all_rows(pair: Pair) -> list[list[Any]]:
    """All that is stored, but for heartbeats."""
    tables = ("chat_sessions", "chat_messages", "attachments", "runs", "run_events", "thread_events")
    return [[str(row) for row in await pair.fetch(f"select * from {table} order by 1, 2, 3")] for table in tables]  # noqa: S608


def message(thread_id: str, item_id: str = "msg_stale") -> AssistantMessageItem:
    content = [AssistantMessageContent(text="stale", annotations=[])]
    return AssistantMessageItem(id=item_id, thread_id=thread_id, created_at=datetime.now(), content=content)


async def try_to_write(side: Side, run: Run, first_item: str) -> None:
    """All that a run writes, each of which must be refused."""
    store, thread_id, context = side.server.store, run.lease.thread_id, run.context
    attachment = FileAttachment(id="atc_1", name="a", mime_type="text/plain", thread_id=thread_id)
    thread = ThreadMetadata(id=thread_id, created_at=datetime.now(), title="stale")
    writes: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: store.add_thread_item(thread_id, message(thread_id), context),
        lambda: store.save_item(thread_id, message(thread_id, first_item), context),
        lambda: store.save_thread(thread, context),
        lambda: store.delete_thread_item(thread_id, first_item, context),
        lambda: store.retry_after_item(thread_id, first_item, context),
        lambda: store.save_attachment(attachment, context),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError):
            await write()


async def try_to_log(side: Side, run: Run) -> None:
    pieces = [(run.lease, Piece(1000, 1000, b""))]
    run_store = side.server.runs.run_store
    assert await run_store.append(side.server.runs.membership.server_id, pieces) == set()


async def try_to_end(side: Side, run: Run) -> None:
    pieces = [Piece(1000, 1000, b"")]
    assert not await side.server.runs.run_store.end(run.lease, RunState.RUN_STATE_COMPLETED, 1000, None, pieces)


async def lost(reader: Reader) -> None:
    """It is told that the answer was interrupted, and that it may be asked for again."""
    assert await reader.end() is grpc.StatusCode.UNAVAILABLE
    assert reader.error is not None
    assert reader.error.code == "RUN_INTERRUPTED"
    assert reader.error.http_status == 503


async def test_without_its_lease_a_run_writes_nothing(pair: Pair) -> None:
    reader = await begun(pair)
    run = run_of(pair.here, reader)
    (first, *_) = await pair.items(reader.thread_id)
    await pair.fetch("update chat_sessions set active_run_id = null")
    before = await all_rows(pair)
    await try_to_write(pair.here, run, first["id"])
    await try_to_end(pair.here, run)
    assert await all_rows(pair) == before
    pair.here.assistant.may_go_on.set()
    await lost(reader)
    assert await pair.said(reader.thread_id) == []


async def test_while_another_run_has_the_lease_a_run_writes_nothing(pair: Pair) -> None:
    reader = await begun(pair)
    run = run_of(pair.here, reader)
    (first, *_) = await pair.items(reader.thread_id)
    await pair.fetch("update chat_sessions set active_run_id = null")
    other = pair.elsewhere.say(reader.thread_id, "wait")
    await until(lambda: other.text == "one two ")
    await until_true(lambda: pair.logged(other.run_id, other.numbers[-1]))
    before = await all_rows(pair)
    await try_to_write(pair.here, run, first["id"])
    await try_to_end(pair.here, run)
    assert await all_rows(pair) == before
    pair.here.assistant.may_go_on.set()
    await lost(reader)
    pair.elsewhere.assistant.may_go_on.set()
    assert await other.end() is grpc.StatusCode.OK
    assert await pair.said(reader.thread_id) == ["one two three"]


async def test_a_run_that_others_have_ended_writes_nothing(pair: Pair) -> None:
    reader = await begun(pair)
    run = run_of(pair.here, reader)
    thread_id = reader.thread_id
    (first, *_) = await pair.items(thread_id)
    async with silent(pair.here):
        await until(lambda: not pair.here.server.runs.membership.is_sure)  # nobody is forgotten before
        await forget(pair, pair.here)
        await pair.elsewhere.server.runs.recovery.end(ThreadKey("alice", thread_id), reader.run_id)
        before = await all_rows(pair)
        await try_to_write(pair.here, run, first["id"])
        await try_to_log(pair.here, run)
        await try_to_end(pair.here, run)
        pair.here.assistant.may_go_on.set()
        await until(lambda: not len(pair.here.server.runs))
        assert await all_rows(pair) == before
        assert not await pair.elsewhere.server.runs.recovery.end(ThreadKey("alice", thread_id), reader.run_id)
    await lost(reader)
    assert reader.text == "one two "
    assert await pair.said(thread_id) == ["one two "]
    assert await all_rows(pair) == before


async def test_a_run_that_others_have_ended_can_not_log_what_it_says(pair: Pair) -> None:
    reader = pair.here.create("steps 9")
    assistant = pair.here.assistant
    assistant.steps.release()
    await until(lambda: reader.text == "t0 ")
    await until_true(lambda: pair.logged(reader.run_id, reader.numbers[-1]))
    thread_id = reader.thread_id
    async with silent(pair.here):
        await forget(pair, pair.here)
        await pair.elsewhere.server.runs.recovery.end(ThreadKey("alice", thread_id), reader.run_id)
        before = await all_rows(pair)
        assistant.steps.release()
        await until(lambda: not len(pair.here.server.runs))
        assert await all_rows(pair) == before
    await lost(reader)
    assert await pair.said(thread_id) == ["t0 "]


@everywhere
async def test_a_server_that_was_forgotten_loses_its_runs_and_comes_back(pair: Pair, where: str) -> None:
    reader = await begun(pair)
    watcher = pair.elsewhere.resume(reader.run_id)
    await until(lambda: watcher.text == "one two ")
    old = pair.here.server.runs.membership.server_id
    await forget(pair, pair.here)
    await lost(reader)
    assert await watcher.end() is grpc.StatusCode.OK
    assert watcher.state == INTERRUPTED
    new = pair.here.server.runs.membership.server_id
    assert new != old
    rows = await pair.fetch("select server_id from servers")
    assert {row["server_id"] for row in rows} == {new, pair.elsewhere.server.runs.membership.server_id}
    assert await pair.said(reader.thread_id) == ["one two "]
    following = pair.at(where).say(reader.thread_id, "tokens 2")
    assert await following.end() is grpc.StatusCode.OK
    assert await pair.said(reader.thread_id) == ["one two ", "t0 t1 "]
    (row,) = await pair.fetch("select server_id from runs where run_id = $1", following.run_id)
    assert row["server_id"] == pair.at(where).server.runs.membership.server_id


@pytest.mark.parametrize("how", ["forgotten", "late"])
async def test_the_runs_of_a_dead_server_are_ended_by_another(pair: Pair, how: str) -> None:
    reader = await begun(pair)
    thread_id = reader.thread_id
    watcher = pair.elsewhere.resume(reader.run_id)
    thread = pair.elsewhere.watch(thread_id)
    await until(lambda: watcher.text == thread.text == "one two ")
    async with silent(pair.here):
        if how == "forgotten":
            await forget(pair, pair.here)
        assert await watcher.end() is grpc.StatusCode.OK
        assert watcher.state == INTERRUPTED
        assert watcher.kinds[-2:] == ["thread_item_done", "error"]
        assert watcher.events[-1].error.allow_retry
        await until(lambda: thread.what[-1] == "run_ended")
        assert thread.responses[-1].run_ended.state == INTERRUPTED
        assert await pair.state(reader.run_id) == "interrupted"
        types = await pair.types(thread_id)
        assert types == ["user_message", "assistant_message", "sdk_hidden_context"]
        assert await pair.said(thread_id) == ["one two "]
        done = watcher.events[-2].thread_item_done.item.assistant_message
        assert done.id == (await pair.items(thread_id))[1]["id"]
        following = pair.elsewhere.say(thread_id, "tokens 2")
        assert await following.end() is grpc.StatusCode.OK
        resumed = pair.elsewhere.resume(reader.run_id)
        await resumed.end()
        assert resumed.events == watcher.events
    await lost(reader)
    assert await pair.said(thread_id) == ["one two ", "t0 t1 "]
    await thread.leave()


async def test_a_message_for_a_dead_servers_thread_waits_for_its_end_and_is_answered(pair: Pair) -> None:
    reader = await begun(pair)
    async with silent(pair.here):
        following = pair.elsewhere.say(reader.thread_id, "tokens 2")
        assert await following.end() is grpc.StatusCode.OK
        assert await pair.asked(reader.thread_id) == ["wait", "tokens 2"]
        assert await pair.said(reader.thread_id) == ["one two ", "t0 t1 "]
    await lost(reader)


async def test_an_old_run_of_a_server_that_lives_is_left_alone(pair: Pair) -> None:
    reader = await begun(pair)
    await pair.fetch("update runs set created_at = created_at - interval '1 hour'")
    await pair.fetch("update chat_sessions set created_at = created_at - interval '1 hour'")
    for side in (pair.here, pair.elsewhere):
        membership = side.server.runs.membership
        membership._orphans.set()
        await asyncio.sleep(0.3)
        await side.server.runs.recovery.end_orphans()
    assert await pair.state(reader.run_id) == "running"
    pair.here.assistant.may_go_on.set()
    assert await reader.end() is grpc.StatusCode.OK
    assert reader.text == "one two three"
    assert reader.state == RunState.RUN_STATE_COMPLETED


async def test_no_token_is_shown_while_its_server_is_not_sure_of_its_lease(database_url: str) -> None:
    # Alone, so that nobody takes its runs meanwhile.
    async with open_side(database_url) as side:
        reader = side.create("steps 3")
        side.assistant.steps.release()
        await until(lambda: reader.text == "t0 ")
        async with silent(side):
            await until(lambda: not side.server.runs.membership.is_sure)
            late = side.resume(reader.run_id)
            side.assistant.steps.release()
            await asyncio.sleep(0.5)
            assert reader.text == "t0 "
            assert late.events == []
        await until(lambda: reader.text == late.text == "t0 t1 ")
        side.assistant.steps.release()
        assert await reader.end() is await late.end() is grpc.StatusCode.OK
        assert late.numbered == reader.numbered
        assert reader.state == RunState.RUN_STATE_COMPLETED


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_token_waits_for_a_log_that_is_behind(pair: Pair, monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    log, assistant = Log(monkeypatch), pair.here.assistant
    reader = pair.here.create("steps 9")
    assistant.steps.release()
    await until(lambda: reader.text == "t0 ")
    await until_true(lambda: pair.logged(reader.run_id, reader.numbers[-1]))
    elsewhere = pair.elsewhere.resume(reader.run_id)
    await until(lambda: elsewhere.text == "t0 ")
    log.hangs = hangs
    log.works.clear()
    assistant.steps.release()
    await until(lambda: reader.text == "t0 t1 ")  # at once, as long as the log may still come
    await asyncio.sleep(0.25)
    for _ in range(3):
        assistant.steps.release()
        await asyncio.sleep(0.1)
    late = pair.here.resume(reader.run_id, 1)
    await asyncio.sleep(0.3)
    assert reader.text == "t0 t1 "
    assert late.text in {"", "t0 "}
    assert elsewhere.text == "t0 "
    log.works.set()
    await until(lambda: reader.text == late.text == elsewhere.text == "t0 t1 t2 t3 t4 ", 3)
    for _ in range(4):
        assistant.steps.release()
    for each in (reader, late, elsewhere):
        assert await each.end() is grpc.StatusCode.OK
    assert reader.numbered == elsewhere.numbered
    assert late.numbered == reader.numbered[1:]
    assert await pair.said(reader.thread_id) == [reader.text]


async def test_a_run_ends_though_the_log_can_not_be_written(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch)
    log.works.clear()
    reader = pair.here.create("tokens 5")
    # Its end is written with the rest of the log, in a statement of its own.
    assert await reader.end() is grpc.StatusCode.OK
    assert reader.text == "t0 t1 t2 t3 t4 "
    again = pair.elsewhere.resume(reader.run_id)
    await again.end()
    assert again.numbered == reader.numbered


async def test_ahead_a_token_is_shown_once_it_is_logged(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch)
    async with open_pair(database_url, run_log="ahead") as pair:
        reader = pair.here.create("steps 5")
        for number in range(3):
            pair.here.assistant.steps.release()
            await until(lambda n=number: f"t{n} " in reader.text)  # type: ignore[misc]
            assert await pair.logged(reader.run_id, reader.numbers[-1])
        log.works.clear()
        pair.here.assistant.steps.release()
        late = pair.here.resume(reader.run_id)
        await asyncio.sleep(0.1)
        assert late.text == reader.text == "t0 t1 t2 "
        log.works.set()
        await until(lambda: late.text == reader.text == "t0 t1 t2 t3 ")
        pair.here.assistant.steps.release()
        for each in (reader, late):
            assert await each.end() is grpc.StatusCode.OK
            assert each.text == "t0 t1 t2 t3 t4 "


async def test_ahead_nothing_is_shown_that_is_not_logged(database_url: str) -> None:
    async with open_pair(database_url, PATIENT, run_log="ahead") as pair:
        reader = pair.here.create("tokens 60 0.005")
        run_id = await reader.run()
        while not reader.has_ended:
            shown = reader.numbers[-1]
            assert reader.state or await pair.logged(run_id, shown)
            await asyncio.sleep(0.01)
        assert await pair.logged(run_id, reader.numbers[-1])


@pytest.mark.parametrize("ahead", [False, True])
async def test_what_was_stored_is_not_overwritten_by_a_log_that_is_behind(
    database_url: str, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    log = Log(monkeypatch)
    async with open_pair(database_url, run_log="ahead" if ahead else "behind") as pair:
        reader = await begun(pair)
        log.works.clear()
        run = run_of(pair.here, reader)
        answer = next(iter(run.pending))
        whole = message(reader.thread_id, answer)
        await pair.here.server.store.add_thread_item(reader.thread_id, whole, run.context)
        async with silent(pair.here):
            await forget(pair, pair.here)
            await until_true(lambda: is_interrupted(pair, reader))
            assert await pair.said(reader.thread_id) == ["stale"]
            resumed = pair.elsewhere.resume(reader.run_id)
            await resumed.end()
            assert resumed.events[-2].thread_item_done.item.assistant_message.content[0].output_text.text == "stale"
            log.works.set()
        await lost(reader)


async def is_interrupted(pair: Pair, reader: Reader) -> bool:
    return await pair.state(reader.run_id) == "interrupted"


async def test_who_saw_more_than_was_logged_is_told_how_it_ended(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch)
    reader = pair.here.create("steps 9")
    pair.here.assistant.steps.release()
    await until(lambda: reader.text == "t0 ")
    await until_true(lambda: pair.logged(reader.run_id, reader.numbers[-1]))
    logged = reader.numbers[-1]
    log.works.clear()
    pair.here.assistant.steps.release()
    await until(lambda: reader.text == "t0 t1 ")
    async with silent(pair.here):
        await forget(pair, pair.here)
        await until_true(lambda: is_interrupted(pair, reader))
        for after in (logged - 1, logged, logged + 1, logged + 2, logged + 3):
            resumed = pair.elsewhere.resume(reader.run_id, after)
            assert await resumed.end() is grpc.StatusCode.OK
            assert resumed.kinds[-2:] == ["thread_item_done", "error"]
            assert len(resumed.events) == 2 + max(0, logged - after)
            assert resumed.numbers == sorted(set(resumed.numbers))
            assert resumed.numbers[-2] > reader.numbers[-1]
        log.works.set()
    await lost(reader)


async def test_a_lost_run_whose_assistant_does_not_end_is_in_nobodys_way(pair: Pair) -> None:
    reader = await begun(pair, "deaf")
    await forget(pair, pair.here)
    await lost(reader)
    await until(lambda: not len(pair.here.server.runs))
    await until_true(lambda: is_interrupted(pair, reader))
    resumed = pair.here.resume(reader.run_id)
    assert await resumed.end() is grpc.StatusCode.OK
    assert resumed.state == INTERRUPTED


async def test_a_run_that_can_not_be_ended_now_keeps_no_other_from_being_ended(pair: Pair, database_url: str) -> None:
    held, other = await begun(pair), await begun(pair)
    connection = await asyncpg.connect(database_url)
    try:
        async with silent(pair.here), connection.transaction():
            # As by a server that froze while it was ending this one.
            await connection.execute("select from chat_sessions where session_id = $1 for update", held.thread_id)
            await forget(pair, pair.here)
            await until_true(lambda: is_interrupted(pair, other), 8)
            assert await pair.state(held.run_id) == "running"
    finally:
        await connection.close()
    await until_true(lambda: is_interrupted(pair, held), 12)
    for reader in (held, other):
        await lost(reader)


async def test_a_heartbeat_whose_answer_stays_out_is_sent_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = await begun(pair)
    membership = pair.here.server.runs.membership
    fetchrow, silenced = Database.fetchrow, asyncio.Event()

    async def silent_once(self: Database, statement: str, *values: object) -> Any:
        if statement == HEARTBEAT and values[0] == membership.server_id and not silenced.is_set():
            silenced.set()
            await asyncio.sleep(60)
        return await fetchrow(self, statement, *values)

    server_id = membership.server_id
    monkeypatch.setattr(Database, "fetchrow", silent_once)
    await silenced.wait()
    await asyncio.sleep(2.5)  # longer than the lease
    assert membership.is_sure
    assert membership.server_id == server_id
    pair.here.assistant.may_go_on.set()
    assert await reader.end() is grpc.StatusCode.OK


async def test_what_gathered_while_the_log_was_away_is_written_in_parts(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(monkeypatch)
    append, sizes = RunStore.append, []

    async def measured(self: RunStore, server_id: str, pieces: Sequence[tuple[Lease, Piece]]) -> set[str]:
        held = await append(self, server_id, pieces)
        sizes.append(sum(len(piece.events) for _, piece in pieces))
        return held

    monkeypatch.setattr(RunStore, "append", measured)
    monkeypatch.setattr(log_writer, "LARGEST_FLUSH_BYTES", 1_000_000)
    log.works.clear()
    reader = pair.here.create("large 400 20000")
    await reader.run()
    run = run_of(pair.here, reader)
    await until(lambda: run.sequence > 400)
    log.works.set()
    await until(lambda: reader.text.endswith("t399 ") or "t399 " in reader.text, 20)
    await until_true(lambda: pair.logged(reader.run_id, run.sequence))
    assert len(sizes) >= 8
    assert max(sizes) <= 1_000_000 + 256 * 1024
    assert reader.numbers == list(range(1, reader.numbers[-1] + 1))
