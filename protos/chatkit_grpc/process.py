"""What both halves do as processes: take a port, log, refuse to start, and settle down."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading

from chatkit_grpc.environment import Address, SettingsError
from chatkit_grpc.redaction import RedactingFormatter

WITH_PARENT = "--with-parent"
"""The argument that ties a process to the one that holds the other end of its standard input."""


def bound_socket(setting: str, address: Address) -> socket.socket:
    """A socket bound to an address. Raises SettingsError, which names the setting, where that can't be."""
    bound = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(tuple(address))
    except OSError as error:
        bound.close()
        raise SettingsError(f"{setting}: can't listen on {address}: {error.strerror}; choose another") from None
    return bound


def start_logging(level: str, *packages: str) -> None:
    """Log to standard error, in lines that a person reads, and without what people say.

    packages: those for which the level counts. For all others it is INFO at least, since what they say at DEBUG holds
        bodies, headers and rows.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level="INFO" if level == "DEBUG" else level, handlers=[handler])
    for name in ("chatkit_grpc", *packages):
        logging.getLogger(name).setLevel(level)


def refuse(program: str, error: Exception) -> int:
    """Say why a program doesn't start. Returns its exit code."""
    print(f"{program}: {error}", file=sys.stderr)  # noqa: T201 # for a person at a terminal
    return 2


def stop_with_parent() -> None:
    """Where the first argument says so, take the end of standard input for SIGTERM: whoever started us is gone."""
    if sys.argv[1:2] == [WITH_PARENT]:
        threading.Thread(target=_wait_for_end_of_input, name="parent", daemon=True).start()


def _wait_for_end_of_input() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def settle() -> None:
    """Tell the garbage collector that what is loaded stays, and that what comes and goes by streams makes few cycles.

    Otherwise it walks through all modules now and then: 0.12 s in the server, in which no token moves. Afterwards a
    full collection takes next to nothing. What it gains in CPU is within the noise of `make bench`.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
