"""One answer at a time on a thread: what becomes of a second one, and of what may not be asked at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import grpc
import pytest
from chatkit_grpc.v1.run_pb2 import RunState

from tests.runs_fixtures import Pair, Reader, everywhere, open_pair, pair, tokens, until, until_true
from tests.test_appending import answer

__all__ = ["pair"]

counts = pytest.mark.parametrize("count", [2, 3])


async def turns(pair: Pair, thread_id: str) -> list[tuple[str, list[str]]]:
    """Each of the user's messages with the answers that follow it, by the runs that stored them."""
    query = "select run_id, item from chat_messages where session_id = $1 and not hidden order by position"
    found: list[tuple[str, list[str]]] = []
    runs: list[str] = []
    for row in await pair.fetch(query, thread_id):
        item = json.loads(row["item"])
        text = "".join(part["text"] for part in item["content"])
        if item["type"] == "user_message":
            found.append((text, []))
            runs.append(row["run_id"])
        else:
            assert row["run_id"] == runs[-1]
            found[-1][1].append(text)
    assert len(set(runs)) == len(runs)
    return found


async def nothing_is_active(pair: Pair) -> None:
    assert await pair.fetch("select 1 from chat_sessions where active_run_id is not null") == []
    assert await pair.fetch("select 1 from runs where ended_at is null") == []


async def waiting(pair: Pair, thread_id: str) -> Reader:
    reader = pair.here.say(thread_id, "wait")
    await until(lambda: reader.text == "one two ")
    return reader


def at_once(pair: Pair, where: str, thread_id: str, texts: Sequence[str]) -> list[Reader]:
    """Messages that are sent at the same time, to one server or by turns to both."""
    sides = [pair.here, pair.at(where)]
    return [sides[number % 2].say(thread_id, text) for number, text in enumerate(texts)]


@everywhere
@counts
async def test_interrupt_a_newer_message_stops_the_answer_and_keeps_it(pair: Pair, where: str, count: int) -> None:
    thread_id = await pair.make_thread()
    first = await waiting(pair, thread_id)
    # Long enough that each is there while the one before it is answered.
    texts = [f"tokens {60 + number} 0.03" for number in range(count)]
    readers = at_once(pair, where, thread_id, texts)
    for reader in (first, *readers):
        assert await reader.end() is grpc.StatusCode.OK
    assert first.state == RunState.RUN_STATE_CANCELLED
    states = [reader.state for reader in readers]
    assert states.count(RunState.RUN_STATE_COMPLETED) == 1
    assert states.count(RunState.RUN_STATE_CANCELLED) == count - 1
    one, two, *rest = await turns(pair, thread_id)
    assert (one, two) == (("tokens 1", ["t0 "]), ("wait", ["one two "]))
    assert sorted(text for text, _ in rest) == texts
    shown = dict(zip(texts, readers, strict=True))
    for text, answers in rest:
        assert answers == ([shown[text].text] if shown[text].text else [])
        assert tokens(70).startswith("".join(answers))
    # The last one of them is the one that is answered to its end.
    last = shown[rest[-1][0]]
    assert last.state == RunState.RUN_STATE_COMPLETED
    await nothing_is_active(pair)


