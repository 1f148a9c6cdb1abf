"""Whoever watches a thread is told everything that happens on it, once and in order, from any server."""

from __future__ import annotations

import grpc
from chatkit_grpc.v1.run_pb2 import RunState

from server.retention import Retention
from tests.runs_fixtures import PATIENT, Pair, Reader, everywhere, pair, tokens, until
from tests.test_appending import answer

__all__ = ["pair"]


async def position(pair: Pair) -> str:
    (row,) = await pair.fetch("select log_position from chat_sessions")
    return str(row["log_position"])


def story(reader: Reader) -> list[tuple[str, object]]:
    """What a watcher was told, in an order that doesn't depend on how events came in batches."""
    told: list[tuple[str, object]] = []
    for response in reader.responses:
        what = str(response.WhichOneof("what"))
        if what == "batch" and response.batch.run_id:
            first = response.batch.first_sequence
            told += [(f"{response.batch.run_id} {n}", event) for n, event in enumerate(response.batch.events, first)]
        elif what == "batch":
            told += [("changed", event) for event in response.batch.events]
        else:
            told.append((what, getattr(response, what)))
    return told


def strands(told: list[tuple[str, object]]) -> tuple[list[tuple[str, object]], list[tuple[str, object]]]:
    """What runs said, and what else happened: a change may come between any two events of a run."""
    return [one for one in told if one[0].startswith("run_0")], [one for one in told if not one[0].startswith("run_0")]


