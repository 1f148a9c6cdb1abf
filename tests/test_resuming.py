"""A run can be watched again from any of its events, on any server, while it is made and after it has ended."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from chatkit_grpc.v1.run_pb2 import RunState

from server.retention import Retention
from server.runs.watching import SETTLED_SECONDS
from tests.runs_fixtures import PATIENT, Pair, Reader, everywhere, open_pair, pair, tokens, until, until_true

__all__ = ["pair"]


async def begun(pair: Pair, text: str = "wait") -> Reader:
    """A run that has said all it says before it waits."""
    reader = pair.here.create(text)
    await pair.here.assistant.is_silent.wait()
    await until(lambda: "two " in reader.text)
    return reader


@everywhere
async def test_a_run_resumed_from_its_start_says_the_same_once_more(pair: Pair, where: str) -> None:
    first = await begun(pair)
    again = pair.at(where).resume(await first.run())
    await until(lambda: again.text == "one two ")
    pair.here.assistant.may_go_on.set()
    assert await first.end() is grpc.StatusCode.OK
    assert await again.end() is grpc.StatusCode.OK
    assert again.numbered == first.numbered
    assert again.numbers == list(range(1, len(again.numbers) + 1))
    assert first.state == again.state == RunState.RUN_STATE_COMPLETED


@everywhere
async def test_a_run_resumed_from_the_middle_says_what_comes_after(pair: Pair, where: str) -> None:
    first = await begun(pair)
    last = first.numbers[-1]
    for after in range(1, last + 1):
        again = pair.at(where).resume(first.run_id, after)
        await until(lambda again=again, after=after: len(again.numbers) == last - after)  # type: ignore[misc]
        assert again.numbered == first.numbered[after:]
        await again.leave()
    again = pair.at(where).resume(first.run_id, last)
    pair.here.assistant.may_go_on.set()
    await again.end()
    await first.end()
    assert again.numbered == first.numbered[last:]
    assert again.text == "three"


@everywhere
async def test_a_run_resumed_by_its_thread_is_the_active_one(pair: Pair, where: str) -> None:
    first = await begun(pair)
    again = pair.at(where).resume(thread_id=first.thread_id)
    await until(lambda: again.text == "one two ")
    assert again.run_id == first.run_id


@everywhere
async def test_a_thread_on_which_nothing_runs_has_no_run_to_resume(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    reader = pair.at(where).resume(thread_id=thread_id)
    assert await reader.end() is grpc.StatusCode.NOT_FOUND
    assert reader.error is not None
    assert reader.error.code == "RUN_NOT_FOUND"


@everywhere
async def test_a_finished_run_is_replayed_from_anywhere(pair: Pair, where: str) -> None:
    first = pair.here.create("tokens 20")
    await first.end()
    for after in range(len(first.numbers) + 1):
        again = pair.at(where).resume(first.run_id, after)
        assert await again.end() is grpc.StatusCode.OK
        assert again.numbered == first.numbered[after:]
        assert again.state == RunState.RUN_STATE_COMPLETED


@everywhere
async def test_a_finished_run_resumed_beyond_its_end_only_ends(pair: Pair, where: str) -> None:
    first = pair.here.create("tokens 2")
    await first.end()
    again = pair.at(where).resume(first.run_id, first.numbers[-1] + 100)
    assert await again.end() is grpc.StatusCode.OK
    assert (again.events, again.state) == ([], RunState.RUN_STATE_COMPLETED)


@everywhere
async def test_a_run_resumed_beyond_what_it_has_said_repeats_nothing(pair: Pair, where: str) -> None:
    first = pair.here.create("steps 30")
    run_id = await first.run()
    again = pair.at(where).resume(run_id, 25)
    for number in range(30):
        pair.here.assistant.steps.release()
        await until(lambda number=number: first.text == tokens(number + 1))  # type: ignore[misc]
    await first.end()
    await again.end()
    assert again.numbered == first.numbered[25:]


@everywhere
async def test_a_long_run_is_replayed_from_the_log_and_then_from_memory(pair: Pair, where: str) -> None:
    first = pair.here.create("large 100 10000")
    await pair.here.assistant.is_silent.wait()
    await until(lambda: "t99 " in first.text)
    await until_true(lambda: pair.logged(first.run_id, first.numbers[-1]))
    for after in (0, 7, 60):
        again = pair.at(where).resume(first.run_id, after)
        await until(lambda again=again: "t99 " in again.text)  # type: ignore[misc]
        assert again.numbers == first.numbers[after:]
        await again.leave()
    again = pair.at(where).resume(first.run_id)
    pair.here.assistant.may_go_on.set()
    await again.end()
    await first.end()
    assert again.numbers == first.numbers
    assert again.text == first.text


@everywhere
async def test_a_failed_run_fails_again_with_its_status(pair: Pair, where: str) -> None:
    first = pair.here.create("tokens 1", input={"attachments": ["atc_0"]})
    assert await first.end() is grpc.StatusCode.NOT_FOUND
    (row,) = await pair.fetch("select run_id, state from runs")
    assert row["state"] == "failed"
    again = pair.at(where).resume(row["run_id"])
    assert await again.end() is grpc.StatusCode.NOT_FOUND
    assert again.numbered == first.numbered
    assert first.error is not None
    assert again.error is not None
    assert again.error.to_status() == first.error.to_status()


@everywhere
async def test_a_replay_repeats_no_effect_but_live_ones_are_delivered(pair: Pair, where: str) -> None:
    first = await begun(pair, "effects")
    # Another server knows by the log what had been said when it was asked.
    await until_true(lambda: pair.logged(first.run_id, first.numbers[-1]))
    again = pair.at(where).resume(first.run_id)
    await until(lambda: again.text == "one two ")
    # What is logged in this time may have been said before the other server was asked, and counts as replayed.
    await asyncio.sleep(SETTLED_SECONDS)
    pair.here.assistant.may_go_on.set()
    await again.end()
    await first.end()
    assert first.effects == ["early", "late"]
    assert again.effects == ["late"]
    assert again.numbered == [(n, e) for n, e in first.numbered if e.client_effect.name != "early"]
    replayed = pair.at(where).resume(first.run_id)
    await replayed.end()
    assert replayed.numbered == [(n, e) for n, e in first.numbered if not e.HasField("client_effect")]


@everywhere
async def test_somebody_elses_run_is_not_there(pair: Pair, where: str) -> None:
    first = await begun(pair)
    others = pair.at(where).resume(first.run_id, user="bob")
    nobodys = pair.at(where).resume("run_0", user="bob")
    assert await others.end() is await nobodys.end() is grpc.StatusCode.NOT_FOUND
    assert others.error is not None
    assert nobodys.error is not None
    same = nobodys.error.to_status().SerializeToString().replace(b"run_0", b"")
    assert len(others.error.to_status().SerializeToString()) == len(same) + len(first.run_id)
    thread = pair.at(where).resume(thread_id=first.thread_id, user="bob")
    nothing = pair.at(where).resume(thread_id="thr_" + "0" * (len(first.thread_id) - 4), user="bob")
    assert await thread.end() is await nothing.end() is grpc.StatusCode.NOT_FOUND
    assert thread.error is not None
    assert nothing.error is not None
    assert thread.error.code == nothing.error.code == "THREAD_NOT_FOUND"
    assert thread.error.message == nothing.error.message


@pytest.mark.parametrize("by", [{}, {"run_id": "run_0", "thread_id": "thr_0"}])
async def test_a_run_is_named_in_one_way(pair: Pair, by: dict[str, str]) -> None:
    assert await pair.here.resume(**by).end() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[arg-type]


@everywhere
async def test_what_was_swept_is_told_to_be_expired(pair: Pair, where: str) -> None:
    first = pair.here.create("tokens 5")
    await first.end()
    await pair.fetch("update runs set ended_at = now() - interval '1 hour'")
    await Retention(pair.here.database, PATIENT).sweep()
    last = first.numbers[-1]
    for after in (0, last - 1):
        again = pair.at(where).resume(first.run_id, after)
        assert await again.end() is grpc.StatusCode.OUT_OF_RANGE
        assert again.error is not None
        assert (again.error.code, again.error.metadata) == ("EVENTS_EXPIRED", {"oldest_sequence": str(last + 1)})
        assert again.events == []
    again = pair.at(where).resume(first.run_id, last)
    assert await again.end() is grpc.StatusCode.OK
    assert again.state == RunState.RUN_STATE_COMPLETED


@everywhere
async def test_a_log_that_is_half_swept_is_not_replayed_with_a_hole(pair: Pair, where: str) -> None:
    first = pair.here.create("tokens 40 0.02")
    await first.end()
    rows = await pair.fetch("select last_sequence from run_events order by last_sequence")
    assert len(rows) > 3
    await pair.fetch("delete from run_events where last_sequence = $1", rows[1]["last_sequence"])
    again = pair.at(where).resume(first.run_id)
    assert await again.end() is grpc.StatusCode.OUT_OF_RANGE
    assert again.error is not None
    assert again.error.metadata == {"oldest_sequence": str(rows[1]["last_sequence"] + 1)}


async def test_a_run_is_watched_on_when_its_server_has_ended(database_url: str) -> None:
    async with open_pair(database_url) as pair:
        first = await begun(pair)
        again = pair.elsewhere.resume(first.run_id)
        await until(lambda: again.text == "one two ")
        await pair.here.cancel(first.run_id)
        await first.end()
        await again.end()
    async with open_pair(database_url) as pair:
        replayed = pair.here.resume(first.run_id)
        await replayed.end()
        assert replayed.numbered == again.numbered == first.numbered
        assert replayed.state == RunState.RUN_STATE_CANCELLED
