"""Health, as grpc.health.v1 has it: SERVING only while the database answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import grpc
from chatkit_grpc.errors import DatabaseError
from chatkit_grpc.services import DICTATION_KEY, OPENAI_KEY
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from server.database import Database
from server.worker import Worker

_INTERVAL = 2.0

log = logging.getLogger(__name__)


class HealthReporter(Worker):
    """Asks the database every two seconds, and tells whoever asks or watches."""

    def __init__(self, database: Database, *, has_openai_key: bool, takes_dictation: bool) -> None:
        super().__init__("health", self._report_for_ever)
        self._database = database
        self._facts = {OPENAI_KEY: has_openai_key, DICTATION_KEY: takes_dictation}
        self._servicer = health.aio.HealthServicer()
        self._names: tuple[str, ...] = ()
        self._was_serving: bool | None = None

    def add_to(self, server: grpc.aio.Server, services: Iterable[str]) -> None:
        """Offer grpc.health.v1 for the server as a whole ("") and for each service."""
        self._names = ("", *services)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def __aenter__(self) -> Self:
        for name, is_so in self._facts.items():
            await self._servicer.set(name, _status(is_serving=is_so))
        await self._report()
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, tb)
        await self._servicer.enter_graceful_shutdown()

    async def _report_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            await self._report()

    async def _report(self) -> None:
        try:
            await self._database.ping()
            is_serving = True
        except DatabaseError:
            is_serving = False
        if is_serving is not self._was_serving:
            log.info("the database %s", "answers" if is_serving else "does not answer")
            self._was_serving = is_serving
        for name in self._names:
            await self._servicer.set(name, _status(is_serving=is_serving))


def _status(*, is_serving: bool) -> int:
    response = health_pb2.HealthCheckResponse
    return int(response.SERVING if is_serving else response.NOT_SERVING)