@everywhere
async def test_runs_are_told_from_their_start_to_their_end(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    watcher = pair.at(where).watch(thread_id, await position(pair))
    runs = []
    for text in ("tokens 20 0.01", "effects", "tokens 3"):
        pair.here.assistant.may_go_on.set()
        runs.append(pair.here.say(thread_id, text))
        await runs[-1].end()
    await until(lambda: [r.WhichOneof("what") for r in watcher.responses].count("run_ended") == 3)
    assert watcher.what == ["run_started", "batch", "run_ended"] * 3
    started = [r.run_started.run_id for r in watcher.responses if r.HasField("run_started")]
    ended = [(r.run_ended.run_id, r.run_ended.state) for r in watcher.responses if r.HasField("run_ended")]
    assert started == [run.run_id for run in runs]
    assert ended == [(run.run_id, RunState.RUN_STATE_COMPLETED) for run in runs]
    assert watcher.text == "".join(run.text for run in runs)
    for run in (runs[0], runs[2]):
        mine = [
            (n, e) for b in watcher.batches if b.run_id == run.run_id for n, e in enumerate(b.events, b.first_sequence)
        ]
        assert mine == run.numbered
    await watcher.leave()


@everywhere
async def test_effects_of_live_runs_are_told(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    watcher = pair.at(where).watch(thread_id, await position(pair))
    run = pair.here.say(thread_id, "effects")
    await until(lambda: watcher.text == "one two ")
    pair.here.assistant.may_go_on.set()
    await run.end()
    await until(lambda: watcher.what[-1] == "run_ended")
    assert watcher.effects == ["early", "late"]


@everywhere
async def test_a_watch_begins_with_the_active_run_from_its_first_event(pair: Pair, where: str) -> None:
    run = pair.here.create("wait")
    await until(lambda: run.text == "one two ")
    watcher = pair.at(where).watch(run.thread_id)
    await until(lambda: watcher.text == "one two ")
    assert watcher.responses[0].run_started.run_id == run.run_id
    assert watcher.numbered == run.numbered
    pair.here.assistant.may_go_on.set()
    await run.end()
    await until(lambda: watcher.what[-1] == "run_ended")
    assert watcher.numbered == run.numbered


@everywhere
async def test_what_changes_outside_of_runs_is_told(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    watcher = pair.at(where).watch(thread_id, await position(pair))
    await pair.here.rename(thread_id, "New name")
    await pair.elsewhere.append(thread_id, answer("news", "msg_1"))
    await until(lambda: len(watcher.changes) == 2)
    renamed, added = watcher.changes
    assert renamed.thread_updated.thread.title == "New name"
    assert added.thread_item_done.item.assistant_message.id == "msg_1"


@everywhere
async def test_what_a_retry_removes_is_told(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    asked, said = [item["id"] for item in await pair.items(thread_id)]
    watcher = pair.at(where).watch(thread_id, await position(pair))
    await pair.here.retry(thread_id, asked).end()
    await until(lambda: watcher.what[-1:] == ["run_ended"])
    assert [event.thread_item_removed.item_id for event in watcher.changes] == [said]
    new = [e.thread_item_done.item.assistant_message.id for e in watcher.events if e.HasField("thread_item_done")]
    assert new == [(await pair.items(thread_id))[-1]["id"]]
    assert new != [said]


@everywhere
async def test_a_watch_ends_with_its_thread(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    watcher = pair.at(where).watch(thread_id)
    busy = pair.here.create("wait")
    await until(lambda: busy.text == "one two ")
    running = pair.at(where).watch(busy.thread_id)
    await until(lambda: running.text == "one two ")
    await pair.here.delete(thread_id)
    await pair.elsewhere.delete(busy.thread_id)
    for reader in (watcher, running):
        assert await reader.end(3) is grpc.StatusCode.NOT_FOUND
        assert reader.error is not None
        assert reader.error.code == "THREAD_NOT_FOUND"


@everywhere
async def test_a_watch_is_resumed_from_any_cursor(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    watcher = pair.here.watch(thread_id, await position(pair))
    await pair.here.say(thread_id, "tokens 10 0.02").end()
    await pair.here.rename(thread_id, "New name")
    asked = (await pair.items(thread_id))[0]["id"]
    await pair.elsewhere.retry(thread_id, asked).end()
    run = pair.here.say(thread_id, "steps 10")
    for number in range(5):
        pair.here.assistant.steps.release()
        await until(lambda number=number: watcher.text.endswith(tokens(number + 1)))  # type: ignore[misc]
    readers = [(at, pair.at(where).watch(thread_id, r.cursor)) for at, r in enumerate(watcher.responses)]
    for _ in range(5):
        pair.here.assistant.steps.release()
    await run.end()
    await until(lambda: [what for what, _ in story(watcher)].count("run_ended") == 3)
    whole = story(watcher)
    sizes = [len(r.batch.events) if r.HasField("batch") else 1 for r in watcher.responses]
    assert len(readers) > 10
    for at, reader in readers:
        expected = whole[sum(sizes[: at + 1]) :]
        await until(lambda reader=reader, expected=expected: len(story(reader)) >= len(expected))  # type: ignore[misc]
        assert strands(story(reader)) == strands(expected)


@everywhere
async def test_a_cursor_that_is_no_cursor_is_refused(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    for after in ("x", "-1", "1.2", "1.2.", "9" * 19):
        reader = pair.at(where).watch(thread_id, after)
        assert await reader.end() is grpc.StatusCode.INVALID_ARGUMENT


@everywhere
async def test_a_cursor_whose_past_is_swept_is_told_so(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    await pair.here.rename(thread_id, "New name")
    last = await position(pair)
    await pair.fetch("update thread_events set created_at = now() - interval '1 hour'")
    await Retention(pair.here.database, PATIENT).sweep()
    reader = pair.at(where).watch(thread_id, "1")
    assert await reader.end(3) is grpc.StatusCode.OUT_OF_RANGE
    assert reader.error is not None
    assert reader.error.code == "EVENTS_EXPIRED"
    # Who has all of it has lost nothing.
    up_to_date = pair.at(where).watch(thread_id, last)
    await pair.here.rename(thread_id, "Newer name")
    await until(lambda: up_to_date.changes)
    assert await pair.at(where).watch(thread_id, "1").end() is grpc.StatusCode.OUT_OF_RANGE


@everywhere
async def test_a_cursor_inside_a_run_whose_log_is_swept_is_told_so(pair: Pair, where: str) -> None:
    run = pair.here.create("tokens 5")
    await run.end()
    await pair.fetch("update runs set ended_at = now() - interval '1 hour'")
    await Retention(pair.here.database, PATIENT).sweep()
    reader = pair.at(where).watch(run.thread_id, f"1.3.{run.run_id}")
    assert await reader.end(3) is grpc.StatusCode.OUT_OF_RANGE
    assert reader.error is not None
    assert reader.error.code == "EVENTS_EXPIRED"


@everywhere
async def test_somebody_elses_thread_is_not_there_to_watch(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    for after in (None, "1", "1.0.run_0"):
        reader = pair.at(where).watch(thread_id, after, user="bob")
        assert await reader.end() is grpc.StatusCode.NOT_FOUND
        assert reader.responses == []


async def test_many_watchers_on_both_servers_are_told_the_same(pair: Pair) -> None:
    thread_id = await pair.make_thread()
    start = await position(pair)
    watchers = [side.watch(thread_id, start) for side in (pair.here, pair.elsewhere) for _ in range(10)]
    for text in ("tokens 50 0.005", "tokens 3"):
        await pair.here.say(thread_id, text).end()
    for watcher in watchers:
        await until(lambda watcher=watcher: [r.WhichOneof("what") for r in watcher.responses].count("run_ended") == 2)  # type: ignore[misc]
    stories = [story(watcher) for watcher in watchers]
    assert all(told == stories[0] for told in stories)
    assert watchers[0].text == tokens(50) + tokens(3)
