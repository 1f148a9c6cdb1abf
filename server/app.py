"""The server put together: the one place where everything is opened, and closed again in the right order."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from chatkit.server import ChatKitServer
from chatkit_grpc.environment import Address, SettingsError
from chatkit_grpc.process import bound_socket
from chatkit_grpc.services import SERVICES
from grpc_reflection.v1alpha import reflection

from server import sdk
from server.appending import Appending
from server.attachment_service import AttachmentService
from server.attachments.opening import open_attachments
from server.attachments.preview_keys import with_preview_keys
from server.auth.authenticator import open_authenticator
from server.auth.certificates import ServiceCertificates
from server.auth.interceptor import AuthInterceptor
from server.chat_service import ChatService
from server.context import RequestContext
from server.database import Database, open_beside, open_database
from server.failures import keep_words_out_of_the_log
from server.feedback import FeedbackLists
from server.health import HealthReporter
from server.limits.allowance import RunAllowance
from server.limits.at_once import AtOnce
from server.limits.calls import CallLimiter
from server.limits.overload import Overload
from server.limits.refusals import too_many_streams
from server.retention import Retention
from server.row_security import with_row_security
from server.rpc import ServiceAdapter
from server.run_service import RunService
from server.runs.in_progress import InProgress
from server.runs.runs import Runs
from server.runs.starting import Starting
from server.runs.thread_watch import ThreadWatch
from server.runs.watching import Watching
from server.search.search import Search
from server.settings import Settings
from server.store import PostgresStore
from server.thread_service import ThreadService
from server.tls import server_credentials

Factory = Callable[[PostgresStore], ChatKitServer[RequestContext]]
"""Makes the ChatKitServer that answers. What it may have beside the SDK's methods:

`aopen()`, called at the start, and `aclose()`, at the end; `health_of_parts()`, names of parts and whether they are
well, for grpc.health.v1; `passes_authorization`, whether it has MCP servers that are called with users' own tokens.
"""

_RESERVED_CONNECTIONS = 3
"""One for the log, two for the heartbeat: a server that can't tell that it lives loses its runs."""
_LAST_WORDS_SECONDS = 1.0
"""How long calls may take to tell their ends once all runs have ended."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers calls.

    port: where it listens, also where the system chose it.
    store: the store that its ChatKitServer works on.
    database: what the store works on.
    runs: the answers that are being made.
    """

    port: int
    store: PostgresStore
    database: Database
    runs: Runs


@asynccontextmanager
async def open_server(settings: Settings, factory: Factory | None = None) -> AsyncIterator[RunningServer]:
    """Run a server until the context is left, which ends its runs with what they said stored.

    factory: makes the ChatKitServer; without one, settings.chatkit_server names it.
    Raises SettingsError for what the settings ask for and can't be had, DatabaseError without a database, and SDKError.
    """
    settings.check()
    sdk.check_version()
    keep_words_out_of_the_log()
    make_assistant = factory or load_factory(settings.chatkit_server)
    async with AsyncExitStack() as stack:
        credentials = server_credentials(settings)
        # Said in our words, and before the database is started; gRPC takes the port itself.
        bound_socket("GRPC_LISTEN", settings.grpc_listen).close()
        database = await stack.enter_async_context(open_database(settings))
        of_users = await with_row_security(database) if settings.row_level_security else database
        attachments = await stack.enter_async_context(
            open_attachments(database, of_users, settings.attachments, settings.public_url)
        )
        store = PostgresStore(of_users, attachments.attachments)
        assistant = await stack.enter_async_context(_open_assistant(make_assistant, store))
        reserved = await stack.enter_async_context(open_beside(database, settings, _RESERVED_CONNECTIONS))
        runs = await stack.enter_async_context(Runs(database, reserved, store, settings))
        watching = await stack.enter_async_context(Watching(runs))
        thread_watch = await stack.enter_async_context(ThreadWatch(runs, watching))
        await stack.enter_async_context(Retention(database, settings, attachments.sweep))
        authenticator = await stack.enter_async_context(
            open_authenticator(settings.auth, settings.environment, database)
        )
        calls = CallLimiter(database, settings.limits)
        overload = await stack.enter_async_context(Overload(settings.limits))
        certificates = ServiceCertificates(settings.auth.service_certificates)
        guard = AuthInterceptor(
            with_preview_keys(authenticator, attachments.keys),
            certificates,
            calls,
            AtOnce(settings.limits.max_user_streams, partial(too_many_streams, settings.limits)),
            seconds_to_ask=settings.limits.call_deadline_seconds,
            has_reflection=settings.has_reflection,
        )
        server = _make_server(settings, guard)
        health = HealthReporter(
            database,
            has_openai_key=settings.openai_api_key is not None,
            takes_dictation=sdk.takes_dictation(assistant),
            parts=getattr(assistant, "health_of_parts", dict),
        )
        health.add_to(server, SERVICES)
        starting = Starting(runs, settings.run_conflict, settings.limits, overload)
        allowance = RunAllowance(database, settings.limits)
        implementations = {
            "chatkit_grpc.v1.ChatService": ChatService(assistant, store, runs.run_store, starting, watching, allowance),
            "chatkit_grpc.v1.ThreadService": ThreadService(
                assistant,
                store,
                InProgress(runs),
                Appending(assistant, store, starting),
                thread_watch,
                Search(of_users),
                FeedbackLists(of_users, database),
                settings.limits.max_page_size,
            ),
            "chatkit_grpc.v1.RunService": RunService(runs, watching),
            "chatkit_grpc.v1.AttachmentService": AttachmentService(assistant, store),
        }
        adapter = ServiceAdapter(settings.limits, keeps_authorization=getattr(assistant, "passes_authorization", False))
        _add_services(server, settings, adapter, implementations)
        port = _bind(server, settings.grpc_listen, credentials)
        await server.start()
        stack.push_async_callback(_stop, server)
        stack.push_async_callback(_drain, runs, thread_watch, settings.shutdown_grace_seconds)
        await stack.enter_async_context(health)
        yield RunningServer(port, store, database, runs)


