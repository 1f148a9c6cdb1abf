"""A half of the system as a real process, which can be killed, stopped, resumed and started again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import psutil
from chatkit_grpc.process import WITH_PARENT

from tests.faults.violation import ViolationError

ROOT = Path(__file__).parent.parent.parent
_START_LIMIT = 60.0
_STOP_LIMIT = 30.0
_TAIL = 2000
_PORTS = range(20_000, 30_000)
# What somebody has set for a server of their own isn't meant for these.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "SYSTEMROOT")


def free_port() -> int:
    """A port that nobody uses, and that the system gives to nobody who asks for any."""
    for port in random.sample(_PORTS, 100):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise ViolationError(f"expected a free port in {_PORTS}")


class Program:
    """`python -m MODULE` with its output in a file. It ends by itself where the test is gone."""

    def __init__(self, name: str, module: str, port: int, folder: Path) -> None:
        self.name = name
        self.port = port
        self._module = module
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def rss(self) -> int:
        """Resident bytes."""
        return psutil.Process(self.pid).memory_info().rss

    def start(self, environment: Mapping[str, str]) -> None:
        """Start it anew; `accepts` says when it is there."""
        assert not self.is_running
        inherited = {key: value for key, value in os.environ.items() if key in _KEPT}
        with self._log.open("ab") as log:
            log.write(f"--- started, {datetime.now():%H:%M:%S}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, WITH_PARENT],
                cwd=ROOT,
                env={**inherited, **environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the suite, which then ends them itself.
                start_new_session=True,
            )

    async def accepts(self) -> None:
        """Wait until somebody listens on its port. Raises ViolationError where it ends instead, or takes too long."""
        deadline = time.monotonic() + _START_LIMIT
        while not (self.is_running and await _connects(self.port)):
            if not self.is_running or time.monotonic() > deadline:
                raise ViolationError(f"{self.name} did not start:\n{self.tail()}")
            await asyncio.sleep(0.03)

    def send(self, number: signal.Signals) -> float:
        """Send a signal. When that was, by time.monotonic()."""
        assert self._process is not None
        moment = time.monotonic()
        if self._process.poll() is None:
            self._process.send_signal(number)
        return moment

    def kill(self) -> float:
        """kill -9, whatever state it is in. When that was."""
        moment = self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(_STOP_LIMIT)
            self._close_input()
        return moment

    async def ends(self, seconds: float = _STOP_LIMIT) -> int:
        """Wait for its end. Its exit code. Raises ViolationError."""
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                raise ViolationError(f"{self.name} did not end within {seconds:g} s:\n{self.tail()}")
            await asyncio.sleep(0.02)
        self._close_input()
        return self._process.returncode

    async def close(self) -> None:
        """End it, politely at first."""
        if not self.is_running:
            return
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            await self.ends()
        except ViolationError:
            self.kill()

    def tail(self) -> str:
        """The end of what it has printed."""
        if not self._log.exists():
            return f"{self.name} has not been started"
        return f"…{self._log.name}:\n{self._log.read_text(errors='replace')[-_TAIL:]}"

    def _close_input(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


async def _connects(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
