"""What a ChatKit page sees, read with the parser that it reads with (npm: @microsoft/fetch-event-source)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge.settings import Settings as BridgeSettings
from server.app import open_server
from server.settings import Settings as ServerSettings
from server.store import PostgresStore
from tests import npm
from tests.database import fresh_database
from tests.system import ANY_PORT, PRODUCTION, System, open_bridge, open_system
from tests.test_sse import NASTY, Scripted, create_thread, text_of

# Where there is no Node.js with npm, pytest collects nothing here; tests/test_sse.py checks the same rules without it.
__test__ = npm.IS_THERE

CLIENT = Path(__file__).parent / "transport" / "client.mjs"
REQUESTS_OF_A_PAGE_THAT_GIVES_UP = 6
NO_SUCH_THREAD = {
    "type": "threads.add_user_message",
    "params": {**create_thread("plain")["params"], "thread_id": "thr_no"},
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of one click on Send.

    outcome: finished, rate_limited (a toast), removed (the user's message vanishes without a word), broken or gave_up.
    """

    requests: int
    statuses: list[int]
    events: list[dict[str, Any]]
    ids: list[str]
    outcome: str

    @property
    def error(self) -> dict[str, Any]:
        """The error that the page shows, which comes last."""
        assert [event["type"] for event in self.events].count("error") == 1
        assert self.events[-1]["type"] == "error"
        return self.events[-1]


@pytest.fixture(scope="session", autouse=True)
def installed_client() -> None:
    npm.install(CLIENT.parent)


@pytest.fixture(scope="module")
async def system(postgres_url: str, migrated_template: str) -> AsyncIterator[System]:
    bridge = BridgeSettings(heartbeat_seconds=0.1, shutdown_grace_seconds=0)
    # One for all tests here: each has threads of its own.
    async with (
        fresh_database(postgres_url, migrated_template) as database_url,
        open_system(database_url, Scripted, bridge=bridge) as running,
    ):
        yield running


