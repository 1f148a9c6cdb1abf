"""The system under test: one PostgreSQL, two servers, one bridge, a model, and a relay on each connection between."""

from __future__ import annotations

import asyncio
import signal
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from tests.database import temporary_folder
from tests.fake_openai import FakeOpenAI, Say
from tests.faults.ledger import Ledger
from tests.faults.postgres import Postgres, open_postgres
from tests.faults.program import Program, free_port
from tests.faults.relay import Relay, to_port, to_unix
from tests.faults.violation import ViolationError
from tests.unlimited import UNLIMITED

LEASE = 2.0
GRACE = 2.0
HEARTBEAT = 0.5
MODEL_DELAY = 0.05
"""Seconds between two tokens of the model: five of them are the 250 ms in which it must stop."""

_SERVER = {
    "ENVIRONMENT": "development",
    **UNLIMITED,
    "CHATKIT_SERVER": "tests.faults.assistant:create",
    "LEASE_SECONDS": f"{LEASE:g}",
    "RUN_GRACE_SECONDS": f"{GRACE:g}",
    "MODEL_NAME": "fake",
    "SHUTDOWN_GRACE_SECONDS": "1",
}
_BRIDGE = {"HEARTBEAT_SECONDS": f"{HEARTBEAT:g}", "SHUTDOWN_GRACE_SECONDS": "1"}
_READY_SECONDS = 30.0
_CHANNEL = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


@dataclass
class Server:
    """One of the servers. `bridge_side` leads to it, `database_side` from it to PostgreSQL."""

    program: Program
    bridge_side: Relay
    database_side: Relay
    channel: grpc.aio.Channel


@dataclass
class Rig:
    """The running system.

    settings: what the servers are set to beyond the usual.
    """

    folder: Path
    postgres: Postgres
    model: FakeOpenAI
    servers: tuple[Server, Server]
    bridge: Program
    ledger: Ledger
    settings: dict[str, str] = field(default_factory=dict)
    _restarts: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _users: count[int] = field(default_factory=count)

    def new_user(self) -> str:
        """Somebody who has no threads yet."""
        return f"user-{next(self._users)}"

    @property
    def programs(self) -> tuple[Program, ...]:
        return (*(server.program for server in self.servers), self.bridge)

    @property
    def lease(self) -> float:
        return float(self.settings.get("LEASE_SECONDS", LEASE))

    @property
    def grace(self) -> float:
        return float(self.settings.get("RUN_GRACE_SECONDS", GRACE))

    @property
    def forgives(self) -> float:
        """Seconds before its death of which a killed server may lose what it said."""
        return 0.0 if self.settings.get("RUN_LOG") == "ahead" else 0.2

    def server_of(self, pid: int) -> Server:
        """The server that a process is, by what its assistant said of itself."""
        for server in self.servers:
            if server.program.pid == pid:
                return server
        raise ViolationError(f"expected an answer from one of {[s.program.pid for s in self.servers]}, got {pid}")

    def other_than(self, server: Server) -> Server:
        return self.servers[0] if server is self.servers[1] else self.servers[1]

    def start(self, program: Program) -> None:
        """Start a program that isn't running, and don't wait for it: `ready` does."""
        program.start(self._environment_of(program))
        self._restarts[program.name] = asyncio.create_task(program.accepts())

    async def ready(self) -> None:
        """Wait until all that should run answers."""
        for program in self.programs:
            if not program.is_running:
                self.start(program)
        restarts, self._restarts = self._restarts, {}
        await asyncio.gather(*restarts.values())
        await asyncio.gather(*(self._serves(server) for server in self.servers))
        await self._bridge_serves()

    async def configure(self, **settings: str) -> None:
        """Let both servers run with these settings beyond the usual, and no others."""
        await self.ready()
        if settings == self.settings:
            return
        self.settings = settings
        await asyncio.gather(*(server.program.close() for server in self.servers))
        await self.ready()

    async def mend(self) -> None:
        """Undo what may be left of a fault: relays, stopped processes, dead ones."""
        for server in self.servers:
            server.bridge_side.resume()
            server.database_side.resume()
        for program in self.programs:
            if program.is_running:
                program.send(signal.SIGCONT)
        if not self.postgres.is_running:
            await self.postgres.start()
        await self.ready()

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(program.tail() for program in self.programs)

    def _environment_of(self, program: Program) -> dict[str, str]:
        listen = f"127.0.0.1:{program.port}"
        if program is self.bridge:
            ports = ",".join(f"127.0.0.1:{server.bridge_side.port}" for server in self.servers)
            return {**_BRIDGE, "BRIDGE_LISTEN": listen, "GRPC_TARGET": f"ipv4:{ports}"}
        (server,) = (server for server in self.servers if server.program is program)
        return {
            **_SERVER,
            "GRPC_LISTEN": listen,
            "DATABASE_URL": self.postgres.url_by_port(server.database_side.port),
            "MODEL_BASE_URL": self.model.base_url,
            **self.settings,
        }

    async def _serves(self, server: Server) -> None:
        check = server.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        deadline = time.monotonic() + _READY_SECONDS
        answer = "nothing"
        while time.monotonic() < deadline:
            try:
                status = (await check(health_pb2.HealthCheckRequest(), timeout=2)).status
            except grpc.aio.AioRpcError as error:
                answer = f"{error.code().name} {error.details()}"
            else:
                if status == health_pb2.HealthCheckResponse.SERVING:
                    return
                answer = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
            await asyncio.sleep(0.05)
        raise ViolationError(f"expected {server.program.name} to serve, got {answer}:\n{server.program.tail()}")

    async def _bridge_serves(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not await asyncio.to_thread(_is_healthy, self.bridge.port):
            if time.monotonic() > deadline:
                raise ViolationError(f"expected the bridge to serve:\n{self.bridge.tail()}")
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """End all processes."""
        for restart in self._restarts.values():
            restart.cancel()
        await asyncio.gather(*(program.close() for program in self.programs))


@asynccontextmanager
async def open_rig(**settings: str) -> AsyncIterator[Rig]:
    """Run the system while the context is open."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        postgres = await stack.enter_async_context(open_postgres(folder))
        model = await stack.enter_async_context(FakeOpenAI((Say(tokens=2000, delay=MODEL_DELAY),)))
        servers = [await _open_server(stack, name, folder, postgres) for name in ("server-a", "server-b")]
        rig = Rig(
            folder=folder,
            postgres=postgres,
            model=model,
            servers=(servers[0], servers[1]),
            bridge=Program("bridge", "bridge", free_port(), folder),
            ledger=Ledger(postgres.url),
            settings=settings,
        )
        stack.push_async_callback(rig.close)
        await rig.ready()
        yield rig


async def _open_server(stack: AsyncExitStack, name: str, folder: Path, postgres: Postgres) -> Server:
    program = Program(name, "server", free_port(), folder)
    return Server(
        program=program,
        bridge_side=await stack.enter_async_context(Relay(to_port(program.port))),
        database_side=await stack.enter_async_context(Relay(to_unix(postgres.socket))),
        channel=await stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{program.port}", options=list(_CHANNEL))
        ),
    )


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/chatkit/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
