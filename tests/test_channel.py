"""From a bridge to several servers: one is killed under load, and nobody who had not seen a first token notices."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from chatkit_grpc.errors import UnavailableError

from bridge.settings import Settings as BridgeSettings
from server.runs.partial_answer import INTERRUPTED
from server.store import PostgresStore
from tests.faults.program import free_port
from tests.name_server import name_server
from tests.page import SSE, a_thread, body_of, post, say
from tests.runs_fixtures import Side, open_side
from tests.scripted import ScriptedServer
from tests.system import open_bridge, open_system
from tests.unlimited import UNLIMITED

ROOT = Path(__file__).parent.parent
SECONDS = 4.0
CLIENTS = 12


@asynccontextmanager
async def server_process(database_url: str, listen: str) -> AsyncIterator[asyncio.subprocess.Process]:
    env = {
        **os.environ,
        **UNLIMITED,
        "ENVIRONMENT": "development",
        "DATABASE_URL": database_url,
        "GRPC_LISTEN": listen,
        "CHATKIT_SERVER": "tests.scripted:ScriptedServer",
        "LOG_LEVEL": "WARNING",
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "server", cwd=ROOT, env=env)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass
class Tally:
    """What came of the requests of a load, by operation; `broken` are streams that had begun and lost something."""

    done: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def note(self, operation: str, response: httpx.Response) -> Any:
        if response.status_code != 200:
            self.failed.append(f"{operation}: {response.status_code} {response.text[:200]}")
            return None
        self.done[operation] += 1
        return response.json()


async def ask(http: httpx.AsyncClient, tally: Tally, operation: str, **params: Any) -> Any:
    return tally.note(operation, await http.post("/api/chatkit", json=body_of(operation, **params)))


async def send(http: httpx.AsyncClient, tally: Tally) -> str:
    """Send a message, and read its answer. The id of its thread; empty where none came."""
    thread_id, text = "", ""
    async with http.stream("POST", "/api/chatkit", json=say("tokens 20 0.01"), headers=SSE) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event["type"] == "thread.created":
                thread_id = event["thread"]["id"]
            elif event["type"] == "error":
                # A server may die between the beginning of a run and its first word.
                has_begun = thread_id or event["message"] == INTERRUPTED
                (tally.broken if has_begun else tally.failed).append(f"threads.create: {event}")
            elif event["type"] == "thread.item.updated":
                text += event["update"].get("delta", "")
    if text == "".join(f"t{number} " for number in range(20)):
        tally.done["threads.create"] += 1
    return thread_id


async def live(http: httpx.AsyncClient, tally: Tally, until: float) -> None:
    """What a person does with a page, again and again."""
    while time.monotonic() < until:
        await ask(http, tally, "threads.list", limit=5)
        thread_id = await send(http, tally)
        if not thread_id:
            continue
        await ask(http, tally, "threads.get_by_id", thread_id=thread_id)
        await ask(http, tally, "threads.update", thread_id=thread_id, title="renamed")
        page = await ask(http, tally, "items.list", thread_id=thread_id)
        if page and page["data"]:
            ids = [page["data"][-1]["id"]]
            await ask(http, tally, "items.feedback", thread_id=thread_id, item_ids=ids, kind="positive")
        await ask(http, tally, "threads.delete", thread_id=thread_id)


async def until_serving(http: httpx.AsyncClient, seconds: float = 40) -> None:
    async with asyncio.timeout(seconds):
        while (await http.get("/api/chatkit/health")).status_code != 200:
            await asyncio.sleep(0.1)


async def until_connectable(host: str, port: int, seconds: float = 40) -> None:
    async with asyncio.timeout(seconds):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return


@pytest.mark.parametrize("way", ["kill", "terminate"])
async def test_one_of_two_servers_goes_under_load_and_no_request_fails_that_had_not_begun(
    database_url: str, way: str
) -> None:
    port = free_port()
    hosts = ("127.0.0.1", "127.0.0.2")
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(server_process(database_url, f"{host}:{port}")) for host in hosts]
        names = await stack.enter_async_context(name_server(*hosts))
        # Found by name, as servers are in a cluster; the name server is the test's own.
        target = f"dns://{names}/chat.test:{port}"
        settings = BridgeSettings(shutdown_grace_seconds=0, allow_plaintext=True)
        url, _ = await stack.enter_async_context(open_bridge(target, settings))
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, timeout=30, limits=httpx.Limits(max_connections=2 * CLIENTS))
        )
        for host in hosts:
            await until_connectable(host, port)
        await until_serving(http)
        tally = Tally()
        until = time.monotonic() + SECONDS
        clients = [asyncio.create_task(live(http, tally, until)) for _ in range(CLIENTS)]
        await asyncio.sleep(SECONDS / 3)
        assert not tally.failed
        before = tally.done.total()
        servers[0].send_signal(signal.SIGKILL if way == "kill" else signal.SIGTERM)
        await asyncio.gather(*clients)
        assert tally.failed == []
        assert tally.done.total() > before > 10
        # Of those that had begun, at most one for each client was on the server that went.
        assert len(tally.broken) <= CLIENTS
        assert await asyncio.wait_for(servers[0].wait(), 20) == (-signal.SIGKILL if way == "kill" else 0)
        print(dict(tally.done), "broken:", len(tally.broken))


async def test_a_deletion_whose_answer_got_lost_is_no_failure(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget = PostgresStore.forget_runs
    lost: list[str] = []

    async def die_in_the_middle(store: PostgresStore, thread_id: str, context: Any) -> None:
        if lost:
            await forget(store, thread_id, context)
            return
        lost.append(thread_id)
        raise UnavailableError("The server is gone.")

    monkeypatch.setattr(PostgresStore, "forget_runs", die_in_the_middle)
    async with open_system(database_url, ScriptedServer) as system:
        thread_id, _ = await a_thread(system)
        deleted = body_of("threads.delete", thread_id=thread_id)
        assert (await post(system, deleted)).status_code == 200
        assert lost == [thread_id]
        # Nor is anything of the conversation left.
        assert await system.server.database.fetch("select from runs") == []
        assert await system.server.database.fetch("select from run_events") == []
        assert (await post(system, deleted)).status_code == 404


async def test_names_are_asked_for_and_all_addresses_used(database_url: str) -> None:
    port = free_port()
    async with AsyncExitStack() as stack:
        calls: Counter[str] = Counter()
        for host in ("127.0.0.1", "127.0.0.2"):
            server = grpc.aio.server()
            server.add_generic_rpc_handlers([_counting(calls, host)])
            server.add_insecure_port(f"{host}:{port}")
            await server.start()
            stack.push_async_callback(server.stop, 0)
        names = await stack.enter_async_context(name_server("127.0.0.1", "127.0.0.2"))
        settings = BridgeSettings(shutdown_grace_seconds=0, allow_plaintext=True)
        url, _ = await stack.enter_async_context(open_bridge(f"dns://{names}/chat.test:{port}", settings))
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            await asyncio.sleep(1)
            for _ in range(20):
                assert (await http.post("/api/chatkit", json=body_of("threads.list"))).status_code == 200
        assert min(calls.values()) >= 8
        assert len(calls) == 2


def _counting(calls: Counter[str], host: str) -> grpc.GenericRpcHandler:
    async def list_threads(_request: bytes, _call: object) -> bytes:
        calls[host] += 1
        return b""

    handlers: Any = {"ListThreads": grpc.unary_unary_rpc_method_handler(list_threads)}
    return grpc.method_handlers_generic_handler("chatkit_grpc.v1.ThreadService", handlers)


async def test_pings_are_no_reason_to_be_sent_away(database_url: str) -> None:
    """A client that pings as often as it may on a silent stream; a server of gRPC's defaults shows that it would."""
    pinging = [
        ("grpc.keepalive_time_ms", 5_500),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with open_side(database_url) as side, AsyncExitStack() as stack:
        default = grpc.aio.server()
        default.add_generic_rpc_handlers([_silent()])
        port = default.add_insecure_port("127.0.0.1:0")
        await default.start()
        stack.push_async_callback(default.stop, 0)
        ours, theirs = [
            await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{number}", options=pinging))
            for number in (side.server.port, port)
        ]
        reader = Side(side.server, side.assistant, ours).create("wait")
        stream: Any = theirs.unary_stream("/silent/Stream")
        sent_away = stream(b"")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(sent_away.read(), 60)
        assert caught.value.details() == "Too many pings"
        assert (reader.has_ended, reader.text) == (False, "one two ")
        side.assistant.may_go_on.set()
        assert (await reader.end(), reader.text) == (grpc.StatusCode.OK, "one two three")


def _silent() -> grpc.GenericRpcHandler:
    async def stream(_request: bytes, _call: object) -> AsyncIterator[bytes]:
        await asyncio.sleep(100)
        yield b""

    handlers: Any = {"Stream": grpc.unary_stream_rpc_method_handler(stream)}
    return grpc.method_handlers_generic_handler("silent", handlers)
