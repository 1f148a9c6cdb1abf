"""The bridge put together: routes, the channel to the server, and JSON for whatever isn't there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chatkit_grpc.services import DICTATION_KEY, MCP_PREFIX, OPENAI_KEY
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from bridge import headers
from bridge.acknowledgements import Acknowledgements
from bridge.attachments import AttachmentEndpoints
from bridge.backend import Backend
from bridge.channel import channel_credentials
from bridge.endpoint import Endpoint
from bridge.errors import json_error
from bridge.settings import Settings
from bridge.streams import Streams

WEB = Path(__file__).parent.parent / "clients" / "web"

_PREFLIGHT_SECONDS = 600


def create_app(settings: Settings | None = None) -> Starlette:
    """The bridge as a Starlette app. Without settings it reads the environment. Raises SettingsError.

    `app.state.streams` holds the open streams; whoever stops the process may drain them.
    """
    settings = settings or Settings.from_env()
    settings.check()
    credentials = channel_credentials(settings)
    streams = Streams()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        backend = Backend(settings, credentials)
        app.state.backend = backend
        acknowledgements = Acknowledgements(backend)
        app.state.acknowledgements = acknowledgements
        app.state.endpoint = Endpoint(backend, streams, acknowledgements, settings)
        app.state.attachments = AttachmentEndpoints(backend, settings)
        try:
            yield
        finally:
            await acknowledgements.close()
            await backend.close()

    app = Starlette(
        routes=[
            Route("/", page, methods=["GET"]),
            Mount("/static", WebFiles(directory=WEB)),
            Route("/api/chatkit", chatkit, methods=["POST"]),
            Route("/api/chatkit/health", health, methods=["GET"]),
            Route("/api/chatkit/attachments", upload_form, methods=["POST"]),
            Route("/api/chatkit/attachments/{attachment_id}", attachment, methods=["GET", "PUT"]),
            Route("/api/chatkit/attachments/{attachment_id}/preview", preview, methods=["GET"]),
        ],
        exception_handlers={HTTPException: http_error},
        middleware=_cross_origin(settings),
        lifespan=lifespan,
    )
    app.state.streams = streams
    return app


def _cross_origin(settings: Settings) -> list[Middleware]:
    """What lets pages of other origins call, where some are allowed; their cookies count too."""
    if not settings.allowed_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_credentials=True,
            allow_methods=["GET", "POST", "PUT"],
            allow_headers=headers.FROM_OTHER_ORIGINS,
            expose_headers=[*headers.RETRY, "WWW-Authenticate"],
            max_age=_PREFLIGHT_SECONDS,
        )
    ]


class WebFiles(StaticFiles):
    """The page's files, with the page's headers."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """A file."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(headers.PAGE)
        return response


async def chatkit(request: Request) -> Response:
    """ChatKit's endpoint."""
    endpoint: Endpoint = request.app.state.endpoint
    return await endpoint(request)


async def upload_form(request: Request) -> Response:
    """A new attachment."""
    attachments: AttachmentEndpoints = request.app.state.attachments
    return await attachments.upload_form(request)


async def attachment(request: Request) -> Response:
    """The bytes of an attachment, put or read."""
    attachments: AttachmentEndpoints = request.app.state.attachments
    return await (attachments.upload_body if request.method == "PUT" else attachments.download)(request)


async def preview(request: Request) -> Response:
    """A small version of a picture."""
    attachments: AttachmentEndpoints = request.app.state.attachments
    return await attachments.preview(request)


async def page(_request: Request) -> Response:
    """The page for people."""
    return FileResponse(WEB / "index.html", headers=headers.PAGE)


async def health(request: Request) -> Response:
    """Whether the system answers, for anybody who asks: 200 if it does, 503 if not."""
    backend: Backend = request.app.state.backend
    is_serving = await backend.is_serving()
    has_openai_key = bool(is_serving and await backend.is_serving(OPENAI_KEY))
    takes_dictation = bool(is_serving and await backend.is_serving(DICTATION_KEY))
    mcp_servers = await backend.parts(MCP_PREFIX) if is_serving else {}
    state = {True: "serving", False: "database unavailable", None: "unreachable"}[is_serving]
    return JSONResponse(
        {
            "status": "ok" if is_serving else "unavailable",
            "backend": state,
            "openai_key_configured": has_openai_key,
            "dictation": takes_dictation,
            "mcp_servers": {name: "connected" if is_up else "unavailable" for name, is_up in mcp_servers.items()},
            "session_endpoint_available": False,
            "store_implemented": True,
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        },
        status_code=200 if is_serving else 503,
        headers=headers.NOSNIFF,
    )


async def http_error(request: Request, error: Exception) -> Response:
    """What isn't there, or isn't there for this method, in the shape of all our errors."""
    if not isinstance(error, HTTPException):
        raise error
    code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "HTTP_ERROR")
    message = {404: f"There is nothing at {request.url.path}.", 405: f"{request.method} is not for this address."}
    return json_error(code, message.get(error.status_code, error.detail), {}, error.status_code, error.headers)
