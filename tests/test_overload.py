"""A server that has too much to do starts nothing new, and goes on with what it is at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from chatkit_grpc.v1.run_pb2 import RunState

from server.database import Database
from server.limits.overload import Overload
from server.runs import statements
from tests.page import SSE, events_of, post, say
from tests.runs_fixtures import PATIENT, Pair, Reader, open_pair, until, until_true
from tests.scripted import ScriptedServer
from tests.system import IMPATIENT, open_system
from tests.unlimited import NO_LIMITS

OK = grpc.StatusCode.OK
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
TWO_RUNS = replace(NO_LIMITS, max_active_runs=2)


@pytest.fixture
async def full(database_url: str) -> AsyncIterator[Pair]:
    """Two servers that make two runs each; the first is making them."""
    async with open_pair(database_url, PATIENT, limits=TWO_RUNS) as pair:
        readers = [pair.here.create("wait", request_id=name) for name in ("a", "b")]
        await until(lambda: all(reader.text == "one two " for reader in readers))
        yield pair
        pair.here.assistant.may_go_on.set()
        for reader in readers:
            assert (await reader.end(), reader.state) == (OK, RunState.RUN_STATE_COMPLETED)


async def test_a_server_with_as_many_runs_as_it_may_make_starts_no_other(full: Pair) -> None:
    refused = full.here.create("tokens 1")
    assert await refused.end() is UNAVAILABLE
    assert refused.error
    assert (refused.error.code, refused.error.retry_after) == ("OVERLOADED", 1.0)
    # Neither what another server may do, nor whoever comes back to an answer, nor reads are concerned.
    assert await full.elsewhere.create("tokens 1").end() is OK
    again = full.here.create("wait", request_id="a")
    await until(lambda: again.text == "one two ")
    await full.here.get(again.thread_id)
    await again.leave()


async def test_a_full_server_stops_no_answer_for_a_message_that_it_refuses(full: Pair) -> None:
    reader = full.here.create("wait", request_id="a")
    await until(lambda: reader.text == "one two ")
    assert await full.here.say(reader.thread_id, "tokens 1").end() is UNAVAILABLE
    full.here.assistant.may_go_on.set()
    assert (await reader.end(), reader.state) == (OK, RunState.RUN_STATE_COMPLETED)


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_a_page_is_told_and_may_try_again(database_url: str, wants_stream: bool) -> None:
    settings = replace(IMPATIENT, limits=replace(NO_LIMITS, max_active_runs=1))
    made: list[ScriptedServer] = []

    def factory(store: Any) -> ScriptedServer:
        made.append(ScriptedServer(store))
        return made[-1]

    async with open_system(database_url, factory, server=settings) as system:
        first = asyncio.create_task(post(system, say("wait"), **SSE))
        await made[0].is_silent.wait()
        began = time.monotonic()
        answer = await post(system, say("tokens 1"), **(SSE if wants_stream else {}))
        # The bridge tried once more, after as long as the server had asked for.
        assert 0.9 < time.monotonic() - began < 2.5
        if wants_stream:
            (event,) = events_of(answer)
            assert (event["type"], event["allow_retry"]) == ("error", True)
            assert event["message"].startswith("The chat server has too much to do")
        else:
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"]["code"] == "OVERLOADED"
        made[0].may_go_on.set()
        assert b"one" in (await first).content


async def test_starts_under_way_count_too(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of all where the database is slow, which is when it matters."""
    fetch = Database._fetch

    async def slow(database: Database, statement: str, *others: Any) -> Any:
        if statement == statements.START:
            await asyncio.sleep(0.3)
        return await fetch(database, statement, *others)

    monkeypatch.setattr(Database, "_fetch", slow)
    async with open_pair(database_url, PATIENT, limits=TWO_RUNS) as pair:
        readers = [pair.here.create("wait") for _ in range(20)]
        await until(lambda: sum(reader.has_ended for reader in readers) == 18)
        await until(lambda: len(pair.here.server.runs) == 2)
        await asyncio.sleep(0.4)
        assert len(pair.here.server.runs) == 2
        pair.here.assistant.may_go_on.set()


async def test_a_bridge_gets_through_where_there_is_room_soon(database_url: str) -> None:
    settings = replace(IMPATIENT, limits=replace(NO_LIMITS, max_active_runs=1))
    async with open_system(database_url, ScriptedServer, server=settings) as system:
        first = asyncio.create_task(post(system, say("tokens 5 0.1"), **SSE))
        await until(lambda: len(system.server.runs) == 1)
        began = time.monotonic()
        answer = await post(system, say("tokens 1"), **SSE)
        assert b"t0 " in answer.content
        assert time.monotonic() - began > 0.9  # it was refused first
        await first


async def test_a_server_whose_loop_is_late_starts_nothing_until_it_is_on_time_again(database_url: str) -> None:
    limits = replace(NO_LIMITS, max_loop_lag_seconds=0.15)
    async with open_pair(database_url, PATIENT, limits=limits) as pair:
        running = pair.here.create("wait")
        await until(lambda: running.text == "one two ")
        refused: list[Reader] = []
        # Late is the loop of this very process: both servers are.
        while not any(reader.error and reader.error.code == "OVERLOADED" for reader in refused):
            assert len(refused) < 40
            time.sleep(0.3)  # noqa: ASYNC251 # that is what is tested
            refused.append(pair.here.create("tokens 1"))
            await asyncio.sleep(0.02)

        async def is_taken() -> bool:
            return await pair.here.create("tokens 1").end() is OK

        await until_true(is_taken)
        pair.here.assistant.may_go_on.set()
        assert await running.end() is OK


def test_one_pause_is_no_overload() -> None:
    overload = Overload(replace(NO_LIMITS, max_loop_lag_seconds=1.0))
    overload._note(3.5)
    assert not overload.is_over(0)
    overload._note(3.5)
    assert overload.is_over(0)
    # Nor is it over at the first moment that is on time.
    overload._note(0.0)
    assert overload.is_over(0)
    for _ in range(5):
        overload._note(0.0)
    assert not overload.is_over(0)


def test_without_a_bound_nothing_is_an_overload() -> None:
    overload = Overload(replace(NO_LIMITS, max_loop_lag_seconds=0, max_active_runs=0))
    overload._note(100.0)
    assert not overload.is_over(1_000_000)
