"""What nobody needs any longer is forgotten, and nothing that somebody does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import grpc
import pytest

from server import retention
from server.database import Database
from server.retention import OLD_THREADS, Retention
from tests.runs_fixtures import PATIENT, Pair, pair, tokens, until

__all__ = ["pair"]

SHORT = replace(PATIENT, run_log_ttl_seconds=1)


async def counts(pair: Pair) -> dict[str, int]:
    tables = ("run_events", "runs", "thread_events", "chat_sessions", "chat_messages")
    return {table: (await pair.fetch(f"select count(*) as n from {table}"))[0]["n"] for table in tables}  # noqa: S608


async def test_the_log_of_a_finished_run_goes_and_its_row_stays(pair: Pair) -> None:
    thread_id = await pair.make_thread("tokens 5")
    retention = Retention(pair.here.database, SHORT)
    await retention.sweep()
    before = await counts(pair)
    assert before["run_events"] > 0
    assert before["thread_events"] == 2
    await pair.fetch("update runs set ended_at = now() - interval '2 seconds'")
    await pair.fetch("update thread_events set created_at = now() - interval '2 seconds'")
    await retention.sweep()
    await retention.sweep_whole_tables()
    assert await counts(pair) == {**before, "run_events": 0, "thread_events": 0}
    assert await pair.said(thread_id) == [tokens(5)]
    await pair.fetch("update runs set ended_at = now() - interval '25 hours'")
    await retention.sweep_whole_tables()
    assert (await counts(pair))["runs"] == 0


async def test_the_log_of_a_run_that_goes_on_is_kept_however_old_it_is(pair: Pair) -> None:
    reader = pair.here.create("wait")
    await until(lambda: reader.text == "one two ")
    await pair.fetch("update runs set created_at = now() - interval '2 days'")
    retention = Retention(pair.here.database, SHORT)
    await retention.sweep()
    await retention.sweep_whole_tables()
    pair.here.assistant.may_go_on.set()
    assert await reader.end() is grpc.StatusCode.OK
    replayed = pair.elsewhere.resume(reader.run_id)
    assert await replayed.end() is grpc.StatusCode.OK
    assert replayed.numbered == reader.numbered


async def test_a_long_log_is_swept_in_small_batches_to_its_end(pair: Pair) -> None:
    reader = pair.here.create("tokens 1")
    await reader.end()
    await pair.fetch(
        "insert into run_events (user_id, run_id, first_sequence, last_sequence, events) "
        "select 'alice', $1, n, n, '' from generate_series(1000, 6000) as n",
        reader.run_id,
    )
    await pair.fetch("update runs set ended_at = now() - interval '2 seconds'")
    await Retention(pair.here.database, SHORT).sweep()
    assert (await counts(pair))["run_events"] == 0
    assert not (await pair.fetch("select has_log from runs"))[0]["has_log"]


async def test_threads_are_kept_unless_they_have_an_end(pair: Pair) -> None:
    await pair.make_thread()
    await pair.fetch("update chat_sessions set updated_at = now() - interval '20 years'")
    await Retention(pair.here.database, PATIENT).sweep_whole_tables()
    assert (await counts(pair))["chat_sessions"] == 1


async def test_old_threads_go_with_all_that_is_on_them(pair: Pair) -> None:
    old, young = await pair.make_thread(), await pair.make_thread()
    busy = pair.here.create("wait")
    await until(lambda: busy.text == "one two ")
    for thread_id in (old, busy.thread_id):
        await pair.fetch(
            "update chat_sessions set updated_at = now() - interval '49 hours' where session_id = $1", thread_id
        )
    await Retention(pair.here.database, replace(PATIENT, thread_ttl_days=2)).sweep_whole_tables()
    kept = [row["session_id"] for row in await pair.fetch("select session_id from chat_sessions order by created_at")]
    assert kept == [young, busy.thread_id]
    for table in ("chat_messages", "runs", "thread_events"):
        rows = await pair.fetch(f"select 1 from {table} where session_id = $1", old)  # noqa: S608 # names of tables
        assert rows == []
    assert await pair.fetch("select 1 from run_events where run_id not in (select run_id from runs)") == []
    pair.here.assistant.may_go_on.set()
    assert await busy.end() is grpc.StatusCode.OK


async def test_an_old_thread_that_somebody_writes_to_meanwhile_is_kept(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread_id = await pair.make_thread()
    await pair.fetch("update chat_sessions set updated_at = now() - interval '49 hours'")
    fetch = Database.fetch

    async def slow(self: Database, query: str, *values: Any) -> Sequence[Any]:
        rows = await fetch(self, query, *values)
        if query == OLD_THREADS and rows:
            await pair.elsewhere.say(thread_id, "tokens 2").end()
        return rows

    with monkeypatch.context() as patched:
        patched.setattr(Database, "fetch", slow)
        await Retention(pair.here.database, replace(PATIENT, thread_ttl_days=2)).sweep_whole_tables()
    assert await pair.said(thread_id) == [tokens(1), tokens(2)]


async def test_no_statement_sweeps_more_than_a_batch(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BATCH", 1000)
    monkeypatch.setattr(retention, "_PAUSE_BETWEEN_BATCHES", 0)
    long, short = pair.here.create("tokens 1"), pair.here.create("tokens 1")
    for reader in (long, short):
        await reader.end()
    await pair.fetch(
        "insert into run_events (user_id, run_id, first_sequence, last_sequence, events) "
        "select 'alice', $1, n, n, '' from generate_series(1000, 6000) as n",
        long.run_id,
    )
    await pair.fetch("update runs set ended_at = now() - interval '2 seconds'")
    left = [(await counts(pair))["run_events"]]
    fetchval = Database.fetchval

    async def counted(self: Database, statement: str, *values: object) -> Any:
        result = await fetchval(self, statement, *values)
        left.append((await counts(pair))["run_events"])
        return result

    monkeypatch.setattr(Database, "fetchval", counted)
    await Retention(pair.here.database, SHORT).sweep()
    assert left[-1] == 0
    assert all(before - after <= 1000 for before, after in pairwise(left))