def load_factory(path: str) -> Factory:
    """Find the factory that "package.module:factory" names. Raises SettingsError."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise SettingsError(f"CHATKIT_SERVER: there is no module {error.name!r}, asked for by {path!r}") from error
    if not hasattr(module, name):
        raise SettingsError(f"CHATKIT_SERVER: {module_name} has no {name!r}")
    factory: Any = getattr(module, name)
    if not callable(factory):
        raise SettingsError(f"CHATKIT_SERVER: {path} is no function; expected one that takes the store")
    made: Factory = factory
    return made


@asynccontextmanager
async def _open_assistant(factory: Factory, store: PostgresStore) -> AsyncIterator[ChatKitServer[RequestContext]]:
    assistant = factory(store)
    if not isinstance(assistant, ChatKitServer):
        raise SettingsError(f"CHATKIT_SERVER: expected a ChatKitServer, the factory made a {type(assistant).__name__}")
    if assistant.store is not store:
        # Threads are listed and read from the store that was handed in: a second one would hide what is said.
        raise SettingsError("CHATKIT_SERVER: the ChatKitServer must keep the store that its factory is given")
    sdk.let_others_run(assistant)
    try:
        if open_ := getattr(assistant, "aopen", None):
            await open_()
        yield assistant
    finally:
        if close := getattr(assistant, "aclose", None):
            await close()


def _make_server(settings: Settings, guard: AuthInterceptor) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=[guard],
        options=[
            # A taken port is an error, and not a second server that gets half of the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", settings.max_request_bytes),
            ("grpc.max_send_message_length", -1),
            # A token may be large, and gRPC's own limit of 8 KiB drops calls at random up to 16.
            ("grpc.max_metadata_size", settings.limits.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", settings.limits.max_metadata_bytes),
            ("grpc.max_concurrent_streams", settings.limits.max_connection_streams),
            ("grpc.max_allowed_incoming_connections", settings.limits.max_connections),
            # A connection without a call is of no use for that long; its client makes another when it needs one.
            ("grpc.max_connection_idle_ms", 300_000),
            # Who connects has so long to say a first word; gRPC's own limit is two minutes.
            ("grpc.server_handshake_timeout_ms", 10_000),
            # A peer that vanished or froze is noticed in about 13 s; a client may ping as often as every 5 s.
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 3_000),
            ("grpc.http2.ping_timeout_ms", 3_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ],
    )


def _add_services(
    server: grpc.aio.Server, settings: Settings, adapter: ServiceAdapter, implementations: Mapping[str, object]
) -> None:
    server.add_generic_rpc_handlers(
        [adapter.handler(descriptor, implementations[name]) for name, descriptor in SERVICES.items()]
    )
    if settings.has_reflection:
        reflection.enable_server_reflection([*SERVICES, reflection.SERVICE_NAME], server)


def _bind(server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is not None:
            return server.add_secure_port(str(address), credentials)
        return server.add_insecure_port(str(address))
    except RuntimeError:
        if credentials is not None:
            raise SettingsError(
                f"GRPC_LISTEN, TLS_CERTIFICATE, TLS_KEY: can't listen on {address} with this certificate"
            ) from None
        raise SettingsError(f"GRPC_LISTEN: can't listen on {address}; choose another") from None


async def _drain(runs: Runs, thread_watch: ThreadWatch, grace: float) -> None:
    """Send those away whom another server can serve, and let the answers that are made here come to an end."""
    thread_watch.dismiss()
    await asyncio.shield(runs.drain(grace))


async def _stop(server: grpc.aio.Server) -> None:
    """Take no new calls, let those under way tell their ends, then end them."""
    await asyncio.shield(server.stop(_LAST_WORDS_SECONDS))
    log.info("stopped")
