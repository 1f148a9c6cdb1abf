"""`make run`, and each half alone, as real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx
import psutil
import pytest
from chatkit_grpc.v1 import chat_service_pb2, chat_service_pb2_grpc

from tests.database import temporary_folder

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """A running program with all that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.output += line.decode()

    async def prints(self, text: str, seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while text not in self.output:
                assert self.process.returncode is None, self.output
                await asyncio.sleep(0.02)

    async def ends(self, seconds: float = 30) -> int:
        async with asyncio.timeout(seconds):
            code = await self.process.wait()
            await self._reading
        return code


async def ends(process: psutil.Process, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.02)


@asynccontextmanager
async def program(module: str, **env: str) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module,
        cwd=ROOT, env={**os.environ, "ENVIRONMENT": "development", **env},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    running = Program(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.terminate()
            await running.ends()


def addresses() -> dict[str, str]:
    return {"GRPC_LISTEN": f"127.0.0.1:{free_port()}", "BRIDGE_LISTEN": f"127.0.0.1:{free_port()}"}


async def test_make_run_starts_everything_and_leaves_nothing() -> None:
    with temporary_folder() as folder:
        env = {**addresses(), "DATA_DIR": str(folder / "data"), "OPENAI_API_KEY": "", "XIAOMI_API_KEY": ""}
        for start in range(2):
            began = time.monotonic()
            async with program("server.local", **env) as system:
                await system.prints("Ctrl-C stops it.")
                took = time.monotonic() - began
                for said in (env["BRIDGE_LISTEN"], env["GRPC_LISTEN"], "embedded PostgreSQL", "offline", "dev-user"):
                    assert said in system.output
                async with httpx.AsyncClient(base_url=f"http://{env['BRIDGE_LISTEN']}") as http:
                    assert (await http.get("/api/chatkit/health")).json()["status"] == "ok"
                    body = {"type": "threads.list", "params": {}}
                    assert len((await http.post("/api/chatkit", json=body)).json()["data"]) == start
                    say = {"content": [{"type": "input_text", "text": "What is 2 + 40?"}]}
                    body = {"type": "threads.create", "params": {"input": say}}
                    assert "42" in (await http.post("/api/chatkit", json=body)).text
                descendants = psutil.Process(system.process.pid).children(recursive=True)
                assert len(descendants) == 2
                postgres = int((folder / "data" / "postgres" / "postmaster.pid").read_text().split()[0])
                system.process.send_signal(signal.SIGINT)
                assert await system.ends() == 0
                assert "Stopped." in system.output
                assert "Traceback" not in system.output
                assert not [process for process in descendants if process.is_running()]
                async with asyncio.timeout(2):  # it removes its pid file a moment before it ends
                    while psutil.pid_exists(postgres):
                        await asyncio.sleep(0.02)
            assert start == 0 or took < 15, took  # 5 s on a machine with nothing else to do


async def test_two_systems_run_side_by_side(database_url: str) -> None:
    async with (
        program("server.local", DATABASE_URL=database_url, **addresses()) as first,
        program("server.local", DATABASE_URL=database_url, **addresses()) as second,
    ):
        await asyncio.gather(first.prints("Ctrl-C stops it."), second.prints("Ctrl-C stops it."))
        assert "PostgreSQL at" in first.output
        assert "embedded" not in first.output


async def test_a_half_that_can_not_start_stops_the_other() -> None:
    async with program("server.local", DATABASE_URL="postgresql://127.0.0.1:1/nowhere", **addresses()) as system:
        assert await system.ends() == 1
        assert "DATABASE_URL: can't connect to PostgreSQL at 127.0.0.1:1/nowhere" in system.output
        assert "The server ended" in system.output
        assert "Traceback" not in system.output


@pytest.mark.parametrize(("module", "name"), [("server", "GRPC_LISTEN"), ("bridge", "BRIDGE_LISTEN")])
async def test_a_port_already_taken_is_an_error_that_says_so(module: str, name: str, database_url: str) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with program(module, DATABASE_URL=database_url, **{name: address}) as half:
            assert await half.ends() == 2
            assert (
                half.output == f"{module}: {name}: can't listen on {address}: Address already in use; choose another\n"
            )


@pytest.mark.parametrize(
    ("module", "env", "said"),
    [
        ("server", {"GRPC_LISTEN": "50051"}, "GRPC_LISTEN: expected host:port such as 127.0.0.1:8000, got '50051'"),
        ("server", {"DATABASE_URL": "mysql://a:secret@b/c"}, "DATABASE_URL: expected postgresql://user@host/name"),
        ("server", {"DATABASE_POOL_SIZE": "0"}, "DATABASE_POOL_SIZE: "),
        ("server", {"CHATKIT_SERVER": "nothing"}, "CHATKIT_SERVER: expected package.module:factory"),
        ("server", {"CHATKIT_SERVER": "no.such:thing"}, "CHATKIT_SERVER: there is no module 'no'"),
        ("server", {"CHATKIT_SERVER": "server.assistant:nope"}, "CHATKIT_SERVER: server.assistant has no 'nope'"),
        ("server", {"ENVIRONMENT": "Dev"}, "ENVIRONMENT: expected development, production or"),
        ("server", {"ENVIRONMENT": "production"}, "BETTER_AUTH_URL: expected where Better Auth is"),
        ("server", {"BETTER_AUTH_SECRET": "secret"}, "BETTER_AUTH_SECRET: expected 32 bytes or more"),
        ("server.local", {"ENVIRONMENT": "staging"}, "BETTER_AUTH_URL: expected where Better Auth is"),
        ("server", {"LOG_LEVEL": "LOUD"}, "LOG_LEVEL: Must be one of: DEBUG, INFO, WARNING, ERROR."),
        ("server", {"MODEL_BASE_URL": "host/v1"}, "MODEL_BASE_URL: expected a URL such as https://host/v1/"),
        ("server", {"RUN_GRACE_SECONDS": "-0.5"}, "RUN_GRACE_SECONDS: expected 0 to 86400 seconds, or -1 for no end"),
        ("server", {"RUN_CONFLICT": "queue"}, "RUN_CONFLICT: Must be one of: interrupt, enqueue, reject."),
        ("server", {"RUN_LOG": "beside"}, "RUN_LOG: Must be one of: behind, ahead."),
        ("server", {"RUN_LOG_TTL_SECONDS": "0"}, "RUN_LOG_TTL_SECONDS: "),
        ("server", {"LEASE_SECONDS": "1"}, "LEASE_SECONDS: "),
        ("server", {"THREAD_TTL_DAYS": "0"}, "THREAD_TTL_DAYS: expected more than 0 days"),
        ("bridge", {"BRIDGE_LISTEN": "nowhere:99999"}, "BRIDGE_LISTEN: expected host:port"),
        ("bridge", {"MAX_REQUEST_BYTES": "many"}, "MAX_REQUEST_BYTES: Not a valid integer."),
        ("bridge", {"HEARTBEAT_SECONDS": "0"}, "HEARTBEAT_SECONDS: "),
        ("bridge", {"GRPC_TARGET": "http://127.0.0.1:50051"}, "GRPC_TARGET: expected host:port"),
        ("bridge", {"GRPC_TARGET": "localhost:99999"}, "GRPC_TARGET: expected host:port"),
        ("server.local", {"GRPC_LISTEN": "127.0.0.1:0"}, "GRPC_LISTEN: expected a port other than 0"),
    ],
)
async def test_a_wrong_setting_is_named(module: str, env: dict[str, str], said: str) -> None:
    async with program(module, **env) as half:
        assert await half.ends() == 2
        assert said in half.output
        assert "secret" not in half.output
        assert "Traceback" not in half.output


async def test_a_bridge_that_is_told_to_stop_ends_its_streams_with_a_word(database_url: str) -> None:
    env = {**addresses(), "SHUTDOWN_GRACE_SECONDS": "0.5", "ENVIRONMENT": "development", "DATABASE_URL": database_url}
    async with (
        program("server", **env, CHATKIT_SERVER="tests.scripted:ScriptedServer") as server,
        program("bridge", **env, GRPC_TARGET=env["GRPC_LISTEN"]) as bridge,
    ):
        await asyncio.gather(server.prints("gRPC on"), bridge.prints("HTTP on"))
        say = {"content": [{"type": "input_text", "text": "wait"}]}
        body = {"type": "threads.create", "params": {"input": say}}
        async with (
            httpx.AsyncClient(base_url=f"http://{env['BRIDGE_LISTEN']}", timeout=20) as http,
            http.stream("POST", "/api/chatkit", json=body, headers={"accept": "text/event-stream"}) as response,
        ):
            text = ""
            async for chunk in response.aiter_text():
                text += chunk
                if "two" in text and bridge.process.returncode is None:
                    bridge.process.send_signal(signal.SIGTERM)
        assert text.endswith('"allow_retry":true}\n\n')
        await bridge.ends()
        assert "Traceback" not in bridge.output


async def test_a_server_that_is_told_to_stop_twice_stops_once(database_url: str) -> None:
    env = {**addresses(), "DATABASE_URL": database_url}
    async with program("server", **env) as server:
        await server.prints("gRPC on")
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        assert await server.ends() == 0
        assert "Traceback" not in server.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_each_half_alone_ends_well_on_any_signal(number: signal.Signals, database_url: str) -> None:
    env = {**addresses(), "DATABASE_URL": database_url}
    async with program("server", **env) as server, program("bridge", **env) as bridge:
        await asyncio.gather(server.prints("gRPC on"), bridge.prints("HTTP on"))
        await asyncio.sleep(0.3)
        for half in (bridge, server):
            half.process.send_signal(number)
            assert await half.ends() == 0
            assert "Traceback" not in half.output


async def test_a_server_can_be_stopped_while_it_starts(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("lock table schema_migrations in access exclusive mode")
            async with program("server", DATABASE_URL=database_url, **addresses()) as server:
                await asyncio.sleep(4)
                assert "gRPC on" not in server.output
                server.process.send_signal(signal.SIGTERM)
                assert await server.ends() == 0
    finally:
        await connection.close()


async def test_whoever_kills_the_launcher_ends_the_rest() -> None:
    with temporary_folder() as folder:
        async with program("server.local", DATA_DIR=str(folder / "data"), **addresses()) as system:
            await system.prints("Ctrl-C stops it.")
            halves = psutil.Process(system.process.pid).children()
            postgres = psutil.Process(int((folder / "data/postgres/postmaster.pid").read_text().split()[0]))
            system.process.kill()
            await asyncio.gather(*(ends(process) for process in (*halves, postgres)))


async def test_a_killed_server_takes_its_database_with_it() -> None:
    with temporary_folder() as folder:
        async with program("server.local", DATA_DIR=str(folder / "data"), **addresses()) as system:
            await system.prints("Ctrl-C stops it.")
            halves = psutil.Process(system.process.pid).children()
            postgres = psutil.Process(int((folder / "data/postgres/postmaster.pid").read_text().split()[0]))
            next(half for half in halves if half.cmdline()[2:3] == ["server"]).kill()
            assert await system.ends() == 1
            assert "The server ended" in system.output
            await ends(postgres)


async def test_a_run_that_does_not_stop_does_not_stop_the_server_from_stopping(database_url: str) -> None:
    env = {**addresses(), "SHUTDOWN_GRACE_SECONDS": "0", "ENVIRONMENT": "development", "DATABASE_URL": database_url}
    async with program("server", **env, CHATKIT_SERVER="tests.scripted:ScriptedServer") as server:
        await server.prints("gRPC on")
        async with grpc.aio.insecure_channel(env["GRPC_LISTEN"]) as channel:
            request = chat_service_pb2.CreateThreadRequest()
            request.input.content.add().input_text.text = "stubborn"
            call: Any = chat_service_pb2_grpc.ChatServiceStub(channel).CreateThread(request)
            # From its first word on it takes no notice of a cancel; before that the core does.
            while not any(event.HasField("progress_update") for event in (await call.read()).batch.events):
                pass
            server.process.send_signal(signal.SIGTERM)
            assert await server.ends(40) == 1
    assert "1 runs did not stop" in server.output


async def test_a_proxy_of_the_environment_is_not_on_the_way(database_url: str) -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    async with program("server.local", DATABASE_URL=database_url, **addresses(), **proxy) as system:
        await system.prints("Ctrl-C stops it.")


async def test_make_run_does_not_take_somebody_else_for_itself(database_url: str) -> None:
    env = {**addresses(), "DATABASE_URL": database_url}
    async with program("server.local", **env) as first:
        await first.prints("Ctrl-C stops it.")
        for name, other in (("BRIDGE_LISTEN", "GRPC_LISTEN"), ("GRPC_LISTEN", "BRIDGE_LISTEN")):
            async with program("server.local", **{**env, **addresses(), name: env[name]}) as second:
                assert await second.ends() == 2
                assert f"{name}: can't listen on {env[name]}" in second.output
                assert other not in second.output
