"""A real MCP server at a URL, which says with which credentials it was called, and remembers in its sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from chatkit_grpc.environment import Address
from chatkit_grpc.process import bound_socket
from mcp.server.mcpserver import Context, MCPServer
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send


def header_of(call: Context[Any, Any], name: str) -> str:
    request: Any = call.request_context.request
    return str(request.headers.get(name))


def real_server() -> MCPServer[Any]:
    server: MCPServer[Any] = MCPServer("http")
    in_sessions: dict[str, str] = {}

    @server.tool()
    async def whoami(call: Context[Any, Any], seconds: float = 0.0) -> str:
        before = header_of(call, "authorization")
        await asyncio.sleep(seconds)
        assert header_of(call, "authorization") == before
        return before

    @server.tool()
    async def remember(call: Context[Any, Any], word: str) -> str:
        session = header_of(call, "mcp-session-id")
        in_sessions.setdefault(session, word)
        return in_sessions[session]

    @server.tool()
    async def nap(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "awake"

    @server.tool()
    async def large(characters: int) -> str:
        return "x" * characters

    return server


def app_of(server: MCPServer[Any], *, has_sessions: bool) -> ASGIApp:
    """A server as it is, or as most are: of the protocol before 2026, which has sessions."""
    app = server.streamable_http_app()
    if not has_sessions:
        return app

    async def without_discovery(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and Headers(scope=scope).get("mcp-method") == "server/discover":
            await Response(status_code=404)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return without_discovery


@asynccontextmanager
async def serve(app: ASGIApp, port: int = 0) -> AsyncIterator[int]:
    """Run an app. Yields the port."""
    listener = bound_socket("MCP", Address("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 65536
        await asyncio.sleep(0)


_ODD: dict[str, Callable[[], Response]] = {
    "endless": lambda: StreamingResponse(endless(), media_type="application/json"),
    "endless stream": lambda: StreamingResponse(endless(), media_type="text/event-stream"),
    "compressed": lambda: Response(
        b"\x1f\x8b", headers={"content-encoding": "gzip", "content-type": "application/json"}
    ),
    "elsewhere": lambda: Response(status_code=307, headers={"location": "http://169.254.169.254/latest"}),
    "refusing": lambda: Response(status_code=401),
    "nonsense": lambda: Response("<html>", media_type="text/html"),
}
ODD = (*_ODD, "hanging")


def odd_app(manner: str) -> Starlette:
    """Answers whatever it is asked in one of the manners of ODD."""

    async def answer(_: Request) -> Response:
        if manner == "hanging":
            await asyncio.sleep(1000)
        return _ODD[manner]()

    return Starlette(routes=[Route("/mcp", answer, methods=["GET", "POST", "DELETE"])])


def flooding_app() -> Starlette:
    """Has one tool, which sends notifications without end."""
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "flood", "version": "1"}}
    results: dict[str, Any] = {
        "initialize": about,
        "tools/list": {"tools": [{"name": "flood", "inputSchema": {"type": "object"}}]},
    }

    async def answer(request: Request) -> Response:
        message = await request.json() if request.method == "POST" else {}
        method = str(message.get("method"))
        if method == "tools/call":
            return StreamingResponse(notifications(), media_type="text/event-stream")
        if method in results:
            return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "result": results[method]})
        return Response(status_code=202 if method == "notifications/initialized" else 405)

    async def notifications() -> AsyncIterator[bytes]:
        said = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}
        while True:
            yield f"event: message\ndata: {json.dumps(said)}\n\n".encode() * 10
            await asyncio.sleep(0)

    return Starlette(routes=[Route("/mcp", answer, methods=["GET", "POST", "DELETE"])])
