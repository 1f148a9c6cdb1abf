"""Who reads slowly slows nobody else down, costs no memory, and gets everything in order all the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from chatkit_grpc.v1 import run_service_pb2
from chatkit_grpc.v1.run_pb2 import EventBatch

from server.runs.run import KEPT_BYTES
from server.runs.store import RunKey, RunStore
from tests.runs_fixtures import PATIENT, Pair, everywhere, open_pair, pair, until, until_true

__all__ = ["pair"]


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


@pytest.mark.parametrize("runs", [50])
async def test_the_log_takes_few_statements_however_many_runs_there_are(
    database_url: str, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes: list[float] = []
    append = RunStore.append

    async def counted(*arguments: Any) -> Any:
        flushes.append(asyncio.get_running_loop().time())
        return await append(*arguments)

    monkeypatch.setattr(RunStore, "append", counted)
    async with open_pair(database_url, replace(PATIENT, run_grace_seconds=-1)) as pair:
        readers = [pair.here.create("tokens 100 0.02") for _ in range(runs)]
        for reader in readers:
            assert await reader.end(60) is grpc.StatusCode.OK
    seconds = flushes[-1] - flushes[0]
    assert seconds > 1
    assert len(flushes) / seconds <= 20
    for reader in readers:
        assert reader.text == "".join(f"t{number} " for number in range(100))


def numbers_of(batches: list[EventBatch]) -> list[int]:
    return [number for batch in batches for number, _ in enumerate(batch.events, batch.first_sequence)]
