"""The whole system for a test: a server on a database of its own, and a bridge before it, both over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import grpc
import httpx
import uvicorn
from chatkit_grpc.environment import Address
from chatkit_grpc.process import bound_socket
from starlette.applications import Starlette

from bridge.app import create_app
from bridge.http_server import http_config
from bridge.settings import Settings as BridgeSettings
from server.app import Factory, RunningServer, open_server
from server.auth.settings import AuthSettings
from server.settings import Settings as ServerSettings
from tests.issuer import AUDIENCE, SECRET
from tests.unlimited import NO_LIMITS

ANY_PORT = Address("127.0.0.1", 0)
IMPATIENT = ServerSettings(environment="development", limits=NO_LIMITS, run_grace_seconds=0)
"""Stops a run at once that nobody watches, where a test isn't about how long it goes on."""

BY_SECRET = AuthSettings(better_auth_secret=SECRET, jwt_issuer=AUDIENCE, jwt_audience=AUDIENCE)
PRODUCTION = ServerSettings(environment="production", auth=BY_SECRET, limits=NO_LIMITS, run_grace_seconds=0)
"""Knows users by their tokens only."""


@dataclass(frozen=True, slots=True)
class System:
    """A running system.

    url: the bridge's, without a path. target: the server's, for a channel.
    """

    server: RunningServer
    app: Starlette
    url: str
    target: str
    http: httpx.AsyncClient
    channel: grpc.aio.Channel


@asynccontextmanager
async def open_system(
    database_url: str,
    factory: Factory | None = None,
    *,
    server: ServerSettings | None = None,
    bridge: BridgeSettings | None = None,
) -> AsyncIterator[System]:
    """Run a system; the settings given count but for addresses and database."""
    settings = replace(server or IMPATIENT, database_url=database_url, grpc_listen=ANY_PORT)
    async with open_server(settings, factory) as running:
        target = f"127.0.0.1:{running.port}"
        async with (
            open_bridge(target, bridge) as (url, app),
            httpx.AsyncClient(base_url=url, timeout=30) as http,
            grpc.aio.insecure_channel(target) as channel,
        ):
            yield System(running, app, url, target, http, channel)


@asynccontextmanager
async def open_bridge(target: str, settings: BridgeSettings | None = None) -> AsyncIterator[tuple[str, Starlette]]:
    """Run a bridge before a server that may or may not be there."""
    settings = replace(settings or BridgeSettings(shutdown_grace_seconds=0), grpc_target=target)
    app = create_app(settings)
    listener = bound_socket("BRIDGE_LISTEN", ANY_PORT)
    server = uvicorn.Server(http_config(app, settings))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app
    finally:
        await app.state.streams.drain(0)
        server.should_exit = True
        await serving
