"""Who reads slowly slows nobody else down, costs no memory, and gets everything in order all the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc
import pytest
from chatkit_grpc.v1 import run_service_pb2
from chatkit_grpc.v1.run_pb2 import EventBatch

from server.database import Database
from server.runs.run import KEPT_BYTES
from server.runs.runs import Runs
from server.runs.store import RunKey
from tests.runs_fixtures import Pair, everywhere, open_pair, pair, until, until_true

__all__ = ["pair"]


LAST_SEQUENCE = 1_000_000
"""No answer here says more; who waits for something behind it waits for the end."""


@everywhere
async def test_a_watcher_that_does_not_read_slows_nobody_and_misses_nothing(pair: Pair, where: str) -> None:
    first = pair.here.create("large 200 10000")
    run_id = await first.run()
    # Made and not read: gRPC takes what fits its windows, and then the server has to wait.
    side = pair.at(where)
    stalled = side.runs.ResumeRun(run_service_pb2.ResumeRunRequest(run_id=run_id), metadata=[("x-user-id", "alice")])
    first_response = await stalled.read()
    await asyncio.wait_for(pair.here.assistant.is_silent.wait(), 10)
    await until(lambda: "t199 " in first.text)
    await until_true(lambda: pair.logged(run_id, first.numbers[-1]))
    # Others are served meanwhile, from the start and live.
    second = pair.at(where).resume(run_id)
    await until(lambda: "t199 " in second.text)
    pair.here.assistant.may_go_on.set()
    assert await first.end() is grpc.StatusCode.OK
    assert await second.end() is grpc.StatusCode.OK
    batches = [first_response.batch]
    while (response := await stalled.read()) is not grpc.aio.EOF:
        batches.append(response.batch)
    assert numbers_of(batches) == first.numbers
    assert second.numbers == first.numbers
    assert batches[-1].state == first.state


async def test_a_run_that_says_much_keeps_little_of_it_in_memory(pair: Pair) -> None:
    first = pair.here.create("large 300 10000")
    run_id = await first.run()
    await until(lambda: "t299 " in first.text)
    await until_true(lambda: pair.logged(run_id, first.numbers[-1]))
    run = pair.here.server.runs.get(RunKey("alice", run_id))
    assert run is not None
    await until(lambda: run.logged == run.sequence)
    kept = sum(len(batch.events) for batch in run._batches)
    assert kept <= KEPT_BYTES + 256 * 1024


@pytest.mark.parametrize("runs", [5, 60])
async def test_a_server_makes_few_statements_however_many_runs_and_watchers_there_are(
    database_url: str, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[int] = Counter()
    fetch = Database._fetch

    async def counted(self: Database, *arguments: Any) -> Any:
        made[id(self)] += 1
        return await fetch(self, *arguments)

    monkeypatch.setattr(Database, "_fetch", counted)
    async with open_pair(database_url, run_grace_seconds=-1, run_conflict="enqueue") as pair:
        here, elsewhere = pair.here.server.runs, pair.elsewhere.server.runs
        readers = [pair.here.create("tokens 100000 0.03") for _ in range(runs)]
        await until(lambda: all("t1 " in reader.text for reader in readers), 30)
        watchers = [pair.elsewhere.resume(reader.run_id) for reader in readers]
        watchers += [pair.elsewhere.watch(reader.thread_id) for reader in readers]
        # They wait for the ends of the answers, once they have asked whether there is something to wait for.
        waiting = [pair.elsewhere.say(reader.thread_id, "tokens 1") for reader in readers]
        await until(lambda: all("t9 " in watcher.text for watcher in watchers), 30)
        await until(lambda: sum(after > LAST_SEQUENCE for _, after in elsewhere.tail._waiting.values()) == runs, 30)
        made.clear()
        await asyncio.sleep(4)
        per_second = {side: sum(made[id(part)] for part in databases(side)) / 4 for side in (here, elsewhere)}
        for reader in (*watchers, *waiting):
            await reader.leave()
        for reader in readers:
            await pair.here.cancel(reader.run_id)
    assert per_second[here] <= 20
    assert per_second[elsewhere] <= 20
    assert per_second[here] > 5  # it is those that count


def databases(runs: Runs) -> tuple[Database, Database]:
    """All that a server makes statements with."""
    return runs.run_store._database, runs.membership._database


def numbers_of(batches: list[EventBatch]) -> list[int]:
    return [number for batch in batches for number, _ in enumerate(batch.events, batch.first_sequence)]
