"""NOTIFY wakes whoever waits; where it doesn't arrive, the clock does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.database import Database
from server.runs import wakeups
from server.runs.wakeups import Wakeups
from tests.test_runs import until

NOTIFY = "select pg_notify('chatkit_grpc', $1)"
END_LISTENERS = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and query ilike 'listen%' and pid <> pg_backend_pid()
"""


@pytest.fixture
async def cancels() -> list[str]:
    return []


@pytest.fixture
async def listener(database: Database, cancels: list[str]) -> AsyncIterator[Wakeups]:
    async with Wakeups(database, lambda: cancels.append("cancel")) as listener:
        await until(lambda: listener.hears)
        yield listener


async def seconds_until_woken(listener: Wakeups) -> float:
    loop = asyncio.get_running_loop()
    with listener.subscribed() as wakeup:
        began = loop.time()
        await listener.wait(wakeup)
        return loop.time() - began


async def test_whoever_waits_is_woken_at_once(database: Database, listener: Wakeups) -> None:
    with listener.subscribed() as wakeup:
        waiting = asyncio.create_task(listener.wait(wakeup))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await database.fetch(NOTIFY, "log")
        async with asyncio.timeout(0.9):  # sooner than by the clock
            await waiting


async def test_a_cancel_is_told_and_wakes_nobody_else(
    database: Database, listener: Wakeups, cancels: list[str]
) -> None:
    with listener.subscribed() as wakeup:
        await database.fetch(NOTIFY, "cancel")
        await until(lambda: cancels == ["cancel"])
        assert not wakeup.is_set()


async def test_whoever_nobody_wakes_looks_once_a_second(listener: Wakeups) -> None:
    assert 0.9 < await seconds_until_woken(listener) < 5


async def test_a_connection_that_is_lost_is_made_anew(database: Database, listener: Wakeups) -> None:
    assert await database.fetch(END_LISTENERS)
    await until(lambda: not listener.hears)
    await until(lambda: listener.hears)
    with listener.subscribed() as wakeup:
        await database.fetch(NOTIFY, "log")
        async with asyncio.timeout(0.9):  # sooner than by the clock
            await wakeup.wait()


async def test_where_listen_is_dropped_the_clock_wakes_more_often(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As behind PgBouncer: the connection is there, and nothing ever comes.
    monkeypatch.setattr(wakeups, "CHANNEL", "somewhere_else")
    monkeypatch.setattr(wakeups, "_PROBE_TIMEOUT", 0.1)
    async with Wakeups(database, lambda: None) as listener:
        await until(lambda: "NOTIFY doesn't arrive" in caplog.text)
        assert not listener.hears
        assert 0.1 < await seconds_until_woken(listener) < 0.9