@everywhere
async def test_interrupt_many_messages_one_after_another_are_all_kept(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    readers = []
    for number in range(8):
        readers.append((pair.here, pair.at(where))[number % 2].say(thread_id, f"tokens {30 + number} 0.01"))
        await readers[-1].run()
    for reader in readers:
        assert await reader.end() is grpc.StatusCode.OK
    _, *rest = await turns(pair, thread_id)
    assert [text for text, _ in rest] == [f"tokens {30 + number} 0.01" for number in range(8)]
    assert ["".join(answers) for _, answers in rest] == [reader.text for reader in readers]
    assert readers[-1].text == tokens(37)
    await nothing_is_active(pair)


@everywhere
@counts
async def test_enqueue_all_messages_are_answered_to_the_end(database_url: str, where: str, count: int) -> None:
    async with open_pair(database_url, run_conflict="enqueue") as pair:
        thread_id = await pair.make_thread()
        first = await waiting(pair, thread_id)
        texts = [f"tokens {5 + number}" for number in range(count)]
        readers = at_once(pair, where, thread_id, texts)
        await asyncio.sleep(0.2)
        assert [reader.responses for reader in readers] == [[]] * count
        pair.here.assistant.may_go_on.set()
        for reader in (first, *readers):
            assert await reader.end() is grpc.StatusCode.OK
            assert reader.state == RunState.RUN_STATE_COMPLETED
        _, two, *rest = await turns(pair, thread_id)
        assert two == ("wait", ["one two three"])
        assert sorted(rest) == [(text, [tokens(5 + number)]) for number, text in enumerate(texts)]
        await nothing_is_active(pair)


@everywhere
async def test_enqueue_first_come_first_served(database_url: str, where: str) -> None:
    async with open_pair(database_url, run_conflict="enqueue") as pair:
        thread_id = await pair.make_thread()
        first = await waiting(pair, thread_id)
        readers = []
        for number in range(4):
            readers.append(pair.at(where).say(thread_id, f"tokens {number + 2}"))
            await asyncio.sleep(0.1)
        await readers[1].leave()  # what he said is answered all the same
        pair.here.assistant.may_go_on.set()
        for reader in (first, *readers[2:], readers[0]):
            assert await reader.end() is grpc.StatusCode.OK
        await until_true(lambda: pair.fetch("select 1 from chat_sessions where active_run_id is null"))
        _, _, *rest = await turns(pair, thread_id)
        assert rest == [(f"tokens {number + 2}", [tokens(number + 2)]) for number in range(4)]


@everywhere
@counts
async def test_reject_only_the_first_is_answered(database_url: str, where: str, count: int) -> None:
    async with open_pair(database_url, run_conflict="reject") as pair:
        thread_id = await pair.make_thread()
        first = await waiting(pair, thread_id)
        for reader in at_once(pair, where, thread_id, ["tokens 1"] * count):
            assert await reader.end() is grpc.StatusCode.ABORTED
            assert reader.error is not None
            assert reader.error.code == "RUN_CONFLICT"
            assert reader.error.metadata == {"run_id": first.run_id, "thread_id": thread_id}
            assert reader.responses == []
        pair.here.assistant.may_go_on.set()
        assert await first.end() is grpc.StatusCode.OK
        assert await turns(pair, thread_id) == [("tokens 1", ["t0 "]), ("wait", ["one two three"])]
        texts = [f"tokens {60 + number} 0.03" for number in range(count)]
        readers = at_once(pair, where, thread_id, texts)
        codes = [await reader.end() for reader in readers]
        assert sorted(code.name for code in codes) == [*["ABORTED"] * (count - 1), "OK"]
        winner = codes.index(grpc.StatusCode.OK)
        assert (await turns(pair, thread_id))[2:] == [(texts[winner], [tokens(60 + winner)])]
        await nothing_is_active(pair)


async def close(pair: Pair, status: str, reason: str | None) -> None:
    await pair.fetch("update chat_sessions set status = $1, status_reason = $2", status, reason)


@everywhere
@pytest.mark.parametrize(("status", "code"), [("locked", "THREAD_LOCKED"), ("closed", "THREAD_CLOSED")])
async def test_a_locked_or_closed_thread_takes_no_new_input(pair: Pair, where: str, status: str, code: str) -> None:
    thread_id = await pair.make_thread("form")
    active = await waiting(pair, thread_id)
    message, form, *_ = await pair.items(thread_id)
    before = await turns_and_forms(pair, thread_id)
    side = pair.at(where)
    for reason in ("Closed for lunch.", None):
        await close(pair, status, reason)
        for reader in (
            side.say(thread_id, "tokens 1"),
            side.retry(thread_id, message["id"]),
            side.fill_in(thread_id, form["id"]),
        ):
            assert await reader.end() is grpc.StatusCode.FAILED_PRECONDITION
            assert reader.error is not None
            assert reader.error.code == code
            assert reader.error.metadata == {"thread_id": thread_id}
            assert status in reader.error.message if reason is None else reader.error.message == reason
            assert reader.responses == []
    assert await turns_and_forms(pair, thread_id) == before
    # Nor was the active run stopped for it.
    assert await pair.state(active.run_id) == "running"
    await close(pair, "active", None)
    pair.here.assistant.may_go_on.set()
    assert await active.end() is grpc.StatusCode.OK
    assert await side.fill_in(thread_id, form["id"]).end() is grpc.StatusCode.OK


async def turns_and_forms(pair: Pair, thread_id: str) -> list[str]:
    return [json.dumps(item) for item in await pair.items(thread_id)]


@everywhere
@pytest.mark.parametrize("status", ["locked", "closed"])
async def test_a_locked_or_closed_thread_takes_what_the_assistant_asked_for(
    pair: Pair, where: str, status: str
) -> None:
    thread_id = await pair.make_thread("tool")
    await close(pair, status, "Closed for lunch.")
    output = pair.at(where).hand_in(thread_id)
    assert await output.end() is grpc.StatusCode.OK
    assert output.text == tokens(3)
    action = pair.at(where).act(thread_id)
    assert await action.end() is grpc.StatusCode.OK
    assert action.effects == ["action"]
    (row,) = await pair.fetch("select status, status_reason from chat_sessions")
    assert tuple(row) == (status, "Closed for lunch.")


@everywhere
@pytest.mark.parametrize("after", ["message", "previous turn", "answer"])
async def test_a_message_is_answered_again(pair: Pair, where: str, after: str) -> None:
    thread_id = await pair.make_thread()
    await pair.here.say(thread_id, "tokens 2").end()
    first, first_answer, second, second_answer = await pair.items(thread_id)
    (row,) = await pair.fetch("select log_position from chat_sessions")
    watcher = pair.at(where).watch(thread_id, str(row["log_position"]))
    item = {"message": second, "previous turn": first_answer, "answer": second_answer}[after]
    reader = pair.at(where).retry(thread_id, item["id"])
    assert await reader.end() is grpc.StatusCode.OK
    items = await pair.items(thread_id)
    assert items[:3] == [first, first_answer, second]
    assert await pair.said(thread_id) == ["t0 ", "t0 t1 "]
    assert len(items) == 4
    assert items[3]["id"] != second_answer["id"]
    await until(lambda: watcher.what[-1:] == ["run_ended"])
    removed = [e.thread_item_removed.item_id for e in watcher.changes if e.HasField("thread_item_removed")]
    assert removed == [second_answer["id"]]
    await watcher.leave()


@everywhere
@pytest.mark.parametrize("after", ["message", "previous turn"])
async def test_a_message_is_answered_again_while_it_is_answered(pair: Pair, where: str, after: str) -> None:
    thread_id = await pair.make_thread()
    active = await waiting(pair, thread_id)
    _, first_answer, message = await pair.items(thread_id)
    item = message if after == "message" else first_answer
    reader = pair.at(where).retry(thread_id, item["id"])
    await until(lambda: reader.text == "one two ")
    assert await active.end() is grpc.StatusCode.OK
    assert active.state == RunState.RUN_STATE_CANCELLED
    pair.here.assistant.may_go_on.set()
    pair.elsewhere.assistant.may_go_on.set()
    assert await reader.end() is grpc.StatusCode.OK
    assert await pair.said(thread_id) == ["t0 ", "one two three"]
    assert await pair.types(thread_id) == ["user_message", "assistant_message"] * 2
    await nothing_is_active(pair)


@everywhere
async def test_an_earlier_message_is_answered_again_and_what_followed_is_gone(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread("hidden 2")
    cancelled = await waiting(pair, thread_id)
    await pair.here.cancel(cancelled.run_id)
    await pair.here.say(thread_id, "tokens 2").end()
    (first, *_) = await pair.items(thread_id)
    reader = pair.at(where).retry(thread_id, first["id"])
    assert await reader.end() is grpc.StatusCode.OK
    types = await pair.types(thread_id)
    assert types == ["user_message", "hidden_context_item", "hidden_context_item", "assistant_message"]


@everywhere
async def test_to_answer_again_after_what_is_not_there_stops_and_deletes_nothing(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    active = await waiting(pair, thread_id)
    bobs = await pair.make_thread(user="bob")
    (bobs_message, *_) = await pair.items(bobs)
    before = await pair.items(thread_id)
    for item_id in ("msg_nowhere", bobs_message["id"]):
        reader = pair.at(where).retry(thread_id, item_id)
        assert await reader.end() is grpc.StatusCode.NOT_FOUND
    theirs = pair.at(where).retry(thread_id, before[0]["id"], user="bob")
    assert await theirs.end() is grpc.StatusCode.NOT_FOUND
    assert await pair.items(thread_id) == before
    assert await pair.state(active.run_id) == "running"


_FAIL_ON_ONE = """
create function fail_on_one() returns trigger language plpgsql as $$
begin
    if old.message_id = tg_argv[0] then raise exception 'no'; end if;
    return old;
end $$
"""


@everywhere
async def test_to_answer_again_deletes_all_or_nothing(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    await pair.here.say(thread_id, "tokens 2").end()
    await pair.here.say(thread_id, "tokens 3").end()
    before = await pair.items(thread_id)
    await pair.fetch(_FAIL_ON_ONE)
    trigger = "create trigger one before delete on chat_messages for each row execute function fail_on_one"
    await pair.fetch(f"{trigger} ('{before[3]['id']}')")
    reader = pair.at(where).retry(thread_id, before[0]["id"])
    assert await reader.end() is not grpc.StatusCode.OK
    assert reader.error is not None
    assert reader.error.code == "DATABASE_FAILED"
    assert await pair.items(thread_id) == before
    await nothing_is_active(pair)
    await pair.fetch("drop trigger one on chat_messages")
    assert await pair.at(where).retry(thread_id, before[0]["id"]).end() is grpc.StatusCode.OK
    assert await pair.said(thread_id) == ["t0 "]


@everywhere
async def test_without_a_message_there_is_nothing_to_answer_again(pair: Pair, where: str) -> None:
    thread_id = await pair.make_thread()
    (message, reply) = await pair.items(thread_id)
    await pair.here.append(thread_id, answer("by a service"))
    await pair.fetch("delete from chat_messages where message_id = $1", message["id"])
    before = await pair.items(thread_id)
    reader = pair.at(where).retry(thread_id, reply["id"])
    assert await reader.end() is grpc.StatusCode.FAILED_PRECONDITION
    assert await pair.items(thread_id) == before
    await nothing_is_active(pair)
