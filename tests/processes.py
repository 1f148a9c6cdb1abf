"""Server and bridge as processes that tell all they can, for tests of what they print and how they bear up."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
from google.protobuf.descriptor import MethodDescriptor

from tests.faults.program import free_port
from tests.unlimited import UNLIMITED

ROOT = Path(__file__).parent.parent


class Half:
    """A server or a bridge as a process at DEBUG, with all that it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.printed = ""
        self.pid = process.pid
        self._process = process
        self._reading = asyncio.create_task(self._read())

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.printed += line.decode()

    async def prints(self, text: str) -> None:
        async with asyncio.timeout(40):
            while text not in self.printed:
                assert self._process.returncode is None, self.printed
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()
        await self._reading


@asynccontextmanager
async def half(module: str, **env: str) -> AsyncIterator[Half]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module), cwd=ROOT, env={**os.environ, "LOG_LEVEL": "DEBUG", **UNLIMITED, **env},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, limit=2**24,
    )  # fmt: skip
    running = Half(process)
    try:
        yield running
    finally:
        await running.stop()


class Both:
    """Server and bridge, and ways to talk to them."""

    def __init__(self, server: Half, bridge: Half, http: httpx.AsyncClient, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.bridge = bridge
        self.http = http
        self.channel = channel

    async def post(self, body: object, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.http.post(
            "/api/chatkit", content=content, headers={"content-type": "application/json", **headers}
        )

    async def call(self, method: MethodDescriptor, request: bytes, *metadata: tuple[str, str | bytes]) -> None:
        """Make a call, and read what comes. A thread is watched for a moment. Raises AioRpcError."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        if not method.server_streaming:
            unary: Any = self.channel.unary_unary(path)
            await unary(request, timeout=10, metadata=metadata)
            return
        stream: Any = self.channel.unary_stream(path)
        async for _ in stream(request, timeout=0.1 if method.name == "WatchThread" else 10, metadata=metadata):
            pass

    def say_nothing_of(self, *secrets: str) -> None:
        """Called once both have ended."""
        for half in (self.server, self.bridge):
            for secret in secrets:
                at = half.printed.find(secret)
                assert at < 0, half.printed[max(0, at - 1000) : at + 200]


@asynccontextmanager
async def both(database_url: str, **env: str) -> AsyncIterator[Both]:
    listen, web = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    settings = {"ENVIRONMENT": "development", "DATABASE_URL": database_url, "GRPC_LISTEN": listen, **env}
    async with half("server", **settings) as server:
        await server.prints("gRPC on")
        async with (
            half("bridge", GRPC_TARGET=listen, BRIDGE_LISTEN=web) as bridge,
            httpx.AsyncClient(base_url=f"http://{web}", timeout=30) as http,
            grpc.aio.insecure_channel(listen) as channel,
        ):
            await bridge.prints("HTTP on")
            await until_healthy(http)
            yield Both(server, bridge, http, channel)
            assert "DEBUG" in server.printed


async def until_healthy(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while True:
            with suppress(httpx.ConnectError):
                if (await http.get("/api/chatkit/health")).status_code == 200:
                    return
            await asyncio.sleep(0.05)
