"""`python -m bridge`: the HTTP bridge alone, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import sys
from types import FrameType

import uvicorn
from chatkit_grpc.environment import Address, SettingsError

from bridge.app import create_app
from bridge.settings import Settings

log = logging.getLogger("bridge")


class Server(uvicorn.Server):
    """Uvicorn, which on its way out lets the streams end before it closes their connections."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Remember the loop: a signal comes from outside of it."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop."""
        if self._loop is not None and self._drain is None:
            self._loop.call_soon_threadsafe(self._begin_to_drain)
        super().handle_exit(sig, frame)

    def _begin_to_drain(self) -> None:
        streams = self.config.loaded_app.app.state.streams
        self._drain = asyncio.create_task(streams.drain(self._settings.shutdown_grace_seconds))


def main() -> int:
    """Exit with 2 where something must be set differently, with a sentence that says what."""
    try:
        settings = Settings.from_env()
        listener = listen(settings.bridge_listen)
    except SettingsError as error:
        print(f"bridge: {error}", file=sys.stderr)  # noqa: T201 # for a person at a terminal
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if settings.log_level == "INFO":
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        log.info("HTTP on %s, server at %s", settings.bridge_listen, settings.grpc_target)
    config = uvicorn.Config(
        create_app(settings),
        http="httptools",
        access_log=False,
        log_config=None,
        server_header=False,
        # Longer than the streams take to end.
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_seconds) + 3,
    )
    Server(config, settings).run(sockets=[listener])
    return 0


def listen(address: Address) -> socket.socket:
    """Take the port. Raises SettingsError where somebody else has it."""
    listener = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(tuple(address))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise SettingsError(f"BRIDGE_LISTEN: can't listen on {address}: {error.strerror}; choose another") from None
    return listener


if __name__ == "__main__":
    sys.exit(main())
