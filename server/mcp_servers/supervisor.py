"""Keeps an MCP server connected."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass

from agents.mcp import MCPServerManager

from server.mcp_servers.plugged import PluggedServer
from server.mcp_servers.results import kind_of
from server.worker import Worker

_CLEANUP_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often what is done, in seconds.

    retry, longest_retry: after the first failure, and after many; in between twice as long each time.
    refresh: how often a server that says nothing is asked for its tools, which also shows whether it lives.
    pause: how long at least between two such questions.
    """

    retry: float = 0.5
    longest_retry: float = 60.0
    refresh: float = 30.0
    pause: float = 0.5


DEFAULT_RHYTHM = Rhythm()


class Supervisor(Worker):
    """Connects a server in the background, looks after it, and connects again what broke off.

    The Agents SDK's manager does the connecting, with its time-outs. Each server has a manager of its own: one for all
    does one thing after another, so that a server that hangs would keep the others from being connected again.
    """

    def __init__(self, server: PluggedServer, rhythm: Rhythm = DEFAULT_RHYTHM) -> None:
        super().__init__(f"MCP server {server.name}", self._keep)
        self._server = server
        self._rhythm = rhythm
        self._failures = 0

    async def _keep(self) -> None:
        manager = MCPServerManager(
            [self._server],
            connect_timeout_seconds=self._server.settings.connect_timeout_seconds,
            cleanup_timeout_seconds=_CLEANUP_SECONDS,
            suppress_cancelled_error=False,
        )
        try:
            while True:
                if await manager.connect_all():
                    await self._look_after()
                else:
                    self._report("can't be connected", manager.errors.get(self._server))
                await manager.cleanup_all()
                await asyncio.sleep(self._next_pause())
        finally:
            await manager.cleanup_all()

    async def _look_after(self) -> None:
        """Return once the server isn't well any more."""
        name, doubt = self._server.name, self._server.doubt
        log.info("the MCP server %s is connected", name)
        while True:
            try:
                async with asyncio.timeout(self._rhythm.refresh):
                    await doubt.wait()
            except TimeoutError:
                self._failures = 0  # it has been well for long enough
            doubt.clear()
            try:
                async with asyncio.timeout(self._server.settings.connect_timeout_seconds):
                    await self._server.refresh()
            except Exception as error:  # noqa: BLE001 # whatever it is, it is connected again
                self._report("is not well", error)
                return
            await asyncio.sleep(self._rhythm.pause)

    def _report(self, what: str, error: BaseException | None) -> None:
        log.warning("the MCP server %s %s: %s", self._server.name, what, kind_of(error) if error else "unknown")

    def _next_pause(self) -> float:
        seconds = min(self._rhythm.retry * 2.0 ** min(self._failures, 20), self._rhythm.longest_retry)
        self._failures += 1
        # Servers that lost the same thing at once don't all come back at once.
        return seconds * random.uniform(0.8, 1.2)  # noqa: S311 # no secret
