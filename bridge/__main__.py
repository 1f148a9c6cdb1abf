"""`python -m bridge`: the HTTP bridge alone, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import logging
import sys

from chatkit_grpc.environment import SettingsError
from chatkit_grpc.process import bound_socket, refuse, settle, start_logging, stop_with_parent

from bridge.app import create_app
from bridge.http_server import Server, http_config, notice_who_vanishes
from bridge.settings import Settings

log = logging.getLogger("bridge")


def main() -> int:
    """Exit with 2 where something must be set differently, with a sentence that says what."""
    try:
        settings = Settings.from_env()
        app = create_app(settings)
        listener = bound_socket("BRIDGE_LISTEN", settings.bridge_listen)
    except SettingsError as error:
        return refuse("bridge", error)
    notice_who_vanishes(listener)
    start_logging(settings.log_level, "bridge")
    if settings.log_level in {"DEBUG", "INFO"}:
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # at INFO it says what we say below
    log.info("HTTP on %s, server at %s", settings.bridge_listen, settings.grpc_target)
    settle()
    stop_with_parent()
    Server(http_config(app, settings), app.state.streams, settings.shutdown_grace_seconds).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