async def send(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Seen:
    request = {"url": f"{url}/api/chatkit", "body": body, "headers": headers or {}, "retryDelay": 1}
    process = await asyncio.create_subprocess_exec(
        "node", CLIENT, json.dumps(request), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return Seen(**json.loads(out))


def without_times(value: Any) -> Any:
    """The store and the wire each write times in their own way; which, other tests say."""
    if isinstance(value, dict):
        return {name: without_times(member) for name, member in value.items() if name != "created_at"}
    return [without_times(member) for member in value] if isinstance(value, list) else value


@asynccontextmanager
async def canned_answer(answer: bytes) -> AsyncIterator[str]:
    """A server that gives every request the same bytes and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def canned(status: int, content_type: str = "text/plain", body: bytes = b"", length: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "requests", "outcome"),
    [
        (canned(503), REQUESTS_OF_A_PAGE_THAT_GIVES_UP, "gave_up"),
        (canned(302), REQUESTS_OF_A_PAGE_THAT_GIVES_UP, "gave_up"),
        (canned(200, "application/json", b"{}"), REQUESTS_OF_A_PAGE_THAT_GIVES_UP, "gave_up"),
        (canned(404), 1, "removed"),
        (canned(429), 1, "rate_limited"),
        (canned(200, "text/event-stream", b'data: {"type": "x"}\n\ndata', length=99), 1, "broken"),
        (canned(200, "text/event-stream", b'data: {"type": "lost"}\n'), 1, "finished"),
    ],
    ids=["503", "302", "JSON", "404", "429", "broken off", "no blank line"],
)
async def test_the_client_does_with_each_answer_what_a_page_does(answer: bytes, requests: int, outcome: str) -> None:
    # Else the tests below could not fail.
    async with canned_answer(answer) as url:
        seen = await send(url, create_thread("plain"))
    assert (seen.requests, seen.outcome) == (requests, outcome)
    assert "lost" not in str(seen.events)


async def test_a_page_sees_all_that_the_assistant_says_in_order(database_url: str) -> None:
    made: list[Scripted] = []

    def make(store: PostgresStore) -> Scripted:
        made.append(Scripted(store))
        return made[-1]

    async with open_system(database_url, make) as system:
        seen = await send(system.url, create_thread("nasty"))
    said = [event.model_dump(mode="json", exclude_none=True) for event in made[0].said]
    assert (seen.requests, seen.outcome) == (1, "finished")
    assert [event["type"] for event in seen.events[:3]] == ["thread.created", "thread.item.done", "stream_options"]
    assert without_times(seen.events[3:]) == without_times(said)
    assert text_of(seen.events) == "".join(NASTY)
    runs, numbers = zip(*(id_.split(":") for id_ in seen.ids), strict=True)
    assert len(set(runs)) == 1
    assert [int(number) for number in numbers] == list(range(1, len(seen.events) + 1))


async def test_heartbeats_are_nothing_to_a_page(system: System) -> None:
    seen = await send(system.url, create_thread("silent"))
    assert seen.outcome == "finished"
    assert text_of(seen.events) == "At last."


@pytest.mark.parametrize(
    "body",
    [NO_SUCH_THREAD, {"type": "threads.create", "params": {"input": {"content": "no list"}}}, {"type": "threads.poll"}],
    ids=["unknown thread", "bad params", "unknown operation"],
)
async def test_a_refusal_is_shown_and_not_repeated(system: System, body: dict[str, Any]) -> None:
    seen = await send(system.url, body)
    assert (seen.requests, seen.outcome) == (1, "finished")
    assert seen.error["message"]
    assert not seen.error["allow_retry"]


async def test_a_server_that_is_not_there_is_shown_and_not_asked_again() -> None:
    # Port 9 is "discard", where nobody listens.
    async with open_bridge("127.0.0.1:9") as (url, _):
        seen = await send(url, create_thread("plain"))
    assert (seen.requests, seen.outcome) == (1, "finished")
    assert seen.error["message"] == "The chat server can't be reached."
    assert seen.error["allow_retry"]


async def test_a_stranger_gets_a_real_401(database_url: str) -> None:
    async with open_system(database_url, Scripted, server=PRODUCTION) as system:
        seen = await send(system.url, create_thread("plain"))
    assert (seen.requests, seen.statuses, seen.outcome) == (1, [401], "removed")


async def test_a_failure_mid_stream_is_an_error_and_a_clean_end(system: System) -> None:
    seen = await send(system.url, create_thread("failing"))
    assert (seen.requests, seen.outcome) == (1, "finished")
    assert text_of(seen.events) == "So far"
    assert seen.error["message"] == "The model is out of tea."
    assert seen.error["allow_retry"]


async def test_a_server_that_stops_mid_stream_says_so(database_url: str) -> None:
    settings = ServerSettings(
        environment="development",
        database_url=database_url,
        grpc_listen=ANY_PORT,
        shutdown_grace_seconds=0,
        run_grace_seconds=0,
    )
    async with AsyncExitStack() as stack:
        made: list[Scripted] = []

        def make(store: PostgresStore) -> Scripted:
            made.append(Scripted(store))
            return made[-1]

        async with open_server(settings, make) as server:
            url, _ = await stack.enter_async_context(open_bridge(f"127.0.0.1:{server.port}"))
            page = asyncio.create_task(send(url, create_thread("endless")))
            await made[0].has_spoken.wait()
        seen = await page
    assert (seen.requests, seen.outcome) == (1, "finished")
    assert text_of(seen.events) == "Well, "
    assert seen.error["message"]
    assert seen.error["allow_retry"]


async def test_a_bridge_that_stops_mid_stream_says_so(database_url: str) -> None:
    async with open_system(database_url, Scripted) as system:
        page = asyncio.create_task(send(system.url, create_thread("endless")))
        while not len(system.app.state.streams):
            await asyncio.sleep(0.01)
        await system.app.state.streams.drain(0)
        seen = await page
    assert (seen.requests, seen.outcome) == (1, "finished")
    assert seen.error["message"] == "The chat server is restarting."
    assert seen.error["allow_retry"]
