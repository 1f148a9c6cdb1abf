"""`python -m bridge`: the HTTP bridge alone, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import sys

import uvicorn
from chatkit_grpc.environment import Address, SettingsError

from bridge.app import create_app
from bridge.settings import Settings
from bridge.streams import Streams

log = logging.getLogger("bridge")


class Server(uvicorn.Server):
    """Uvicorn, which on its way out lets the streams end before it closes their connections."""

    def __init__(self, config: uvicorn.Config, streams: Streams, grace: float) -> None:
        super().__init__(config)
        self._streams = streams
        self._grace = grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections, and wait for the open ones while their streams end."""
        drain = asyncio.create_task(self._streams.drain(self._grace))
        try:
            await super().shutdown(sockets)
        finally:
            drain.cancel()


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
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # at INFO it says what we say below
    log.info("HTTP on %s, server at %s", settings.bridge_listen, settings.grpc_target)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http="httptools",
        access_log=False,
        log_config=None,
        server_header=False,
        # Nothing here asks for the client's address, and who may say it for somebody else is not settled.
        proxy_headers=False,
        # Longer than the streams take to end.
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_seconds) + 3,
    )
    Server(config, app.state.streams, settings.shutdown_grace_seconds).run(sockets=[listener])
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
