"""How much a user may do: counted for all servers together, exactly, and told to whoever wants more."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import grpc
import pytest
from chatkit.types import AssistantMessageContent, AssistantMessageItem, ThreadItemDoneEvent
from chatkit_grpc.errors import ChatKitError, LimitError, Quota, from_rpc_error
from chatkit_grpc.v1 import chat_service_pb2, thread_service_pb2
from chatkit_grpc.v1.item_pb2 import ThreadItem
from chatkit_grpc.v1.run_pb2 import RunState
from google.rpc import error_details_pb2, status_pb2

from server.database import Database
from server.limits.allowance import take
from server.limits.calls import BLOCK, CallLimiter
from server.limits.settings import LimitSettings
from tests.page import SSE, a_thread, body_of, post, say
from tests.runs_fixtures import PATIENT, Pair, Reader, failure, open_pair, until, until_true
from tests.scripted import ScriptedServer
from tests.system import IMPATIENT, System, open_system
from tests.unlimited import NO_LIMITS

OK = grpc.StatusCode.OK
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def limited(**changes: Any) -> LimitSettings:
    return replace(NO_LIMITS, **changes)


def pair_with(database_url: str, **limits: Any) -> Any:
    return open_pair(database_url, PATIENT, limits=limited(**limits))


def quota_of(reader: Reader) -> Quota:
    assert isinstance(reader.error, LimitError)
    assert reader.error.quota is not None
    assert reader.error.retry_after
    return reader.error.quota


async def ends_of(readers: list[Reader]) -> Counter[grpc.StatusCode]:
    return Counter(await asyncio.gather(*(reader.end(30) for reader in readers)))


async def test_a_user_starts_so_many_runs_in_a_window_and_is_told_when_to_come_back(database_url: str) -> None:
    async with pair_with(database_url, rate_limit_requests=3, rate_limit_window=600) as pair:
        for _ in range(3):
            await pair.make_thread()
        refused = pair.elsewhere.create("tokens 1")
        assert await refused.end() is EXHAUSTED
        assert refused.error
        assert refused.error.message.startswith("The limit of 3 messages in 600 seconds is reached. Try again in ")
        assert quota_of(refused) == Quota("runs", 3, 600)
        assert 170 < (refused.error.retry_after or 0) <= 200
        # What somebody else may do is no less.
        await pair.make_thread(user="bob")


async def test_the_status_carries_the_standard_details(database_url: str) -> None:
    async with pair_with(database_url, rate_limit_requests=1) as pair:
        await pair.make_thread()
        request = chat_service_pb2.CreateThreadRequest()
        request.input.content.add().input_text.text = "tokens 1"
        call = pair.here.chat.CreateThread(request, metadata=[("x-user-id", "alice")])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        trailers = dict(caught.value.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        names = [detail.TypeName() for detail in status.details]
        assert names == ["google.rpc.ErrorInfo", "google.rpc.QuotaFailure", "google.rpc.RetryInfo"]
        quota = error_details_pb2.QuotaFailure()
        status.details[1].Unpack(quota)
        assert (quota.violations[0].description, quota.violations[0].quota_value) == ("1 runs in 60 s", 1)


async def test_an_allowance_fills_again_bit_by_bit(database_url: str) -> None:
    async with pair_with(database_url, rate_limit_requests=4, rate_limit_window=600) as pair:
        readers = [pair.here.create("tokens 1") for _ in range(6)]
        assert await ends_of(readers) == {OK: 4, EXHAUSTED: 2}
        # As if so much time had passed: enough for one, and not for two.
        await pair.fetch("update rate_limits set full_at = full_at - interval '200 s'")
        readers = [pair.elsewhere.create("tokens 1") for _ in range(3)]
        assert await ends_of(readers) == {OK: 1, EXHAUSTED: 2}


async def test_what_another_window_or_clock_has_counted_locks_nobody_out(database_url: str) -> None:
    async with pair_with(database_url, rate_limit_requests=4, rate_limit_window=600) as pair:
        await pair.make_thread()
        await pair.fetch("update rate_limits set full_at = full_at + interval '1 day'")
        await pair.make_thread()
        refused = pair.elsewhere.create("tokens 1")
        assert await refused.end() is EXHAUSTED
        assert refused.error
        assert (refused.error.retry_after or 0) <= 600


async def test_no_race_lets_one_more_through(database_url: str) -> None:
    async with pair_with(database_url, rate_limit_requests=10, rate_limit_window=600) as pair:
        readers = [side.create("tokens 1") for _ in range(30) for side in (pair.here, pair.elsewhere)]
        assert await ends_of(readers) == {OK: 10, EXHAUSTED: 50}
        assert len(await pair.fetch("select from runs")) == 10


async def test_a_repeated_request_is_counted_once(database_url: str) -> None:
    async with pair_with(database_url, rate_limit_requests=2, rate_limit_window=600) as pair:
        thread_id = await pair.make_thread()
        readers = [pair.here.say(thread_id, "tokens 2", request_id="once") for _ in range(8)]
        assert await ends_of(readers) == {OK: 8}
        # Now that nothing is left, an answer that there is can be had all the same, and a new one can't.
        again = pair.elsewhere.say(thread_id, "tokens 2", request_id="once")
        assert (await again.end(), again.run_id) == (OK, readers[0].run_id)
        assert await pair.here.say(thread_id, "tokens 2", request_id="twice").end() is EXHAUSTED


async def test_a_refused_message_stops_no_answer(database_url: str) -> None:
    async with pair_with(database_url, rate_limit_requests=1, rate_limit_window=600) as pair:
        first = pair.here.create("wait")
        await until(lambda: first.text == "one two ")
        assert await pair.elsewhere.say(first.thread_id, "tokens 1").end() is EXHAUSTED
        pair.here.assistant.may_go_on.set()
        assert (await first.end(), first.state) == (OK, RunState.RUN_STATE_COMPLETED)


async def test_a_message_that_waits_for_its_turn_is_counted_once(database_url: str) -> None:
    limits = limited(rate_limit_requests=2, rate_limit_window=600)
    async with open_pair(database_url, PATIENT, limits=limits, run_conflict="enqueue") as pair:
        first = pair.here.create("wait")
        await until(lambda: first.text == "one two ")
        second = pair.elsewhere.say(first.thread_id, "tokens 1")
        await asyncio.sleep(0.7)
        pair.here.assistant.may_go_on.set()
        assert await ends_of([first, second]) == {OK: 2}


@pytest.mark.parametrize("most", [1, 3])
async def test_a_user_has_so_many_runs_at_once_on_all_servers_together(database_url: str, most: int) -> None:
    async with pair_with(database_url, max_user_runs=most) as pair:
        readers = [side.create("wait") for _ in range(10) for side in (pair.here, pair.elsewhere)]
        await until(lambda: sum(reader.has_ended for reader in readers) == 20 - most, 30)
        refused = [reader for reader in readers if reader.has_ended]
        assert {quota_of(reader).name for reader in refused} == {"active_runs"}
        assert {quota_of(reader).limit for reader in refused} == {most}
        assert len(await pair.fetch("select from runs where ended_at is null")) == most
        # Somebody else is not concerned; and a place is free again once an answer has ended, in whatever way.
        assert await pair.here.create("tokens 1", user="bob").end() is OK
        running = next(reader for reader in readers if not reader.has_ended)
        assert await pair.here.create("tokens 1").end() is EXHAUSTED
        await pair.here.cancel(await running.run())
        assert await pair.elsewhere.create("tokens 1").end() is OK
        for side in (pair.here, pair.elsewhere):
            side.assistant.may_go_on.set()


async def test_a_message_that_takes_the_place_of_an_answer_needs_no_other_place(database_url: str) -> None:
    async with pair_with(database_url, max_user_runs=1) as pair:
        first = pair.here.create("wait")
        await until(lambda: first.text == "one two ")
        second = pair.elsewhere.say(first.thread_id, "tokens 1")
        assert (await second.end(), second.text) == (OK, "t0 ")
        assert (await first.end(), first.state) == (OK, RunState.RUN_STATE_CANCELLED)


async def test_the_place_of_a_dead_servers_run_is_free_again(database_url: str) -> None:
    async with pair_with(database_url, max_user_runs=1) as pair:
        reader = pair.here.create("wait")
        await reader.run()
        pair.here.server.runs.membership._workers[0]._task.cancel()  # silent from here on
        await until_true(lambda: _is_free(pair), 20)
        assert await pair.elsewhere.create("tokens 1").end() is OK
        pair.here.assistant.may_go_on.set()
        await reader.leave()


async def _is_free(pair: Pair) -> bool:
    return not await pair.fetch("select from runs where ended_at is null")


class Costly(ScriptedServer):
    """Takes a hundred tokens for each answer."""

    async def respond(self, thread: Any, input_user_message: Any, context: Any) -> AsyncIterator[Any]:
        context.tokens_used += 100
        item = AssistantMessageItem(
            id=self.store.generate_item_id("message", thread, context),
            thread_id=thread.id,
            created_at=datetime.now(),
            content=[AssistantMessageContent(text="expensive")],
        )
        yield ThreadItemDoneEvent(item=item)


async def test_a_user_has_so_many_tokens_a_day(database_url: str) -> None:
    settings = replace(IMPATIENT, limits=limited(tokens_per_day=250))
    async with open_system(database_url, Costly, server=settings) as system:
        for _ in range(3):  # the third is started while there are some left
            await a_thread(system)
        assert await system.server.database.fetchval("select tokens from token_usage") == 300
        refused = await post(system, say("more"), **SSE)
        assert refused.status_code == 429
        assert refused.json()["error"]["message"].startswith("The tokens for today are used up")
        assert refused.json()["error"]["details"]["quota"] == {"name": "tokens", "limit": 250, "window_seconds": 86400}
        assert 0 < int(refused.headers["retry-after"]) <= 86400
        await system.server.database.fetch("update token_usage set day = day - 1")
        await a_thread(system)


async def test_a_user_has_so_many_streams_open_on_a_server(database_url: str) -> None:
    async with pair_with(database_url, max_user_streams=3) as pair:
        thread_id = await pair.make_thread()
        watchers = [pair.here.watch(thread_id) for _ in range(5)]
        await until(lambda: sum(watcher.has_ended for watcher in watchers) == 2)
        refused = [watcher for watcher in watchers if watcher.has_ended]
        assert {quota_of(watcher) for watcher in refused} == {Quota("streams", 3)}
        # Neither somebody else's, nor those on another server, nor calls that are no streams are concerned.
        assert await pair.here.create("tokens 1", user="bob").end() is OK
        assert await pair.elsewhere.create("tokens 1").end() is OK
        await pair.here.get(thread_id)
        await next(watcher for watcher in watchers if not watcher.has_ended).leave()

        async def has_room() -> bool:
            return await pair.here.create("tokens 1").end() is OK

        await until_true(has_room)
        for watcher in watchers:
            if not watcher.has_ended:
                await watcher.leave()


@pytest.fixture
async def hasty(database_url: str) -> AsyncIterator[System]:
    """One message in ten minutes."""
    settings = replace(IMPATIENT, limits=limited(rate_limit_requests=1, rate_limit_window=600))
    async with open_system(database_url, ScriptedServer, server=settings) as system:
        yield system


@pytest.mark.parametrize("headers", [{}, SSE], ids=["json", "stream"])
async def test_a_page_gets_429_with_the_headers_that_say_when_to_come_back(
    hasty: System, headers: dict[str, str]
) -> None:
    await a_thread(hasty)
    refused = await post(hasty, say("tokens 1"), **headers)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "RATE_LIMITED"
    seconds = refused.headers["retry-after"]
    assert 590 < int(seconds) <= 600
    assert {name: refused.headers[name] for name in refused.headers if name.startswith("ratelimit")} == {
        "ratelimit-policy": '"runs";q=1;w=600',
        "ratelimit": f'"runs";r=0;t={seconds}',
        "ratelimit-limit": "1",
        "ratelimit-remaining": "0",
        "ratelimit-reset": seconds,
    }


@pytest.mark.parametrize(
    "body",
    [
        body_of("input.transcribe", audio_base64="AAAA", mime_type="audio/ogg"),
        body_of("threads.sync_custom_action", action={"type": "press"}, thread_id="thr_1"),
    ],
    ids=["transcribe", "sync_action"],
)
async def test_what_costs_as_much_as_a_message_counts_as_one(hasty: System, body: Any) -> None:
    await a_thread(hasty)
    assert (await post(hasty, body)).status_code == 429


async def test_without_its_table_nothing_is_started(hasty: System) -> None:
    thread_id, _ = await a_thread(hasty)
    await hasty.server.database.fetch("alter table rate_limits rename to elsewhere")
    assert (await post(hasty, say("tokens 1"))).status_code == 500
    assert (await post(hasty, body_of("threads.get_by_id", thread_id=thread_id))).status_code == 200
    await hasty.server.database.fetch("alter table elsewhere rename to rate_limits")


async def test_reads_have_a_limit_of_their_own(database_url: str) -> None:
    settings = replace(IMPATIENT, limits=limited(rate_limit_calls=50, rate_limit_window=600))
    async with open_system(database_url, ScriptedServer, server=settings) as system:
        answers = await asyncio.gather(*(post(system, body_of("threads.list")) for _ in range(80)))
        assert Counter(answer.status_code for answer in answers) == {200: 50, 429: 30}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["ratelimit-policy"] == '"calls";q=50;w=600'
        assert refused.json()["error"]["message"].startswith("The limit of 50 calls in 600 seconds is reached.")
        # Nobody's health depends on it.
        assert (await system.http.get("/api/chatkit/health")).status_code == 200


async def test_services_get_the_same_by_grpc(database_url: str) -> None:
    async with pair_with(database_url, rate_limit_calls=20, rate_limit_window=600) as pair:
        request = thread_service_pb2.ListThreadsRequest()
        calls = [side.threads.ListThreads(request) for _ in range(20) for side in (pair.here, pair.elsewhere)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        assert len(failures) == 20
        errors: list[ChatKitError] = [from_rpc_error(f) for f in failures if isinstance(f, grpc.aio.AioRpcError)]
        assert {error.quota for error in errors} == {Quota("calls", 20, 600)}


class Counting(Database):
    """Counts its statements."""

    statements = 0
    error: Exception | None = None
    is_silent = False

    async def _fetch(self, *arguments: Any) -> Any:
        self.statements += 1
        if self.error:
            raise self.error
        if self.is_silent:
            await asyncio.sleep(100)
        return await super()._fetch(*arguments)


@pytest.fixture
def counting(database: Database) -> Counting:
    return Counting(database.pool, database.url, database.description, 10)


async def test_calls_are_reserved_in_blocks_and_a_flood_is_refused_from_memory(counting: Counting) -> None:
    limiter = CallLimiter(counting, limited(rate_limit_calls=200, rate_limit_window=600))
    for _ in range(200):
        await limiter.admit("alice")
    assert counting.statements == 200 / BLOCK
    for _ in range(1000):
        with pytest.raises(LimitError):
            await limiter.admit("alice")
    assert counting.statements == 200 / BLOCK + 2  # neither a block nor a single one
    await limiter.admit("bob")


async def test_many_calls_at_once_wait_for_one_reservation(counting: Counting) -> None:
    limiter = CallLimiter(counting, limited(rate_limit_calls=1000, rate_limit_window=600))
    await asyncio.gather(*(limiter.admit("alice") for _ in range(BLOCK)))
    assert counting.statements == 1


@pytest.mark.parametrize("way", ["fails", "is silent"])
async def test_a_call_goes_on_where_it_cant_be_counted(counting: Counting, way: str) -> None:
    limiter = CallLimiter(counting, limited(rate_limit_calls=200, rate_limit_window=600))
    counting.error = ConnectionError() if way == "fails" else None
    counting.is_silent = way == "is silent"
    async with asyncio.timeout(3):
        await asyncio.gather(*(limiter.admit("alice") for _ in range(BLOCK)))
    assert counting.statements == 1


async def test_whoever_leaves_while_he_waits_holds_up_nobody(counting: Counting) -> None:
    limiter = CallLimiter(counting, limited(rate_limit_calls=200, rate_limit_window=600))
    counting.is_silent = True
    leaving, staying = (asyncio.create_task(limiter.admit("alice")) for _ in range(2))
    await asyncio.sleep(0.05)
    leaving.cancel()
    async with asyncio.timeout(3):
        await staying


async def test_an_allowance_is_given_out_exactly_once_whoever_asks_at_the_same_time(database: Database) -> None:
    taken = await asyncio.gather(*(take(database, "alice", "calls", 700, 6000) for _ in range(40)))
    assert sum(is_taken for is_taken, _ in taken) == 8  # of the 8.6 that there are
    # What each was told is from before the others had taken theirs, at worst.
    assert all(0 <= retry_after <= 300 for is_taken, retry_after in taken if not is_taken)
    assert (await take(database, "alice", "calls", 300, 6000)).is_taken


async def test_a_limit_that_is_no_multiple_of_a_block_is_used_up_to_the_last(counting: Counting) -> None:
    limiter = CallLimiter(counting, limited(rate_limit_calls=213, rate_limit_window=6000))
    for _ in range(213):
        await limiter.admit("alice")
    with pytest.raises(LimitError):
        await limiter.admit("alice")


async def test_what_starts_nothing_costs_nothing(database_url: str) -> None:
    """Neither a place that isn't free, nor a thread that isn't there or takes no input."""
    async with pair_with(database_url, rate_limit_requests=3, rate_limit_window=600, max_user_runs=1) as pair:
        thread_id = await pair.make_thread()
        await pair.fetch("update chat_sessions set status = 'locked'")
        running = pair.here.create("wait")
        await running.run()
        refused = [pair.here.create("tokens 1") for _ in range(5)]
        assert await ends_of(refused) == {EXHAUSTED: 5}
        assert {quota_of(reader).name for reader in refused} == {"active_runs"}
        for other, code in (("thr_no", grpc.StatusCode.NOT_FOUND), (thread_id, grpc.StatusCode.FAILED_PRECONDITION)):
            assert await ends_of([pair.here.say(other, "tokens 1") for _ in range(5)]) == {code: 5}
        pair.here.assistant.may_go_on.set()
        assert await running.end() is OK
        await pair.make_thread()
        assert await pair.here.create("tokens 1").end() is EXHAUSTED


async def test_the_same_words_after_their_id_has_expired_stop_nothing_that_they_may_not(database_url: str) -> None:
    async with pair_with(database_url, rate_limit_requests=2, rate_limit_window=600) as pair:
        first = pair.here.create("tokens 1", request_id="once")
        assert await first.end() is OK
        running = pair.here.say(first.thread_id, "wait", request_id="twice")
        await until(lambda: running.text == "one two ")
        await pair.fetch("update runs set request_expires_at = now() where request_id = 'once'")
        assert await pair.elsewhere.say(first.thread_id, "tokens 1", request_id="once").end() is EXHAUSTED
        pair.here.assistant.may_go_on.set()
        assert (await running.end(), running.state) == (OK, RunState.RUN_STATE_COMPLETED)


async def test_starts_that_wait_are_bounded(database_url: str) -> None:
    limits = limited(max_user_runs=2)
    async with open_pair(database_url, PATIENT, limits=limits, run_conflict="enqueue") as pair:
        first = pair.here.create("wait")
        await until(lambda: first.text == "one two ")
        waiting = [pair.here.say(first.thread_id, f"tokens {number}") for number in range(1, 31)]
        await until(lambda: sum(reader.has_ended for reader in waiting) == 10)
        assert {quota_of(reader).name for reader in waiting if reader.has_ended} == {"active_runs"}
        pair.here.assistant.may_go_on.set()
        assert await ends_of(waiting) == {OK: 20, EXHAUSTED: 10}


async def test_neither_reads_nor_items_without_an_answer_count_as_messages(database_url: str) -> None:
    async with pair_with(database_url, rate_limit_requests=1, rate_limit_window=600) as pair:
        thread_id = await pair.make_thread()
        item = ThreadItem()
        item.hidden_context.content = '"x"'
        for _ in range(3):
            await pair.here.get(thread_id)
            await pair.elsewhere.append(thread_id, item)
        error = await failure(pair.here.append(thread_id, item, start_run=True))
        assert error.code == "RATE_LIMITED"
